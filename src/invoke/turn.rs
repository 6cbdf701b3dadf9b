//! One execution under a key over all replicas: whoever holds the key runs, the others wait for its reply.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::Error;
use super::attempt::ANSWER_MARGIN;
use super::idempotency::Key;
use crate::store::{Holder, KeyHolder, Store};

/// Between two looks whether another replica's call has ended; each is longer than the one before.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_millis(320);

pub(super) enum Turn {
    /// To run.
    Ours(Held),
    /// Another replica's call ended with this reply.
    Answered(String),
}

/// A key that is ours. Given back in the background if it is dropped: by a call that did not come to its end.
pub(super) struct Held {
    store: Store,
    /// `None`: it needs no giving back.
    key: Option<(Key, Holder)>,
}

impl Held {
    /// Others may run. If the store does not hear it, they may once it does again or this replica has ended.
    pub(super) async fn give_back(mut self) {
        if let Some((key, holder)) = self.key.take() {
            release(&self.store, &key, holder).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((key, holder)) = self.key.take() {
            let store = self.store.clone();
            tokio::spawn(async move { release(&store, &key, holder).await });
        }
    }
}

async fn release(store: &Store, key: &Key, holder: Holder) {
    if let Err(err) = store.release_key(&key.app, &key.trigger_type, &key.key, holder).await {
        tracing::warn!(app = %key.app, %err, "an idempotency key stays taken until this replica ends");
    }
}

/// Waits until the key is ours or another replica's reply is there, recorded at `since` or later.
///
/// # Errors
/// AT_CAPACITY: another replica's call outlasts the deadline. The store's.
pub(super) async fn turn(
    key: &Key,
    store: &Store,
    since: SystemTime,
    deadline: Option<Instant>,
) -> Result<Turn, Error> {
    if !store.is_shared() {
        return Ok(Turn::Ours(Held { store: store.clone(), key: None })); // We are the only one.
    }
    let latest = deadline.map(|deadline| deadline.checked_sub(ANSWER_MARGIN).unwrap_or(deadline));
    let mut pause = LOOK_MIN;
    loop {
        let holder = store.take_key(&key.app, &key.trigger_type, &key.key).await?;
        let held = match holder {
            KeyHolder::Ours(holder) => Some(Held { store: store.clone(), key: Some((key.clone(), holder)) }),
            // Whoever runs finds that out.
            KeyHolder::NoApp => return Ok(Turn::Ours(Held { store: store.clone(), key: None })),
            KeyHolder::Other => None,
        };
        // Read after the key was taken: whoever had it before has recorded its reply by then.
        if let Some(reply) = store.recorded_reply(&key.app, &key.trigger_type, &key.key, since).await? {
            return Ok(Turn::Answered(reply));
        }
        if let Some(held) = held {
            return Ok(Turn::Ours(held));
        }
        let next = Instant::now() + pause;
        if latest.is_some_and(|latest| latest < next) {
            return Err(Error::AtCapacity(
                "another replica still runs the first call with this idempotency_key".to_owned(),
            ));
        }
        sleep_until(next).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

//! One replica among others: it says that it lives, takes over from those that do not, and follows what the others change.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::serving::{self, Serving};
use crate::store::{self, Change, Changes, Store, TakenOver};

/// So many in the time after which a silent replica is given up, so that a slow database takes nobody's work.
const HEARTBEATS: u32 = 5;
/// Heartbeats: counting takes longer the more events wait.
const RECOUNT_EVERY: u64 = 10;
/// Between two looks at whether a notification was missed.
const DIGEST_INTERVAL: Duration = Duration::from_millis(500);
/// For the version that another replica activated to be loaded here, before callers have to wait for it: all serve it within a second.
const LOAD_PATIENCE: Duration = Duration::from_millis(400);

/// Takes this process's place among the replicas. Of a store that is nobody else's, everything left over is ours to take over.
///
/// # Errors
/// The store cannot be written.
pub async fn join(store: &Store, unseen_max: Duration) -> Result<(), store::Error> {
    store.heartbeat(SystemTime::now()).await?;
    let unseen_for = if store.is_shared() { unseen_max } else { Duration::ZERO };
    say(store.take_over(unseen_for, SystemTime::now()).await?);
    Ok(())
}

/// Lives with the other replicas until it is stopped, which waits for what is under way: a transaction that is dropped at its commit
/// is rolled back, of which PostgreSQL warns. Without others there is nothing to do.
///
/// `forget_credentials`: what is remembered of them may be of one that was revoked.
pub async fn watch(
    store: Store,
    serving: Serving,
    unseen_max: Duration,
    enqueued: Arc<Notify>,
    forget_credentials: impl Fn() + Send + Sync,
    stop: CancellationToken,
) {
    if !store.is_shared() {
        return stop.cancelled().await;
    }
    let others = Others { store: &store, serving: &serving, enqueued: &enqueued, forget_credentials, stop: &stop };
    tokio::join!(others.listen(store.changes()), others.compare(), beat(&store, unseen_max, &stop));
}

async fn beat(store: &Store, unseen_max: Duration, stop: &CancellationToken) {
    let mut ticks = ticks(unseen_max / HEARTBEATS);
    for beat in 1_u64.. {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            return;
        }
        if let Err(err) = beat_once(store, unseen_max, beat % RECOUNT_EVERY == 0).await {
            tracing::warn!(%err, "failed to tell the other replicas that this one lives");
        }
    }
}

async fn beat_once(store: &Store, unseen_max: Duration, recount: bool) -> Result<(), store::Error> {
    if !store.heartbeat(SystemTime::now()).await? {
        tracing::warn!("the other replicas gave this one up, as it was silent for too long: they took its events over");
    }
    say(store.take_over(unseen_max, SystemTime::now()).await?);
    if recount { store.recount().await } else { Ok(()) }
}

fn say(taken: TakenOver) {
    let TakenOver { replicas, events, invocations, builds } = taken;
    if builds > 0 {
        tracing::warn!(abandoned = builds, "versions were being built when the service stopped; they are FAILED now");
    }
    if replicas + events + invocations > 0 {
        tracing::info!(replicas, events, invocations, "took over what a service that is gone left");
    }
}

/// What the others change, and what that means here.
struct Others<'a, F> {
    store: &'a Store,
    serving: &'a Serving,
    enqueued: &'a Notify,
    forget_credentials: F,
    stop: &'a CancellationToken,
}

impl<F: Fn() + Send + Sync> Others<'_, F> {
    async fn listen(&self, mut changes: Changes) {
        while let Some(change) = self.stop.run_until_cancelled(changes.next()).await {
            let followed = match change {
                Change::Events => {
                    self.enqueued.notify_one();
                    Ok(())
                }
                Change::App(app) => {
                    (self.forget_credentials)(); // They may have gone with it.
                    self.serving.follow(&app, LOAD_PATIENCE).await
                }
                Change::Credentials => {
                    (self.forget_credentials)();
                    Ok(())
                }
                Change::Anything => self.catch_up().await,
            };
            if let Err(err) = followed {
                tracing::warn!(%err, "failed to follow what another replica changed; trying again soon");
            }
        }
    }

    /// The safety net under the notifications.
    async fn compare(&self) {
        let (mut ticks, mut known) = (ticks(DIGEST_INTERVAL), None);
        while self.stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let digest = match self.store.digest().await {
                Ok(digest) => digest,
                Err(err) => {
                    tracing::debug!(%err, "cannot look for changes");
                    continue;
                }
            };
            if known.as_ref() != Some(&digest) && self.catch_up().await.is_ok() {
                known = Some(digest);
            }
        }
    }

    async fn catch_up(&self) -> Result<(), serving::Error> {
        (self.forget_credentials)();
        self.enqueued.notify_one();
        self.serving.follow_all(LOAD_PATIENCE).await
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

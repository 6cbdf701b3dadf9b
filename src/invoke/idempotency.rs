//! Same key within the window: one execution, one recorded outcome, also while the first still runs.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::model::{
    AppId, DecidedBy, Denial, FunctionFailure, Outcome, RawJson, Timings, TriggerType, Verdict, VersionNumber,
};
use crate::store::Store;

use super::attempt::ANSWER_MARGIN;
use super::turn::{Turn, turn};
use super::{Answer, Error, Ran};

/// That wait for the first one under a key.
const FOLLOWERS_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub app: AppId,
    pub trigger_type: TriggerType,
    pub key: String,
}

type Ended = Result<Answer, Error>;

/// Calls that run now, by their keys.
#[derive(Default)]
pub(super) struct InFlight {
    running: Mutex<HashMap<Key, Running>>,
}

/// The first call under a key.
#[derive(Clone)]
struct Running {
    result: Arc<watch::Sender<Option<Ended>>>,
    deadline: Option<Instant>,
}

/// Takes the key out again, also when the task that runs is dropped.
struct Entry<'a> {
    in_flight: &'a InFlight,
    key: Key,
    /// Taken when it ends.
    running: Option<Running>,
}

impl Entry<'_> {
    /// The key first: whoever is told can begin anew at once.
    fn end(mut self, result: Ended) {
        self.in_flight.running().remove(&self.key);
        if let Some(running) = self.running.take() {
            running.result.send_replace(Some(result));
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.in_flight.running().remove(&self.key);
        }
    }
}

enum Place<'a> {
    First(Entry<'a>),
    Follower {
        first: watch::Receiver<Option<Ended>>,
        /// It can wait longer than the first one.
        outlasts: bool,
    },
    Full,
}

impl InFlight {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `run`, or waits for the one that runs under this key, or answers what was recorded.
    pub(super) async fn once<F, R>(
        &self,
        key: Key,
        store: &Store,
        window: Duration,
        deadline: Option<Instant>,
        run: F,
    ) -> Ended
    where
        F: FnOnce() -> R,
        R: Future<Output = Ended>,
    {
        loop {
            match self.enter(&key, deadline) {
                Place::First(entry) => {
                    let result = recorded_or_run(&key, store, window, deadline, run).await;
                    entry.end(result.clone());
                    return result;
                }
                Place::Follower { first, outlasts } => {
                    let result = wait_for(first, deadline).await;
                    // What the first one had no time for is not what this one asked. Each round is led by somebody with more time.
                    if !outlasts || is_settled(&result) {
                        return result;
                    }
                }
                Place::Full => {
                    let message = "too many calls wait for the first one with this idempotency_key";
                    return Err(Error::AtCapacity(message.to_owned()));
                }
            }
        }
    }

    fn enter(&self, key: &Key, deadline: Option<Instant>) -> Place<'_> {
        let mut running = self.running();
        if let Some(Running { result, deadline: firsts }) = running.get(key) {
            if result.receiver_count() >= FOLLOWERS_MAX {
                return Place::Full;
            }
            let outlasts = firsts.is_some_and(|firsts| deadline.is_none_or(|deadline| deadline > firsts));
            return Place::Follower { first: result.subscribe(), outlasts };
        }
        let first = Running { result: Arc::new(watch::Sender::new(None)), deadline };
        running.insert(key.clone(), first.clone());
        Place::First(Entry { in_flight: self, key: key.clone(), running: Some(first) })
    }
}

fn is_settled(result: &Ended) -> bool {
    match result {
        Ok(Answer::Ran(ran)) => ran.settled,
        Ok(Answer::Accepted { .. } | Answer::Skipped { .. }) => true,
        Err(err) => !matches!(err, Error::AtCapacity(_)),
    }
}

async fn wait_for(mut first: watch::Receiver<Option<Ended>>, deadline: Option<Instant>) -> Ended {
    let finished = async {
        let result = first.wait_for(Option::is_some).await.map_err(|_| Error::Internal)?;
        result.clone().unwrap_or(Err(Error::Internal))
    };
    match deadline {
        None => finished.await,
        Some(deadline) => {
            let latest = deadline.checked_sub(ANSWER_MARGIN).unwrap_or(deadline); // So that it hears this.
            timeout_at(latest, finished).await.unwrap_or_else(|_| {
                Err(Error::AtCapacity("the first call with this idempotency_key still runs".to_owned()))
            })
        }
    }
}

async fn recorded_or_run<F, R>(key: &Key, store: &Store, window: Duration, deadline: Option<Instant>, run: F) -> Ended
where
    F: FnOnce() -> R,
    R: Future<Output = Ended>,
{
    let now = SystemTime::now();
    let since = now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
    let recorded = store.recorded_reply(&key.app, &key.trigger_type, &key.key, since).await?;
    let turn = match recorded {
        Some(text) => Turn::Answered(text),
        None => turn(key, store, since, deadline).await?,
    };
    let held = match turn {
        Turn::Ours(held) => Some(held),
        Turn::Answered(text) => match serde_json::from_str::<Recorded>(&text).map(Ran::try_from) {
            Ok(Ok(ran)) => return Ok(Answer::Ran(ran)),
            _ => {
                tracing::error!(app = %key.app, "a recorded reply does not decode; the function runs again");
                None
            }
        },
    };
    let answer = run().await;
    if let Ok(Answer::Ran(ran)) = &answer {
        record(key, store, ran, now, since).await?;
    }
    if let Some(held) = held {
        held.give_back().await;
    }
    answer
}

/// Before the answer leaves: whoever saw it can rely on it.
async fn record(key: &Key, store: &Store, ran: &Ran, now: SystemTime, since: SystemTime) -> Result<(), Error> {
    if ran.settled {
        let text = serde_json::to_string(&Recorded::from(ran)).expect("plain data serializes");
        store.record_reply(&key.app, &key.trigger_type, &key.key, &text, now, since).await?;
    }
    Ok(())
}

/// [`Ran`], as it is stored.
#[derive(Serialize, Deserialize)]
struct Recorded {
    invocation_id: String,
    version: VersionNumber,
    outcome: RecordedOutcome,
    verdict: Verdict,
    decided_by: DecidedBy,
    cold_start: bool,
    timings: Timings,
}

#[derive(Serialize, Deserialize)]
enum RecordedOutcome {
    Result(String),
    Denied { reason: String, code: String, data: Option<String> },
    Failed(FunctionFailure),
}

impl From<&Ran> for Recorded {
    fn from(ran: &Ran) -> Self {
        let outcome = match &ran.outcome {
            Outcome::Result(json) => RecordedOutcome::Result(json.as_str().to_owned()),
            Outcome::Denied(denial) => RecordedOutcome::Denied {
                reason: denial.reason.clone(),
                code: denial.code.clone(),
                data: denial.data.as_ref().map(|data| data.as_str().to_owned()),
            },
            Outcome::Failed(failure) => RecordedOutcome::Failed(failure.clone()),
        };
        Self {
            invocation_id: ran.invocation_id.to_string(),
            version: ran.version,
            outcome,
            verdict: ran.verdict,
            decided_by: ran.decided_by,
            cold_start: ran.cold_start,
            timings: ran.timings,
        }
    }
}

impl TryFrom<Recorded> for Ran {
    type Error = crate::model::IdError;

    fn try_from(recorded: Recorded) -> Result<Self, Self::Error> {
        let outcome = match recorded.outcome {
            RecordedOutcome::Result(json) => Outcome::Result(RawJson::trusted(&json)),
            RecordedOutcome::Denied { reason, code, data } => {
                Outcome::Denied(Denial { reason, code, data: data.as_deref().map(RawJson::trusted) })
            }
            RecordedOutcome::Failed(failure) => Outcome::Failed(failure),
        };
        Ok(Self {
            invocation_id: recorded.invocation_id.parse()?,
            version: recorded.version,
            outcome,
            verdict: recorded.verdict,
            decided_by: recorded.decided_by,
            cold_start: recorded.cold_start,
            timings: recorded.timings,
            settled: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leads_and_a_bounded_number_follows() {
        let in_flight = InFlight::default();
        let (app, trigger_type) = ("shop".parse().expect("an id"), TriggerType::stored("UserReadMessage".to_owned()));
        let key = Key { app, trigger_type, key: "k".to_owned() };
        let soon = Instant::now() + Duration::from_secs(1);
        let Place::First(first) = in_flight.enter(&key, Some(soon)) else { panic!("nobody is there") };
        let followers: Vec<_> = (0..FOLLOWERS_MAX).map(|_| in_flight.enter(&key, None)).collect();
        assert!(followers.iter().all(|place| matches!(place, Place::Follower { outlasts: true, .. })));
        assert!(matches!(in_flight.enter(&key, None), Place::Full));
        drop(followers);
        assert!(matches!(in_flight.enter(&key, Some(soon)), Place::Follower { outlasts: false, .. }));
        first.end(Err(Error::Draining));
        let Place::First(next) = in_flight.enter(&key, None) else { panic!("it has ended") };
        assert!(matches!(in_flight.enter(&key, None), Place::Follower { outlasts: false, .. }));
        drop(next);
        assert!(in_flight.running().is_empty());
    }
}

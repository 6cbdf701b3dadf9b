//! Same key within the window: one execution, one recorded outcome, also while the first still runs.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::model::{
    AppId, DecidedBy, Denial, FunctionFailure, Outcome, RawJson, Timings, TriggerType, Verdict, VersionNumber,
};
use crate::store::Store;

use super::attempt::ANSWER_MARGIN;
use super::{Error, Ran};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub app: AppId,
    pub trigger_type: TriggerType,
    pub key: String,
}

type Shared = Option<Result<Ran, Error>>;

/// Calls that run now, by their keys.
#[derive(Default)]
pub(super) struct InFlight {
    running: Mutex<HashMap<Key, watch::Receiver<Shared>>>,
}

/// Takes the key out again, also when the task that runs is dropped.
struct Entry<'a> {
    in_flight: &'a InFlight,
    key: Key,
    result: watch::Sender<Shared>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.in_flight.running().remove(&self.key);
    }
}

impl InFlight {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Key, watch::Receiver<Shared>>> {
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
    ) -> Result<Ran, Error>
    where
        F: FnOnce() -> R,
        R: Future<Output = Result<Ran, Error>>,
    {
        let entry = match self.enter(key) {
            Ok(entry) => entry,
            Err(first) => return wait_for(first, deadline).await,
        };
        let result = recorded_or_run(&entry.key, store, window, run).await;
        entry.result.send_replace(Some(result.clone()));
        result
    }

    fn enter(&self, key: Key) -> Result<Entry<'_>, watch::Receiver<Shared>> {
        let mut running = self.running();
        if let Some(first) = running.get(&key) {
            return Err(first.clone());
        }
        let (result, receiver) = watch::channel(None);
        running.insert(key.clone(), receiver);
        Ok(Entry { in_flight: self, key, result })
    }
}

async fn wait_for(mut first: watch::Receiver<Shared>, deadline: Option<Instant>) -> Result<Ran, Error> {
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

async fn recorded_or_run<F, R>(key: &Key, store: &Store, window: Duration, run: F) -> Result<Ran, Error>
where
    F: FnOnce() -> R,
    R: Future<Output = Result<Ran, Error>>,
{
    let now = SystemTime::now();
    let since = now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
    if let Some(text) = store.recorded_reply(&key.app, &key.trigger_type, &key.key, since).await? {
        match serde_json::from_str::<Recorded>(&text).map(Ran::try_from) {
            Ok(Ok(ran)) => return Ok(ran),
            _ => tracing::error!(app = %key.app, "a recorded reply does not decode; the function runs again"),
        }
    }
    let ran = run().await?;
    let retryable = matches!(&ran.outcome, Outcome::Failed(failure) if failure.kind.is_retryable());
    if !retryable {
        // Before the answer leaves: whoever saw it can rely on it.
        let text = serde_json::to_string(&Recorded::from(&ran)).expect("plain data serializes");
        store.record_reply(&key.app, &key.trigger_type, &key.key, &text, now, since).await?;
    }
    Ok(ran)
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
        })
    }
}

//! One invocation: check the event → resolve the version → lease a worker → run → outcome, verdict and history.
//!
//! A call runs in a task of its own, so that it ends well (recorded, its lease returned) when the caller hangs up.

mod idempotency;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::history::History;
use crate::model::{
    AppId, Catalogue, DecidedBy, EventId, FailureKind, Function, FunctionFailure, Invocation, InvocationId, Outcome,
    RawJson, Timings, Trigger, TriggerType, Verdict, VersionNumber,
};
use crate::pool::{self, Lease};
use crate::serving::{self, Served, Serving};
use crate::store::{self, NewEvent, Store};
use crate::worker::StartError;

/// A pool that closed, or a worker that died before it began, is asked again so often.
const TRIES_MAX: u32 = 4;
/// The answer leaves so long before the caller's deadline, so that it arrives.
const ANSWER_MARGIN: Duration = Duration::from_millis(15);
/// A function is not begun with less time than this.
const RUN_MIN: Duration = Duration::from_millis(5);
const KEY_BYTES_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Settings {
    pub event_bytes_max: usize,
    /// For a worker, where the caller has no earlier deadline.
    pub wait_max: Duration,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
}

/// An event, as a caller reports it.
#[derive(Debug, Clone)]
pub struct Call {
    pub app: AppId,
    /// In any spelling.
    pub trigger_type: String,
    pub event: Bytes,
    pub idempotency_key: Option<String>,
    pub ordering_key: Option<String>,
    pub version: Option<VersionNumber>,
    /// The caller's, if it has one.
    pub deadline: Option<Instant>,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Ran(Ran),
    Accepted { event_id: EventId, version: VersionNumber, duplicate: bool },
    Skipped { reason: SkipReason, version: Option<VersionNumber> },
}

/// Why nothing runs for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    NoActiveVersion,
    NoFunction,
    FunctionDisabled,
}

impl SkipReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoActiveVersion => "NO_ACTIVE_VERSION",
            Self::NoFunction => "NO_FUNCTION",
            Self::FunctionDisabled => "FUNCTION_DISABLED",
        }
    }
}

/// A function ran, or should have.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    pub invocation_id: InvocationId,
    pub version: VersionNumber,
    pub outcome: Outcome,
    pub verdict: Verdict,
    pub decided_by: DecidedBy,
    pub cold_start: bool,
    pub timings: Timings,
}

/// The caller's mistake, or our own failure; a tenant's failure is an [`Outcome`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("unknown trigger type {given:?}: use one of {known}")]
    UnknownTrigger { given: String, known: String },
    #[error("event_json is not JSON: {0}")]
    NotJson(String),
    #[error("the event does not match the schema of {trigger_type}: {problem}")]
    SchemaMismatch { trigger_type: TriggerType, problem: String },
    #[error("event_json has {bytes} bytes; the limit is {limit}")]
    EventTooLarge { bytes: usize, limit: usize },
    #[error("{name} has {bytes} bytes; the limit is {KEY_BYTES_MAX}")]
    KeyTooLong { name: &'static str, bytes: usize },
    #[error(transparent)]
    Version(#[from] serving::Error),
    #[error("{0}")]
    AtCapacity(String),
    /// The machine or the sandbox failed, not the function.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
    #[error("the service is shutting down")]
    Draining,
    #[error("write the store: {0}")]
    Store(#[from] store::Error),
    #[error("an invocation's task failed")]
    Internal,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Invoker {
    shared: Arc<Shared>,
}

struct Shared {
    serving: Serving,
    store: Store,
    history: History,
    catalogue: Arc<Catalogue>,
    settings: Settings,
    running: TaskTracker,
    in_flight: idempotency::InFlight,
    /// Wakes the dispatcher.
    enqueued: Arc<tokio::sync::Notify>,
}

/// One attempt to run a function.
pub struct Attempt<'a> {
    pub served: Arc<Served>,
    pub function: &'a Function,
    pub event: RawJson,
    pub number: u32,
    pub event_id: Option<EventId>,
    pub deadline: Option<Instant>,
}

impl Attempt<'_> {
    /// Until the answer has to leave; `None`: as long as the function may.
    fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now() + ANSWER_MARGIN))
    }
}

impl Invoker {
    pub fn new(
        serving: Serving,
        store: Store,
        history: History,
        catalogue: Arc<Catalogue>,
        settings: Settings,
        enqueued: Arc<tokio::sync::Notify>,
    ) -> Self {
        let (running, in_flight) = (TaskTracker::new(), idempotency::InFlight::default());
        let shared = Shared { serving, store, history, catalogue, settings, running, in_flight, enqueued };
        Self { shared: Arc::new(shared) }
    }

    /// Reports an event: runs its function and waits (blocking trigger), or queues it (non-blocking).
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop a call that has begun.
    pub async fn call(&self, call: Call) -> Result<Answer, Error> {
        let this = self.clone();
        let task = self.shared.running.spawn(async move { this.serve(call).await });
        task.await.map_err(|err| {
            tracing::error!(%err, "an invocation's task panicked");
            Error::Internal
        })?
    }

    /// Resolves when nothing runs. New calls are not refused here: the API does that.
    pub async fn idle(&self) {
        self.shared.running.close();
        self.shared.running.wait().await;
    }

    async fn serve(self, call: Call) -> Result<Answer, Error> {
        let shared = &self.shared;
        let trigger = self.trigger(&call.trigger_type)?;
        let event = self.check_event(trigger, &call.event)?;
        check_key("idempotency_key", call.idempotency_key.as_deref())?;
        check_key("ordering_key", call.ordering_key.as_deref())?;
        let served = match call.version {
            Some(number) => Some(shared.serving.version(&call.app, number).await?),
            None => shared.serving.active(&call.app).await?,
        };
        let (served, function) = match runnable(served, &trigger.trigger_type) {
            Ok(found) => found,
            Err((reason, version)) => return Ok(Answer::Skipped { reason, version }),
        };
        if !trigger.blocking {
            return self.enqueue(call, &served, &function, event).await;
        }
        let trigger_type = &trigger.trigger_type;
        let run = || async {
            let deadline = call.deadline;
            let attempt = Attempt { served, function: &function, event, number: 1, event_id: None, deadline };
            self.attempt(attempt, call.version.is_none()).await
        };
        let ran = match &call.idempotency_key {
            None => run().await?,
            Some(key) => {
                let key =
                    idempotency::Key { app: call.app.clone(), trigger_type: trigger_type.clone(), key: key.clone() };
                let window = shared.settings.idempotency_window;
                shared.in_flight.once(key, &shared.store, window, call.deadline, run).await?
            }
        };
        Ok(Answer::Ran(ran))
    }

    fn trigger(&self, spelling: &str) -> Result<&Trigger, Error> {
        self.shared.catalogue.find(spelling).ok_or_else(|| {
            let known: Vec<_> = self.shared.catalogue.iter().map(|trigger| trigger.trigger_type.as_str()).collect();
            Error::UnknownTrigger { given: spelling.chars().take(80).collect(), known: known.join(", ") }
        })
    }

    fn check_event(&self, trigger: &Trigger, event: &[u8]) -> Result<RawJson, Error> {
        let limit = self.shared.settings.event_bytes_max;
        if event.len() > limit {
            return Err(Error::EventTooLarge { bytes: event.len(), limit });
        }
        let text = std::str::from_utf8(event).map_err(|err| Error::NotJson(err.to_string()))?;
        // A tree, for the schema only: what the function gets is the caller's text.
        let tree = serde_json::from_str(text).map_err(|err| Error::NotJson(err.to_string()))?;
        trigger.check_event(&tree).map_err(|problem| {
            let trigger_type = trigger.trigger_type.clone();
            Error::SchemaMismatch { trigger_type, problem }
        })?;
        Ok(RawJson::trusted(text))
    }

    async fn enqueue(&self, call: Call, served: &Served, function: &Function, event: RawJson) -> Result<Answer, Error> {
        let now = SystemTime::now();
        let queued = self.shared.store.enqueue(NewEvent {
            app: call.app,
            trigger_type: function.trigger_type.clone(),
            version: served.version.number,
            payload: event,
            ordering_key: call.ordering_key,
            idempotency_key: call.idempotency_key,
            due_at: now,
            enqueued_at: now,
        });
        let queued = queued.await?;
        self.shared.enqueued.notify_one();
        Ok(Answer::Accepted { event_id: queued.event_id, version: queued.version, duplicate: queued.duplicate })
    }

    /// Runs a function once, and records it. With `follow`, moves on to the active version if this one's pool closes meanwhile.
    ///
    /// # Errors
    /// `AtCapacity` where the function has no `on_overload`; `Draining`; the store's.
    pub async fn attempt(&self, attempt: Attempt<'_>, follow: bool) -> Result<Ran, Error> {
        let record = Record::new(&attempt);
        let mut served = Arc::clone(&attempt.served);
        let mut function = attempt.function.clone();
        let asked = Instant::now();
        for _ in 0..TRIES_MAX {
            match self.lease(&served, attempt.deadline, asked).await {
                // To begin now would end in a timeout, and cost the worker.
                Ok(_) if attempt.time_left().is_some_and(|left| left < RUN_MIN) => {
                    return self.overloaded(&record, &function, &served, &pool::Error::TimedOut, asked);
                }
                Ok(lease) => {
                    if let Some(ran) = self.run(lease, &record, &function, &served, &attempt, asked).await {
                        return Ok(ran);
                    }
                }
                Err(pool::Error::NotStarted(StartError::Init(failure))) => {
                    return Ok(self.not_run(&record, &function, &served, failure, asked));
                }
                Err(pool::Error::NotStarted(err)) => return Err(Error::NoWorker(err.to_string())),
                Err(err @ (pool::Error::QueueFull | pool::Error::TimedOut)) => {
                    return self.overloaded(&record, &function, &served, &err, asked);
                }
                Err(pool::Error::Retired) if follow => {
                    self.shared.serving.discard(&served);
                    let app = &served.version.app;
                    match runnable(self.shared.serving.active(app).await?, &function.trigger_type) {
                        Ok(found) => (served, function) = found,
                        Err(_) => return Err(Error::Draining),
                    }
                }
                Err(pool::Error::Retired) => {
                    self.shared.serving.discard(&served);
                    let version = &served.version;
                    served = self.shared.serving.version(&version.app, version.number).await?;
                }
            }
        }
        let message = "workers kept ending before they could begin this invocation";
        let failure = FunctionFailure::new(FailureKind::Collateral, "WorkerStopped", message);
        Ok(self.not_run(&record, &function, &served, failure, asked))
    }

    async fn lease(&self, served: &Served, deadline: Option<Instant>, asked: Instant) -> Result<Lease, pool::Error> {
        let patience = asked + self.shared.settings.wait_max;
        let deadline = deadline.map_or(patience, |deadline| patience.min(deadline));
        served.pool.acquire(deadline).await
    }

    /// `None`: the worker ended before it began.
    async fn run(
        &self,
        lease: Lease,
        record: &Record,
        function: &Function,
        served: &Served,
        attempt: &Attempt<'_>,
        asked: Instant,
    ) -> Option<Ran> {
        let queue = asked.elapsed();
        let cold = lease.cold();
        let timeout = attempt.time_left().map_or(function.timeout, |left| function.timeout.min(left));
        self.shared.history.started(record.row(served, None, cold.is_some(), Timings { queue, ..Timings::default() }));
        let request = pool::Request {
            trigger_type: function.trigger_type.clone(),
            invocation: record.id,
            attempt: attempt.number,
            event: record.event.clone(),
            timeout,
        };
        let reply = lease.run(request).await?;
        let timings = Timings { queue, init: cold.unwrap_or_default(), run: reply.run };
        let mut row = record.row(served, Some(reply.outcome.clone()), cold.is_some(), timings);
        row.cpu_time = reply.usage.cpu_time;
        row.peak_memory_bytes = reply.usage.peak_memory_bytes;
        self.shared.history.finished(row);
        Some(self.ran(record, function, served, reply.outcome, cold.is_some(), timings))
    }

    fn not_run(
        &self,
        record: &Record,
        function: &Function,
        served: &Served,
        failure: FunctionFailure,
        asked: Instant,
    ) -> Ran {
        let timings = Timings { queue: asked.elapsed(), ..Timings::default() };
        let cold_start = failure.kind == FailureKind::InitFailed;
        let outcome = Outcome::Failed(failure);
        self.shared.history.finished(record.row(served, Some(outcome.clone()), cold_start, timings));
        self.ran(record, function, served, outcome, cold_start, timings)
    }

    fn overloaded(
        &self,
        record: &Record,
        function: &Function,
        served: &Served,
        err: &pool::Error,
        asked: Instant,
    ) -> Result<Ran, Error> {
        if function.failure_policy.on_overload.is_none() {
            return Err(Error::AtCapacity(err.to_string()));
        }
        let failure = FunctionFailure::new(FailureKind::Overloaded, "Overloaded", err.to_string());
        Ok(self.not_run(record, function, served, failure, asked))
    }

    fn ran(
        &self,
        record: &Record,
        function: &Function,
        served: &Served,
        outcome: Outcome,
        cold_start: bool,
        timings: Timings,
    ) -> Ran {
        let decision = verdict::decide(&function.failure_policy, outcome);
        Ran {
            invocation_id: record.id,
            version: served.version.number,
            outcome: decision.outcome,
            verdict: decision.verdict,
            decided_by: decision.decided_by,
            cold_start,
            timings,
        }
    }
}

/// The enabled function for a trigger type, or why there is none.
pub fn runnable(
    served: Option<Arc<Served>>,
    trigger_type: &TriggerType,
) -> Result<(Arc<Served>, Function), (SkipReason, Option<VersionNumber>)> {
    let served = served.ok_or((SkipReason::NoActiveVersion, None))?;
    let number = Some(served.version.number);
    match served.version.function(trigger_type).cloned() {
        None => Err((SkipReason::NoFunction, number)),
        Some(function) if function.disabled => Err((SkipReason::FunctionDisabled, number)),
        Some(function) => Ok((served, function)),
    }
}

fn check_key(name: &'static str, key: Option<&str>) -> Result<(), Error> {
    match key {
        Some(key) if key.len() > KEY_BYTES_MAX => Err(Error::KeyTooLong { name, bytes: key.len() }),
        _ => Ok(()),
    }
}

/// What stays the same over an invocation's tries.
struct Record {
    id: InvocationId,
    trigger_type: TriggerType,
    attempt: u32,
    event_id: Option<EventId>,
    event: RawJson,
    created_at: SystemTime,
}

impl Record {
    fn new(attempt: &Attempt<'_>) -> Self {
        Self {
            id: InvocationId::new(),
            trigger_type: attempt.function.trigger_type.clone(),
            attempt: attempt.number,
            event_id: attempt.event_id,
            event: attempt.event.clone(),
            created_at: SystemTime::now(),
        }
    }

    fn row(&self, served: &Served, outcome: Option<Outcome>, cold_start: bool, timings: Timings) -> Invocation {
        Invocation {
            id: self.id,
            app: served.version.app.clone(),
            trigger_type: self.trigger_type.clone(),
            version: served.version.number,
            attempt: self.attempt,
            event_id: self.event_id,
            event: self.event.clone(),
            created_at: self.created_at,
            finished_at: outcome.is_some().then(SystemTime::now),
            outcome,
            cold_start,
            timings,
            cpu_time: Duration::ZERO,
            peak_memory_bytes: 0,
        }
    }
}

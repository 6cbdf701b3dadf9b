//! One invocation: check the event → resolve the version → lease a worker → run → outcome, verdict and history.
//!
//! A call runs in a task of its own, so that it ends well (recorded, its lease returned) when the caller hangs up.

mod attempt;
mod idempotency;
mod spans;
mod turn;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::history::History;
use crate::metrics;
use crate::model::{
    AppId, Catalogue, DecidedBy, EventId, Function, InvocationId, Outcome, RawJson, Timings, TraceContext, Trigger,
    TriggerType, Verdict, VersionNumber,
};
use crate::serving::{self, Served, Serving};
use crate::store::{self, DeadReason, Enqueued, NewEvent, Store};

pub use attempt::Attempt;

const KEY_BYTES_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Settings {
    pub event_bytes_max: usize,
    /// For a worker, where the caller has no earlier deadline.
    pub wait_max: Duration,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
    /// How far ahead an event may be scheduled.
    pub schedule_max: Duration,
    /// Functions that may lead to an event, one by another's doing.
    pub hops_max: u32,
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
    /// Non-blocking triggers: not before.
    pub deliver_at: Option<SystemTime>,
    /// Functions that led to it, one by another's doing.
    pub hops: u32,
    /// The caller's, if it has one.
    pub deadline: Option<Instant>,
    /// What it goes on with.
    pub trace: TraceContext,
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
    /// The function came to this end by itself, with all the time it may have. Else the same call may well end otherwise: there was no
    /// worker, it did not initialize, another invocation or the caller's own deadline cut the run short.
    pub settled: bool,
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
    #[error("{trigger_type} is a blocking trigger: its caller waits, so deliver_at means nothing")]
    ScheduledBlocking { trigger_type: TriggerType },
    #[error("deliver_at is more than {} ahead", humantime::format_duration(*limit))]
    TooFarAhead { limit: Duration },
    /// A blocking trigger's event; a non-blocking one's becomes a dead letter.
    #[error("{hops} functions led to this event, one by another's doing; the limit is {limit}, to end loops")]
    Loop { hops: u32, limit: u32 },
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
        let task = self.shared.running.spawn(async move { this.serve(call).await }.in_current_span());
        task.await.map_err(|err| {
            tracing::error!(%err, "an invocation's task panicked");
            Error::Internal
        })?
    }

    /// Queued events have come that nobody reported here.
    pub fn wake_dispatcher(&self) {
        self.shared.enqueued.notify_one();
    }

    /// Resolves when nothing runs. New calls are not refused here: the API does that.
    pub async fn idle(&self) {
        self.shared.running.close();
        self.shared.running.wait().await;
    }

    async fn serve(self, call: Call) -> Result<Answer, Error> {
        let shared = &self.shared;
        let (trigger, event) = self.check(&call.trigger_type, &call.event)?;
        check_key("idempotency_key", call.idempotency_key.as_deref())?;
        check_key("ordering_key", call.ordering_key.as_deref())?;
        if !trigger.blocking {
            return self.queue(call, &trigger.trigger_type, event).await;
        }
        if call.deliver_at.is_some() {
            return Err(Error::ScheduledBlocking { trigger_type: trigger.trigger_type.clone() });
        }
        if call.hops > shared.settings.hops_max {
            return Err(Error::Loop { hops: call.hops, limit: shared.settings.hops_max });
        }
        let Some(key) = call.idempotency_key.clone() else { return self.run_now(&call, trigger, event).await };
        let key = idempotency::Key { app: call.app.clone(), trigger_type: trigger.trigger_type.clone(), key };
        let window = shared.settings.idempotency_window;
        // Before anything else is looked up: a known key is answered although its function may be gone.
        shared.in_flight.once(key, &shared.store, window, call.deadline, || self.run_now(&call, trigger, event)).await
    }

    async fn run_now(&self, call: &Call, trigger: &Trigger, event: RawJson) -> Result<Answer, Error> {
        let (served, function) = match self.resolve(call, &trigger.trigger_type).await? {
            Ok(found) => found,
            Err((reason, version)) => return Ok(skipped(&call.app, reason, version)),
        };
        let counted = Arc::clone(&served.metrics);
        let attempt = Attempt {
            served,
            function: &function,
            event,
            number: 1,
            event_id: None,
            hops: call.hops,
            deadline: call.deadline,
            trace: Some(call.trace.clone()),
            others: Vec::new(),
        };
        let ran = self.attempt(attempt, call.version.is_none()).await?;
        counted.decided(ran.verdict, ran.decided_by);
        Ok(Answer::Ran(ran))
    }

    async fn resolve(&self, call: &Call, trigger_type: &TriggerType) -> Result<Runnable, Error> {
        let serving = &self.shared.serving;
        let served = match call.version {
            Some(number) => Some(serving.version(&call.app, number).await?),
            None => serving.active(&call.app).await?,
        };
        Ok(runnable(served, trigger_type))
    }

    /// An event for a trigger type, in any spelling.
    ///
    /// # Errors
    /// There is no such trigger type, or the event is none of it.
    pub fn check(&self, trigger_type: &str, event: &[u8]) -> Result<(&Trigger, RawJson), Error> {
        let trigger = self.trigger(trigger_type)?;
        Ok((trigger, self.check_event(trigger, event)?))
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

    async fn queue(&self, call: Call, trigger_type: &TriggerType, event: RawJson) -> Result<Answer, Error> {
        let app = call.app.clone();
        let refused = match self.resolve(&call, trigger_type).await {
            Ok(Ok((served, function))) => {
                return self.enqueue(call, &served, &function, event).await;
            }
            Ok(Err((reason, version))) => Ok((reason, version)),
            Err(err) => Err(err),
        };
        if let Some(key) = &call.idempotency_key
            && let Some(first) = self.shared.store.enqueued(&call.app, trigger_type, key).await?
        {
            return Ok(first.into()); // As with a blocking trigger: what was accepted stays accepted.
        }
        let (reason, version) = refused?;
        Ok(skipped(&app, reason, version))
    }

    async fn enqueue(&self, call: Call, served: &Served, function: &Function, event: RawJson) -> Result<Answer, Error> {
        let now = SystemTime::now();
        let Settings { schedule_max, hops_max, .. } = self.shared.settings;
        let due_at = call.deliver_at.unwrap_or(now).max(now);
        if due_at.duration_since(now).is_ok_and(|ahead| ahead > schedule_max) {
            return Err(Error::TooFarAhead { limit: schedule_max });
        }
        let dead = (call.hops > hops_max).then_some(DeadReason::Loop);
        let mut span = spans::enqueuing(&call.trace, &call.app, &function.trigger_type);
        let queued = self.shared.store.enqueue(NewEvent {
            app: call.app,
            trigger_type: function.trigger_type.clone(),
            version: served.version.number,
            payload: event,
            ordering_key: call.ordering_key,
            idempotency_key: call.idempotency_key,
            due_at,
            batch: function.batch,
            enqueued_at: now,
            hops: call.hops,
            trace: Some(span.context().clone()).filter(|trace| trace.onward),
            dead,
        });
        let queued = queued.await;
        spans::enqueued(&mut span, &queued);
        let queued = queued?;
        if !queued.duplicate {
            served.metrics.enqueued(&function.trigger_type);
            if let Some(reason) = dead {
                served.metrics.finished("dead");
                served.metrics.died(reason.as_str());
            }
        }
        self.shared.enqueued.notify_one();
        Ok(queued.into())
    }
}

impl From<Enqueued> for Answer {
    fn from(queued: Enqueued) -> Self {
        Self::Accepted { event_id: queued.event_id, version: queued.version, duplicate: queued.duplicate }
    }
}

/// A function of a version, or why there is none.
type Runnable = Result<(Arc<Served>, Function), (SkipReason, Option<VersionNumber>)>;

/// The enabled function for a trigger type, or why there is none.
pub fn runnable(served: Option<Arc<Served>>, trigger_type: &TriggerType) -> Runnable {
    let served = served.ok_or((SkipReason::NoActiveVersion, None))?;
    let number = Some(served.version.number);
    match served.version.function(trigger_type).cloned() {
        None => Err((SkipReason::NoFunction, number)),
        Some(function) if function.disabled => Err((SkipReason::FunctionDisabled, number)),
        Some(function) => Ok((served, function)),
    }
}

fn skipped(app: &AppId, reason: SkipReason, version: Option<VersionNumber>) -> Answer {
    metrics::app(app).skipped(reason.as_str());
    Answer::Skipped { reason, version }
}

fn check_key(name: &'static str, key: Option<&str>) -> Result<(), Error> {
    match key {
        Some(key) if key.len() > KEY_BYTES_MAX => Err(Error::KeyTooLong { name, bytes: key.len() }),
        _ => Ok(()),
    }
}

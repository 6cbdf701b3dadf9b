//! One attempt: lease a worker → run → outcome, and its row in the history.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::Instrument;

use crate::metrics;
use crate::model::{
    EventId, FailureKind, Function, FunctionFailure, Invocation, InvocationId, Outcome, RawJson, Timings, TraceContext,
    TraceId, TriggerType, decide,
};
use crate::pool::{self, Lease};
use crate::serving::Served;
use crate::traces::{Kind, Span};
use crate::worker::StartError;

use super::{Error, Invoker, Ran, runnable, spans};

/// So often a pool that closed is asked again; and so much oftener than it has workers, which may all have died before they began.
const TRIES_MAX: u32 = 4;
/// The answer leaves so long before the caller's deadline, so that it arrives.
pub(super) const ANSWER_MARGIN: Duration = Duration::from_millis(15);
/// A function is not begun with less time than this.
const RUN_MIN: Duration = Duration::from_millis(5);

/// One attempt to run a function.
pub struct Attempt<'a> {
    pub served: Arc<Served>,
    pub function: &'a Function,
    pub event: RawJson,
    pub number: u32,
    pub event_id: Option<EventId>,
    /// Functions that led to the event, one by another's doing.
    pub hops: u32,
    pub deadline: Option<Instant>,
    /// What it is a part of; `None`: of nothing that others know.
    pub trace: Option<TraceContext>,
    /// Of the other events that run together with this one.
    pub others: Vec<TraceContext>,
}

impl Attempt<'_> {
    /// Until the answer has to leave; `None`: as long as the function may.
    fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now() + ANSWER_MARGIN))
    }
}

impl Invoker {
    /// Runs a function once, and records it. With `follow`, moves on to the active version if this one's pool closes meanwhile.
    ///
    /// # Errors
    /// `AtCapacity` where the function has no `on_overload`; `Draining`; the store's.
    pub async fn attempt(&self, attempt: Attempt<'_>, follow: bool) -> Result<Ran, Error> {
        let _running = metrics::Running::new(&metrics::series().invocations_running);
        let (mut record, mut traced) = Record::begin(&attempt);
        let asked = Instant::now();
        let span = log_span(&attempt, &record);
        let ended = Box::pin(self.tries(&attempt, &mut record, follow, asked)).instrument(span.clone()).await;
        let _in_span = span.enter(); // What follows does not wait.
        spans::ended(&mut traced, &ended);
        if let Ok(ran) = &ended {
            let Ran { version, cold_start, timings, .. } = ran;
            tracing::debug!(%version, attempt = attempt.number, cold_start, run = ?timings.run, "an invocation ended");
        }
        if let Err(err) = &ended
            && record.begun
        {
            // A try said that it runs. It never did, and nothing else will say how that ended.
            let failure = FunctionFailure::new(FailureKind::Collateral, "NotRun", err.to_string());
            let timings = Timings { queue: asked.elapsed(), ..Timings::default() };
            let outcome = Outcome::Failed(failure);
            attempt.served.metrics.ended(&record.trigger_type, &outcome, false, &timings);
            let row = record.row(&attempt.served, Some(outcome), false, timings);
            self.shared.history.finished(row);
        }
        ended
    }

    async fn tries(
        &self,
        attempt: &Attempt<'_>,
        record: &mut Record,
        follow: bool,
        asked: Instant,
    ) -> Result<Ran, Error> {
        let mut served = Arc::clone(&attempt.served);
        let mut function = attempt.function.clone();
        for _ in 0..TRIES_MAX + served.version.limits.workers_max {
            match self.lease(&served, attempt.deadline, asked, &record.trace).await {
                // To begin now would end in a timeout, and cost the worker.
                Ok(_) if attempt.time_left().is_some_and(|left| left < RUN_MIN) => {
                    return self.overloaded(record, &function, &served, &pool::Error::TimedOut, asked);
                }
                Ok(lease) => {
                    if let Some(ran) = self.run(lease, record, &function, &served, attempt, asked).await {
                        return Ok(ran);
                    }
                }
                Err(pool::Error::NotStarted(StartError::Init(failure))) => {
                    return Ok(self.not_run(record, &function, &served, failure, asked));
                }
                Err(pool::Error::NotStarted(err)) => return Err(Error::NoWorker(err.to_string())),
                Err(err @ (pool::Error::QueueFull | pool::Error::TimedOut)) => {
                    return self.overloaded(record, &function, &served, &err, asked);
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
        Ok(self.not_run(record, &function, &served, failure, asked))
    }

    async fn lease(
        &self,
        served: &Served,
        deadline: Option<Instant>,
        asked: Instant,
        trace: &TraceContext,
    ) -> Result<Lease, pool::Error> {
        let waiting = Span::within(trace, Kind::Internal, "worker wait");
        let patience = asked + self.shared.settings.wait_max;
        // Whoever gets none has to hear that, too, and whoever gets one has to have time for it.
        let latest = deadline.map(|deadline| deadline.checked_sub(ANSWER_MARGIN + RUN_MIN).unwrap_or(asked));
        let lease = served.pool.acquire(latest.map_or(patience, |latest| patience.min(latest))).await;
        spans::waited(waiting, &lease);
        lease
    }

    /// `None`: the worker ended before it began.
    async fn run(
        &self,
        lease: Lease,
        record: &mut Record,
        function: &Function,
        served: &Served,
        attempt: &Attempt<'_>,
        asked: Instant,
    ) -> Option<Ran> {
        let queue = asked.elapsed();
        let cold = lease.cold();
        let timeout = attempt.time_left().map_or(function.timeout, |left| function.timeout.min(left));
        record.begun = true;
        self.shared.history.started(record.row(served, None, cold.is_some(), Timings { queue, ..Timings::default() }));
        let mut traced = Span::within(&record.trace, Kind::Internal, "run");
        let request = pool::Request {
            trigger_type: function.trigger_type.clone(),
            invocation: record.id,
            attempt: attempt.number,
            hops: attempt.hops,
            trace: traced.context().clone(),
            event: record.event.clone(),
            timeout,
        };
        let reply = lease.run(request).await;
        spans::ran(&mut traced, reply.as_ref());
        drop(traced);
        let reply = reply?;
        let timings = Timings { queue, init: cold.unwrap_or_default(), run: reply.run };
        let mut row = record.row(served, Some(reply.outcome.clone()), cold.is_some(), timings);
        row.cpu_time = reply.usage.cpu_time;
        row.peak_memory_bytes = reply.usage.peak_memory_bytes;
        self.shared.history.finished(row);
        let settled = match &reply.outcome {
            Outcome::Failed(failure) if failure.kind == FailureKind::TimedOut => timeout == function.timeout,
            Outcome::Failed(failure) => !failure.kind.is_retryable(),
            Outcome::Result(_) | Outcome::Denied(_) => true,
        };
        let ran = self.ran(record, function, served, reply.outcome, cold.is_some(), timings);
        Some(Ran { settled, ..ran })
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
        served.metrics.overloaded();
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
        served.metrics.ended(&function.trigger_type, &outcome, cold_start, &timings);
        let decision = decide(&function.failure_policy, outcome);
        Ran {
            invocation_id: record.id,
            version: served.version.number,
            outcome: decision.outcome,
            verdict: decision.verdict,
            decided_by: decision.decided_by,
            cold_start,
            timings,
            settled: false,
        }
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
    /// Its start was recorded.
    begun: bool,
    /// What its parts go on with.
    trace: TraceContext,
    /// Where others know that.
    trace_id: Option<TraceId>,
}

impl Record {
    /// With the span that is as long as it takes.
    fn begin(attempt: &Attempt<'_>) -> (Self, Span) {
        let id = InvocationId::new();
        let span = spans::begun(attempt, id);
        let record = Self {
            id,
            trigger_type: attempt.function.trigger_type.clone(),
            attempt: attempt.number,
            event_id: attempt.event_id,
            event: attempt.event.clone(),
            created_at: SystemTime::now(),
            begun: false,
            trace: span.context().clone(),
            trace_id: span.trace_id(),
        };
        (record, span)
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
            trace_id: self.trace_id,
        }
    }
}

/// On the lines that are logged on its behalf. A call's have the trace already.
fn log_span(attempt: &Attempt<'_>, record: &Record) -> tracing::Span {
    let app = &attempt.served.version.app;
    let span = tracing::info_span!("invocation", invocation_id = %record.id, %app, trace_id = tracing::field::Empty);
    if let (Some(_), Some(trace_id)) = (attempt.event_id, record.trace_id) {
        span.record("trace_id", tracing::field::display(trace_id));
    }
    span
}

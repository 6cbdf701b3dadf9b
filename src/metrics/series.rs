//! What is counted for the whole service.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, SharedString};

use super::declared::{
    CLAIMS_LOST, CLAIMS_TAKEN_OVER, EVENT_WAIT, EVENTS_CLAIMED, EVENTS_DEAD, EVENTS_OLDEST_DUE, EVENTS_QUEUED,
    EVENTS_RUNNING, HISTORY_MISSING, INVOCATIONS_RUNNING, MEMORY_BUDGET, MEMORY_RESERVED, PUBLISH_DURATION,
    PUBLISH_PHASE, PUBLISHES, PUBLISHES_RUNNING, REQUEST_DURATION, REQUESTS_SERVED, RESERVE_WORKERS, STORE_BATCH,
    STORE_CONNECTIONS, STORE_TRANSACTION_DURATION, STORE_TRANSACTIONS, STORE_UP, STORE_WAIT, WORKER_EVICTIONS,
    WORKER_REPLACEMENTS, WORKER_START_FAILURES, WORKERS_STARTED,
};

static SERIES: LazyLock<Series> = LazyLock::new(Series::new);

/// Those of this process.
pub fn series() -> &'static Series {
    &SERIES
}

/// Handles of what has no app's label.
pub struct Series {
    pub invocations_running: Gauge,
    pub workers_from_reserve: Counter,
    pub workers_afresh: Counter,
    pub evictions: Counter,
    pub reserve_workers: Gauge,
    pub memory_budget: Gauge,
    pub memory_reserved: Gauge,
    pub events_claimed: Counter,
    pub claims_taken_over: Counter,
    pub claims_lost: Counter,
    pub events_running: Gauge,
    pub events_queued: Gauge,
    pub events_dead: Gauge,
    pub events_oldest_due: Gauge,
    pub publishes_running: Gauge,
    pub store_up: Gauge,
    pub history_missing: Counter,
    event_wait: Histogram,
    store_begin: Histogram,
    queue_transactions: Transactions,
    history_transactions: Transactions,
}

/// Of one kind.
struct Transactions {
    committed: Counter,
    failed: Counter,
    duration: Histogram,
    batch: Histogram,
}

impl Series {
    fn new() -> Self {
        Self {
            invocations_running: INVOCATIONS_RUNNING.gauge(&[]),
            workers_from_reserve: WORKERS_STARTED.counter(&["reserve".into()]),
            workers_afresh: WORKERS_STARTED.counter(&["fresh".into()]),
            evictions: WORKER_EVICTIONS.counter(&[]),
            reserve_workers: RESERVE_WORKERS.gauge(&[]),
            memory_budget: MEMORY_BUDGET.gauge(&[]),
            memory_reserved: MEMORY_RESERVED.gauge(&[]),
            events_claimed: EVENTS_CLAIMED.counter(&[]),
            claims_taken_over: CLAIMS_TAKEN_OVER.counter(&[]),
            claims_lost: CLAIMS_LOST.counter(&[]),
            events_running: EVENTS_RUNNING.gauge(&[]),
            events_queued: EVENTS_QUEUED.gauge(&[]),
            events_dead: EVENTS_DEAD.gauge(&[]),
            events_oldest_due: EVENTS_OLDEST_DUE.gauge(&[]),
            publishes_running: PUBLISHES_RUNNING.gauge(&[]),
            store_up: STORE_UP.gauge(&[]),
            history_missing: HISTORY_MISSING.counter(&[]),
            event_wait: EVENT_WAIT.histogram(&[]),
            store_begin: STORE_WAIT.histogram(&[]),
            queue_transactions: Transactions::new("queue"),
            history_transactions: Transactions::new("history"),
        }
    }

    /// `cause`: `init`, `broken` or `stopped`.
    pub fn worker_start_failed(&self, cause: &'static str) {
        WORKER_START_FAILURES.counter(&[cause.into()]).increment(1);
    }

    /// `wear`: `age`, `jobs` or `memory`.
    pub fn worker_replaced(&self, wear: &'static str) {
        WORKER_REPLACEMENTS.counter(&[wear.into()]).increment(1);
    }

    /// An event was claimed for the first time, so long after it was due.
    pub fn event_waited(&self, span: Duration) {
        self.event_wait.record(span.as_secs_f64());
    }

    /// `outcome`: of a closed set.
    pub fn published(&self, outcome: &'static str, took: Duration) {
        PUBLISHES.counter(&[outcome.into()]).increment(1);
        PUBLISH_DURATION.histogram(&[outcome.into()]).record(took.as_secs_f64());
    }

    pub fn publish_phase(&self, phase: &'static str, took: Duration) {
        PUBLISH_PHASE.histogram(&[phase.into()]).record(took.as_secs_f64());
    }

    /// A call was answered. Both texts: of closed sets.
    pub fn served(&self, method: &str, code: &str, took: Duration) {
        let method = SharedString::from_owned(method.to_owned());
        REQUESTS_SERVED.counter(&[method.clone(), SharedString::from_owned(code.to_owned())]).increment(1);
        REQUEST_DURATION.histogram(&[method]).record(took.as_secs_f64());
    }

    /// So many requests were made durable together, or were not.
    pub fn queue_written(&self, requests: usize, took: Duration, committed: bool) {
        self.queue_transactions.note(requests, took, committed);
    }

    pub fn history_written(&self, rows: usize, took: Duration, committed: bool) {
        self.history_transactions.note(rows, took, committed);
    }

    pub fn store_begun(&self, took: Duration) {
        self.store_begin.record(took.as_secs_f64());
    }

    /// Connections of a pool now.
    pub fn store_connections(&self, pool: &'static str, idle: u32, busy: u32) {
        STORE_CONNECTIONS.gauge(&[pool.into(), "idle".into()]).set(idle);
        STORE_CONNECTIONS.gauge(&[pool.into(), "busy".into()]).set(busy);
    }
}

impl Transactions {
    fn new(kind: &'static str) -> Self {
        Self {
            committed: STORE_TRANSACTIONS.counter(&[kind.into(), "committed".into()]),
            failed: STORE_TRANSACTIONS.counter(&[kind.into(), "failed".into()]),
            duration: STORE_TRANSACTION_DURATION.histogram(&[kind.into()]),
            batch: STORE_BATCH.histogram(&[kind.into()]),
        }
    }

    fn note(&self, size: usize, took: Duration, committed: bool) {
        if committed { &self.committed } else { &self.failed }.increment(1);
        self.duration.record(took.as_secs_f64());
        self.batch.record(size as f64);
    }
}

/// Counted in a gauge as long as it lives.
pub struct Running(Gauge);

impl Running {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

//! Every metric that the service has: name, kind, labels, help. Names end in their unit; counters in `_total`.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, SharedString, with_recorder};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper ends of its buckets: summaries cannot be added up over replicas.
    Histogram(&'static [f64]),
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const METADATA: Metadata<'static> = Metadata::new("chatfn", Level::INFO, None);

impl Metric {
    /// `values`: of the labels, in their order.
    pub(super) fn counter(&self, values: &[SharedString]) -> Counter {
        with_recorder(|recorder| recorder.register_counter(&self.key(values), &METADATA))
    }

    pub(super) fn gauge(&self, values: &[SharedString]) -> Gauge {
        with_recorder(|recorder| recorder.register_gauge(&self.key(values), &METADATA))
    }

    pub(super) fn histogram(&self, values: &[SharedString]) -> Histogram {
        with_recorder(|recorder| recorder.register_histogram(&self.key(values), &METADATA))
    }

    fn key(&self, values: &[SharedString]) -> Key {
        debug_assert_eq!(self.labels.len(), values.len(), "labels of {}", self.name);
        let labels: Vec<_> =
            self.labels.iter().zip(values).map(|(name, value)| Label::new(*name, value.clone())).collect();
        Key::from_parts(self.name, labels)
    }
}

/// From half a millisecond, which a warm call takes, to the longest timeouts.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Of a transaction.
const STORE_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const PUBLISH_SECONDS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Retries may wait for an hour.
const WAIT_SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0];
const REQUESTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

macro_rules! declare {
    ($($id:ident = $name:literal, $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        $(pub const $id: Metric = Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)*
        /// In the order of the documentation.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

declare! {
    // Invocations: rate, errors, duration.
    INVOCATIONS = "chatfn_invocations_total", Kind::Counter, ["app", "trigger_type", "outcome"],
        "Attempts to run a function that ended, by outcome: result, denied or error.";
    INVOCATION_ERRORS = "chatfn_invocation_errors_total", Kind::Counter, ["app", "trigger_type", "kind"],
        "Attempts whose outcome is error, by its kind: THROWN, TIMED_OUT, OUT_OF_MEMORY, CRASHED, INIT_FAILED, BAD_RESULT, COLLATERAL or OVERLOADED.";
    INVOCATIONS_SKIPPED = "chatfn_invocations_skipped_total", Kind::Counter, ["app", "reason"],
        "Reported events for which nothing ran, by reason: NO_ACTIVE_VERSION, NO_FUNCTION or FUNCTION_DISABLED.";
    INVOCATIONS_OVERLOADED = "chatfn_invocations_overloaded_total", Kind::Counter, ["app"],
        "Attempts that got no worker in time: too many waited, or none was free.";
    VERDICTS = "chatfn_verdicts_total", Kind::Counter, ["app", "verdict", "decided_by"],
        "Verdicts of blocking triggers, and whether the function or the failure policy decided.";
    INVOCATION_QUEUE = "chatfn_invocation_queue_seconds", Kind::Histogram(SECONDS), ["app"],
        "From the call until it had a worker, initialization included.";
    INVOCATION_INIT = "chatfn_invocation_init_seconds", Kind::Histogram(SECONDS), ["app"],
        "Of cold starts: how long their worker took to initialize.";
    INVOCATION_RUN = "chatfn_invocation_run_seconds", Kind::Histogram(SECONDS), ["app"],
        "How long functions ran.";
    COLD_STARTS = "chatfn_cold_starts_total", Kind::Counter, ["app"],
        "Invocations that had to wait for a worker to initialize.";
    INVOCATIONS_RUNNING = "chatfn_invocations_running", Kind::Gauge, [],
        "Attempts under way: they wait for a worker, or run.";

    // Calls from outside.
    REQUESTS_SERVED = "chatfn_requests_total", Kind::Counter, ["method", "code"],
        "Calls that were answered, by method (of gRPC the path, else HTTP method and route) and code (of gRPC the number, else the HTTP status); of streams: how they began.";
    REQUEST_DURATION = "chatfn_request_seconds", Kind::Histogram(SECONDS), ["method"],
        "How long calls took; of streams: until they began.";

    // The pool.
    POOL_WORKERS = "chatfn_pool_workers", Kind::Gauge, ["app", "state"],
        "Workers of an app by state: starting, idle, busy or retiring.";
    POOL_WAITING = "chatfn_pool_waiting", Kind::Gauge, ["app"],
        "Invocations that wait for a worker.";
    WORKERS_STARTED = "chatfn_workers_started_total", Kind::Counter, ["source"],
        "Workers that became ready: from the reserve, or afresh.";
    WORKER_START_FAILURES = "chatfn_worker_start_failures_total", Kind::Counter, ["cause"],
        "Workers that did not become ready: init (the tenant's code), broken (the machine or the service) or stopped (nobody wanted it any more).";
    WORKER_EVICTIONS = "chatfn_worker_evictions_total", Kind::Counter, [],
        "Idle workers that ended because callers of other apps needed their memory.";
    WORKER_REPLACEMENTS = "chatfn_worker_replacements_total", Kind::Counter, ["wear"],
        "Workers that were replaced because of their age, their jobs or their memory.";
    RESERVE_WORKERS = "chatfn_reserve_workers", Kind::Gauge, [],
        "Workers in reserve: started, and nobody's yet.";
    MEMORY_BUDGET = "chatfn_memory_budget_bytes", Kind::Gauge, [],
        "Memory that all workers together may be promised.";
    MEMORY_RESERVED = "chatfn_memory_reserved_bytes", Kind::Gauge, [],
        "Memory that is promised to workers.";

    // The queue.
    EVENTS_ENQUEUED = "chatfn_events_enqueued_total", Kind::Counter, ["app", "trigger_type"],
        "Events of non-blocking triggers that were accepted, duplicates left out.";
    EVENTS_FINISHED = "chatfn_events_finished_total", Kind::Counter, ["app", "disposition"],
        "Events that left the queue: done, skipped or dead.";
    EVENT_RETRIES = "chatfn_event_retries_total", Kind::Counter, ["app"],
        "Attempts at events that failed and are tried again.";
    EVENT_RELEASES = "chatfn_event_releases_total", Kind::Counter, ["app"],
        "Claims that were given back, as nothing that is the function's fault kept the event from running.";
    DEAD_LETTERS = "chatfn_dead_letters_total", Kind::Counter, ["app", "reason"],
        "Events that became dead letters, by reason: ATTEMPTS_EXHAUSTED, TOO_OLD, LOOP or DAMAGED.";
    EVENT_WAIT = "chatfn_event_wait_seconds", Kind::Histogram(WAIT_SECONDS), [],
        "From the time that an event was due first until its first claim.";
    EVENTS_CLAIMED = "chatfn_events_claimed_total", Kind::Counter, [],
        "Events that were claimed, each time.";
    CLAIMS_TAKEN_OVER = "chatfn_claims_taken_over_total", Kind::Counter, [],
        "Claims of events whose attempt before has no end that anybody saw: its service was killed, or the claim expired.";
    CLAIMS_LOST = "chatfn_claims_lost_total", Kind::Counter, [],
        "Attempts that ended after somebody else had claimed their event; nothing was recorded.";
    EVENTS_RUNNING = "chatfn_events_running", Kind::Gauge, [],
        "Events that this replica has claimed and runs.";
    EVENTS_QUEUED = "chatfn_events_queued", Kind::Gauge, [],
        "Events in the queue that wait, are scheduled or run, of all apps and replicas.";
    EVENTS_DEAD = "chatfn_events_dead", Kind::Gauge, [],
        "Dead letters that are kept, of all apps.";
    EVENTS_OLDEST_DUE = "chatfn_events_oldest_due_age_seconds", Kind::Gauge, [],
        "How long the event that waits longest for a claim has been due; 0 if none is.";

    // Publishes.
    PUBLISHES = "chatfn_publishes_total", Kind::Counter, ["outcome"],
        "Publishes that ended: published, refused (the request), failed (installing, checking or verifying) or unavailable (the service, or a registry).";
    PUBLISH_DURATION = "chatfn_publish_seconds", Kind::Histogram(PUBLISH_SECONDS), ["outcome"],
        "How long publishes took, waiting for their turn included.";
    PUBLISH_PHASE = "chatfn_publish_phase_seconds", Kind::Histogram(PUBLISH_SECONDS), ["phase"],
        "How long each phase of a publish took.";
    PUBLISHES_RUNNING = "chatfn_publishes_running", Kind::Gauge, [],
        "Publishes under way, those that wait for their turn included.";

    // The store.
    STORE_TRANSACTIONS = "chatfn_store_transactions_total", Kind::Counter, ["kind", "outcome"],
        "Write transactions: queue (what is enqueued and finished) or history; committed or failed.";
    STORE_TRANSACTION_DURATION = "chatfn_store_transaction_seconds", Kind::Histogram(STORE_SECONDS), ["kind"],
        "How long a write transaction took, its wait for the connection included.";
    STORE_BATCH = "chatfn_store_batch_size", Kind::Histogram(REQUESTS), ["kind"],
        "Requests or rows that one write transaction made durable.";
    STORE_WAIT = "chatfn_store_begin_seconds", Kind::Histogram(STORE_SECONDS), [],
        "How long other write transactions waited for a connection and to begin.";
    STORE_CONNECTIONS = "chatfn_store_connections", Kind::Gauge, ["pool", "state"],
        "Connections to the database by pool (read, write) and state (idle, busy).";
    STORE_UP = "chatfn_store_up", Kind::Gauge, [],
        "1 if the store answered when the metrics were asked for last.";
    HISTORY_MISSING = "chatfn_history_missing_total", Kind::Counter, [],
        "Invocations and log lines that are missing from the history, as it was behind or could not be written.";

    // The process.
    BUILD_INFO = "chatfn_build_info", Kind::Gauge, ["version", "node"],
        "1; says which chatfn and which Node.js run.";
    DRAINING = "chatfn_draining", Kind::Gauge, [],
        "1 once the service takes no new work.";
    PROCESS_START = "process_start_time_seconds", Kind::Gauge, [],
        "When the service started, in seconds since 1970.";
    PROCESS_CPU = "process_cpu_seconds_total", Kind::Counter, [],
        "CPU time of the service itself in whole seconds, its workers left out.";
    PROCESS_RESIDENT = "process_resident_memory_bytes", Kind::Gauge, [],
        "Resident memory of the service itself, its workers left out.";
    PROCESS_FDS = "process_open_fds", Kind::Gauge, [],
        "Open file descriptors.";
    PROCESS_FDS_MAX = "process_max_fds", Kind::Gauge, [],
        "File descriptors that may be open.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_as_prometheus_asks() {
        let mut seen = BTreeSet::new();
        for Metric { name, kind, labels, help } in ALL {
            assert!(seen.insert(name), "{name} is declared twice");
            assert!(name.starts_with("chatfn_") || name.starts_with("process_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            let total = name.ends_with("_total");
            assert!(total == (*kind == Kind::Counter), "{name} is a {}", kind.as_str());
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert!(labels.iter().all(|label| !["le", "quantile"].contains(label)), "{name}");
            if let Kind::Histogram(buckets) = kind {
                assert!(name.ends_with("_seconds") || name.ends_with("_size"), "{name} has no unit");
                assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
            }
        }
    }

    #[test]
    fn the_documentation_has_every_metric_and_no_other() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let text = std::fs::read_to_string(&path).expect("docs/metrics.md");
        let (start, end) = ("<!-- metrics: made from src/metrics/declared.rs -->\n", "<!-- end of metrics -->");
        let (before, rest) = text.split_once(start).expect("the marker");
        let (current, after) = rest.split_once(end).expect("the end marker");
        let mut table = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
        for Metric { name, kind, labels, help } in ALL {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
            table.push_str(&format!("| `{name}` | {} | {labels} | {help} |\n", kind.as_str()));
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{before}{start}{table}{end}{after}")).expect("write");
        } else {
            assert_eq!(current, table, "run: UPDATE_DOCS=1 cargo test --lib metrics");
        }
    }
}

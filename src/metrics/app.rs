//! What is counted for each app, and which apps are told apart.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, SharedString};

use super::OTHER;
use super::declared::{
    COLD_STARTS, DEAD_LETTERS, EVENT_RELEASES, EVENT_RETRIES, EVENTS_ENQUEUED, EVENTS_FINISHED, INVOCATION_ERRORS,
    INVOCATION_INIT, INVOCATION_QUEUE, INVOCATION_RUN, INVOCATIONS, INVOCATIONS_OVERLOADED, INVOCATIONS_SKIPPED,
    Metric, POOL_WAITING, POOL_WORKERS, VERDICTS,
};
use crate::model::{AppId, DecidedBy, FailureKind, Outcome, Timings, TriggerType, Verdict};

/// Handles for one app, or for all that are told apart no more. A series begins to exist when it is first counted.
#[derive(Debug)]
pub struct App {
    label: SharedString,
    triggers: HashMap<Box<str>, Trigger>,
    other: Trigger,
    queue: OnceLock<Histogram>,
    init: OnceLock<Histogram>,
    run: OnceLock<Histogram>,
    cold_starts: OnceLock<Counter>,
    overloaded: OnceLock<Counter>,
    /// Of these it may be the catalogue that says how many there are, so they are few and rarely counted.
    rare: RwLock<HashMap<(&'static str, &'static str, &'static str), Counter>>,
}

/// For one of an app's trigger types.
#[derive(Debug, Default)]
struct Trigger {
    label: SharedStringOr,
    results: OnceLock<Counter>,
    denials: OnceLock<Counter>,
    errors: OnceLock<Counter>,
    kinds: [OnceLock<Counter>; 8],
    enqueued: OnceLock<Counter>,
}

#[derive(Debug)]
struct SharedStringOr(SharedString);

impl Default for SharedStringOr {
    fn default() -> Self {
        Self(SharedString::const_str(OTHER))
    }
}

struct Apps {
    max: usize,
    trigger_types: Vec<SharedString>,
    known: RwLock<HashMap<AppId, Arc<App>>>,
    other: Arc<App>,
}

static APPS: OnceLock<Apps> = OnceLock::new();

/// Once, before anything is counted.
pub(super) fn configure(max: usize, trigger_types: Vec<String>) {
    let _ = APPS.set(Apps::new(max, trigger_types));
}

/// The handles of this app. For whoever keeps them: this looks them up.
pub fn app(id: &AppId) -> Arc<App> {
    APPS.get_or_init(|| Apps::new(0, Vec::new())).of(id)
}

impl Apps {
    fn new(max: usize, trigger_types: Vec<String>) -> Self {
        let trigger_types: Vec<_> = trigger_types.into_iter().map(SharedString::from_owned).collect();
        let other = Arc::new(App::new(SharedString::const_str(OTHER), &trigger_types));
        Self { max, trigger_types, known: RwLock::default(), other }
    }

    fn of(&self, id: &AppId) -> Arc<App> {
        if id.as_str() == OTHER {
            return Arc::clone(&self.other); // Else its figures would be mixed with the others', in series of the same name.
        }
        if let Some(app) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Arc::clone(app);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.max && !known.contains_key(id) {
            return Arc::clone(&self.other);
        }
        let new = || Arc::new(App::new(SharedString::from_owned(id.to_string()), &self.trigger_types));
        Arc::clone(known.entry(id.clone()).or_insert_with(new))
    }
}

impl App {
    fn new(label: SharedString, trigger_types: &[SharedString]) -> Self {
        let trigger = |label: &SharedString| Trigger { label: SharedStringOr(label.clone()), ..Trigger::default() };
        Self {
            label,
            triggers: trigger_types.iter().map(|label| (Box::from(&**label), trigger(label))).collect(),
            other: Trigger::default(),
            queue: OnceLock::new(),
            init: OnceLock::new(),
            run: OnceLock::new(),
            cold_starts: OnceLock::new(),
            overloaded: OnceLock::new(),
            rare: RwLock::default(),
        }
    }

    /// An attempt ended.
    pub fn ended(&self, trigger_type: &TriggerType, outcome: &Outcome, cold_start: bool, timings: &Timings) {
        let trigger = self.trigger(trigger_type);
        let count = |cell: &OnceLock<Counter>, outcome: &'static str| {
            cell.get_or_init(|| INVOCATIONS.counter(&[self.label.clone(), trigger.label(), outcome.into()]))
                .increment(1);
        };
        match outcome {
            Outcome::Result(_) => count(&trigger.results, "result"),
            Outcome::Denied(_) => count(&trigger.denials, "denied"),
            Outcome::Failed(failure) => {
                count(&trigger.errors, "error");
                let (place, kind) = kind(failure.kind);
                let cell = &trigger.kinds[place];
                let new = || INVOCATION_ERRORS.counter(&[self.label.clone(), trigger.label(), kind.into()]);
                cell.get_or_init(new).increment(1);
            }
        }
        self.record(&self.queue, &INVOCATION_QUEUE, timings.queue);
        if cold_start {
            self.cold_starts.get_or_init(|| COLD_STARTS.counter(std::slice::from_ref(&self.label))).increment(1);
            self.record(&self.init, &INVOCATION_INIT, timings.init);
        }
        if !timings.run.is_zero() {
            self.record(&self.run, &INVOCATION_RUN, timings.run);
        }
    }

    /// An attempt got no worker in time.
    pub fn overloaded(&self) {
        self.overloaded.get_or_init(|| INVOCATIONS_OVERLOADED.counter(std::slice::from_ref(&self.label))).increment(1);
    }

    /// Nothing ran for an event. `reason`: of a closed set.
    pub fn skipped(&self, reason: &'static str) {
        self.count_rare(&INVOCATIONS_SKIPPED, reason, "");
    }

    pub fn decided(&self, verdict: Verdict, decided_by: DecidedBy) {
        let verdict = match verdict {
            Verdict::Allow => "ALLOW",
            Verdict::Deny => "DENY",
        };
        let decided_by = match decided_by {
            DecidedBy::Function => "FUNCTION",
            DecidedBy::Policy => "POLICY",
        };
        self.count_rare(&VERDICTS, verdict, decided_by);
    }

    pub fn enqueued(&self, trigger_type: &TriggerType) {
        let trigger = self.trigger(trigger_type);
        let new = || EVENTS_ENQUEUED.counter(&[self.label.clone(), trigger.label()]);
        trigger.enqueued.get_or_init(new).increment(1);
    }

    /// An event left the queue: `done`, `skipped` or `dead`.
    pub fn finished(&self, disposition: &'static str) {
        self.count_rare(&EVENTS_FINISHED, disposition, "");
    }

    /// An event is a dead letter. `reason`: of a closed set.
    pub fn died(&self, reason: &'static str) {
        self.count_rare(&DEAD_LETTERS, reason, "");
    }

    pub fn retried(&self) {
        self.count_rare(&EVENT_RETRIES, "", "");
    }

    pub fn released(&self) {
        self.count_rare(&EVENT_RELEASES, "", "");
    }

    fn trigger(&self, trigger_type: &TriggerType) -> &Trigger {
        self.triggers.get(trigger_type.as_str()).unwrap_or(&self.other)
    }

    fn record(&self, cell: &OnceLock<Histogram>, metric: &Metric, span: Duration) {
        cell.get_or_init(|| metric.histogram(std::slice::from_ref(&self.label))).record(span.as_secs_f64());
    }

    fn count_rare(&self, metric: &Metric, second: &'static str, third: &'static str) {
        let key = (metric.name, second, third);
        if let Some(counter) = self.rare.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return counter.increment(1);
        }
        let values = [self.label.clone(), second.into(), third.into()];
        let counter = metric.counter(&values[..metric.labels.len()]);
        counter.increment(1);
        self.rare.write().unwrap_or_else(PoisonError::into_inner).insert(key, counter);
    }
}

impl Trigger {
    fn label(&self) -> SharedString {
        self.label.0.clone()
    }
}

/// How many of a pool's workers do what: starting, idle, busy, retiring; and how many callers wait.
pub type WorkerCounts = [u32; 5];

const STATES: [&str; 4] = ["starting", "idle", "busy", "retiring"];

/// One pool's part in its app's gauges. On drop it has none any more.
pub struct Workers {
    gauges: [Gauge; 5],
    told: WorkerCounts,
}

impl Workers {
    pub fn new(id: &AppId) -> Self {
        let app = app(id);
        let workers = |state: &'static str| POOL_WORKERS.gauge(&[app.label.clone(), state.into()]);
        let [starting, idle, busy, retiring] = STATES.map(workers);
        let waiting = POOL_WAITING.gauge(std::slice::from_ref(&app.label));
        Self { gauges: [starting, idle, busy, retiring, waiting], told: [0; 5] }
    }

    /// Replaces what was told before.
    pub fn tell(&mut self, counts: WorkerCounts) {
        for ((gauge, told), now) in self.gauges.iter().zip(&mut self.told).zip(counts) {
            // Several pools share a gauge: each adds what changed.
            if now != *told {
                gauge.increment(f64::from(now) - f64::from(*told));
                *told = now;
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.tell([0; 5]);
    }
}

fn kind(kind: FailureKind) -> (usize, &'static str) {
    match kind {
        FailureKind::Thrown => (0, "THROWN"),
        FailureKind::TimedOut => (1, "TIMED_OUT"),
        FailureKind::OutOfMemory => (2, "OUT_OF_MEMORY"),
        FailureKind::Crashed => (3, "CRASHED"),
        FailureKind::InitFailed => (4, "INIT_FAILED"),
        FailureKind::BadResult => (5, "BAD_RESULT"),
        FailureKind::Collateral => (6, "COLLATERAL"),
        FailureKind::Overloaded => (7, "OVERLOADED"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> AppId {
        name.parse().expect("an id")
    }

    #[test]
    fn the_first_apps_are_told_apart_and_the_rest_are_one() {
        let apps = Apps::new(2, vec!["UserSentMessage".to_owned()]);
        let labels =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| apps.of(&id(name)).label.to_string()).collect() };
        assert_eq!(labels(&["a", "b", "c", "a", "other", "d"]), ["a", "b", "other", "a", "other", "other"]);
        assert!(Arc::ptr_eq(&apps.of(&id("a")), &apps.of(&id("a"))));
        assert_eq!(Apps::new(0, Vec::new()).of(&id("a")).label.to_string(), "other");
    }

    #[test]
    fn a_trigger_type_that_the_catalogue_does_not_know_has_no_label_of_its_own() {
        let app = Apps::new(1, vec!["UserSentMessage".to_owned()]).of(&id("a"));
        let label = |name: &str| app.trigger(&TriggerType::stored(name.to_owned())).label().to_string();
        assert_eq!((label("UserSentMessage"), label("GoneSince")), ("UserSentMessage".into(), "other".into()));
    }
}

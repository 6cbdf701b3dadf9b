//! The queue's loop: claim → invoke → done, retry with backoff, or dead letter.

mod figures;
mod retry;
mod shares;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::invoke::{self, Attempt, Invoker, SkipReason, runnable};
use crate::metrics;
use crate::model::{AppId, Event, FailureKind, Function, FunctionFailure, Outcome, RawJson, RetryPolicy};
use crate::serving::{self, Served, Serving};
use crate::store::{self, AttemptEnd, ClaimedEvent, Disposition, Store};
use crate::traces::{Kind, Span};

pub use figures::{DeliveryFigures, Figures};
use shares::Shares;

/// Claimed at a time, at most; each claim is one write transaction.
const CLAIM_BATCH_MAX: usize = 32;
/// The safety net under the wake-ups.
const POLL_MAX: Duration = Duration::from_secs(1);
/// Enough to resolve the version and renew; from then on the claim covers the function's own timeout.
const CLAIM_INITIAL: Duration = Duration::from_secs(60);
/// A claim lasts so much longer than the function may: nobody takes an event over that still runs.
const CLAIM_MARGIN: Duration = Duration::from_secs(30);
/// Before an event comes back that failed for no fault of its function.
const RELEASE_DELAY: Duration = Duration::from_secs(2);
/// Between two tries to record how an event ended.
const FINISH_PAUSE: Duration = Duration::from_millis(250);
/// The same failure is logged so often, at most.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Settings {
    /// Events that run at a time.
    pub concurrency: usize,
    /// Of one app.
    pub concurrency_per_app: usize,
    /// As the invoker's: claims cover the wait for a worker too.
    pub wait_max: Duration,
}

/// The dispatcher, as a task's state.
pub struct Dispatcher {
    store: Store,
    serving: Serving,
    invoker: Invoker,
    settings: Settings,
    /// Notified on each enqueue.
    enqueued: Arc<Notify>,
    figures: Figures,
    complaints: Complaints,
    shares: Mutex<Shares>,
}

enum Claimed {
    Events(Vec<ClaimedEvent>),
    /// Look again then, or when something changes.
    NothingUntil(SystemTime),
}

/// What becomes of an event, and how the attempt ended if it counts.
#[derive(Clone)]
struct End {
    event: Disposition,
    /// Of those that were claimed with it.
    others: Vec<Disposition>,
    attempt: Option<AttemptEnd>,
}

/// What we log of our own failures: each once, not for every event that it happens to.
#[derive(Debug, Default)]
struct Complaints(Mutex<Option<(String, Instant)>>);

impl Complaints {
    fn error(&self, what: &str, err: &dyn std::error::Error) {
        let text = format!("{what}: {err}");
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_ref().is_some_and(|(said, at)| *said == text && at.elapsed() < SAID_AGAIN_AFTER);
        if !known {
            tracing::error!("{text}");
            *last = Some((text, Instant::now()));
        }
    }
}

impl Dispatcher {
    pub fn new(
        store: Store,
        serving: Serving,
        invoker: Invoker,
        settings: Settings,
        enqueued: Arc<Notify>,
        figures: Figures,
    ) -> Self {
        let shares = Mutex::new(Shares::new(settings.concurrency_per_app));
        Self { store, serving, invoker, settings, enqueued, figures, complaints: Complaints::default(), shares }
    }

    /// Claims and runs events until `stop`; then finishes what runs. Events that are still claimed when the process ends are claimed
    /// again by the next one.
    pub async fn run(self, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.settings.concurrency));
        let this = Arc::new(self);
        let running = TaskTracker::new();
        loop {
            let permits = tokio::select! {
                () = stop.cancelled() => break,
                permits = places_for_a_batch(&places) => permits,
            };
            let wait = match this.claim(permits.len()).await {
                Ok(Claimed::Events(claimed)) => {
                    for (event, permit) in claimed.into_iter().zip(permits) {
                        this.shares().begun(&event.event.app);
                        let this = Arc::clone(&this);
                        running.spawn(async move {
                            this.handle(event).await;
                            drop(permit);
                        });
                    }
                    continue;
                }
                Ok(Claimed::NothingUntil(due)) => due.duration_since(SystemTime::now()).unwrap_or_default(),
                Err(err) => {
                    this.complaints.error("failed to claim events", &err);
                    POLL_MAX
                }
            };
            drop(permits);
            tokio::select! {
                () = stop.cancelled() => break,
                () = this.enqueued.notified() => {}
                // Not shorter than a millisecond: an event that is due but cannot run yet must not make this a busy loop.
                () = sleep(wait.clamp(Duration::from_millis(1), POLL_MAX)) => {}
            }
        }
        running.close();
        running.wait().await;
    }

    /// Claims up to `places` events that are due, in fair shares.
    async fn claim(&self, places: usize) -> Result<Claimed, store::Error> {
        let now = SystemTime::now();
        let mut due = self.store.due().await?;
        if due.scheduled.is_some_and(|at| at <= now) {
            self.store.join_lines(now).await?;
            due = self.store.due().await?;
        }
        due.apps.retain(|(app, _)| self.shares().has_room(app));
        let ready: Vec<AppId> = due.apps.iter().filter(|(_, at)| *at <= now).map(|(app, _)| app.clone()).collect();
        let plan = self.shares().plan(&ready, places);
        if !plan.is_empty() {
            let claimed = self.store.claim(&plan, now + CLAIM_INITIAL, now).await?;
            if !claimed.is_empty() {
                self.figures.add(&claimed);
                return Ok(Claimed::Events(claimed));
            }
        }
        let next = due.apps.into_iter().map(|(_, at)| at).chain(due.scheduled).min();
        Ok(Claimed::NothingUntil(next.unwrap_or(now + POLL_MAX)))
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, claimed: ClaimedEvent) {
        let _running: Vec<_> = std::iter::once(&claimed.event)
            .chain(&claimed.others)
            .map(|_| metrics::Running::new(&metrics::series().events_running))
            .collect();
        let end = self.attempt(&claimed).await;
        let finished = self.finish(&claimed, &end).await;
        self.shares().ended(&claimed.event.app);
        self.enqueued.notify_one(); // The next one of its line, or of its app, may run now.
        match finished {
            Ok(true) => {
                let ends = end.others.iter().chain([&end.event]);
                ends.for_each(|end| self.figures.note(&claimed.event.app, end));
            }
            // It goes with its app, which somebody wants.
            Ok(false) if matches!(self.store.has_event(claimed.event.id).await, Ok(false)) => {}
            Ok(false) => {
                metrics::series().claims_lost.increment(1);
                tracing::warn!(event = %claimed.event.id, "an event was taken over while it ran");
            }
            Err(err) => {
                self.complaints.error("failed to record an event's end; it runs again", &err);
            }
        }
    }

    /// Again and again while the store is away: the claim outlasts the function, and what has run should not run twice.
    async fn finish(&self, claimed: &ClaimedEvent, end: &End) -> Result<bool, store::Error> {
        let given_up = Instant::now() + CLAIM_MARGIN;
        let mut failed = false;
        loop {
            let End { event, others, attempt } = end.clone();
            match self.store.finish_claim(claimed, event, others, attempt, SystemTime::now()).await {
                Err(err @ store::Error::Database { .. }) if Instant::now() < given_up => {
                    self.complaints.error("failed to record an event's end; trying again", &err);
                    failed = true;
                    sleep(FINISH_PAUSE).await;
                }
                // No longer ours: the try before was committed, and only its answer was lost; or another has it by now.
                Ok(false) if failed => return Ok(true),
                finished => return finished,
            }
        }
    }

    async fn attempt(&self, claimed: &ClaimedEvent) -> End {
        let event = &claimed.event;
        let (served, function) = match self.resolve(claimed).await {
            Ok(Ok(found)) => found,
            Ok(Err(reason)) => {
                return End::of_all(claimed, &Disposition::Skipped { reason: reason.as_str().to_owned() }, None);
            }
            Err(err) => return self.unresolved(claimed, &err).await,
        };
        if let Some(end) = spent(claimed, &function.retry) {
            return end;
        }
        trace_wait(claimed);
        let until = function.timeout + self.settings.wait_max + CLAIM_MARGIN;
        match self.hold(claimed, SystemTime::now() + until).await {
            Ok(true) => {}
            Ok(false) => return release(claimed), // Taken over; the fence ignores this.
            Err(err) => return self.released(claimed, &err),
        }
        // A version that is gone may have wanted batches where the active one does not.
        let others = if function.batch.is_some() { claimed.others.as_slice() } else { &[] };
        let attempt = Attempt {
            served,
            function: &function,
            event: if function.batch.is_some() { together(event, others) } else { event.payload.clone() },
            number: event.attempt,
            event_id: Some(event.id),
            hops: others.iter().map(|other| other.hops).fold(event.hops, u32::max),
            deadline: Some(Instant::now() + until),
            trace: event.trace.clone(),
            others: others.iter().filter_map(|other| other.trace.clone()).collect(),
        };
        match self.invoker.attempt(attempt, false).await {
            Ok(ran) => {
                let invocation = Some(ran.invocation_id);
                let end = match ran.outcome {
                    Outcome::Result(_) | Outcome::Denied(_) => {
                        End::of_all(claimed, &Disposition::Done, Some(AttemptEnd { invocation, failure: None }))
                    }
                    Outcome::Failed(failure) if failure.kind.is_retryable() => release(claimed),
                    Outcome::Failed(failure) => {
                        End::failed(claimed, &function.retry, AttemptEnd { invocation, failure: Some(failure) })
                    }
                };
                if others.len() == claimed.others.len() { end } else { end.alone(claimed) }
            }
            Err(invoke::Error::AtCapacity(_) | invoke::Error::NoWorker(_) | invoke::Error::Draining) => {
                release(claimed)
            }
            Err(invoke::Error::Version(err)) => self.unresolved(claimed, &err).await,
            Err(err) => self.released(claimed, &err),
        }
    }

    /// Makes sure that the claim lasts longer than the function may run; false: it was taken over.
    async fn hold(&self, claimed: &ClaimedEvent, until: SystemTime) -> Result<bool, store::Error> {
        if until <= claimed.until {
            return Ok(true);
        }
        self.store.renew_claim(claimed, until).await
    }

    /// Its version cannot be loaded. A store that is away may come back and costs no attempt; a file or row that is damaged rarely
    /// heals, so the event is tried as often as its function would be, and then somebody has to look.
    async fn unresolved(&self, claimed: &ClaimedEvent, err: &serving::Error) -> End {
        let event = &claimed.event;
        let version = self.store.version(&event.app, event.version).await.ok().flatten();
        let function = version.as_ref().and_then(|version| version.function(&event.trigger_type));
        let policy = function.map(|function| function.retry.clone()).unwrap_or_default();
        if let Some(end) = spent(claimed, &policy) {
            return end;
        }
        let stays = match err {
            serving::Error::Artifact(_) | serving::Error::Store(store::Error::Corrupt(_)) => true,
            serving::Error::Blobs(err) => !err.is_transient(),
            _ => false,
        };
        match err {
            err if stays => {
                self.complaints.error("failed to load the version of an event", err);
                let failure = FunctionFailure::new(FailureKind::Collateral, "VersionNotLoaded", err.to_string());
                End::failed(claimed, &policy, AttemptEnd { invocation: None, failure: Some(failure) })
            }
            err => self.released(claimed, err),
        }
    }

    fn released(&self, claimed: &ClaimedEvent, err: &dyn std::error::Error) -> End {
        self.complaints.error("failed to run an event; it is tried again", err);
        release(claimed)
    }

    /// The version the event was queued for while it exists, else the active one.
    async fn resolve(
        &self,
        claimed: &ClaimedEvent,
    ) -> Result<Result<(Arc<Served>, Function), SkipReason>, serving::Error> {
        let event = &claimed.event;
        let served = match self.serving.version(&event.app, event.version).await {
            Ok(served) => Some(served),
            Err(serving::Error::UnknownVersion { .. } | serving::Error::NotReady { .. }) => {
                self.serving.active(&event.app).await?
            }
            Err(serving::Error::UnknownApp(_)) => None,
            Err(err) => return Err(err),
        };
        Ok(runnable(served, &event.trigger_type).map_err(|(reason, _)| reason))
    }
}

async fn places_for_a_batch(places: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
    let mut permits = Vec::new();
    if let Ok(first) = Arc::clone(places).acquire_owned().await {
        permits.push(first);
    }
    while permits.len() < CLAIM_BATCH_MAX
        && let Ok(next) = Arc::clone(places).try_acquire_owned()
    {
        permits.push(next);
    }
    permits
}

/// Of the first attempt: the others wait because the one before them failed, and are a backoff apart.
fn trace_wait(claimed: &ClaimedEvent) {
    let event = &claimed.event;
    if let Some(trace) = &event.trace
        && event.attempt == event.attempts_before + 1
    {
        Span::within(trace, Kind::Internal, "queue wait").since(event.since).end_at(claimed.at);
    }
}

fn release(claimed: &ClaimedEvent) -> End {
    End::of_all(claimed, &Disposition::Release { due_at: SystemTime::now() + RELEASE_DELAY }, None)
}

/// A dead letter, if it may not run again. Those that were to run with it wait for the next of their line.
fn spent(claimed: &ClaimedEvent, policy: &RetryPolicy) -> Option<End> {
    let reason = retry::spent(policy, &claimed.event, SystemTime::now())?;
    let end = End { event: Disposition::Dead { reason }, others: Vec::new(), attempt: None };
    Some(end.alone(claimed))
}

/// Events as one: an array.
fn together(first: &Event, others: &[Event]) -> RawJson {
    let payloads: Vec<&str> = std::iter::once(first).chain(others).map(|event| event.payload.as_str()).collect();
    RawJson::trusted(&format!("[{}]", payloads.join(",")))
}

impl End {
    fn of_all(claimed: &ClaimedEvent, disposition: &Disposition, attempt: Option<AttemptEnd>) -> Self {
        Self { event: disposition.clone(), others: vec![disposition.clone(); claimed.others.len()], attempt }
    }

    /// Each by its own attempts, but all at the same time.
    fn failed(claimed: &ClaimedEvent, policy: &RetryPolicy, attempt: AttemptEnd) -> Self {
        let (now, random) = (SystemTime::now(), rand::random());
        let after = |event| retry::after_failure(policy, event, now, random);
        Self {
            event: after(&claimed.event),
            others: claimed.others.iter().map(after).collect(),
            attempt: Some(attempt),
        }
    }

    /// The others did not run.
    fn alone(mut self, claimed: &ClaimedEvent) -> Self {
        self.others = vec![Disposition::Release { due_at: SystemTime::now() }; claimed.others.len()];
        self
    }
}

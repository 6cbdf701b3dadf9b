//! The queue's loop: claim → invoke → done, retry with backoff, or dead letter.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::invoke::{self, Attempt, Invoker, SkipReason, runnable};
use crate::model::{Function, Outcome, RetryPolicy};
use crate::serving::{self, Served, Serving};
use crate::store::{self, ClaimedEvent, Disposition, Store};

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
/// The same failure is logged so often, at most.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Settings {
    /// Events that run at a time.
    pub concurrency: usize,
    /// As the invoker's: claims cover the wait for a worker too.
    pub wait_max: Duration,
}

/// The dispatcher, as a task's state.
pub struct Dispatcher {
    pub store: Store,
    pub serving: Serving,
    pub invoker: Invoker,
    pub settings: Settings,
    /// Notified on each enqueue.
    pub enqueued: Arc<Notify>,
    pub complaints: Complaints,
}

/// What we log of our own failures: each once, not for every event that it happens to.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<Option<(String, Instant)>>);

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
    /// Claims and runs events until `stop`; then finishes what runs. Events that are still claimed when the process ends are claimed
    /// again by the next one.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(this.settings.concurrency));
        let running = TaskTracker::new();
        loop {
            let permits = tokio::select! {
                () = stop.cancelled() => break,
                permits = places_for_a_batch(&places) => permits,
            };
            let claimed = this.claim(permits.len()).await;
            let full = claimed.len() == permits.len();
            for (event, permit) in claimed.into_iter().zip(permits) {
                let this = Arc::clone(&this);
                running.spawn(async move {
                    this.handle(event).await;
                    drop(permit);
                });
            }
            if !full {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = this.something_due() => {}
                }
            }
        }
        running.close();
        running.wait().await;
    }

    async fn claim(&self, limit: usize) -> Vec<ClaimedEvent> {
        let now = SystemTime::now();
        match self.store.claim(limit as u32, now + CLAIM_INITIAL, now).await {
            Ok(claimed) => claimed,
            Err(err) => {
                self.complaints.error("failed to claim events", &err);
                sleep(POLL_MAX).await;
                Vec::new()
            }
        }
    }

    async fn something_due(&self) {
        let due = self.store.next_due().await.ok().flatten();
        let wait = due.map_or(POLL_MAX, |due| due.duration_since(SystemTime::now()).unwrap_or_default());
        tokio::select! {
            () = self.enqueued.notified() => {}
            // Not shorter than a millisecond: an event that is due but cannot run yet must not make this a busy loop.
            () = sleep(wait.clamp(Duration::from_millis(1), POLL_MAX)) => {}
        }
    }

    async fn handle(&self, claimed: ClaimedEvent) {
        let disposition = self.attempt(&claimed).await;
        match self.store.finish_claim(claimed.event.id, claimed.claim, disposition, SystemTime::now()).await {
            Ok(true) => self.enqueued.notify_one(), // The next one of its key may run now.
            // It goes with its app, which somebody wants.
            Ok(false) if matches!(self.store.has_event(claimed.event.id).await, Ok(false)) => {}
            Ok(false) => tracing::warn!(event = %claimed.event.id, "an event was taken over while it ran"),
            Err(err) => {
                self.complaints.error("failed to record an event's end; it runs again", &err);
            }
        }
    }

    async fn attempt(&self, claimed: &ClaimedEvent) -> Disposition {
        let event = &claimed.event;
        let (served, function) = match self.resolve(claimed).await {
            Ok(Ok(found)) => found,
            Ok(Err(reason)) => return Disposition::Skipped { reason: reason.as_str().to_owned() },
            Err(err) => return self.unresolved(claimed, &err).await,
        };
        if let Some(dead) = spent(&function.retry, claimed) {
            return dead;
        }
        let until = function.timeout + self.settings.wait_max + CLAIM_MARGIN;
        match self.store.renew_claim(claimed, SystemTime::now() + until).await {
            Ok(true) => {}
            Ok(false) => return release(), // Taken over; the fence ignores this.
            Err(err) => return self.released(&err),
        }
        let attempt = Attempt {
            served,
            function: &function,
            event: event.payload.clone(),
            number: event.attempt,
            event_id: Some(event.id),
            deadline: Some(Instant::now() + until),
        };
        match self.invoker.attempt(attempt, false).await {
            Ok(ran) => match ran.outcome {
                Outcome::Result(_) | Outcome::Denied(_) => Disposition::Done,
                Outcome::Failed(failure) if failure.kind.is_retryable() => release(),
                Outcome::Failed(failure) => {
                    after_failure(&function.retry, claimed, format!("{}: {}", failure.name, failure.message))
                }
            },
            Err(invoke::Error::AtCapacity(_) | invoke::Error::NoWorker(_) | invoke::Error::Draining) => release(),
            Err(invoke::Error::Version(err)) => self.unresolved(claimed, &err).await,
            Err(err) => self.released(&err),
        }
    }

    /// Its version cannot be loaded. A store that is away may come back and costs no attempt; a file or row that is damaged rarely
    /// heals, so the event is tried as often as its function would be, and then somebody has to look.
    async fn unresolved(&self, claimed: &ClaimedEvent, err: &serving::Error) -> Disposition {
        let event = &claimed.event;
        let version = self.store.version(&event.app, event.version).await.ok().flatten();
        let function = version.as_ref().and_then(|version| version.function(&event.trigger_type));
        let policy = function.map(|function| function.retry.clone()).unwrap_or_default();
        if let Some(dead) = spent(&policy, claimed) {
            return dead;
        }
        match err {
            serving::Error::Artifact(_) | serving::Error::Store(store::Error::Corrupt(_)) => {
                self.complaints.error("failed to load the version of an event", err);
                after_failure(&policy, claimed, err.to_string())
            }
            err => self.released(err),
        }
    }

    fn released(&self, err: &dyn std::error::Error) -> Disposition {
        self.complaints.error("failed to run an event; it is tried again", err);
        release()
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

fn release() -> Disposition {
    Disposition::Release { due_at: SystemTime::now() + RELEASE_DELAY }
}

/// An event that may not run again: it kept bringing the service down, or kept failing for no fault of its function, for too long.
fn spent(policy: &RetryPolicy, claimed: &ClaimedEvent) -> Option<Disposition> {
    let event = &claimed.event;
    let dead =
        |reason: &str, error: &str| Some(Disposition::Dead { reason: reason.to_owned(), error: error.to_owned() });
    if event.attempt > policy.max_attempts {
        return dead("ATTEMPTS_EXHAUSTED", "its attempts were used up by runs whose end nobody saw");
    }
    let age = SystemTime::now().duration_since(event.enqueued_at).unwrap_or_default();
    if age > policy.max_age { dead("TOO_OLD", "it could not be run in time") } else { None }
}

fn after_failure(policy: &RetryPolicy, claimed: &ClaimedEvent, error: String) -> Disposition {
    let now = SystemTime::now();
    let event = &claimed.event;
    if event.attempt >= policy.max_attempts {
        return Disposition::Dead { reason: "ATTEMPTS_EXHAUSTED".to_owned(), error };
    }
    let due_at = now + backoff(policy, event.attempt, rand::random());
    let age = due_at.duration_since(event.enqueued_at).unwrap_or_default();
    if age > policy.max_age {
        return Disposition::Dead { reason: "TOO_OLD".to_owned(), error };
    }
    Disposition::Retry { due_at, error }
}

/// Exponential with full jitter: anywhere up to `initial · 2^(attempt-1)`, so that events which failed together come back apart.
fn backoff(policy: &RetryPolicy, attempt: u32, random: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(30);
    let ceiling = policy.initial_backoff.saturating_mul(1 << doublings).min(policy.max_backoff);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_ceiling() {
        let policy = RetryPolicy {
            max_attempts: 9,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
            max_age: Duration::from_secs(60),
        };
        let table = [
            (1, 1.0, 1.0),
            (2, 1.0, 2.0),
            (3, 0.5, 2.0),
            (4, 1.0, 8.0),
            (5, 1.0, 10.0),
            (60, 1.0, 10.0),
            (1, 0.0, 0.0),
        ];
        for (attempt, random, seconds) in table {
            assert_eq!(backoff(&policy, attempt, random), Duration::from_secs_f64(seconds), "attempt {attempt}");
        }
    }

    #[test]
    fn the_default_takes_about_an_hour_over_five_attempts() {
        let policy = RetryPolicy::default();
        let total: Duration = (1..policy.max_attempts).map(|attempt| backoff(&policy, attempt, 1.0)).sum();
        assert_eq!(total, Duration::from_secs(3600));
    }
}

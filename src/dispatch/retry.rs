//! What becomes of an event after an attempt that failed. Pure: the time and chance come in.

use std::time::{Duration, SystemTime};

use crate::model::{Event, RetryPolicy};
use crate::store::{DeadReason, Disposition};

/// An event that may not run again: it kept bringing the service down, or kept failing for no fault of its function, for too long.
pub fn spent(policy: &RetryPolicy, event: &Event, now: SystemTime) -> Option<DeadReason> {
    if counted(event) > policy.max_attempts {
        return Some(DeadReason::AttemptsExhausted);
    }
    let age = now.duration_since(event.since).unwrap_or_default();
    (age > policy.max_age).then_some(DeadReason::TooOld)
}

/// After an attempt that counts. `random`: 0 to 1.
pub fn after_failure(policy: &RetryPolicy, event: &Event, now: SystemTime, random: f64) -> Disposition {
    if counted(event) >= policy.max_attempts {
        return Disposition::Dead { reason: DeadReason::AttemptsExhausted };
    }
    let due_at = now + backoff(policy, counted(event), random);
    let age = due_at.duration_since(event.since).unwrap_or_default();
    if age > policy.max_age {
        return Disposition::Dead { reason: DeadReason::TooOld };
    }
    Disposition::Retry { due_at }
}

/// Attempts since it was queued, or sent off again.
fn counted(event: &Event) -> u32 {
    event.attempt.saturating_sub(event.attempts_before)
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

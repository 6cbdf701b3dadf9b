//! How many refused publishes the audit log is told of. A refusal costs its sender next to nothing, and each would be a row that is kept
//! for a year: of each app so many are told in a minute, and the others counted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::AppId;

const WINDOW: Duration = Duration::from_secs(60);
/// Of an app, on each replica.
const TOLD_PER_WINDOW: u32 = 30;
const APPS_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Refusals {
    apps: Mutex<HashMap<AppId, Window>>,
}

struct Window {
    began: Instant,
    told: u32,
    left_out: u64,
}

impl Refusals {
    /// Counts one. `Some`: it is to be told, and so many before it were not.
    pub fn count(&self, app: &AppId, now: Instant) -> Option<u64> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if apps.len() >= APPS_MAX && !apps.contains_key(app) {
            apps.retain(|_, window| now.saturating_duration_since(window.began) < WINDOW);
            if apps.len() >= APPS_MAX {
                return None;
            }
        }
        let window = apps.entry(app.clone()).or_insert(Window { began: now, told: 0, left_out: 0 });
        if now.saturating_duration_since(window.began) >= WINDOW {
            (window.began, window.told) = (now, 0);
        }
        if window.told >= TOLD_PER_WINDOW {
            window.left_out += 1;
            return None;
        }
        window.told += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_told_in_a_minute_and_the_next_one_says_how_many_were_not() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let app = |name: &str| name.parse::<AppId>().expect("an id");
        let count = |seconds| refusals.count(&app("shop"), begin + Duration::from_secs(seconds));
        for _ in 0..TOLD_PER_WINDOW {
            assert_eq!(count(0), Some(0));
        }
        assert_eq!((count(1), count(59)), (None, None));
        assert_eq!(refusals.count(&app("other"), begin), Some(0), "another app has its own");
        assert_eq!((count(60), count(61)), (Some(2), Some(0)));
    }

    #[test]
    fn apps_beyond_the_bound_wait_until_others_are_quiet() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let count = |n: usize, at| refusals.count(&format!("app-{n}").parse().expect("an id"), at);
        for n in 0..APPS_MAX {
            assert_eq!(count(n, begin), Some(0));
        }
        assert_eq!(count(APPS_MAX, begin), None);
        assert_eq!(count(0, begin), Some(0), "who is known goes on");
        assert_eq!(count(APPS_MAX, begin + WINDOW), Some(0));
    }
}

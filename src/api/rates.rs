//! How often an app may be called. Each replica counts for itself: nothing is asked of anybody on the way of a call.
//!
//! A limiter for each app that was called lately, by its own settings or the service's. They are read again every few seconds, so that
//! a change that another replica made is known here soon.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tonic::Status;

use super::status::rate_limited;
use crate::model::AppId;
use crate::store::{AppRate, Store};

/// Settings of an app that are older are read again.
const REFRESH: Duration = Duration::from_secs(3);
/// An app that was not called for so long is forgotten. Longer than any burst takes to come back: a second is enough, for it is no
/// more than so many seconds' worth.
const IDLE: Duration = Duration::from_secs(600);
/// Apps exist, so nobody can fill this with names; it is a bound all the same.
const APPS_MAX: usize = 200_000;

/// What apps may do unless they have settings of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateDefaults {
    /// Invocations a second; `None`: as many as come.
    pub per_second: Option<u32>,
    /// At once after a pause; `None`: a second's.
    pub burst: Option<u32>,
}

/// Clones share it.
#[derive(Clone)]
pub struct Rates {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    defaults: RateDefaults,
    apps: Mutex<HashMap<AppId, Entry>>,
    clock: DefaultClock,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

struct Entry {
    rate: Option<Rate>,
    limiter: Option<Arc<DefaultDirectRateLimiter>>,
    read_at: Instant,
    used_at: Instant,
}

/// What is known of an app just now.
enum Known {
    Fresh(Option<Arc<DefaultDirectRateLimiter>>),
    Stale,
    Nothing,
}

impl Rates {
    pub fn new(store: Store, defaults: RateDefaults) -> Self {
        let shared = Shared { store, defaults, apps: Mutex::default(), clock: DefaultClock::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Counts one invocation of the app.
    ///
    /// # Errors
    /// RATE_LIMITED: it has had as many as it may; says when the next one may come.
    pub(super) async fn count(&self, app: &AppId) -> Result<(), Status> {
        let limiter = match self.known(app, Instant::now()) {
            Known::Fresh(limiter) => limiter,
            Known::Stale | Known::Nothing => self.read(app).await,
        };
        let Some(limiter) = limiter else { return Ok(()) };
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(self.shared.clock.now());
            rate_limited("RATE_LIMITED", format!("app {app} is called more often than it may be"), wait)
        })
    }

    /// Its settings changed, or it is gone.
    pub(super) fn forget(&self, app: &AppId) {
        self.apps().remove(app);
    }

    /// Forgets apps that nobody calls. Call it now and then.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.apps().retain(|_, entry| now.saturating_duration_since(entry.used_at) < IDLE);
    }

    fn known(&self, app: &AppId, now: Instant) -> Known {
        let mut apps = self.apps();
        let Some(entry) = apps.get_mut(app) else { return Known::Nothing };
        entry.used_at = now;
        if now.saturating_duration_since(entry.read_at) < REFRESH {
            return Known::Fresh(entry.limiter.clone());
        }
        // One call reads; the others go on with what is known.
        entry.read_at = now;
        Known::Stale
    }

    /// If the store does not answer, it stays as it was: a call fails by its own needs, not by this one.
    async fn read(&self, app: &AppId) -> Option<Arc<DefaultDirectRateLimiter>> {
        let found = self.shared.store.app(app).await;
        let mut apps = self.apps();
        match found {
            Ok(Some(row)) => {
                let rate = effective(self.shared.defaults, row.rate);
                let now = Instant::now();
                let known = apps.get(app).filter(|entry| entry.rate == rate).map(|entry| entry.limiter.clone());
                let limiter = known.unwrap_or_else(|| rate.map(|rate| Arc::new(RateLimiter::direct(rate.quota()))));
                if apps.len() < APPS_MAX || apps.contains_key(app) {
                    let entry = Entry { rate, limiter: limiter.clone(), read_at: now, used_at: now };
                    apps.insert(app.clone(), entry);
                }
                limiter
            }
            // What the call will find out, too.
            Ok(None) => {
                apps.remove(app);
                None
            }
            Err(_) => apps.get(app).and_then(|entry| entry.limiter.clone()),
        }
    }

    fn apps(&self) -> MutexGuard<'_, HashMap<AppId, Entry>> {
        self.shared.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rate {
    fn quota(self) -> Quota {
        Quota::per_second(self.per_second).allow_burst(self.burst)
    }
}

/// `None`: no limit.
fn effective(defaults: RateDefaults, own: AppRate) -> Option<Rate> {
    let per_second = NonZeroU32::new(own.per_second.or(defaults.per_second)?)?;
    // A default burst goes with the default rate.
    let burst = own.burst.or(defaults.burst.filter(|_| own.per_second.is_none()));
    Some(Rate { per_second, burst: burst.and_then(NonZeroU32::new).unwrap_or(per_second) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apps_own_settings_win_and_a_burst_is_a_seconds_worth_unless_it_is_said() {
        let default = |per_second, burst| RateDefaults { per_second, burst };
        let own = |per_second, burst| AppRate { per_second, burst };
        for (defaults, own, expected) in [
            (default(None, None), own(None, None), None),
            (default(None, Some(5)), own(None, Some(7)), None),
            (default(Some(10), None), own(None, None), Some((10, 10))),
            (default(Some(10), Some(50)), own(None, None), Some((10, 50))),
            (default(Some(10), Some(50)), own(None, Some(7)), Some((10, 7))),
            (default(Some(10), Some(50)), own(Some(2), None), Some((2, 2))),
            (default(None, None), own(Some(2), Some(9)), Some((2, 9))),
        ] {
            let rate = effective(defaults, own).map(|rate| (rate.per_second.get(), rate.burst.get()));
            assert_eq!(rate, expected, "{defaults:?} {own:?}");
        }
    }
}

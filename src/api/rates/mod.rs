//! How often an app may be called. Nothing is asked of anybody on the way of a call.
//!
//! A limiter for each app that was called lately, by its own settings or the service's: each replica counts for itself. The quota of a
//! day is for all of them: what each has counted is added in the store every few seconds ([`Rates::tell`]), which tells what the others
//! had. The settings are read again every few seconds, too, so that a change that another replica made is known here soon.

mod usage;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tonic::Status;

use super::status::rate_limited;
use crate::model::AppId;
use crate::store::{self, AppRate, DayUsage, Store};
use usage::{Usage, today, until_tomorrow};

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
    /// Invocations in a day; `None`: as many as come.
    pub quota_per_day: Option<u64>,
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
    limiter: Option<DefaultDirectRateLimiter>,
    quota: Option<(u64, Usage)>,
    /// `None`: they changed since.
    read_at: Option<Instant>,
    used_at: Instant,
}

impl Rates {
    pub fn new(store: Store, defaults: RateDefaults) -> Self {
        let shared = Shared { store, defaults, apps: Mutex::default(), clock: DefaultClock::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Counts one invocation of the app.
    ///
    /// # Errors
    /// QUOTA_EXCEEDED, RATE_LIMITED: it has had as many as it may; says when the next one may come.
    pub(super) async fn count(&self, app: &AppId) -> Result<(), Status> {
        if !self.is_known(app, Instant::now()) {
            self.read(app).await;
        }
        let mut apps = self.apps();
        let Some(entry) = apps.get_mut(app) else { return Ok(()) };
        if let Some(limiter) = &entry.limiter
            && let Err(not_until) = limiter.check()
        {
            let wait = not_until.wait_time_from(self.shared.clock.now());
            return Err(rate_limited("RATE_LIMITED", format!("app {app} is called more often than it may be"), wait));
        }
        let now = SystemTime::now();
        if let Some((quota, usage)) = &mut entry.quota
            && !usage.take(*quota, today(now))
        {
            let text = format!("app {app} has had the {quota} invocations that it may have in a day (UTC)");
            return Err(rate_limited("QUOTA_EXCEEDED", text, until_tomorrow(now)));
        }
        Ok(())
    }

    /// How many invocations the app has had today, of how many. `None`: it has no quota.
    ///
    /// # Errors
    /// The store does not tell.
    pub(super) async fn usage_of(&self, app: &AppId, own: AppRate) -> Result<Option<(u64, u64)>, store::Error> {
        let Some(quota) = own.quota_per_day.or(self.shared.defaults.quota_per_day) else { return Ok(None) };
        let today = today(SystemTime::now());
        let known =
            |entry: &Entry| entry.quota.as_ref().filter(|(_, usage)| usage.day() == today).map(|(_, u)| u.used());
        let known = self.apps().get(app).and_then(known).unwrap_or(0);
        // Other replicas may have told since.
        Ok(Some((known.max(self.shared.store.usage(app, today).await?), quota)))
    }

    /// Adds what was counted for quotas in the store. Call it every few seconds, and at the end.
    ///
    /// # Errors
    /// The store refuses: it is told the next time.
    pub async fn tell(&self) -> Result<(), store::Error> {
        let mut counts = Vec::new();
        for (app, entry) in self.apps().iter_mut() {
            let Some((_, usage)) = &mut entry.quota else { continue };
            let (day, invocations) = (usage.day(), usage.send());
            if invocations > 0 {
                counts.push(DayUsage { app: app.clone(), day, invocations });
            }
        }
        let told = self.shared.store.add_usage(counts).await;
        let mut apps = self.apps();
        match &told {
            Ok(totals) => {
                for DayUsage { app, day, invocations } in totals {
                    if let Some((_, usage)) = apps.get_mut(app).and_then(|entry| entry.quota.as_mut()) {
                        usage.added(*day, *invocations);
                    }
                }
            }
            Err(_) => {
                apps.values_mut().filter_map(|entry| entry.quota.as_mut()).for_each(|(_, usage)| usage.not_added())
            }
        }
        told.map(drop)
    }

    /// Forgets days before today, at most `limit` rows of them. How many it were.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn purge(&self, limit: u32) -> Result<u64, store::Error> {
        self.shared.store.purge_usage(today(SystemTime::now()), limit).await
    }

    /// Its settings changed: they are read again before the next call.
    pub(super) fn changed(&self, app: &AppId) {
        if let Some(entry) = self.apps().get_mut(app) {
            entry.read_at = None;
        }
    }

    /// It is gone.
    pub(super) fn forget(&self, app: &AppId) {
        self.apps().remove(app);
    }

    /// Forgets apps that nobody calls. Call it now and then.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.apps().retain(|_, entry| now.saturating_duration_since(entry.used_at) < IDLE);
    }

    /// Whether its settings are. Of several calls that find them old one reads them; the others go on with what is known.
    fn is_known(&self, app: &AppId, now: Instant) -> bool {
        let mut apps = self.apps();
        let Some(entry) = apps.get_mut(app) else { return false };
        entry.used_at = now;
        let Some(read_at) = &mut entry.read_at else { return false };
        let fresh = now.saturating_duration_since(*read_at) < REFRESH;
        if !fresh {
            *read_at = now;
        }
        fresh
    }

    /// If the store does not answer, it stays as it was: a call fails by its own needs, not by this one.
    async fn read(&self, app: &AppId) {
        let Ok(found) = self.shared.store.app(app).await else { return };
        let Some(row) = found else {
            // What the call will find out, too.
            self.apps().remove(app);
            return;
        };
        let rate = effective(self.shared.defaults, row.rate);
        let quota = row.rate.quota_per_day.or(self.shared.defaults.quota_per_day);
        let today = today(SystemTime::now());
        let used = match quota {
            Some(_) => self.shared.store.usage(app, today).await.unwrap_or(0),
            None => 0,
        };
        let mut apps = self.apps();
        let now = Instant::now();
        let (limiter, usage) = match apps.remove(app) {
            Some(known) => (known.limiter.filter(|_| known.rate == rate), known.quota.map(|(_, usage)| usage)),
            None => (None, None),
        };
        if apps.len() < APPS_MAX {
            let limiter = limiter.or_else(|| rate.map(|rate| RateLimiter::direct(rate.quota())));
            let quota = quota.map(|quota| {
                let mut usage = usage.unwrap_or_else(|| Usage::new(today, used));
                usage.heard(today, used);
                (quota, usage)
            });
            apps.insert(app.clone(), Entry { rate, limiter, quota, read_at: Some(now), used_at: now });
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
        let default = |per_second, burst| RateDefaults { per_second, burst, quota_per_day: None };
        let own = |per_second, burst| AppRate { per_second, burst, quota_per_day: None };
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

//! How many events of each app wait or run: counted here, as the database would have to look at each of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::codec::{get_parsed, get_unsigned};
use super::super::db::{self, Pool};
use super::super::{Error, during};
use crate::model::AppId;

/// How many events may wait or run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub of_app: u64,
    pub in_all: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { of_app: 100_000, in_all: 1_000_000 }
    }
}

/// A handle; clones share the counts.
#[derive(Clone)]
pub struct Backlog {
    limits: Limits,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    of_apps: HashMap<AppId, u64>,
    in_all: u64,
}

impl Backlog {
    /// Counts what the database holds.
    pub async fn open(pool: &Pool, limits: Limits) -> Result<Self, Error> {
        let backlog = Self { limits, counts: Arc::default() };
        backlog.recount(pool).await?;
        Ok(backlog)
    }

    /// Counts what the database holds. Where other replicas queue and finish events, too, the counts drift until the next time: the limits
    /// are exact for one service, and nearly so for many.
    pub async fn recount(&self, pool: &Pool) -> Result<(), Error> {
        let sql =
            "SELECT a.id, (SELECT COUNT(*) FROM events e WHERE e.app_id = a.id AND e.state IN (0, 1, 5, 6, 7)) AS events
             FROM apps a";
        let mut counted = Counts::default();
        for row in db::query(sql).fetch_all(pool).await.map_err(during("count events"))? {
            let events = get_unsigned(&row, "events")?;
            if events > 0 {
                counted.of_apps.insert(get_parsed(&row, "id")?, events);
                counted.in_all += events;
            }
        }
        *self.counts() = counted;
        Ok(())
    }

    /// # Errors
    /// As many wait as may. `coming`: those that are about to be added.
    pub fn check(&self, app: &AppId, coming_of_app: u64, coming: u64) -> Result<(), Error> {
        let counts = self.counts();
        let of_app = counts.of_apps.get(app).copied().unwrap_or(0);
        if of_app + coming_of_app >= self.limits.of_app {
            return Err(Error::QueueFull { app: Some(app.clone()), limit: self.limits.of_app });
        }
        if counts.in_all + coming >= self.limits.in_all {
            return Err(Error::QueueFull { app: None, limit: self.limits.in_all });
        }
        Ok(())
    }

    pub fn came(&self, app: &AppId, events: u64) {
        if events > 0 {
            let mut counts = self.counts();
            *counts.of_apps.entry(app.clone()).or_default() += events;
            counts.in_all += events;
        }
    }

    pub fn left(&self, app: &AppId, events: u64) {
        let mut counts = self.counts();
        let Some(of_app) = counts.of_apps.get_mut(app) else { return };
        let events = events.min(*of_app);
        *of_app -= events;
        if *of_app == 0 {
            counts.of_apps.remove(app);
        }
        counts.in_all -= events;
    }

    /// The app is deleted, with all of its events.
    pub fn forget(&self, app: &AppId) {
        let mut counts = self.counts();
        let of_app = counts.of_apps.remove(app).unwrap_or(0);
        counts.in_all -= of_app;
    }

    /// Of an app.
    #[cfg(test)]
    pub fn of(&self, app: &AppId) -> u64 {
        self.counts().of_apps.get(app).copied().unwrap_or(0)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

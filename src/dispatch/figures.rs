//! What the dispatcher has done since the service started, by app.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::metrics::{self, series};
use crate::model::AppId;
use crate::store::{ClaimedEvent, Disposition};

/// Counts since the service started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryFigures {
    pub claims_total: u64,
    pub retries_total: u64,
    pub dead_letters_total: u64,
}

/// A handle; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<HashMap<AppId, DeliveryFigures>>>);

impl Figures {
    pub fn of(&self, app: &AppId) -> DeliveryFigures {
        self.counts().get(app).copied().unwrap_or_default()
    }

    /// The app is gone.
    pub fn forget(&self, app: &AppId) {
        self.counts().remove(app);
    }

    pub(super) fn add(&self, claimed: &[ClaimedEvent]) {
        let mut counts = self.counts();
        for claimed in claimed {
            for event in claimed.others.iter().chain([&claimed.event]) {
                series().events_claimed.increment(1);
                if event.attempt == event.attempts_before + 1 {
                    series().event_waited(claimed.at.duration_since(event.since).unwrap_or_default());
                }
            }
            counts.entry(claimed.event.app.clone()).or_default().claims_total += 1;
        }
    }

    pub(super) fn note(&self, app: &AppId, disposition: &Disposition) {
        let of_app = metrics::app(app);
        match disposition {
            Disposition::Done => of_app.finished("done"),
            Disposition::Skipped { .. } => of_app.finished("skipped"),
            Disposition::Retry { .. } => of_app.retried(),
            Disposition::Release { .. } => of_app.released(),
            Disposition::Dead { reason } => {
                of_app.finished("dead");
                of_app.died(reason.as_str());
            }
        }
        let mut counts = self.counts();
        match disposition {
            Disposition::Retry { .. } => counts.entry(app.clone()).or_default().retries_total += 1,
            Disposition::Dead { .. } => counts.entry(app.clone()).or_default().dead_letters_total += 1,
            _ => {}
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<AppId, DeliveryFigures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

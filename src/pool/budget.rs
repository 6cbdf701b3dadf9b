//! The memory that all workers of the service may have together.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Counts limits, not use: what was promised to a worker is never promised twice. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: Mutex<u64>,
    /// Both count events; a `watch` cannot miss one.
    freed: watch::Sender<u64>,
    pressure: watch::Sender<u64>,
}

/// Part of the budget; returns on drop.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl MemoryBudget {
    pub fn new(limit: u64) -> Self {
        let shared =
            Shared { limit, used: Mutex::new(0), freed: watch::Sender::new(0), pressure: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// `None` where too little is left; then every pool is asked to give an idle worker up.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let mut used = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = used.saturating_add(bytes);
        if wanted > self.shared.limit {
            drop(used);
            self.shared.pressure.send_modify(|count| *count += 1);
            return None;
        }
        *used = wanted;
        Some(Reservation { shared: Arc::clone(&self.shared), bytes })
    }

    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    pub fn used(&self) -> u64 {
        *self.shared.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever a reservation returned.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.shared.freed.subscribe()
    }

    /// Changes whenever a reservation was refused.
    pub fn pressure(&self) -> watch::Receiver<u64> {
        self.shared.pressure.subscribe()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.bytes);
        drop(used);
        self.shared.freed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_on_both_sides_and_says_when_it_changes() {
        let budget = MemoryBudget::new(100);
        let (mut freed, mut pressure) = (budget.freed(), budget.pressure());
        let all = budget.reserve(100).expect("fits exactly");
        assert!(budget.reserve(1).is_none());
        assert!(pressure.has_changed().expect("open"));
        pressure.mark_unchanged();
        assert!(!freed.has_changed().expect("open"));
        drop(all);
        assert!(freed.has_changed().expect("open"));
        freed.mark_unchanged();
        assert_eq!(budget.used(), 0);
        assert!(budget.reserve(101).is_none());
    }
}

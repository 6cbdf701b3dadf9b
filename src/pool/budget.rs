//! The memory that all workers of the service may have together, and who gives way when it is short.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// So long a shortage is left to those who have idle workers beyond `workers_min`; then the kept ones go, too: a call is worth more
/// than a warm start.
const KEPT_FOR: Duration = Duration::from_millis(300);

/// Counts limits, not use: what was promised to a worker is never promised twice. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    books: Mutex<Books>,
    /// Both count events; a `watch` cannot miss one.
    freed: watch::Sender<u64>,
    short: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Books {
    used: u64,
    /// Of `used`: what comes back soon, its worker was told to end.
    leaving: u64,
    /// What callers wait for.
    wanted: u64,
    short_since: Option<Instant>,
}

/// For whom memory is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A caller waits.
    Call,
    /// To be warm, or fresh. Takes nothing that a caller waits for.
    Spare,
}

/// Part of the budget; returns on drop.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
    leaving: bool,
}

/// One pool's dealings with the budget. On drop it lacks nothing any more.
#[derive(Debug)]
pub struct Account {
    shared: Arc<Shared>,
    /// Of the bytes that are wanted.
    lacks: u64,
}

impl MemoryBudget {
    pub fn new(limit: u64) -> Self {
        let (freed, short) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { limit, books: Mutex::default(), freed, short }) }
    }

    /// For a pool to reserve from and to say what it lacks.
    pub fn account(&self) -> Account {
        Account { shared: Arc::clone(&self.shared), lacks: 0 }
    }

    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// What is promised.
    pub fn used(&self) -> u64 {
        self.shared.books().used
    }

    /// Changes whenever a reservation returned.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.shared.freed.subscribe()
    }

    /// Changes while callers lack something.
    pub fn short(&self) -> watch::Receiver<u64> {
        self.shared.short.subscribe()
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, books: &mut Books, now: Instant) {
        let short = books.wanted > 0 && books.used - books.leaving + books.wanted > self.limit;
        books.short_since = if short { books.short_since.or(Some(now)) } else { None };
        if short {
            self.short.send_modify(|count| *count += 1);
        }
    }
}

impl Reservation {
    /// Its worker was told to end.
    pub fn leave(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.note_leaving(&mut shared.books(), Instant::now());
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether its idle worker has to end for callers elsewhere; if so it counts as leaving at once, so that no other worker ends for
    /// the same bytes. `kept`: it is one of the pool's `workers_min`.
    pub fn give_way(&mut self, kept: bool, now: Instant) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut books = shared.books();
        let patience = if kept { KEPT_FOR } else { Duration::ZERO };
        let short = books.short_since.is_some_and(|since| now.duration_since(since) >= patience);
        let gives_way = short && !self.leaving;
        if gives_way {
            self.note_leaving(&mut books, now);
        }
        gives_way
    }

    fn note_leaving(&mut self, books: &mut Books, now: Instant) {
        if !self.leaving {
            self.leaving = true;
            books.leaving += self.bytes;
            self.shared.note(books, now);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut books = self.shared.books();
        books.used -= self.bytes;
        if self.leaving {
            books.leaving -= self.bytes;
        }
        self.shared.note(&mut books, Instant::now());
        drop(books);
        self.shared.freed.send_modify(|count| *count += 1);
    }
}

impl Account {
    /// `None` where too little is left.
    pub fn reserve(&mut self, bytes: u64, purpose: Purpose) -> Option<Reservation> {
        let mut books = self.shared.books();
        let spared = if purpose == Purpose::Spare { books.wanted } else { 0 };
        if books.used.saturating_add(bytes).saturating_add(spared) > self.shared.limit {
            return None;
        }
        books.used += bytes;
        // At once, lest somebody gives way for what is here already.
        let had = self.lacks.min(bytes);
        self.lacks -= had;
        books.wanted -= had;
        self.shared.note(&mut books, Instant::now());
        Some(Reservation { shared: Arc::clone(&self.shared), bytes, leaving: false })
    }

    /// What is left, or soon will be, beyond what callers wait for.
    pub fn left(&self) -> u64 {
        let books = self.shared.books();
        self.shared.limit.saturating_sub(books.used - books.leaving + books.wanted)
    }

    /// Says for how many workers of so many bytes callers wait; replaces what was said before. No more than the budget could ever
    /// hold moves anybody.
    pub fn lack(&mut self, workers: u64, bytes_each: u64, now: Instant) {
        let bytes = workers.min(self.shared.limit / bytes_each.max(1)) * bytes_each;
        let before = std::mem::replace(&mut self.lacks, bytes);
        if bytes != before {
            let mut books = self.shared.books();
            books.wanted = books.wanted - before + bytes;
            self.shared.note(&mut books, now);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.lack(0, 1, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_on_both_sides_and_says_when_it_changes() {
        let budget = MemoryBudget::new(100);
        let mut freed = budget.freed();
        let all = budget.account().reserve(100, Purpose::Call).expect("fits exactly");
        assert!(budget.account().reserve(1, Purpose::Call).is_none());
        assert!(!freed.has_changed().expect("open"));
        drop(all);
        assert!(freed.has_changed().expect("open"));
        freed.mark_unchanged();
        assert_eq!(budget.used(), 0);
        assert!(budget.account().reserve(101, Purpose::Call).is_none());
    }

    #[test]
    fn no_more_give_way_than_callers_lack() {
        let (budget, now) = (MemoryBudget::new(100), Instant::now());
        let mut idle: Vec<_> = (0..4).map(|_| budget.account().reserve(25, Purpose::Call).expect("fits")).collect();
        let give =
            |idle: &mut Vec<Reservation>| idle.iter_mut().filter_map(|r| r.give_way(false, now).then_some(())).count();
        assert_eq!(give(&mut idle), 0, "nobody lacks anything");
        let (mut one, mut other) = (budget.account(), budget.account());
        let mut short = budget.short();
        one.lack(1, 25, now);
        assert!(short.has_changed().expect("open"));
        short.mark_unchanged();
        assert_eq!((give(&mut idle), give(&mut idle)), (1, 0));
        one.lack(1, 25, now);
        assert!(!short.has_changed().expect("open"), "nothing new, and enough is leaving");
        other.lack(2, 10, now);
        assert_eq!(give(&mut idle), 1);
        drop(idle.drain(..2));
        let _taken = one.reserve(25, Purpose::Call).expect("it came back");
        assert_eq!(give(&mut idle), 0, "the other one's is there, too");
        drop((one, other));
        assert_eq!(give(&mut idle), 0);
    }

    #[test]
    fn what_ends_anyway_counts() {
        let (budget, now) = (MemoryBudget::new(100), Instant::now());
        let mut going = budget.account().reserve(50, Purpose::Call).expect("fits");
        let mut idle = budget.account().reserve(50, Purpose::Call).expect("fits");
        going.leave();
        let mut caller = budget.account();
        caller.lack(1, 50, now);
        assert!(!idle.give_way(false, now));
        drop(going);
        assert!(!idle.give_way(false, now));
        let _taken = budget.account().reserve(50, Purpose::Call).expect("fits");
        assert!(idle.give_way(false, now), "somebody else had it");
    }

    #[test]
    fn kept_workers_give_way_to_callers_who_still_lack_it_later() {
        let (budget, now) = (MemoryBudget::new(100), Instant::now());
        let mut kept = budget.account().reserve(100, Purpose::Spare).expect("fits");
        let mut caller = budget.account();
        caller.lack(1, 100, now);
        assert!(!kept.give_way(true, now));
        assert!(kept.give_way(true, now + KEPT_FOR));
    }

    #[test]
    fn nothing_spare_takes_what_callers_wait_for() {
        let budget = MemoryBudget::new(100);
        let mut caller = budget.account();
        caller.lack(1, 60, Instant::now());
        assert!(budget.account().reserve(41, Purpose::Spare).is_none());
        let spare = budget.account().reserve(40, Purpose::Spare).expect("fits beside it");
        assert!(budget.account().reserve(60, Purpose::Call).is_some());
        drop(spare);
    }

    #[test]
    fn what_the_budget_could_never_hold_moves_nobody() {
        let (budget, now) = (MemoryBudget::new(100), Instant::now());
        let mut idle = budget.account().reserve(60, Purpose::Call).expect("fits");
        let mut caller = budget.account();
        caller.lack(1, 101, now);
        assert!(!idle.give_way(false, now));
        caller.lack(9, 50, now);
        assert!(idle.give_way(false, now), "two of nine would fit");
    }
}

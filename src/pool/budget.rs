//! The memory that all workers of the service may have together, and who gives way when it is short.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

/// So long a shortage is left to those who have idle workers beyond `workers_min`; then, where nobody has any, the kept ones go: a call is
/// worth more than a warm start.
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
    /// Counts; a `watch` cannot miss one.
    freed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Books {
    used: u64,
    /// Of `used`: what comes back soon, its worker was told to end.
    leaving: u64,
    /// What callers wait for.
    wanted: u64,
    short_since: Option<Instant>,
    /// With those whom to ask for them.
    offers: BTreeMap<(Offer, AccountId), Arc<Notify>>,
    /// That there were.
    accounts: u64,
}

/// Tells the accounts of a budget apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(u64);

/// A worker that can give way while callers lack memory: the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offer {
    /// One of the reserve: nobody's yet.
    Reserve,
    /// Idle since then. So of all apps' workers the least recently used goes, and one that is needed all the time stays.
    Idle(Instant),
    /// As well, but one of its pool's `workers_min`: when the shortage has lasted.
    Kept(Instant),
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

/// One pool's dealings with the budget. On drop it lacks and offers nothing any more.
#[derive(Debug)]
pub struct Account {
    shared: Arc<Shared>,
    id: AccountId,
    /// Of the bytes that are wanted.
    lacks: u64,
    offer: Option<Offer>,
    asked: Arc<Notify>,
}

impl MemoryBudget {
    pub fn new(limit: u64) -> Self {
        Self { shared: Arc::new(Shared { limit, books: Mutex::default(), freed: watch::Sender::new(0) }) }
    }

    /// For a pool to reserve from and to say what it lacks.
    pub fn account(&self) -> Account {
        let mut books = self.shared.books();
        books.accounts += 1;
        let id = AccountId(books.accounts);
        Account { shared: Arc::clone(&self.shared), id, lacks: 0, offer: None, asked: Arc::default() }
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

    /// Who is to give way, if anybody should and can.
    pub fn asked(&self) -> Option<AccountId> {
        let books = self.shared.books();
        books.short_since?;
        books.offers.first_key_value().map(|((_, account), _)| *account)
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, books: &mut Books, now: Instant) {
        let short = books.wanted > 0 && books.used - books.leaving + books.wanted > self.limit;
        books.short_since = if short { books.short_since.or(Some(now)) } else { None };
        if short && let Some((_, asked)) = books.offers.first_key_value() {
            asked.notify_one();
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

    pub fn id(&self) -> AccountId {
        self.id
    }

    /// Says which of its workers can give way, if any; replaces what was said before.
    pub fn offer(&mut self, offer: Option<Offer>, now: Instant) {
        let before = std::mem::replace(&mut self.offer, offer);
        if offer == before {
            return;
        }
        let mut books = self.shared.books();
        if let Some(before) = before {
            books.offers.remove(&(before, self.id));
        }
        if let Some(offer) = offer {
            books.offers.insert((offer, self.id), Arc::clone(&self.asked));
        }
        self.shared.note(&mut books, now);
    }

    /// Resolves when it should look whether what it offers [has to go](Account::give_way), if not because of time.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Whether the worker that it offers has to end for callers elsewhere; if so it counts as leaving at once, so that no other worker
    /// ends for the same bytes.
    pub fn give_way(&self, reservation: &mut Reservation, now: Instant) -> bool {
        let mut books = self.shared.books();
        let Some(offer) = self.offer.filter(|offer| {
            !reservation.leaving && books.offers.first_key_value().is_some_and(|(first, _)| *first == (*offer, self.id))
        }) else {
            return false;
        };
        let patience = if matches!(offer, Offer::Kept(_)) { KEPT_FOR } else { Duration::ZERO };
        let gives_way = books.short_since.is_some_and(|since| now.duration_since(since) >= patience);
        if gives_way {
            reservation.note_leaving(&mut books, now);
        }
        gives_way
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
        self.offer(None, Instant::now());
    }
}

#[cfg(test)]
mod tests;

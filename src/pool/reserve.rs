//! The reserve: workers that wait for an app. One is somebody's in about 2 ms, where a fresh start takes Node's 40.
//!
//! [`Reserve`] is the handle, by which pools take spares; its task starts, replaces and ends them as [`state`] decides. What it may
//! not do: start one while callers wait for a start of theirs, or hold memory that callers need.

mod state;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::model::Limits;
use crate::sandbox::{Exit, ExitStatus};
use crate::worker::{self, Class, Spare, StartError};

use super::budget::{Account, MemoryBudget, Offer, Purpose, Reservation};
use state::{Held, Next, Policy, State};

/// How this service keeps its reserve.
#[derive(Debug, Clone)]
pub struct Settings {
    /// With the default limits; 0: there is no reserve.
    pub workers: usize,
    pub idle_ttl: Duration,
    pub worker_age_max: Duration,
}

/// A handle. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reserve {
    /// `None`: there is none.
    shared: Option<Arc<Shared>>,
}

struct Shared {
    shelf: Mutex<Shelf>,
    /// Something was taken, or a start is over.
    changed: Notify,
}

struct Shelf {
    /// The oldest first.
    spares: Vec<Waiting>,
    state: State,
}

struct Waiting {
    held: Held,
    spare: Spare,
    reservation: Reservation,
}

/// A worker that starts for an app; on drop it is up, or is not going to be.
pub struct UnderWay(Option<Arc<Shared>>);

impl Reserve {
    /// Starts the task that keeps it, which ends after `stop`, when no spare is left.
    pub fn start(
        workers: Arc<worker::Config>,
        settings: &Settings,
        budget: &MemoryBudget,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let default = Class::of(&Limits::default()).filter(|_| settings.workers > 0 && Spare::is_possible(&workers));
        let shared = default.map(|default| {
            let Settings { workers, idle_ttl, worker_age_max: age_max } = *settings;
            let state = State::new(Policy { workers, default, idle_ttl, age_max }, Instant::now());
            let shelf = Mutex::new(Shelf { spares: Vec::new(), state });
            Arc::new(Shared { shelf, changed: Notify::new() })
        });
        let keeper = shared.clone().map(|shared| Keeper {
            shared,
            workers,
            account: budget.account(),
            freed: budget.freed(),
            tasks: JoinSet::new(),
            booting: None,
            stop,
        });
        let keep = async move {
            if let Some(keeper) = keeper {
                keeper.run().await;
            }
        };
        (Self { shared }, keep)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.shelf().spares.len())
    }

    /// Says that a worker of this class starts, taken from here or not.
    pub(super) fn start_begins(&self, class: Option<Class>) -> UnderWay {
        if let Some(shared) = &self.shared {
            shared.shelf().state.start_begins(class, Instant::now());
        }
        UnderWay(self.shared.clone())
    }

    /// A spare of this class, with the memory that was reserved for it.
    pub(super) fn take(&self, class: Option<Class>) -> Option<(Spare, Reservation)> {
        let (shared, class) = (self.shared.as_ref()?, class?);
        let mut shelf = shared.shelf();
        let fits = |waiting: &Waiting| waiting.held.class == class && !waiting.reservation.is_leaving();
        let index = shelf.spares.iter().position(fits)?;
        let taken = shelf.spares.remove(index);
        shelf.state.proved();
        drop(shelf);
        shared.changed.notify_one();
        Some((taken.spare, taken.reservation))
    }

    /// A worker that is to be kept warm found no memory, as only `left` is left: so many spares end as it takes, if it takes no more
    /// than there are. For a while none takes their place.
    pub(super) fn give_up(&self, bytes: u64, left: u64) {
        let Some(shared) = &self.shared else { return };
        let mut lacking = bytes.saturating_sub(left);
        let mut shelf = shared.shelf();
        let staying = |waiting: &&mut Waiting| !waiting.reservation.is_leaving();
        let there: u64 = shelf.spares.iter_mut().filter(staying).map(|waiting| waiting.held.class.memory_bytes).sum();
        if lacking == 0 || lacking > there {
            return;
        }
        for waiting in shelf.spares.iter_mut().filter(staying) {
            if lacking > 0 {
                waiting.reservation.leave();
                lacking = lacking.saturating_sub(waiting.held.class.memory_bytes);
            }
        }
        drop(shelf);
        shared.changed.notify_one();
    }
}

impl Shared {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.shelf().state.start_ends(Instant::now());
            shared.changed.notify_one();
        }
    }
}

impl Shelf {
    fn held(&self) -> Vec<Held> {
        self.spares.iter().map(|waiting| waiting.held).collect()
    }

    /// Takes out one that has ended by itself. Each is asked to wake the task: an end is reported once, and waited for anew each time.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<Exit> {
        for index in 0..self.spares.len() {
            let ended = pin!(self.spares[index].spare.ended()).poll(context);
            if ended.is_ready() {
                self.spares.remove(index);
                return ended;
            }
        }
        Poll::Pending
    }
}

/// The task.
struct Keeper {
    shared: Arc<Shared>,
    workers: Arc<worker::Config>,
    account: Account,
    freed: watch::Receiver<u64>,
    /// Spares that start, and those that end.
    tasks: JoinSet<Option<Result<Spare, StartError>>>,
    booting: Option<Booting>,
    stop: CancellationToken,
}

/// The one that starts.
struct Booting {
    class: Class,
    reservation: Reservation,
    give_up: CancellationToken,
}

impl Keeper {
    /// On return every spare was taken, or is dead and waited for.
    async fn run(mut self) {
        while !self.stop.is_cancelled() {
            let wake = self.act();
            self.next_event(wake).await;
        }
        self.account.offer(None, Instant::now());
        let left = std::mem::take(&mut self.shared.shelf().spares);
        left.into_iter().for_each(|waiting| self.end(waiting));
        if let Some(booting) = &self.booting {
            booting.give_up.cancel();
        }
        while let Some(done) = self.tasks.join_next().await {
            self.note(done);
        }
    }

    /// Does all that there is to do now. Returns when there is more.
    fn act(&mut self) -> Option<Instant> {
        self.give_way();
        self.end_surplus();
        loop {
            let next = {
                let mut shelf = self.shared.shelf();
                let held = shelf.held();
                shelf.state.next(&held, self.booting.is_some(), Instant::now())
            };
            match next {
                Next::Wait(until) => {
                    self.offer();
                    return until;
                }
                Next::Start(class) => match self.account.reserve(class.memory_bytes, Purpose::Spare) {
                    Some(reservation) => self.boot(class, reservation),
                    None => self.shared.shelf().state.no_memory(class),
                },
            }
        }
    }

    async fn next_event(&mut self, wake: Option<Instant>) {
        let shared = Arc::clone(&self.shared);
        let is_short = shared.shelf().state.is_short();
        let far = Instant::now() + Duration::from_secs(3600);
        tokio::select! {
            () = self.stop.cancelled() => {}
            exit = poll_fn(|context| shared.shelf().poll_ended(context)) => self.lost(exit),
            Some(done) = self.tasks.join_next() => self.note(done),
            () = shared.changed.notified() => {}
            Ok(()) = self.freed.changed(), if is_short => shared.shelf().state.memory_freed(),
            () = self.account.asked() => {} // `act` looks each time whether it has to give way.
            () = sleep_until(wake.unwrap_or(far).into()), if wake.is_some() => {}
        }
    }

    /// Ends spares while callers lack their memory.
    fn give_way(&mut self) {
        let now = Instant::now();
        if let Some(booting) = &mut self.booting
            && self.account.give_way(&mut booting.reservation, now)
        {
            booting.give_up.cancel();
        }
        let gone: Vec<Waiting> = {
            let mut shelf = self.shared.shelf();
            let goes = |waiting: &mut Waiting| {
                waiting.reservation.is_leaving() || self.account.give_way(&mut waiting.reservation, now)
            };
            shelf.spares.extract_if(.., goes).collect()
        };
        if !gone.is_empty() {
            self.shared.shelf().state.gave_up(now);
        }
        gone.into_iter().for_each(|waiting| self.end(waiting));
    }

    fn offer(&mut self) {
        let boots = self.booting.as_ref().is_some_and(|booting| !booting.reservation.is_leaving());
        let waits = self.shared.shelf().spares.iter().any(|waiting| !waiting.reservation.is_leaving());
        self.account.offer((boots || waits).then_some(Offer::Reserve), Instant::now());
    }

    fn end_surplus(&mut self) {
        let gone: Vec<Waiting> = {
            let mut shelf = self.shared.shelf();
            let held = shelf.held();
            let surplus = shelf.state.surplus(&held, Instant::now());
            surplus.into_iter().rev().map(|index| shelf.spares.remove(index)).collect()
        };
        gone.into_iter().for_each(|waiting| self.end(waiting));
    }

    fn boot(&mut self, class: Class, reservation: Reservation) {
        let give_up = CancellationToken::new();
        let (workers, given_up) = (Arc::clone(&self.workers), give_up.clone());
        self.booting = Some(Booting { class, reservation, give_up });
        self.tasks.spawn(async move { Some(Spare::start(&workers, class, &given_up).await) });
    }

    fn end(&mut self, Waiting { spare, mut reservation, .. }: Waiting) {
        reservation.leave();
        self.tasks.spawn(async move {
            spare.end().await;
            drop(reservation); // Not before: its memory was in use.
            None
        });
    }

    fn note(&mut self, done: Result<Option<Result<Spare, StartError>>, tokio::task::JoinError>) {
        let started = match done {
            Ok(None) => return,
            Ok(Some(started)) => started,
            Err(err) => {
                tracing::error!(%err, "a task of the reserve panicked"); // What it had is gone with it.
                self.booting = None;
                return;
            }
        };
        let Some(Booting { class, reservation, give_up }) = self.booting.take() else { return };
        let now = Instant::now();
        match started {
            // It was ready just before it was to give its memory up, or before the end.
            Ok(spare) if give_up.is_cancelled() => {
                self.end(Waiting { held: Held { class, since: now }, spare, reservation });
            }
            Ok(spare) => {
                tracing::debug!(pid = spare.pid(), ?class, "a worker waits in reserve");
                self.shared.shelf().spares.push(Waiting { held: Held { class, since: now }, spare, reservation });
            }
            Err(_) if give_up.is_cancelled() => {}
            Err(err) => {
                self.shared.shelf().state.failed(now);
                if !matches!(err, StartError::Stopped) {
                    tracing::warn!(%err, "failed to start a worker for the reserve");
                }
            }
        }
    }

    fn lost(&mut self, exit: Exit) {
        self.shared.shelf().state.failed(Instant::now());
        // Unknown: the broker is gone, and has said so.
        if exit.status != ExitStatus::Unknown {
            tracing::warn!(status = ?exit.status, "a worker in reserve has ended");
        }
    }
}

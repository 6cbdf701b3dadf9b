//! The pool: one version's workers, kept warm and handed out by lease.
//!
//! [`Pool`] is the handle; the [`supervisor`] task owns the workers; [`state`] decides. Follow one lease: [`Pool::acquire`] →
//! `state::Event::Acquire` → `Action::Grant` → [`Lease::run`] → `Event::Released`. Workers that wait for whoever needs one first are in
//! the [`reserve`], which all pools share. Knows no gRPC, no store and no active version.

// Public as `benches/capacity` has both decide in simulated time.
pub mod budget;
pub mod state;

mod lease;
mod reserve;
mod supervisor;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::worker::{self, Program, StartError};

pub use budget::MemoryBudget;
pub use lease::{Lease, Request};
pub use reserve::{Reserve, Settings as ReserveSettings};
pub use state::{Counts, Refusal};

use state::{Policy, WaiterId};
use supervisor::{Command, Supervisor};

/// Acquires on their way to the supervisor, which answers each at once.
const COMMANDS_QUEUED_MAX: usize = 1024;

/// How this service runs pools; what differs by version is in its limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Invocations that may wait for one pool.
    pub waiting_max: usize,
    pub idle_ttl: Duration,
    pub worker_age_max: Duration,
    pub worker_jobs_max: u64,
    /// Of `limits.memory_bytes`: a worker that grew beyond it is replaced.
    pub worker_memory_percent_max: u64,
}

/// Why there is no lease.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("too many invocations wait for this app's workers")]
    QueueFull,
    #[error("no worker was free in time")]
    TimedOut,
    #[error("no worker could be initialized: {0}")]
    NotStarted(StartError),
    /// Another version serves now, or the service stops.
    #[error("this version's pool is closing")]
    Retired,
}

/// What a pool is doing.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub counts: Counts,
    pub pids: Vec<u32>,
    pub started_total: u64,
    /// Of those: how many came from the reserve.
    pub from_reserve_total: u64,
    pub failed_total: u64,
}

/// A handle to one version's workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    commands: mpsc::Sender<Command>,
    next_waiter: Arc<AtomicU64>,
}

impl Pool {
    /// Starts the supervisor; workers come with the first lease, or with [`Pool::warm`]. `kill` ends them all at any time, also once
    /// the pool was retired.
    pub fn start(
        workers: Arc<worker::Config>,
        program: Arc<Program>,
        settings: &Settings,
        budget: MemoryBudget,
        reserve: Reserve,
        kill: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let limits = &program.limits;
        let policy = Policy {
            workers_max: limits.workers_max as usize,
            workers_min: limits.workers_min as usize,
            concurrency: limits.concurrency,
            waiting_max: settings.waiting_max,
            idle_ttl: settings.idle_ttl,
            age_max: settings.worker_age_max,
            jobs_max: settings.worker_jobs_max,
            memory_bytes_max: limits.memory_bytes / 100 * settings.worker_memory_percent_max,
        };
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let supervisor = Supervisor::new(workers, program, policy, (budget, reserve), receiver, kill);
        let task = tokio::spawn(supervisor.run());
        (Self { commands, next_waiter: Arc::default() }, task)
    }

    /// The right to use a worker for one invocation; waits until `deadline` for one.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue, and the lease if it was just granted.
    pub async fn acquire(&self, deadline: Instant) -> Result<Lease, Error> {
        let waiter = WaiterId(self.next_waiter.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let place = Place { waiter, commands: Some(&self.commands) };
        let asked = self.commands.send(Command::Acquire { waiter, reply });
        let answer = timeout_at(deadline, async {
            asked.await.map_err(|_| Error::Retired)?;
            answer.await.map_err(|_| Error::Retired)
        });
        match answer.await {
            Ok(Ok(granted)) => {
                place.leave();
                granted.map_err(|refusal| match refusal {
                    Refusal::QueueFull => Error::QueueFull,
                    Refusal::NotStarted(err) => Error::NotStarted(err),
                    Refusal::Retired => Error::Retired,
                })
            }
            Ok(Err(err)) => Err(err),
            Err(_) => Err(Error::TimedOut),
        }
    }

    /// Has one initialized worker, starting it if there is none.
    ///
    /// # Errors
    /// `NotStarted` with the tenant's failure; else as [`Pool::acquire`].
    pub async fn warm(&self, deadline: Instant) -> Result<(), Error> {
        // A lease is the proof; it goes back unused.
        self.acquire(deadline).await.map(drop)
    }

    pub async fn figures(&self) -> Figures {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Figures(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Takes no more leases; workers finish what they run and end. Returns at once.
    pub async fn retire(&self) {
        let _ = self.commands.send(Command::Retire).await;
    }

    /// Ends every worker now. The supervisor's task ends when the last one is gone.
    pub async fn kill(&self) {
        let _ = self.commands.send(Command::Kill).await;
    }
}

/// A place in the queue; leaving it unserved tells the supervisor.
struct Place<'a> {
    waiter: WaiterId,
    commands: Option<&'a mpsc::Sender<Command>>,
}

impl Place<'_> {
    fn leave(mut self) {
        self.commands = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(commands) = self.commands {
            // If it is lost, the grant finds nobody and comes back as a released lease.
            let _ = commands.try_send(Command::Abandon { waiter: self.waiter });
        }
    }
}

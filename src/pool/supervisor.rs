//! The task that owns a version's workers: it turns what happens into events, and performs what [`State`] decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::worker::{self, Program, StartError, Worker};

use super::Figures;
use super::budget::{Account, MemoryBudget, Purpose, Reservation};
use super::lease::{Lease, Released};
use super::state::{Action, Event, LeaseId, Policy, Refusal, State, WaiterId, WorkerId};

/// How exactly times to live are kept.
const TICK: Duration = Duration::from_millis(250);
/// Leases that are out at a time, each with a place for its return: more than the workers of any machine hold.
const LEASES_MAX: usize = 1 << 16;
/// Starts, ends and failures of one pool's workers on their way.
const NEWS_QUEUED_MAX: usize = 1024;

#[derive(Debug)]
pub(super) enum Command {
    Acquire { waiter: WaiterId, reply: oneshot::Sender<Result<Lease, Refusal>> },
    Abandon { waiter: WaiterId },
    Figures(oneshot::Sender<Figures>),
    Retire,
    Kill,
}

/// From a worker's task.
#[derive(Debug)]
enum News {
    Spawned(Worker),
    Ready(Duration),
    StartFailed(StartError),
}

struct Running {
    worker: Worker,
    init_time: Duration,
}

pub(super) struct Supervisor {
    workers: Arc<worker::Config>,
    program: Arc<Program>,
    state: State,
    commands: mpsc::Receiver<Command>,
    waiting: HashMap<WaiterId, oneshot::Sender<Result<Lease, Refusal>>>,
    running: HashMap<WorkerId, Running>,
    news_sender: mpsc::Sender<(WorkerId, News)>,
    news: mpsc::Receiver<(WorkerId, News)>,
    released_sender: mpsc::Sender<Released>,
    released: mpsc::Receiver<Released>,
    /// One per worker, from its start until nothing of it is left.
    tasks: JoinSet<()>,
    workers_by_task: HashMap<tokio::task::Id, WorkerId>,
    /// Each returns when its worker's task has ended: not before the process is gone.
    reservations: HashMap<WorkerId, Reservation>,
    account: Account,
    freed: watch::Receiver<u64>,
    short: watch::Receiver<u64>,
    kill: CancellationToken,
    retired: bool,
    killed: bool,
    totals: (u64, u64),
}

impl Supervisor {
    pub(super) fn new(
        workers: Arc<worker::Config>,
        program: Arc<Program>,
        policy: Policy,
        budget: MemoryBudget,
        commands: mpsc::Receiver<Command>,
        kill: CancellationToken,
    ) -> Self {
        let (news_sender, news) = mpsc::channel(NEWS_QUEUED_MAX);
        let (released_sender, released) = mpsc::channel(LEASES_MAX);
        let (account, freed, short) = (budget.account(), budget.freed(), budget.short());
        Self {
            workers,
            program,
            state: State::new(policy),
            commands,
            waiting: HashMap::new(),
            running: HashMap::new(),
            news_sender,
            news,
            released_sender,
            released,
            tasks: JoinSet::new(),
            workers_by_task: HashMap::new(),
            reservations: HashMap::new(),
            account,
            freed,
            short,
            kill,
            retired: false,
            killed: false,
            totals: (0, 0),
        }
    }

    /// Runs until the pool was retired, or every handle is gone, and the last worker has ended. On return every child is dead and
    /// waited for.
    pub(super) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.retired && self.tasks.is_empty()) {
            let event = self.next_event(&mut tick).await;
            if let Some(event) = event {
                self.decide(event);
            }
            self.give_way();
        }
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            if let Command::Acquire { reply, .. } = command {
                let _ = reply.send(Err(Refusal::Retired));
            }
        }
    }

    /// `None` where the message asked for no decision.
    async fn next_event(&mut self, tick: &mut tokio::time::Interval) -> Option<Event> {
        tokio::select! {
            biased; // Its end first, and ticks, which are rare. Then leases that come back: they may serve those who ask.
            () = self.kill.cancelled(), if !self.killed => self.command(Some(Command::Kill)),
            _ = tick.tick() => Some(Event::Tick),
            Some(released) = self.released.recv() => Some(Event::Released {
                worker: released.worker,
                lease: released.lease,
                memory_bytes: released.memory_bytes,
            }),
            Some((worker, news)) = self.news.recv() => self.note(worker, news),
            Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            command = self.commands.recv(), if !self.commands.is_closed() || !self.retired => self.command(command),
            Ok(()) = self.freed.changed(), if self.state.wants_memory() => Some(Event::MemoryFreed),
            Ok(()) = self.short.changed() => None, // The loop looks each time whether it has to give way.
        }
    }

    fn command(&mut self, command: Option<Command>) -> Option<Event> {
        match command {
            Some(Command::Acquire { waiter, reply }) => {
                self.waiting.insert(waiter, reply);
                Some(Event::Acquire { waiter })
            }
            Some(Command::Abandon { waiter }) => {
                self.waiting.remove(&waiter);
                Some(Event::Abandoned { waiter })
            }
            Some(Command::Figures(reply)) => {
                let _ = reply.send(self.figures());
                None
            }
            Some(Command::Retire) | None => {
                self.retired = true;
                Some(Event::Retire)
            }
            Some(Command::Kill) => {
                self.retired = true;
                self.killed = true;
                for running in self.running.values() {
                    running.worker.kill();
                }
                self.reservations.values_mut().for_each(Reservation::leave);
                Some(Event::Retire)
            }
        }
    }

    fn note(&mut self, id: WorkerId, news: News) -> Option<Event> {
        match news {
            News::Spawned(worker) => {
                if self.killed {
                    worker.kill();
                } else if self.retired {
                    worker.stop();
                }
                self.running.insert(id, Running { worker, init_time: Duration::ZERO });
                None
            }
            News::Ready(init_time) => {
                self.totals.0 += 1;
                if let Some(running) = self.running.get_mut(&id) {
                    running.init_time = init_time;
                }
                Some(Event::Ready { worker: id })
            }
            News::StartFailed(failure) => {
                self.totals.1 += 1;
                Some(Event::StartFailed { worker: id, failure })
            }
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) -> Option<Event> {
        let task = match ended {
            Ok((task, ())) => task,
            Err(err) => {
                tracing::error!(%err, "a worker's task panicked"); // Its handles are gone with it, so the process ends.
                err.id()
            }
        };
        let worker = self.workers_by_task.remove(&task)?;
        self.running.remove(&worker);
        self.reservations.remove(&worker);
        Some(Event::Ended { worker })
    }

    fn decide(&mut self, event: Event) {
        let mut refused = 0;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.state.handle(event, std::time::Instant::now()) {
                let Some(news) = self.perform(action) else { continue };
                refused += usize::from(matches!(news, Event::NoMemory { .. }));
                events.push(news);
            }
        }
        let lacking = self.state.lacking().min(refused) as u64;
        self.account.lack(lacking, self.program.limits.memory_bytes, std::time::Instant::now());
    }

    /// Ends idle workers while callers of other pools lack their memory.
    fn give_way(&mut self) {
        while let Some((worker, kept)) = self.state.spare()
            && let Some(reservation) = self.reservations.get_mut(&worker)
            && reservation.give_way(kept, std::time::Instant::now())
        {
            self.decide(Event::MemoryPressure);
        }
    }

    /// What could not be performed is news again.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start { worker, replaces } => {
                if let Some(wear) = replaces {
                    let (app, version) = (&self.program.app, &self.program.version);
                    tracing::debug!(%app, %version, ?wear, "a worker is worn: another one starts in its place");
                }
                let purpose = if self.state.counts().waiting > 0 { Purpose::Call } else { Purpose::Spare };
                match self.account.reserve(self.program.limits.memory_bytes, purpose) {
                    Some(reservation) => self.start(worker, reservation),
                    None => return Some(Event::NoMemory { worker }),
                }
            }
            Action::Grant { waiter, worker, lease, cold } => return self.grant(waiter, worker, lease, cold),
            Action::Refuse { waiter, refusal } => {
                if let Some(reply) = self.waiting.remove(&waiter) {
                    let _ = reply.send(Err(refusal));
                }
            }
            Action::Stop { worker } => {
                if let Some(running) = self.running.get(&worker) {
                    running.worker.stop();
                }
                if let Some(reservation) = self.reservations.get_mut(&worker) {
                    reservation.leave();
                }
            }
        }
        None
    }

    fn start(&mut self, id: WorkerId, reservation: Reservation) {
        let config = Arc::clone(&self.workers);
        let program = Arc::clone(&self.program);
        let news = self.news_sender.clone();
        let task = self.tasks.spawn(live(config, program, news, id));
        self.workers_by_task.insert(task.id(), id);
        self.reservations.insert(id, reservation);
    }

    fn grant(&mut self, waiter: WaiterId, worker: WorkerId, lease: LeaseId, cold: bool) -> Option<Event> {
        let Some(running) = self.running.get(&worker) else {
            // Its end is on the way to the state; the waiter asks again as if retired.
            if let Some(reply) = self.waiting.remove(&waiter) {
                let _ = reply.send(Err(Refusal::Retired));
            }
            return None;
        };
        let Ok(place) = self.released_sender.clone().try_reserve_owned() else {
            if let Some(reply) = self.waiting.remove(&waiter) {
                let _ = reply.send(Err(Refusal::QueueFull));
            }
            return Some(Event::Released { worker, lease, memory_bytes: Some(0) });
        };
        let cold = cold.then_some(running.init_time);
        let lease = Lease::new(running.worker.clone(), (worker, lease), place, cold);
        if let Some(reply) = self.waiting.remove(&waiter) {
            // Nobody there any more: the lease comes back by its drop.
            let _ = reply.send(Ok(lease));
        }
        None
    }

    fn figures(&self) -> Figures {
        Figures {
            counts: self.state.counts(),
            pids: self.running.values().map(|running| running.worker.pid()).collect(),
            started_total: self.totals.0,
            failed_total: self.totals.1,
        }
    }
}

/// One worker's life, seen from outside.
async fn live(config: Arc<worker::Config>, program: Arc<Program>, news: mpsc::Sender<(WorkerId, News)>, id: WorkerId) {
    let started = Instant::now();
    let (worker, starting) = match Worker::spawn(config, Arc::clone(&program)).await {
        Ok(spawned) => spawned,
        Err(err) => {
            tracing::error!(app = %program.app, version = %program.version, %err, "failed to start a worker");
            let _ = news.send((id, News::StartFailed(err))).await;
            return;
        }
    };
    let _ = news.send((id, News::Spawned(worker.clone()))).await;
    let failed = match starting.ready().await {
        Ok(_) => {
            let _ = news.send((id, News::Ready(started.elapsed()))).await;
            None
        }
        Err(err) => Some(err),
    };
    worker.ended().await;
    // Told also when it was stopped before it was ready: a worker that forges its way there must meet the backoff.
    if let Some(err) = failed {
        if matches!(err, StartError::Broken(_)) {
            tracing::warn!(app = %program.app, version = %program.version, %err, "a worker did not start");
        }
        let _ = news.send((id, News::StartFailed(err))).await;
    }
}

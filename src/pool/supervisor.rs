//! The task that owns a version's workers: it turns what happens into events, and performs what [`State`] decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, series};
use crate::worker::{self, PoolStarts, Program, Spare, StartError, Worker};

use super::Figures;
use super::budget::{Account, MemoryBudget, Purpose, Reservation};
use super::lease::{Lease, Released};
use super::reserve::{Reserve, UnderWay};
use super::state::{Action, Counts, Event, LeaseId, Policy, Refusal, State, WaiterId, Wear, WorkerId};

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
    Ready { took: Duration, from_reserve: bool },
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
    reserve: Reserve,
    freed: watch::Receiver<u64>,
    kill: CancellationToken,
    starts: PoolStarts,
    called: watch::Sender<bool>,
    /// What has not begun to start need not any more.
    closing: CancellationToken,
    retired: bool,
    killed: bool,
    started_total: u64,
    from_reserve_total: u64,
    failed_total: u64,
    told: metrics::Workers,
}

impl Supervisor {
    pub(super) fn new(
        workers: Arc<worker::Config>,
        program: Arc<Program>,
        policy: Policy,
        (budget, reserve): (MemoryBudget, Reserve),
        commands: mpsc::Receiver<Command>,
        kill: CancellationToken,
    ) -> Self {
        let (news_sender, news) = mpsc::channel(NEWS_QUEUED_MAX);
        let (released_sender, released) = mpsc::channel(LEASES_MAX);
        let (account, freed) = (budget.account(), budget.freed());
        let told = metrics::Workers::new(&program.app);
        let (called, receiver) = watch::channel(false);
        let starts = workers.starts.of_pool(receiver);
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
            reserve,
            freed,
            kill,
            starts,
            called,
            closing: CancellationToken::new(),
            retired: false,
            killed: false,
            started_total: 0,
            from_reserve_total: 0,
            failed_total: 0,
            told,
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
                let ticked = matches!(event, Event::Tick);
                self.decide(event);
                if ticked {
                    self.measure(); // Often enough for whoever looks from outside, and no work for each lease.
                }
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
            () = self.account.asked() => None, // The loop looks each time whether it has to give way.
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
                self.closing.cancel();
                Some(Event::Retire)
            }
            Some(Command::Kill) => {
                self.retired = true;
                self.killed = true;
                self.closing.cancel();
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
            News::Ready { took, from_reserve } => {
                self.started_total += 1;
                self.from_reserve_total += u64::from(from_reserve);
                if from_reserve { &series().workers_from_reserve } else { &series().workers_afresh }.increment(1);
                if let Some(running) = self.running.get_mut(&id) {
                    running.init_time = took;
                }
                Some(Event::Ready { worker: id })
            }
            News::StartFailed(failure) => {
                self.failed_total += 1;
                series().worker_start_failed(match &failure {
                    StartError::Init(_) => "init",
                    StartError::Broken(_) => "broken",
                    StartError::Stopped => "stopped",
                });
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
        let now = std::time::Instant::now();
        self.account.lack(lacking, self.program.limits.memory_bytes, now);
        self.account.offer(self.state.spare().map(|(_, offer)| offer), now);
        let called = self.state.counts().waiting > 0;
        self.called.send_if_modified(|before| std::mem::replace(before, called) != called);
    }

    /// Ends idle workers while callers of other pools lack their memory.
    fn give_way(&mut self) {
        while let Some((worker, _)) = self.state.spare()
            && let Some(reservation) = self.reservations.get_mut(&worker)
            && self.account.give_way(reservation, std::time::Instant::now())
        {
            series().evictions.increment(1);
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
                    series().worker_replaced(match wear {
                        Wear::Age => "age",
                        Wear::Jobs => "jobs",
                        Wear::Memory => "memory",
                    });
                }
                let Some((spare, reservation)) = self.provide() else { return Some(Event::NoMemory { worker }) };
                self.start(worker, spare, reservation);
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

    /// Memory for a worker, with one of the reserve's in it where that is of use to somebody who waits, or there is no other.
    fn provide(&mut self) -> Option<(Option<Spare>, Reservation)> {
        let (limits, class) = (&self.program.limits, self.program.class());
        let (account, reserve) = (&mut self.account, &self.reserve);
        let taken = || reserve.take(class).map(|(spare, reservation)| (Some(spare), reservation));
        if self.state.counts().waiting > 0 {
            return taken().or_else(|| Some((None, account.reserve(limits.memory_bytes, Purpose::Call)?)));
        }
        let free = account.reserve(limits.memory_bytes, Purpose::Spare).map(|reservation| (None, reservation));
        let provided = free.or_else(taken);
        if provided.is_none() {
            reserve.give_up(limits.memory_bytes, account.left());
        }
        provided
    }

    fn start(&mut self, id: WorkerId, spare: Option<Spare>, reservation: Reservation) {
        let config = Arc::clone(&self.workers);
        let program = Arc::clone(&self.program);
        let news = self.news_sender.clone();
        let under_way = self.reserve.start_begins(self.program.class());
        let (starts, closing) = (self.starts.clone(), self.closing.clone());
        let start = Start { id, spare, under_way, starts, closing };
        let task = self.tasks.spawn(live(config, program, news, start));
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

    fn measure(&mut self) {
        let Counts { starting, idle, busy, retiring, waiting } = self.state.counts();
        self.told.tell([starting, idle, busy, retiring, waiting]);
    }

    fn figures(&self) -> Figures {
        Figures {
            counts: self.state.counts(),
            pids: self.running.values().map(|running| running.worker.pid()).collect(),
            started_total: self.started_total,
            from_reserve_total: self.from_reserve_total,
            failed_total: self.failed_total,
        }
    }
}

/// What a worker's life begins with.
struct Start {
    id: WorkerId,
    spare: Option<Spare>,
    /// Until it is ready, or cannot be.
    under_way: UnderWay,
    starts: PoolStarts,
    closing: CancellationToken,
}

/// One worker's life, seen from outside.
async fn live(config: Arc<worker::Config>, program: Arc<Program>, news: mpsc::Sender<(WorkerId, News)>, start: Start) {
    let Start { id, mut spare, under_way, starts, closing } = start;
    let (app, version) = (&program.app, &program.version);
    let failed = loop {
        let from_reserve = spare.is_some();
        let mut began = Instant::now();
        let started = match spare.take() {
            Some(spare) => Worker::assign(Arc::clone(&config), Arc::clone(&program), spare).await,
            None => match starts.clone().permit(&closing).await {
                Some(permit) => {
                    began = Instant::now(); // What it waited for its turn is no part of its start.
                    Worker::spawn(Arc::clone(&config), Arc::clone(&program), permit).await
                }
                None => Err(StartError::Stopped),
            },
        };
        let failed = match started {
            Ok((worker, starting)) => {
                let _ = news.send((id, News::Spawned(worker.clone()))).await;
                let ready = starting.ready().await;
                if ready.is_ok() {
                    let took = began.elapsed();
                    tracing::debug!(%app, %version, pid = worker.pid(), from_reserve, ?took, "a worker is ready");
                    let _ = news.send((id, News::Ready { took, from_reserve })).await;
                    drop(under_way);
                    return worker.ended().await;
                }
                worker.ended().await;
                ready.err()
            }
            Err(err) => Some(err),
        };
        match failed {
            // None of the tenant's code has run, or it would not be called broken.
            Some(StartError::Broken(reason)) if from_reserve => {
                tracing::warn!(%app, %version, reason, "a worker in reserve was of no use: another one starts afresh");
            }
            failed => break failed,
        }
    };
    // Told also when it was stopped before it was ready, and not before it has ended: a worker that forges its way there must meet the
    // backoff.
    if let Some(err) = failed {
        if matches!(err, StartError::Broken(_)) {
            tracing::warn!(%app, %version, %err, "a worker did not start");
        }
        let _ = news.send((id, News::StartFailed(err))).await;
    }
}

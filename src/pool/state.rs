//! What a pool decides. Sees no clock, socket or process: events and times come in, actions go out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::worker::StartError;

use super::budget::Offer;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// How one version's pool behaves.
#[derive(Debug, Clone)]
pub struct Policy {
    pub workers_max: usize,
    /// Kept although idle.
    pub workers_min: usize,
    /// Leases at a time on one worker.
    pub concurrency: u32,
    /// Invocations that may wait.
    pub waiting_max: usize,
    /// Idle longer, counted from the last completion: retired.
    pub idle_ttl: Duration,
    /// Older, or with more jobs behind it, or larger: replaced, off the request path.
    pub age_max: Duration,
    pub jobs_max: u64,
    pub memory_bytes_max: u64,
}

#[derive(Debug)]
pub enum Event {
    Acquire {
        waiter: WaiterId,
    },
    /// The waiter gave up.
    Abandoned {
        waiter: WaiterId,
    },
    Ready {
        worker: WorkerId,
    },
    StartFailed {
        worker: WorkerId,
        failure: StartError,
    },
    /// A `Start` could not be performed: the service's memory budget is spent.
    NoMemory {
        worker: WorkerId,
    },
    /// The process is gone, asked for or not.
    Ended {
        worker: WorkerId,
    },
    /// `memory_bytes`: the worker's size; `None`: it is gone or going.
    Released {
        worker: WorkerId,
        lease: LeaseId,
        memory_bytes: Option<u64>,
    },
    MemoryFreed,
    /// Callers of another pool need the memory of the [`State::spare`] worker.
    MemoryPressure,
    Tick,
    /// Take no more leases, finish what runs, end.
    Retire,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    /// `replaces`: why the worker that goes when this one is ready has to.
    Start {
        worker: WorkerId,
        replaces: Option<Wear>,
    },
    Grant {
        waiter: WaiterId,
        worker: WorkerId,
        lease: LeaseId,
        cold: bool,
    },
    Refuse {
        waiter: WaiterId,
        refusal: Refusal,
    },
    Stop {
        worker: WorkerId,
    },
}

/// Why a worker is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wear {
    Age,
    Jobs,
    Memory,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// As many wait already as may.
    QueueFull,
    /// No worker could be initialized.
    NotStarted(StartError),
    /// The pool is closing; another version serves.
    Retired,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Status {
    Starting,
    /// `since` its last completion.
    Serving {
        since: Instant,
    },
    /// Takes no more leases; ends when the last one is back.
    Retiring,
}

#[derive(Debug)]
struct Worker {
    status: Status,
    leases: Vec<LeaseId>,
    ready_at: Option<Instant>,
    jobs: u64,
    /// After its first job; 0 before. What it needs to run at all, and no sign of wear.
    first_bytes: u64,
    /// It goes as soon as its replacement is ready.
    due: bool,
    /// An invocation brought it down.
    broken: bool,
}

/// A worker is too large only if it grew by more than a fifth.
const GROWTH_PART: u64 = 5;
/// After a worker failed to start, the next one waits: an app that cannot initialize must not occupy the machine.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Failed {
    failure: StartError,
    until: Instant,
    backoff: Duration,
}

/// How many of a pool's workers do what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub starting: u32,
    pub idle: u32,
    pub busy: u32,
    pub retiring: u32,
    pub waiting: u32,
}

#[derive(Debug)]
pub struct State {
    policy: Policy,
    workers: BTreeMap<WorkerId, Worker>,
    waiters: VecDeque<WaiterId>,
    next_worker: u64,
    next_lease: u64,
    failed: Option<Failed>,
    /// Workers that died idle since the last completed job, and until when none is started to keep `workers_min`.
    idle_deaths: u32,
    quiet_until: Option<Instant>,
    /// There was no memory; until there may be, only callers are worth asking for it.
    short: bool,
    retired: bool,
}

impl State {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            workers: BTreeMap::new(),
            waiters: VecDeque::new(),
            next_worker: 0,
            next_lease: 0,
            failed: None,
            idle_deaths: 0,
            quiet_until: None,
            short: false,
            retired: false,
        }
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Acquire { waiter } => self.acquire(waiter, now, &mut actions),
            Event::Abandoned { waiter } => self.waiters.retain(|waiting| *waiting != waiter),
            Event::Ready { worker } => self.ready(worker, now, &mut actions),
            Event::StartFailed { worker, failure } => self.start_failed(worker, failure, now, &mut actions),
            Event::NoMemory { worker } => {
                self.workers.remove(&worker);
                self.forget_due();
                self.short = true;
                return actions; // Asking again at once would only fail again; `MemoryFreed` comes.
            }
            Event::Ended { worker } => self.ended(worker, now, &mut actions),
            Event::Released { worker, lease, memory_bytes } => {
                self.released(worker, lease, memory_bytes, now, &mut actions);
            }
            Event::MemoryPressure => {
                self.give_way(&mut actions);
                return actions; // What it gave up it does not ask for in the same breath.
            }
            Event::Tick => self.tick(now, &mut actions),
            Event::Retire => self.retire(&mut actions),
            Event::MemoryFreed => self.short = false,
        }
        self.grow(now, &mut actions);
        actions
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts { waiting: self.waiters.len() as u32, ..Counts::default() };
        for worker in self.workers.values() {
            *match worker.status {
                Status::Starting => &mut counts.starting,
                Status::Serving { .. } if worker.leases.is_empty() => &mut counts.idle,
                Status::Serving { .. } => &mut counts.busy,
                Status::Retiring => &mut counts.retiring,
            } += 1;
        }
        counts
    }

    /// Whether memory that comes back may help somebody here.
    pub fn wants_memory(&self) -> bool {
        !self.waiters.is_empty() && self.live() < self.policy.workers_max
    }

    /// Workers that callers wait for and that do not start yet.
    pub fn lacking(&self) -> usize {
        self.waiters.len().div_ceil(self.policy.concurrency as usize).saturating_sub(self.starting())
    }

    /// The worker that gives way to other pools' callers: the longest idle.
    pub fn spare(&self) -> Option<(WorkerId, Offer)> {
        let (since, worker) = self.idle().min().filter(|_| self.waiters.is_empty())?;
        let kept = self.live() <= self.policy.workers_min;
        Some((worker, if kept { Offer::Kept(since) } else { Offer::Idle(since) }))
    }

    fn live(&self) -> usize {
        self.workers.values().filter(|worker| worker.status != Status::Retiring).count()
    }

    fn starting(&self) -> usize {
        self.workers.values().filter(|worker| worker.status == Status::Starting).count()
    }

    fn acquire(&mut self, waiter: WaiterId, now: Instant, actions: &mut Vec<Action>) {
        let refuse = |refusal| Action::Refuse { waiter, refusal };
        if self.retired {
            return actions.push(refuse(Refusal::Retired));
        }
        if let Some(failed) = &self.failed
            && self.live() == 0
            && now < failed.until
        {
            return actions.push(refuse(Refusal::NotStarted(failed.failure.clone())));
        }
        if self.waiters.is_empty()
            && let Some(worker) = self.free_worker()
        {
            return self.grant(waiter, worker, false, actions);
        }
        if self.waiters.len() >= self.policy.waiting_max {
            return actions.push(refuse(Refusal::QueueFull));
        }
        self.waiters.push_back(waiter);
    }

    /// The least loaded; among those the one used last, whose caches are warm, so that the others can age out.
    fn free_worker(&self) -> Option<WorkerId> {
        let free = self.workers.iter().filter_map(|(id, worker)| match worker.status {
            Status::Serving { since } if worker.leases.len() < self.policy.concurrency as usize => {
                Some((worker.due, worker.leases.len(), std::cmp::Reverse(since), *id))
            }
            _ => None,
        });
        free.min().map(|(.., id)| id)
    }

    fn grant(&mut self, waiter: WaiterId, id: WorkerId, cold: bool, actions: &mut Vec<Action>) {
        self.next_lease += 1;
        let lease = LeaseId(self.next_lease);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.leases.push(lease);
            actions.push(Action::Grant { waiter, worker: id, lease, cold });
        }
    }

    fn grant_waiters(&mut self, cold: bool, actions: &mut Vec<Action>) {
        while let Some(waiter) = self.waiters.front().copied() {
            let Some(worker) = self.free_worker() else { return };
            self.waiters.pop_front();
            self.grant(waiter, worker, cold, actions);
        }
    }

    fn ready(&mut self, id: WorkerId, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.status == Status::Starting {
            worker.status = Status::Serving { since: now };
            worker.ready_at = Some(now);
        }
        self.failed = None;
        if let Some(due) = self.workers.iter().find(|(_, worker)| worker.due).map(|(id, _)| *id) {
            self.retire_worker(due, actions);
        }
        self.grant_waiters(true, actions);
    }

    fn start_failed(&mut self, id: WorkerId, failure: StartError, now: Instant, actions: &mut Vec<Action>) {
        self.workers.remove(&id);
        self.forget_due();
        let backoff = self.failed.take().map_or(BACKOFF_MIN, |failed| (failed.backoff * 2).min(BACKOFF_MAX));
        if self.live() == 0 {
            for waiter in self.waiters.drain(..) {
                actions.push(Action::Refuse { waiter, refusal: Refusal::NotStarted(failure.clone()) });
            }
        }
        self.failed = Some(Failed { failure, until: now + backoff, backoff });
    }

    fn ended(&mut self, id: WorkerId, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.remove(&id) else { return };
        if self.retired {
            return;
        }
        // Replaced at once if an invocation brought it down, so that the next one need not wait.
        if worker.broken && self.live() == 0 && self.waiters.is_empty() && self.may_start(now) {
            self.start_one(None, actions);
        }
        // Not so if it died by itself: an app whose idle workers crash would keep us starting them.
        if matches!(worker.status, Status::Serving { .. }) && !worker.broken {
            let wait = BACKOFF_MIN * 2u32.pow(self.idle_deaths.min(8));
            self.idle_deaths += 1;
            self.quiet_until = Some(now + wait);
        }
    }

    fn released(&mut self, id: WorkerId, lease: LeaseId, memory: Option<u64>, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some(index) = worker.leases.iter().position(|held| *held == lease) else { return };
        worker.leases.swap_remove(index);
        worker.jobs += 1;
        let Some(memory) = memory else {
            worker.broken = worker.status != Status::Retiring || worker.broken;
            worker.status = Status::Retiring; // On its way out: `Ended` follows.
            return;
        };
        self.idle_deaths = 0;
        match worker.status {
            Status::Serving { .. } => worker.status = Status::Serving { since: now },
            Status::Retiring if worker.leases.is_empty() => actions.push(Action::Stop { worker: id }),
            Status::Retiring | Status::Starting => {}
        }
        if worker.first_bytes == 0 {
            worker.first_bytes = memory;
        }
        // A replacement of one that is large from the start would be no better.
        let grown = memory > worker.first_bytes.saturating_add(worker.first_bytes / GROWTH_PART);
        let too_large = grown && memory > self.policy.memory_bytes_max;
        self.recycle(id, too_large, now, actions);
        self.grant_waiters(false, actions);
    }

    /// Marks a worker that is due and starts its replacement; it serves on until that one is ready.
    fn recycle(&mut self, id: WorkerId, too_large: bool, now: Instant, actions: &mut Vec<Action>) {
        // Replaced ones may have long to run yet: the next turn comes when some are gone.
        let crowded = self.workers.len() >= 2 * self.policy.workers_max;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.due || self.retired || crowded || !matches!(worker.status, Status::Serving { .. }) {
            return;
        }
        let old = worker.ready_at.is_some_and(|ready| now.duration_since(ready) > self.policy.age_max);
        let used_up = worker.jobs >= self.policy.jobs_max;
        let signs = [(too_large, Wear::Memory), (old, Wear::Age), (used_up, Wear::Jobs)];
        if let Some((_, wear)) = signs.into_iter().find(|(shows, _)| *shows) {
            worker.due = true;
            // Above `workers_max`, at most twice as many; the memory budget still bounds it.
            self.start_one(Some(wear), actions);
        }
    }

    /// A replacement did not come up: its worker is looked at again after its next job.
    fn forget_due(&mut self) {
        if let Some(worker) = self.workers.values_mut().find(|worker| worker.due) {
            worker.due = false;
        }
    }

    fn retire_worker(&mut self, id: WorkerId, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.due = false;
        if worker.status != Status::Retiring {
            let stop_now = worker.leases.is_empty();
            worker.status = Status::Retiring;
            if stop_now {
                actions.push(Action::Stop { worker: id });
            }
        }
    }

    fn idle(&self) -> impl Iterator<Item = (Instant, WorkerId)> {
        let since = |(id, worker): (&WorkerId, &Worker)| match worker.status {
            Status::Serving { since } if worker.leases.is_empty() => Some((since, *id)),
            _ => None,
        };
        self.workers.iter().filter_map(since)
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.short = false;
        let mut idle: Vec<_> = self.idle().collect();
        idle.sort_unstable(); // The longest idle first.
        for (since, id) in idle {
            if now.duration_since(since) > self.policy.idle_ttl && self.live() > self.policy.workers_min {
                self.retire_worker(id, actions);
            } else {
                self.recycle(id, false, now, actions);
            }
        }
    }

    fn give_way(&mut self, actions: &mut Vec<Action>) {
        if let Some((spare, _)) = self.spare() {
            self.retire_worker(spare, actions);
        }
    }

    fn retire(&mut self, actions: &mut Vec<Action>) {
        self.retired = true;
        for waiter in self.waiters.drain(..) {
            actions.push(Action::Refuse { waiter, refusal: Refusal::Retired });
        }
        let all: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in all {
            self.retire_worker(id, actions);
        }
    }

    fn may_start(&self, now: Instant) -> bool {
        self.failed.as_ref().is_none_or(|failed| now >= failed.until)
    }

    /// Starts what the waiters need and `workers_min` asks for; those that start already count.
    fn grow(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.retired || !self.may_start(now) {
            return;
        }
        let per_worker = self.policy.concurrency as usize;
        let wanted = self.waiters.len().div_ceil(per_worker);
        let quiet = self.short || self.quiet_until.is_some_and(|until| now < until);
        let workers_min = if quiet { 0 } else { self.policy.workers_min };
        while self.live() < self.policy.workers_max && (self.starting() < wanted || self.live() < workers_min) {
            self.start_one(None, actions);
        }
    }

    fn start_one(&mut self, replaces: Option<Wear>, actions: &mut Vec<Action>) {
        self.next_worker += 1;
        let id = WorkerId(self.next_worker);
        let worker = Worker {
            status: Status::Starting,
            leases: Vec::new(),
            ready_at: None,
            jobs: 0,
            first_bytes: 0,
            due: false,
            broken: false,
        };
        self.workers.insert(id, worker);
        actions.push(Action::Start { worker: id, replaces });
    }
}

#[cfg(test)]
mod tests;

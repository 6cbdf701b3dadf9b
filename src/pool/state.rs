//! What a pool decides. Sees no clock, socket or process: events and times come in, actions go out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::worker::StartError;

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
    /// Another pool needs memory.
    MemoryPressure,
    Tick,
    /// Take no more leases, finish what runs, end.
    Retire,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Start { worker: WorkerId },
    Grant { waiter: WaiterId, worker: WorkerId, lease: LeaseId, cold: bool },
    Refuse { waiter: WaiterId, refusal: Refusal },
    Stop { worker: WorkerId },
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
    /// It goes as soon as its replacement is ready.
    due: bool,
    /// An invocation brought it down.
    broken: bool,
}

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
                return actions; // Asking again at once would only fail again; `MemoryFreed` comes.
            }
            Event::Ended { worker } => self.ended(worker, now, &mut actions),
            Event::Released { worker, lease, memory_bytes } => {
                self.released(worker, lease, memory_bytes, now, &mut actions);
            }
            Event::MemoryPressure => self.give_way(&mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Retire => self.retire(&mut actions),
            Event::MemoryFreed => {}
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

    /// The waiters that a `Start` was for keep waiting only if memory can come back.
    pub fn wants_memory(&self) -> bool {
        !self.waiters.is_empty() && self.live() < self.policy.workers_max
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
            self.start_one(actions);
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
        let too_large = memory > self.policy.memory_bytes_max;
        self.recycle(id, too_large, now, actions);
        self.grant_waiters(false, actions);
    }

    /// Marks a worker that is due and starts its replacement; it serves on until that one is ready.
    fn recycle(&mut self, id: WorkerId, too_large: bool, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let old = worker.ready_at.is_some_and(|ready| now.duration_since(ready) > self.policy.age_max);
        let used_up = worker.jobs >= self.policy.jobs_max;
        if worker.due || self.retired || !matches!(worker.status, Status::Serving { .. }) {
            return;
        }
        if too_large || old || used_up {
            worker.due = true;
            // Above `workers_max` for a moment, at most twice as many; the memory budget still bounds it.
            self.start_one(actions);
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

    /// Idle workers, the longest idle first.
    fn idle(&self) -> Vec<(Instant, WorkerId)> {
        let since = |(id, worker): (&WorkerId, &Worker)| match worker.status {
            Status::Serving { since } if worker.leases.is_empty() => Some((since, *id)),
            _ => None,
        };
        let mut idle: Vec<_> = self.workers.iter().filter_map(since).collect();
        idle.sort_unstable();
        idle
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (since, id) in self.idle() {
            if now.duration_since(since) > self.policy.idle_ttl && self.live() > self.policy.workers_min {
                self.retire_worker(id, actions);
            } else {
                self.recycle(id, false, now, actions);
            }
        }
    }

    fn give_way(&mut self, actions: &mut Vec<Action>) {
        if self.waiters.is_empty()
            && self.live() > self.policy.workers_min
            && let Some((_, oldest)) = self.idle().first().copied()
        {
            self.retire_worker(oldest, actions);
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
        let quiet = self.quiet_until.is_some_and(|until| now < until);
        let workers_min = if quiet { 0 } else { self.policy.workers_min };
        while self.live() < self.policy.workers_max && (self.starting() < wanted || self.live() < workers_min) {
            self.start_one(actions);
        }
    }

    fn start_one(&mut self, actions: &mut Vec<Action>) {
        self.next_worker += 1;
        let id = WorkerId(self.next_worker);
        let worker =
            Worker { status: Status::Starting, leases: Vec::new(), ready_at: None, jobs: 0, due: false, broken: false };
        self.workers.insert(id, worker);
        actions.push(Action::Start { worker: id });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            workers_max: 2,
            workers_min: 0,
            concurrency: 1,
            waiting_max: 3,
            idle_ttl: Duration::from_secs(60),
            age_max: Duration::from_secs(3600),
            jobs_max: 100,
            memory_bytes_max: 1000,
        }
    }

    /// A pool and a clock.
    struct Pool {
        state: State,
        now: Instant,
    }

    impl Pool {
        fn new(policy: Policy) -> Self {
            Self { state: State::new(policy), now: Instant::now() }
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            self.state.handle(event, self.now)
        }

        fn later(&mut self, seconds: u64) -> Vec<Action> {
            self.now += Duration::from_secs(seconds);
            self.on(Event::Tick)
        }

        fn acquire(&mut self, waiter: u64) -> Vec<Action> {
            self.on(Event::Acquire { waiter: WaiterId(waiter) })
        }

        fn ready(&mut self, worker: u64) -> Vec<Action> {
            self.on(Event::Ready { worker: WorkerId(worker) })
        }

        fn release(&mut self, worker: u64, lease: u64) -> Vec<Action> {
            let event = Event::Released { worker: WorkerId(worker), lease: LeaseId(lease), memory_bytes: Some(10) };
            self.on(event)
        }

        fn lose(&mut self, worker: u64, lease: u64) -> Vec<Action> {
            let event = Event::Released { worker: WorkerId(worker), lease: LeaseId(lease), memory_bytes: None };
            assert_eq!(self.on(event), []);
            self.on(Event::Ended { worker: WorkerId(worker) })
        }
    }

    fn start(worker: u64) -> Action {
        Action::Start { worker: WorkerId(worker) }
    }

    fn stop(worker: u64) -> Action {
        Action::Stop { worker: WorkerId(worker) }
    }

    fn grant(waiter: u64, worker: u64, lease: u64, cold: bool) -> Action {
        Action::Grant { waiter: WaiterId(waiter), worker: WorkerId(worker), lease: LeaseId(lease), cold }
    }

    fn refuse(waiter: u64, refusal: Refusal) -> Action {
        Action::Refuse { waiter: WaiterId(waiter), refusal }
    }

    fn failure() -> StartError {
        StartError::Broken("no".to_owned())
    }

    #[test]
    fn a_burst_on_a_cold_app_starts_at_most_workers_max_and_waits_in_bounds() {
        let mut pool = Pool::new(policy());
        assert_eq!(pool.acquire(1), [start(1)]);
        assert_eq!(pool.acquire(2), [start(2)]);
        assert_eq!(pool.acquire(3), []);
        assert_eq!(pool.acquire(4), [refuse(4, Refusal::QueueFull)]);
        assert_eq!(pool.ready(1), [grant(1, 1, 1, true)]);
        assert_eq!(pool.release(1, 1), [grant(2, 1, 2, false)]);
        assert_eq!(pool.ready(2), [grant(3, 2, 3, true)]);
    }

    #[test]
    fn the_worker_used_last_goes_first_and_the_others_age_out() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.acquire(2);
        pool.ready(1);
        pool.ready(2);
        pool.release(1, 1);
        pool.later(1);
        pool.release(2, 2);
        for round in 0..3 {
            let lease = 3 + round;
            assert_eq!(pool.acquire(lease), [grant(lease, 2, lease, false)]);
            pool.now += Duration::from_secs(20);
            pool.release(2, lease);
        }
        assert_eq!(pool.later(0), [stop(1)]);
        assert_eq!(pool.later(59), []);
    }

    #[test]
    fn a_busy_worker_is_never_idle_however_long_it_takes() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.ready(1);
        assert_eq!(pool.later(1000), []);
        assert_eq!(pool.release(1, 1), []);
        assert_eq!(pool.later(60), []);
        assert_eq!(pool.later(1), [stop(1)]);
    }

    #[test]
    fn workers_min_stay() {
        let mut pool = Pool::new(Policy { workers_min: 1, ..policy() });
        assert_eq!(pool.later(0), [start(1)]);
        pool.ready(1);
        assert_eq!(pool.later(1000), []);
    }

    #[test]
    fn a_worker_that_an_invocation_broke_is_replaced_once() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.ready(1);
        assert_eq!(pool.lose(1, 1), [start(2)]);
        pool.ready(2);
        assert_eq!(pool.on(Event::Ended { worker: WorkerId(2) }), [], "it died idle");
    }

    #[test]
    fn idle_crashes_do_not_turn_workers_min_into_a_spinning_wheel() {
        let mut pool = Pool::new(Policy { workers_min: 1, ..policy() });
        pool.later(0);
        pool.ready(1);
        assert_eq!(pool.on(Event::Ended { worker: WorkerId(1) }), []);
        assert_eq!(pool.later(1), [start(2)]);
        pool.ready(2);
        assert_eq!(pool.on(Event::Ended { worker: WorkerId(2) }), []);
        assert_eq!(pool.acquire(1), [start(3)], "a caller does not wait for it");
    }

    #[test]
    fn a_failed_start_is_told_to_all_who_wait_and_then_backs_off() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.acquire(2);
        assert_eq!(pool.on(Event::StartFailed { worker: WorkerId(1), failure: failure() }), []);
        let told = pool.on(Event::StartFailed { worker: WorkerId(2), failure: failure() });
        let refusal = || Refusal::NotStarted(failure());
        assert_eq!(told, [refuse(1, refusal()), refuse(2, refusal())]);
        assert_eq!(pool.acquire(3), [refuse(3, refusal())]);
        assert_eq!(pool.later(1), []);
        assert_eq!(pool.acquire(4), [start(3)]);
        assert_eq!(pool.ready(3), [grant(4, 3, 1, true)]);
    }

    #[test]
    fn a_worn_worker_serves_on_until_its_replacement_is_ready() {
        let mut pool = Pool::new(Policy { jobs_max: 1, ..policy() });
        pool.acquire(1);
        pool.ready(1);
        assert_eq!(pool.release(1, 1), [start(2)]);
        assert_eq!(pool.acquire(2), [grant(2, 1, 2, false)]);
        assert_eq!(pool.release(1, 2), []);
        assert_eq!(pool.ready(2), [stop(1)]);
        assert_eq!(pool.acquire(3), [grant(3, 2, 3, false)]);
    }

    #[test]
    fn age_and_size_are_recycled_on_both_sides_of_their_limits() {
        let mut pool = Pool::new(Policy { idle_ttl: Duration::from_secs(9999), ..policy() });
        pool.acquire(1);
        pool.ready(1);
        let sized =
            |lease, memory| Event::Released { worker: WorkerId(1), lease: LeaseId(lease), memory_bytes: Some(memory) };
        assert_eq!(pool.on(sized(1, 1000)), []);
        assert_eq!(pool.later(3600), []);
        assert_eq!(pool.later(1), [start(2)]);
        pool.ready(2);
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.ready(1);
        assert_eq!(pool.on(sized(1, 1001)), [start(2)]);
    }

    #[test]
    fn a_retired_pool_finishes_what_runs_and_refuses_the_rest() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.acquire(2);
        pool.ready(1);
        pool.ready(2);
        pool.acquire(3);
        pool.release(2, 2);
        pool.release(2, 3);
        pool.acquire(4);
        pool.acquire(5);
        let actions = pool.on(Event::Retire);
        assert_eq!(actions, [refuse(5, Refusal::Retired)]);
        assert_eq!(pool.release(1, 1), [stop(1)]);
        assert_eq!(pool.acquire(6), [refuse(6, Refusal::Retired)]);
        assert_eq!(pool.on(Event::Ended { worker: WorkerId(1) }), []);
    }

    #[test]
    fn without_memory_the_waiters_wait_and_others_are_asked_to_give_way() {
        let mut pool = Pool::new(policy());
        assert_eq!(pool.acquire(1), [start(1)]);
        assert_eq!(pool.on(Event::NoMemory { worker: WorkerId(1) }), []);
        assert!(pool.state.wants_memory());
        assert_eq!(pool.on(Event::MemoryFreed), [start(2)]);
        pool.ready(2);
        assert_eq!(pool.on(Event::MemoryPressure), [], "it is busy");
        pool.release(2, 1);
        assert_eq!(pool.on(Event::MemoryPressure), [stop(2)]);
    }

    #[test]
    fn a_waiter_that_left_gets_nothing() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.acquire(2);
        pool.on(Event::Abandoned { waiter: WaiterId(1) });
        assert_eq!(pool.ready(1), [grant(2, 1, 1, true)]);
        assert_eq!(pool.ready(2), []);
    }

    #[test]
    fn a_lease_that_comes_back_twice_counts_once() {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.ready(1);
        pool.release(1, 1);
        pool.acquire(2);
        assert_eq!(pool.release(1, 1), []);
        assert_eq!(pool.state.counts().busy, 1);
    }

    #[test]
    fn concurrency_fills_a_worker_before_another_is_started() {
        let mut pool = Pool::new(Policy { concurrency: 2, ..policy() });
        assert_eq!(pool.acquire(1), [start(1)]);
        assert_eq!(pool.acquire(2), []);
        assert_eq!(pool.acquire(3), [start(2)]);
        assert_eq!(pool.ready(1), [grant(1, 1, 1, true), grant(2, 1, 2, true)]);
        assert_eq!(pool.ready(2), [grant(3, 2, 3, true)]);
        assert_eq!(pool.acquire(4), [grant(4, 2, 4, false)]);
    }
}

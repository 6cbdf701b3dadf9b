//! One replica: the pools and the memory budget are the service's own, in simulated time; the rest is what they need around them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use chatfn::pool::MemoryBudget;
use chatfn::pool::budget::{Account, AccountId, Purpose, Reservation};
use chatfn::pool::state::{Action, Event, LeaseId, Policy, State, WaiterId, WorkerId};

use crate::agenda::{Agenda, What};
use crate::figures::{Apps, Call};
use crate::processor::{Processor, Work};
use crate::workload::Demand;

/// From the order to end until a worker's memory is free.
const END: Duration = Duration::from_millis(10);
/// Of a waiter's number: its job's place; the rest counts calls.
const JOB_BITS: u32 = 24;

/// What is the same for all replicas of a scenario.
#[derive(Clone)]
pub struct Settings {
    pub cores: usize,
    pub budget_bytes: u64,
    pub starts_max: usize,
    pub policy: Policy,
    /// Of each worker.
    pub limit_bytes: u64,
    /// How long a call may wait for a worker.
    pub wait_max: Duration,
    pub call: Call,
    pub apps: Apps,
}

/// What became of a call.
#[derive(Debug)]
pub enum Outcome {
    Served {
        demand: Demand,
        began: Instant,
        cold: bool,
    },
    /// Too many waited already.
    Refused {
        demand: Demand,
        began: Instant,
    },
    TimedOut {
        demand: Demand,
        began: Instant,
    },
}

struct Job {
    demand: Demand,
    began: Instant,
    lease: Option<(WorkerId, LeaseId)>,
    cold: bool,
    /// The place may have been another job's before.
    waiter: WaiterId,
}

struct Pool {
    state: State,
    account: Account,
    reservations: HashMap<WorkerId, Reservation>,
}

pub struct Replica {
    number: usize,
    settings: Settings,
    pub processor: Processor,
    budget: MemoryBudget,
    pools: Vec<Option<Box<Pool>>>,
    /// The apps that have one.
    hosted: Vec<usize>,
    /// Those whose callers lack memory.
    short: BTreeSet<usize>,
    /// Whose account is which.
    accounts: HashMap<AccountId, usize>,
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Workers whose Node starts.
    starting: usize,
    /// Those that wait for their turn to.
    to_start: VecDeque<(usize, WorkerId)>,
    calls: u64,
    waiting: VecDeque<(Instant, usize, WaiterId)>,
    pub workers: usize,
    pub workers_peak: usize,
    pub starts: u64,
    outcomes: Vec<Outcome>,
}

impl Replica {
    pub fn new(number: usize, apps: usize, settings: &Settings) -> Self {
        Self {
            number,
            processor: Processor::new(number, settings.cores),
            budget: MemoryBudget::new(settings.budget_bytes),
            settings: settings.clone(),
            pools: (0..apps).map(|_| None).collect(),
            hosted: Vec::new(),
            short: BTreeSet::new(),
            accounts: HashMap::new(),
            jobs: Vec::new(),
            free: Vec::new(),
            starting: 0,
            to_start: VecDeque::new(),
            calls: 0,
            waiting: VecDeque::new(),
            workers: 0,
            workers_peak: 0,
            starts: 0,
            outcomes: Vec::new(),
        }
    }

    /// Of memory, what is promised.
    pub fn promised(&self) -> u64 {
        self.budget.used()
    }

    /// Apps that were called here.
    pub fn hosted(&self) -> usize {
        self.hosted.len()
    }

    pub fn hosts(&self, app: usize) -> bool {
        self.pools[app].is_some()
    }

    pub fn call(&mut self, demand: Demand, now: Instant, agenda: &mut Agenda) {
        let job = self.free.pop().unwrap_or(self.jobs.len());
        if job == self.jobs.len() {
            self.jobs.push(None);
        }
        self.calls += 1;
        let waiter = WaiterId(self.calls << JOB_BITS | job as u64);
        self.jobs[job] = Some(Job { demand, began: now, lease: None, cold: false, waiter });
        self.processor.want(Work::Accept { job }, micros(self.settings.call.service_micros / 2.0), now, agenda);
    }

    /// What became of calls by this.
    pub fn happens(&mut self, what: What, now: Instant, agenda: &mut Agenda) -> Vec<Outcome> {
        match what {
            What::Slice(task) => {
                if let Some(work) = self.processor.sliced(task, now, agenda) {
                    self.worked(work, now, agenda);
                }
            }
            What::Waited { job } => {
                let cpu = micros(self.settings.call.service_micros / 2.0);
                self.processor.want(Work::Reply { job }, cpu, now, agenda);
            }
            What::Ended { app, worker } => self.ended(app, worker, now, agenda),
            What::Tick => self.tick(now, agenda),
            What::Call | What::Killed => {}
        }
        std::mem::take(&mut self.outcomes)
    }

    fn worked(&mut self, work: Work, now: Instant, agenda: &mut Agenda) {
        match work {
            Work::Accept { job } => {
                let Some(Job { demand, waiter, .. }) = &self.jobs[job] else { return };
                let (app, waiter) = (demand.app, *waiter);
                self.waiting.push_back((now + self.settings.wait_max, job, waiter));
                self.decide(app, Event::Acquire { waiter }, now, agenda);
            }
            Work::Run { job } => {
                let wait = self.jobs[job].as_ref().map_or(Duration::ZERO, |job| job.demand.wait);
                agenda.add(now + wait, self.number, What::Waited { job });
            }
            Work::Reply { job } => {
                let Some(Job { demand, began, lease: Some((worker, lease)), cold, .. }) = self.leave(job) else {
                    return;
                };
                self.outcomes.push(Outcome::Served { demand, began, cold });
                self.decide(demand.app, Event::Released { worker, lease, memory_bytes: Some(1) }, now, agenda);
            }
            Work::Start { app, worker } => {
                self.starting -= 1;
                self.start_next(now, agenda);
                self.decide(app, Event::Ready { worker }, now, agenda);
            }
        }
    }

    fn leave(&mut self, job: usize) -> Option<Job> {
        self.free.push(job);
        self.jobs[job].take()
    }

    /// As the pools' supervisor does it.
    fn decide(&mut self, app: usize, event: Event, now: Instant, agenda: &mut Agenda) {
        let mut pool = self.pools[app].take().unwrap_or_else(|| self.pool(app));
        let (mut events, mut lacking) = (vec![event], 0);
        while let Some(event) = events.pop() {
            for action in pool.state.handle(event, now) {
                if let Some(worker) = self.perform(app, &mut pool, action, now, agenda) {
                    lacking += 1;
                    events.push(Event::NoMemory { worker });
                }
            }
        }
        let lacking = pool.state.lacking().min(lacking);
        pool.account.lack(lacking as u64, self.settings.limit_bytes, now);
        pool.account.offer(pool.state.spare().map(|(_, offer)| offer), now);
        if pool.state.wants_memory() {
            self.short.insert(app)
        } else {
            self.short.remove(&app)
        };
        self.pools[app] = Some(pool);
        if lacking > 0 {
            self.give_way(now, agenda);
        }
    }

    fn pool(&mut self, app: usize) -> Box<Pool> {
        self.hosted.push(app);
        let state = State::new(self.settings.policy.clone());
        let account = self.budget.account();
        self.accounts.insert(account.id(), app);
        Box::new(Pool { state, account, reservations: HashMap::new() })
    }

    /// The worker that there is no memory for.
    fn perform(
        &mut self,
        app: usize,
        pool: &mut Pool,
        action: Action,
        now: Instant,
        agenda: &mut Agenda,
    ) -> Option<WorkerId> {
        match action {
            Action::Start { worker, .. } => {
                let purpose = if pool.state.counts().waiting > 0 { Purpose::Call } else { Purpose::Spare };
                let Some(reservation) = pool.account.reserve(self.settings.limit_bytes, purpose) else {
                    return Some(worker);
                };
                pool.reservations.insert(worker, reservation);
                self.workers += 1;
                self.workers_peak = self.workers_peak.max(self.workers);
                self.starts += 1;
                self.to_start.push_back((app, worker));
                self.start_next(now, agenda);
            }
            Action::Grant { waiter, worker, lease, cold } => {
                self.granted(waiter, (worker, lease), cold, now, agenda);
            }
            Action::Refuse { waiter, .. } => {
                if let Some(job) = self.job_of(waiter) {
                    let Job { demand, began, .. } = self.leave(job)?;
                    self.outcomes.push(Outcome::Refused { demand, began });
                }
            }
            Action::Stop { worker } => {
                if let Some(reservation) = pool.reservations.get_mut(&worker) {
                    reservation.leave();
                }
                agenda.add(now + END, self.number, What::Ended { app, worker });
            }
        }
        None
    }

    fn start_next(&mut self, now: Instant, agenda: &mut Agenda) {
        while self.starting < self.settings.starts_max
            && let Some((app, worker)) = self.to_start.pop_front()
        {
            self.starting += 1;
            let cpu = micros(self.settings.apps.start_cpu_micros);
            self.processor.want(Work::Start { app, worker }, cpu, now, agenda);
        }
    }

    fn granted(&mut self, waiter: WaiterId, lease: (WorkerId, LeaseId), cold: bool, now: Instant, agenda: &mut Agenda) {
        let Some(index) = self.job_of(waiter) else { return };
        let Some(job) = &mut self.jobs[index] else { return };
        job.lease = Some(lease);
        job.cold = cold;
        let cpu = micros(self.settings.call.worker_micros) + job.demand.cpu;
        self.processor.want(Work::Run { job: index }, cpu, now, agenda);
    }

    fn job_of(&self, waiter: WaiterId) -> Option<usize> {
        let job = (waiter.0 & ((1 << JOB_BITS) - 1)) as usize;
        self.jobs[job].as_ref().is_some_and(|found| found.waiter == waiter).then_some(job)
    }

    fn ended(&mut self, app: usize, worker: WorkerId, now: Instant, agenda: &mut Agenda) {
        self.workers -= 1;
        if let Some(pool) = &mut self.pools[app] {
            pool.reservations.remove(&worker);
        }
        self.decide(app, Event::Ended { worker }, now, agenda);
        for app in std::mem::take(&mut self.short) {
            self.decide(app, Event::MemoryFreed, now, agenda);
        }
    }

    /// Ends idle workers while callers lack their memory.
    fn give_way(&mut self, now: Instant, agenda: &mut Agenda) {
        while let Some(app) = self.budget.asked().map(|account| self.accounts[&account])
            && let Some(pool) = &mut self.pools[app]
            && let Some((worker, _)) = pool.state.spare()
            && let Some(reservation) = pool.reservations.get_mut(&worker)
            && pool.account.give_way(reservation, now)
        {
            self.decide(app, Event::MemoryPressure, now, agenda);
        }
    }

    fn tick(&mut self, now: Instant, agenda: &mut Agenda) {
        while let Some((until, job, waiter)) = self.waiting.front().copied() {
            let waits = self.jobs[job].as_ref().filter(|found| found.waiter == waiter && found.lease.is_none());
            if waits.is_some() && until > now {
                break;
            }
            self.waiting.pop_front();
            if waits.is_some()
                && let Some(Job { demand, began, .. }) = self.leave(job)
            {
                self.outcomes.push(Outcome::TimedOut { demand, began });
                self.decide(demand.app, Event::Abandoned { waiter }, now, agenda);
            }
        }
        for place in 0..self.hosted.len() {
            self.decide(self.hosted[place], Event::Tick, now, agenda);
        }
    }
}

fn micros(micros: f64) -> Duration {
    Duration::from_secs_f64(micros / 1e6)
}

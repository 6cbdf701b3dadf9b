//! A scenario from its first call to its last.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::agenda::{Agenda, Entry, What};
use crate::figures::Figures;
use crate::replica::{Outcome, Replica, Settings};
use crate::router::{Router, Routing};
use crate::workload::Workload;
use chatfn::pool::state::Policy;

/// How often replicas look at what grows old.
const TICK: Duration = Duration::from_secs(1);
const MICROS_MAX: u64 = 600_000_000;

#[derive(Debug, Clone)]
pub struct Scenario {
    pub apps: usize,
    /// Calls in a second, of all apps.
    pub rate: f64,
    /// The share of the hottest app, in place of its own.
    pub hot: Option<f64>,
    pub replicas: usize,
    pub cores: usize,
    pub budget_bytes: u64,
    /// Workers that start at a time on a replica.
    pub starts_max: usize,
    pub routing: Routing,
    pub workers_max: usize,
    pub concurrency: u32,
    pub limit_bytes: u64,
    /// Not measured: the rate grows from nothing, and the workers come.
    pub warm_up: Duration,
    pub measured: Duration,
    /// One replica dies when the measurement begins.
    pub one_dies: bool,
}

pub struct Report {
    /// Beyond the function's own time, in µs: of all calls, and of the hottest app's.
    pub added: Histogram<u64>,
    pub added_hot: Histogram<u64>,
    pub hottest: f64,
    pub cold: u64,
    pub refused: u64,
    pub refused_hot: u64,
    /// With the replica that died.
    pub lost: u64,
    /// Of the cores that are there, on average and on the busiest replica.
    pub busy: f64,
    pub busy_most: f64,
    /// Of all replicas, when it was over; and the most that one had.
    pub workers: usize,
    pub workers_peak: usize,
    pub promised_bytes: u64,
    /// How many replicas the hottest app ran on, and apps a replica ran on average.
    pub replicas_of_hottest: usize,
    pub apps_each: f64,
}

pub fn run(scenario: &Scenario, figures: &Figures) -> Report {
    let mut simulation = Simulation::new(scenario, figures);
    while let Some(entry) = simulation.agenda.next()
        && entry.at < simulation.end
    {
        simulation.step(entry);
    }
    simulation.finish()
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    agenda: Agenda,
    workload: Workload,
    router: Router,
    /// `None`: it died.
    replicas: Vec<Option<Replica>>,
    measured_from: Instant,
    end: Instant,
    /// CPU that was used before.
    used: Vec<Duration>,
    report: Report,
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario, figures: &Figures) -> Self {
        let settings = Settings {
            cores: scenario.cores,
            budget_bytes: scenario.budget_bytes,
            starts_max: scenario.starts_max,
            policy: policy(scenario),
            limit_bytes: scenario.limit_bytes,
            wait_max: Duration::from_secs(10),
            call: figures.blocking(scenario.rate / scenario.replicas as f64),
            apps: figures.apps(),
        };
        let begin = Instant::now();
        let mut agenda = Agenda::default();
        agenda.add(begin, 0, What::Call);
        let measured_from = begin + scenario.warm_up;
        for replica in 0..scenario.replicas {
            agenda.add(begin + TICK, replica, What::Tick);
        }
        if scenario.one_dies {
            agenda.add(measured_from, 0, What::Killed);
        }
        let replicas = (0..scenario.replicas).map(|number| Some(Replica::new(number, scenario.apps, &settings)));
        let workload = Workload::new(scenario.apps, scenario.rate, scenario.hot);
        let report = Report::new(workload.hottest());
        Self {
            scenario,
            agenda,
            workload,
            router: Router::new(scenario.routing, scenario.replicas),
            replicas: replicas.collect(),
            measured_from,
            end: measured_from + scenario.measured,
            used: Vec::new(),
            report,
        }
    }

    fn step(&mut self, entry: Entry) {
        let Entry { at: now, replica, what, .. } = entry;
        if now >= self.measured_from && self.used.is_empty() {
            self.used = self
                .replicas
                .iter()
                .map(|replica| replica.as_ref().map_or(Duration::ZERO, |r| r.processor.used))
                .collect();
        }
        match what {
            What::Call => {
                let demand = self.workload.next();
                let replica = self.router.route(demand.app, &mut self.workload);
                if let Some(replica) = &mut self.replicas[replica] {
                    replica.call(demand, now, &mut self.agenda);
                }
                // From nothing: a fleet without one worker would be overrun by its first second.
                let left = self.measured_from.saturating_duration_since(now);
                let part = if left.is_zero() { 1.0 } else { 1.0 - left.div_duration_f64(self.scenario.warm_up) };
                self.agenda.add(now + self.workload.gap(part.max(0.01)), 0, What::Call);
            }
            What::Killed => {
                self.report.lost = u64::from(self.router.remove(replica));
                self.replicas[replica] = None;
            }
            what => {
                let Some(there) = &mut self.replicas[replica] else { return };
                if matches!(what, What::Tick) {
                    self.agenda.add(now + TICK, replica, What::Tick);
                }
                for outcome in there.happens(what, now, &mut self.agenda) {
                    self.router.done(replica);
                    self.report.note(&outcome, now, self.measured_from);
                }
            }
        }
    }

    fn finish(mut self) -> Report {
        let report = &mut self.report;
        let cores = self.scenario.cores as f64 * self.scenario.measured.as_secs_f64();
        let used =
            self.used.iter().zip(&self.replicas).filter_map(|(before, replica)| Some((before, replica.as_ref()?)));
        let busy: Vec<f64> = used.map(|(before, r)| (r.processor.used - *before).as_secs_f64() / cores).collect();
        report.busy = busy.iter().sum::<f64>() / busy.len() as f64;
        report.busy_most = busy.iter().copied().fold(0.0, f64::max);
        let there: Vec<&Replica> = self.replicas.iter().flatten().collect();
        report.workers = there.iter().map(|replica| replica.workers).sum();
        report.workers_peak = there.iter().map(|replica| replica.workers_peak).max().unwrap_or(0);
        report.promised_bytes = there.iter().map(|replica| replica.promised()).max().unwrap_or(0);
        report.replicas_of_hottest = there.iter().filter(|replica| replica.hosts(0)).count();
        report.apps_each = there.iter().map(|replica| replica.hosted()).sum::<usize>() as f64 / there.len() as f64;
        self.report
    }
}

impl Report {
    fn new(hottest: f64) -> Self {
        let histogram = || Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("the bounds are valid");
        Self {
            added: histogram(),
            added_hot: histogram(),
            hottest,
            cold: 0,
            refused: 0,
            refused_hot: 0,
            lost: 0,
            busy: 0.0,
            busy_most: 0.0,
            workers: 0,
            workers_peak: 0,
            promised_bytes: 0,
            replicas_of_hottest: 0,
            apps_each: 0.0,
        }
    }

    fn note(&mut self, outcome: &Outcome, now: Instant, measured_from: Instant) {
        let (Outcome::Served { demand, began, .. }
        | Outcome::Refused { demand, began }
        | Outcome::TimedOut { demand, began }) = outcome;
        if *began < measured_from {
            return;
        }
        let hot = demand.app == 0;
        if let Outcome::Served { cold, .. } = outcome {
            let added = now.duration_since(*began).saturating_sub(demand.cpu + demand.wait).as_micros() as u64;
            self.added.saturating_record(added.max(1));
            if hot {
                self.added_hot.saturating_record(added.max(1));
            }
            self.cold += u64::from(*cold);
        } else {
            self.refused += 1;
            self.refused_hot += u64::from(hot);
        }
    }
}

/// As shipped, but for what the scenario says.
fn policy(scenario: &Scenario) -> Policy {
    Policy {
        workers_max: scenario.workers_max,
        workers_min: 0,
        concurrency: scenario.concurrency,
        waiting_max: 1000,
        idle_ttl: Duration::from_secs(600),
        age_max: Duration::from_secs(3600),
        jobs_max: 100_000,
        memory_bytes_max: scenario.limit_bytes / 100 * 80,
    }
}

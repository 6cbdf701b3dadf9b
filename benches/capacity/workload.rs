//! Who calls what, and what the functions do: the assumptions of the simulation.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Of a function by itself. CPU and waiting (for a database, another service) are exponential with these means.
const FUNCTION_CPU: Duration = Duration::from_micros(300);
const FUNCTION_WAIT: Duration = Duration::from_millis(10);
/// The same calls in each scenario, so that they differ by what they are about.
const SEED: u64 = 6;

pub struct Workload {
    random: SmallRng,
    /// Of each app: the share of it and all before it.
    up_to: Vec<f64>,
    rate: f64,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    pub app: usize,
    pub cpu: Duration,
    pub wait: Duration,
}

impl Workload {
    /// The apps' shares follow Zipf's law with exponent 1. `hot`: the share of the first one, in place of its own.
    pub fn new(apps: usize, rate: f64, hot: Option<f64>) -> Self {
        let mut shares: Vec<f64> = (1..=apps).map(|rank| 1.0 / rank as f64).collect();
        if let Some(hot) = hot {
            let others: f64 = shares[1..].iter().sum();
            shares[0] = others * hot / (1.0 - hot);
        }
        let total: f64 = shares.iter().sum();
        let up_to = shares.iter().scan(0.0, |sum, share| {
            *sum += share / total;
            Some(*sum)
        });
        Self { random: SmallRng::seed_from_u64(SEED), up_to: up_to.collect(), rate }
    }

    /// Of all calls, the first app's.
    pub fn hottest(&self) -> f64 {
        self.up_to[0]
    }

    /// Until the next call comes. `part`: of the rate; the day's begin, when it grows.
    pub fn gap(&mut self, part: f64) -> Duration {
        let mean = Duration::from_secs_f64(1.0 / (self.rate * part));
        self.exponential(mean)
    }

    pub fn next(&mut self) -> Demand {
        let at: f64 = self.random.random();
        let app = self.up_to.partition_point(|up_to| *up_to < at).min(self.up_to.len() - 1);
        Demand { app, cpu: self.exponential(FUNCTION_CPU), wait: self.exponential(FUNCTION_WAIT) }
    }

    /// Any of so many.
    pub fn any(&mut self, count: usize) -> usize {
        self.random.random_range(0..count)
    }

    fn exponential(&mut self, mean: Duration) -> Duration {
        let at: f64 = self.random.random();
        mean.mul_f64(-(1.0 - at).ln())
    }
}

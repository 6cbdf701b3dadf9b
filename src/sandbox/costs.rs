//! What each step of a child's start took, told by the broker and the child themselves: where a start's time goes on a machine.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A step, mostly a layer, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    pub step: String,
    pub took: Duration,
}

/// In the order of the steps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs(pub Vec<Cost>);

impl Display for Costs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, Cost { step, took }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{step} {took:.1?}")?;
        }
        Ok(())
    }
}

/// Measures from step to step. Goes on in a clone of this process: the clock is the machine's.
#[derive(Debug)]
pub(super) struct Stopwatch {
    last: Instant,
    costs: Costs,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { last: Instant::now(), costs: Costs::default() }
    }

    /// `step` is done: it took what has passed since the one before it.
    pub(super) fn lap(&mut self, step: &str) {
        let now = Instant::now();
        self.costs.0.push(Cost { step: step.to_owned(), took: now - self.last });
        self.last = now;
    }

    pub(super) fn costs(&self) -> &Costs {
        &self.costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_told_in_the_order_of_the_steps() {
        let mut watch = Stopwatch::start();
        watch.lap("clone");
        watch.lap("seccomp");
        let steps: Vec<_> = watch.costs().0.iter().map(|cost| cost.step.as_str()).collect();
        assert_eq!(steps, ["clone", "seccomp"]);
        let costs = [("clone", 1500), ("seccomp", 20)]
            .map(|(step, micros)| Cost { step: step.to_owned(), took: Duration::from_micros(micros) });
        assert_eq!(Costs(costs.into()).to_string(), "clone 1.5ms, seccomp 20.0µs");
    }
}

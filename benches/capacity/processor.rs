//! The cores of a replica: whoever wants one gets it in turn, for a slice, as a fair scheduler would have it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use chatfn::pool::state::WorkerId;

use crate::agenda::{Agenda, What};

/// A start must not keep calls waiting for all the CPU that it takes.
const SLICE: Duration = Duration::from_millis(3);

#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// The service takes a call in.
    Accept { job: usize },
    /// The worker and the function in it.
    Run { job: usize },
    /// The service answers.
    Reply { job: usize },
    /// A worker starts.
    Start { app: usize, worker: WorkerId },
}

#[derive(Debug, Clone, Copy)]
pub struct Task {
    pub work: Work,
    left: Duration,
}

pub struct Processor {
    replica: usize,
    free: usize,
    queue: VecDeque<Task>,
    /// CPU time that was given out.
    pub used: Duration,
}

impl Processor {
    pub fn new(replica: usize, cores: usize) -> Self {
        Self { replica, free: cores, queue: VecDeque::new(), used: Duration::ZERO }
    }

    pub fn want(&mut self, work: Work, cpu: Duration, now: Instant, agenda: &mut Agenda) {
        self.queue.push_back(Task { work, left: cpu });
        self.give(now, agenda);
    }

    /// A slice is over. The work, if it is all done.
    pub fn sliced(&mut self, task: Task, now: Instant, agenda: &mut Agenda) -> Option<Work> {
        self.free += 1;
        let done = task.left.is_zero();
        if !done {
            self.queue.push_back(task);
        }
        self.give(now, agenda);
        done.then_some(task.work)
    }

    fn give(&mut self, now: Instant, agenda: &mut Agenda) {
        while self.free > 0
            && let Some(mut task) = self.queue.pop_front()
        {
            let slice = task.left.min(SLICE);
            task.left -= slice;
            self.used += slice;
            self.free -= 1;
            agenda.add(now + slice, self.replica, What::Slice(task));
        }
    }
}

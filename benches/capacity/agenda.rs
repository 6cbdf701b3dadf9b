//! What happens when, in simulated time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Instant;

use chatfn::pool::state::WorkerId;

use crate::processor::Task;

#[derive(Debug)]
pub enum What {
    /// The next call comes in.
    Call,
    /// A core was long enough with this task.
    Slice(Task),
    /// A function has what it waited for.
    Waited { job: usize },
    /// A worker that was told to end has ended.
    Ended { app: usize, worker: WorkerId },
    /// Time to look at what waits for too long, and at idle workers.
    Tick,
    /// The replica dies.
    Killed,
}

#[derive(Debug)]
pub struct Entry {
    pub at: Instant,
    pub replica: usize,
    pub what: What,
    number: u64,
}

#[derive(Default)]
pub struct Agenda {
    entries: BinaryHeap<Reverse<Entry>>,
    number: u64,
}

impl Agenda {
    pub fn add(&mut self, at: Instant, replica: usize, what: What) {
        self.number += 1;
        self.entries.push(Reverse(Entry { at, replica, what, number: self.number }));
    }

    pub fn next(&mut self) -> Option<Entry> {
        self.entries.pop().map(|Reverse(entry)| entry)
    }
}

/// By time; of the same time, what was added first.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

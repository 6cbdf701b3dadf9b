//! What the reserve decides. Sees no clock and no process: what is there and the time come in, what to do next goes out.

use std::time::{Duration, Instant};

use crate::worker::Class;

/// How many workers wait, of what, for how long.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Of the default class.
    pub workers: usize,
    pub default: Class,
    /// Another class that nobody asked for in this time is forgotten.
    pub idle_ttl: Duration,
    /// An older spare is replaced.
    pub age_max: Duration,
}

/// Besides the default one: those that were asked for last.
const CLASSES_MAX: usize = 4;
/// Without any start for an app: then callers have what they waited for, and the machine has time.
const QUIET: Duration = Duration::from_millis(100);
/// Longer it waits for no quiet: a tenant whose workers crash one after the other must not keep it empty for everybody.
const PATIENCE: Duration = Duration::from_secs(2);
/// After it had to give its memory up.
const GIVEN_UP: Duration = Duration::from_secs(1);
/// A spare gains nothing by being young: replacing them must not be what the machine does.
const AGE_MIN: Duration = Duration::from_secs(10);
/// After one that did not come up, or died.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A spare that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub class: Class,
    pub since: Instant,
}

/// What to do about what is there.
#[derive(Debug, PartialEq)]
pub enum Next {
    Start(Class),
    /// Nothing until then, or until something happens.
    Wait(Option<Instant>),
}

#[derive(Debug)]
pub struct State {
    policy: Policy,
    /// The one asked for last at the end.
    classes: Vec<(Class, Instant)>,
    /// Workers that start for an app.
    under_way: usize,
    quiet_until: Instant,
    lacking_since: Option<Instant>,
    not_before: Instant,
    failures: u32,
    /// Those that the budget has no room for.
    short: Vec<Class>,
}

impl State {
    pub fn new(policy: Policy, now: Instant) -> Self {
        let policy = Policy { age_max: policy.age_max.max(AGE_MIN), ..policy };
        Self {
            policy,
            classes: Vec::new(),
            under_way: 0,
            quiet_until: now + QUIET,
            lacking_since: None,
            not_before: now,
            failures: 0,
            short: Vec::new(),
        }
    }

    /// A worker starts for an app.
    pub fn start_begins(&mut self, class: Option<Class>, now: Instant) {
        self.under_way += 1;
        let Some(class) = class.filter(|class| *class != self.policy.default) else { return };
        self.classes.retain(|(known, _)| *known != class);
        if self.classes.len() >= CLASSES_MAX {
            self.classes.remove(0);
        }
        self.classes.push((class, now));
    }

    /// It is up, or is not going to be.
    pub fn start_ends(&mut self, now: Instant) {
        self.under_way -= 1;
        self.quiet_until = now + QUIET;
    }

    /// A spare could not be started, or died. Until the next is tried more of them say nothing new: what takes the egress supervisor
    /// takes all spares with it.
    pub fn failed(&mut self, now: Instant) {
        if self.failures > 0 && now < self.not_before {
            return;
        }
        let backoff = (BACKOFF_MIN * 2u32.pow(self.failures.min(16))).min(BACKOFF_MAX);
        self.failures += 1;
        self.not_before = now + backoff;
    }

    /// One was of use, or would have been.
    pub fn proved(&mut self) {
        self.failures = 0;
    }

    /// The budget had no room for one of this class. Until [`State::memory_freed`] asking again would be in vain. Others may be smaller:
    /// one app's size must not keep the reserve empty for everybody.
    pub fn no_memory(&mut self, class: Class) {
        self.short.push(class);
    }

    pub fn memory_freed(&mut self) {
        self.short.clear();
    }

    pub fn is_short(&self) -> bool {
        !self.short.is_empty()
    }

    /// Somebody needs the memory more.
    pub fn gave_up(&mut self, now: Instant) {
        self.not_before = self.not_before.max(now + GIVEN_UP);
    }

    /// Of what is there: what has to go, by index.
    pub fn surplus(&mut self, held: &[Held], now: Instant) -> Vec<usize> {
        let idle_ttl = self.policy.idle_ttl;
        self.classes.retain(|(_, used)| now.duration_since(*used) <= idle_ttl);
        let goes = |(index, spare): (usize, &Held)| {
            let of_class = |others: &[Held]| others.iter().filter(|other| other.class == spare.class).count();
            let (older, younger, wanted) =
                (of_class(&held[..index]), of_class(&held[index + 1..]), self.wanted(spare.class));
            // One after the other: the next goes when this one has been replaced.
            let old = older == 0 && younger + 1 >= wanted && now.duration_since(spare.since) > self.policy.age_max;
            (old || younger >= wanted).then_some(index)
        };
        held.iter().enumerate().filter_map(goes).collect()
    }

    /// What to start, one at a time: a start that comes meanwhile shares the machine with one at most.
    pub fn next(&mut self, held: &[Held], starting: bool, now: Instant) -> Next {
        let Some(class) = self.lacking(held) else {
            self.lacking_since = None;
            return Next::Wait(self.next_change(held));
        };
        if starting {
            return Next::Wait(self.next_change(held));
        }
        let since = *self.lacking_since.get_or_insert(now);
        let quiet_at = if self.under_way == 0 { self.quiet_until } else { since + PATIENCE };
        let at = quiet_at.min(since + PATIENCE).max(self.not_before);
        if now < at {
            return Next::Wait(Some(at.min(self.next_change(held).unwrap_or(at))));
        }
        self.lacking_since = None;
        Next::Start(class)
    }

    /// Of each class that there may be room for: one before there are more of any; what was asked for last first.
    fn lacking(&self, held: &[Held]) -> Option<Class> {
        let count = |class| held.iter().filter(|held| held.class == class).count();
        let mut classes = vec![self.policy.default];
        classes.extend(self.classes.iter().rev().map(|(class, _)| *class));
        classes.retain(|class| !self.short.contains(class));
        let none = classes.iter().find(|class| count(**class) == 0 && self.wanted(**class) > 0);
        none.or_else(|| classes.iter().find(|class| count(**class) < self.wanted(**class))).copied()
    }

    fn wanted(&self, class: Class) -> usize {
        if class == self.policy.default {
            self.policy.workers
        } else {
            usize::from(self.classes.iter().any(|(known, _)| *known == class))
        }
    }

    /// When time alone makes one surplus.
    fn next_change(&self, held: &[Held]) -> Option<Instant> {
        let moment = Duration::from_millis(1); // Past the limit, not at it.
        let old = held.iter().map(|held| held.since + self.policy.age_max + moment);
        let forgotten = self.classes.iter().map(|(_, used)| *used + self.policy.idle_ttl + moment);
        old.chain(forgotten).min()
    }
}

#[cfg(test)]
mod tests;

//! A user for each child: no two that live at the same time share one.

use std::collections::BTreeSet;

use super::settings::Identity;

/// Far from people's, services' and user namespaces' usual ranges (login.defs(5) hands out subordinate ids from 100 000 in steps
/// of 65 536: this lies in nobody's first range).
const FIRST: u32 = 2_100_000_000;
/// More than processes fit on a machine.
const COUNT: u32 = 100_000;

/// Whom a child becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    /// One that nobody else has, with a group of the same number.
    Own(u32),
    /// The service's, which is not the broker's.
    Service(Identity),
}

impl User {
    pub(super) fn identity(&self) -> Identity {
        match self {
            Self::Own(user) => Identity { user: *user, group: *user, groups: Vec::new() },
            // Without the service's other groups: nothing that a child may touch rests on them.
            Self::Service(service) => Identity { groups: Vec::new(), ..service.clone() },
        }
    }

    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }
}

#[derive(Debug)]
pub(super) struct Users {
    first: u32,
    count: u32,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Users {
    /// Out of what this user namespace has: a container's may be small, and `service` may lie in it. Begins anywhere: another service
    /// on this machine has the same range, and the kernel counts a user's processes on the whole machine.
    pub(super) fn new(service: u32) -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let (first, count) = range(&map);
        Self { first, count, taken: BTreeSet::from([service]), next: rand::random_range(0..count) }
    }

    /// One that nobody has. They go round, so that one given back is not seen again soon.
    pub(super) fn take(&mut self) -> Option<u32> {
        for _ in 0..self.count {
            let user = self.first + self.next;
            self.next = (self.next + 1) % self.count;
            if self.taken.insert(user) {
                return Some(user);
            }
        }
        None
    }

    /// This one, if it is one of ours that nobody has.
    pub(super) fn take_this(&mut self, user: u32) -> bool {
        (self.first..self.first + self.count).contains(&user) && self.taken.insert(user)
    }

    pub(super) fn give_back(&mut self, user: u32) {
        self.taken.remove(&user);
    }
}

/// First and count, by user_namespaces(7)'s map: lines of inside, outside, length.
fn range(map: &str) -> (u32, u32) {
    let largest = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
        let (inside, _outside, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some((length, inside))
    });
    let (length, inside) = largest.max().unwrap_or((0, 0));
    if inside <= u64::from(FIRST) && inside + length >= u64::from(FIRST + COUNT) {
        return (FIRST, COUNT);
    }
    // The upper half, where images put nobody.
    let half = length / 2;
    let small = |number: u64| u32::try_from(number).unwrap_or(0);
    (small(inside + half), small(half.saturating_sub(1)).clamp(1, COUNT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_lie_in_the_namespace() {
        assert_eq!(range("         0          0 4294967295\n"), (FIRST, COUNT));
        assert_eq!(range("0 1048576 65536\n"), (32768, 32767));
    }

    #[test]
    fn the_services_user_is_nobody_elses() {
        let mut users = Users::new(FIRST);
        assert_ne!(users.take(), Some(FIRST));
        assert!(!users.take_this(FIRST));
    }

    #[test]
    fn no_user_is_given_twice_until_it_comes_back() {
        let mut users = Users { first: FIRST, count: COUNT, taken: BTreeSet::new(), next: 0 };
        let all: BTreeSet<u32> = (0..COUNT).filter_map(|_| users.take()).collect();
        assert_eq!(all.len(), COUNT as usize);
        assert_eq!(users.take(), None);
        users.give_back(FIRST + 7);
        assert_eq!(users.take(), Some(FIRST + 7));
        assert_eq!(users.take(), None);
        users.give_back(FIRST + 8);
        assert!(users.take_this(FIRST + 8) && !users.take_this(FIRST + 8) && !users.take_this(0));
    }
}

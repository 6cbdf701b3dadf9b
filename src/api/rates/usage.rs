//! What an app with a quota has had of its day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::store::Day;

const DAY_SECONDS: u64 = 86_400;

/// Of one app, on this replica.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Usage {
    day: Day,
    /// Of all replicas, as the store told last.
    told: u64,
    /// Counted here and not yet added there.
    pending: u64,
    /// On the way there.
    sent: u64,
}

impl Usage {
    /// `told`: what the store knows of that day.
    pub(super) fn new(day: Day, told: u64) -> Self {
        Self { day, told, pending: 0, sent: 0 }
    }

    /// Counts one more, if there may be. What an earlier day came to is of no use any more.
    pub(super) fn take(&mut self, quota: u64, today: Day) -> bool {
        if self.day != today {
            *self = Self::new(today, 0);
        }
        let may = self.used() < quota;
        self.pending += u64::from(may);
        may
    }

    pub(super) fn used(&self) -> u64 {
        self.told.saturating_add(self.pending).saturating_add(self.sent)
    }

    pub(super) fn day(&self) -> Day {
        self.day
    }

    /// What is to be added in the store. Also if it is nothing: the answer tells what other replicas have counted.
    pub(super) fn send(&mut self) -> u64 {
        self.sent += std::mem::take(&mut self.pending);
        self.sent
    }

    /// It was added: the day came to so much.
    pub(super) fn added(&mut self, day: Day, told: u64) {
        if self.day == day {
            (self.told, self.sent) = (told, 0);
        }
    }

    /// What other replicas have told, too. While something of ours is on its way it may be in it already.
    pub(super) fn heard(&mut self, day: Day, told: u64) {
        if self.day == day && self.sent == 0 {
            self.told = self.told.max(told);
        }
    }

    /// It may not have been added, and is sent again. If it was, it counts twice: a quota is kept rather than exceeded.
    pub(super) fn not_added(&mut self) {
        self.pending += std::mem::take(&mut self.sent);
    }
}

pub(super) fn today(now: SystemTime) -> Day {
    Day((since_epoch(now).as_secs() / DAY_SECONDS) as i64)
}

/// Until a new day begins, in whole seconds.
pub(super) fn until_tomorrow(now: SystemTime) -> Duration {
    Duration::from_secs(DAY_SECONDS - since_epoch(now).as_secs() % DAY_SECONDS)
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_quota_are_taken_and_a_new_day_begins_at_nothing() {
        let mut usage = Usage::new(Day(1), 3);
        assert_eq!([5, 5, 5].map(|quota| usage.take(quota, Day(1))), [true, true, false]);
        assert_eq!(usage.send(), 2);
        assert!(!usage.take(5, Day(1)), "what is on its way counts");
        usage.not_added();
        assert_eq!((usage.used(), usage.send()), (5, 2));
        usage.added(Day(1), 9);
        assert_eq!(usage.used(), 9, "other replicas' calls are in it");
        usage.heard(Day(1), 11);
        usage.heard(Day(1), 10);
        assert_eq!(usage.used(), 11);
        assert!(usage.take(5, Day(2)));
        usage.added(Day(1), 9);
        usage.heard(Day(1), 9);
        assert_eq!((usage.used(), usage.day()), (1, Day(2)), "old news");
    }

    #[test]
    fn days_are_of_utc() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!([0, 86_399, 86_400].map(|seconds| today(at(seconds)).0), [0, 0, 1]);
        assert_eq!([0, 86_399, 86_400].map(|seconds| until_tomorrow(at(seconds)).as_secs()), [86_400, 1, 86_400]);
    }
}

//! Lines that were printed, so that they are not printed again after a broken connection: they have no ids.

use std::collections::{HashSet, VecDeque};

use prost::Message;

use crate::proto;

/// As many as the service gives at most.
const LINES_MAX: usize = super::TAIL_LINES_MAX as usize;

#[derive(Default)]
pub struct Recent {
    /// With their times, the oldest first.
    order: VecDeque<(Time, blake3::Hash)>,
    known: HashSet<blake3::Hash>,
}

type Time = (i64, i32);

impl Recent {
    pub fn add(&mut self, entry: &proto::LogEntry) {
        if self.order.len() == LINES_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let hash = hash(entry);
        self.known.insert(hash);
        self.order.push_back((time(entry), hash));
    }

    /// It was printed; or it is older than what is remembered, and so either printed or not asked for.
    pub fn holds(&self, entry: &proto::LogEntry) -> bool {
        let from = self.order.iter().map(|(time, _)| *time).min();
        from.is_some_and(|from| time(entry) < from) || self.known.contains(&hash(entry))
    }
}

fn time(entry: &proto::LogEntry) -> Time {
    entry.at.map(|at| (at.seconds, at.nanos)).unwrap_or_default()
}

fn hash(entry: &proto::LogEntry) -> blake3::Hash {
    blake3::hash(&entry.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: i64, text: &str) -> proto::LogEntry {
        let at = Some(prost_types::Timestamp { seconds: second, nanos: 0 });
        proto::LogEntry { at, text: text.to_owned(), ..proto::LogEntry::default() }
    }

    #[test]
    fn only_lines_that_are_new_are_printed_after_a_break() {
        let mut recent = Recent::default();
        assert!(!recent.holds(&entry(1, "a")), "nothing was printed");
        recent.add(&entry(5, "a"));
        recent.add(&entry(6, "b"));
        for (second, text, held) in [(4, "x", true), (5, "a", true), (5, "x", false), (6, "b", true), (7, "b", false)] {
            assert_eq!(recent.holds(&entry(second, text)), held, "{second} {text}");
        }
        for second in 7..7 + LINES_MAX as i64 {
            recent.add(&entry(second, ""));
        }
        assert_eq!((recent.order.len(), recent.known.len()), (LINES_MAX, LINES_MAX));
        assert!(recent.holds(&entry(6, "b")), "by its age");
    }
}

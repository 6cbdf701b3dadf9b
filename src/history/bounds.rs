//! What an item weighs, how much goes into one transaction, and how what is missing is counted.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Outcome;
use crate::store::HistoryItem;

/// Everything of an item that has no size of its own: ids, names, times.
const OVERHEAD_BYTES: usize = 512;
/// Between two lines of the service's log about what is missing.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(10);

pub(super) fn bytes(item: &HistoryItem) -> usize {
    let content = match item {
        HistoryItem::Log(line) => line.text.len(),
        HistoryItem::Started(invocation) | HistoryItem::Finished(invocation) => {
            let outcome = match &invocation.outcome {
                None => 0,
                Some(Outcome::Result(result)) => result.as_str().len(),
                Some(Outcome::Denied(denial)) => {
                    denial.reason.len() + denial.data.as_ref().map_or(0, |data| data.as_str().len())
                }
                Some(Outcome::Failed(failure)) => failure.message.len() + failure.stack.len(),
            };
            invocation.event.as_str().len() + outcome
        }
    };
    OVERHEAD_BYTES + content
}

/// Cuts a batch in parts of at most so many items and bytes; one item may be larger than that.
pub(super) fn chunks(items: &[HistoryItem], items_max: usize, bytes_max: usize) -> Vec<&[HistoryItem]> {
    let mut parts = Vec::new();
    let (mut start, mut weight) = (0, 0);
    for (n, item) in items.iter().enumerate() {
        let more = bytes(item);
        if n > start && (n - start >= items_max || weight + more > bytes_max) {
            parts.push(&items[start..n]);
            (start, weight) = (n, 0);
        }
        weight += more;
    }
    if start < items.len() {
        parts.push(&items[start..]);
    }
    parts
}

/// Counts what is missing, and says when it is time to say so: a disk that stalls must not fill the log, too.
#[derive(Debug, Default)]
pub(super) struct Missing(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    total: u64,
    said: Option<Instant>,
}

impl Missing {
    /// The number of all that are missing, if it should be logged now.
    pub fn add(&self, items: usize) -> Option<u64> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.total += items as u64;
        let due = count.said.is_none_or(|said| said.elapsed() >= SAID_AGAIN_AFTER);
        due.then(|| {
            count.said = Some(Instant::now());
            count.total
        })
    }

    #[cfg(test)]
    pub fn total(&self) -> u64 {
        self.0.lock().expect("count").total
    }
}

//! What the queue should do, simply.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Enqueue {
        key: Option<u8>,
        /// More than 0: it is scheduled.
        delay: u64,
    },
    Claim {
        limit: u32,
    },
    /// Of the claims ever made, the one with this index (modulo their number), late ones included.
    Finish {
        index: usize,
        end: End,
    },
    /// Of all that were ever queued, the one with this index, if it is a dead letter.
    Redrive {
        index: usize,
    },
    Pass {
        seconds: u64,
    },
    Restart,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Done,
    Dead,
    RetryIn(u64),
    ReleaseFor(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        3 => Just(End::Done),
        1 => Just(End::Dead),
        1 => (0..20u64).prop_map(End::RetryIn),
        1 => (0..20u64).prop_map(End::ReleaseFor),
    ];
    let delay = prop_oneof![2 => Just(0), 1 => 1..20u64];
    let step = prop_oneof![
        5 => (proptest::option::of(0..3u8), delay).prop_map(|(key, delay)| Step::Enqueue { key, delay }),
        4 => (1..4u32).prop_map(|limit| Step::Claim { limit }),
        6 => (any::<usize>(), end).prop_map(|(index, end)| Step::Finish { index, end }),
        1 => any::<usize>().prop_map(|index| Step::Redrive { index }),
        3 => (1..50u64).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Scheduled,
    /// In its line, or due without one.
    Queued,
    /// The index of the claim that holds it.
    Claimed(usize),
    Dead,
    Done,
}

struct Entry {
    id: EventId,
    key: Option<u8>,
    place: usize,
    due: u64,
    since: u64,
    attempt: u32,
    state: State,
}

#[derive(Default)]
struct Queue {
    /// In the order of arrival.
    entries: Vec<Entry>,
    /// Of each key: who is at the head of its line.
    heads: HashMap<u8, usize>,
    claims: Vec<ClaimedEvent>,
    now: u64,
}

impl Queue {
    fn advance(&mut self, key: Option<u8>) {
        let Some(key) = key.filter(|key| !self.heads.contains_key(key)) else { return };
        let entries = self.entries.iter().enumerate();
        let waiting = entries.filter(|(_, e)| e.key == Some(key) && e.state == State::Queued);
        if let Some((first, _)) = waiting.min_by_key(|(n, e)| (e.place, *n)) {
            self.heads.insert(key, first);
        }
    }

    /// In the order in which they may be claimed.
    fn claimable(&self) -> Vec<(u64, usize)> {
        let ready = |n: &usize| {
            let e = &self.entries[*n];
            let turn = e.key.is_none_or(|key| self.heads.get(&key) == Some(n));
            turn && matches!(e.state, State::Queued | State::Claimed(_))
        };
        let mut all: Vec<_> = (0..self.entries.len()).filter(ready).map(|n| (self.entries[n].due, n)).collect();
        all.sort_unstable();
        all
    }

    fn join_lines(&mut self) {
        let scheduled = |n: &usize| self.entries[*n].state == State::Scheduled && self.entries[*n].due <= self.now;
        let mut due: Vec<_> = (0..self.entries.len()).filter(scheduled).map(|n| (self.entries[n].due, n)).collect();
        due.sort_unstable();
        for (_, n) in due {
            self.entries[n].place = self.entries.len() + 1;
            self.entries[n].state = State::Queued;
            self.advance(self.entries[n].key);
        }
    }

    fn leave(&mut self, n: usize, state: State) {
        self.entries[n].state = state;
        if let Some(key) = self.entries[n].key {
            self.heads.remove(&key);
            self.advance(Some(key));
        }
    }

    async fn step(&mut self, store: &Store, step: Step) {
        match step {
            Step::Pass { seconds } => self.now += seconds,
            Step::Enqueue { key, delay } => {
                let (now, due) = (self.now, self.now + delay);
                let ordering_key = key.map(|k| k.to_string());
                let new = NewEvent { ordering_key, due_at: at(due), enqueued_at: at(now), ..event("shop") };
                let id = add(store, new).await;
                let state = if key.is_some() && delay > 0 { State::Scheduled } else { State::Queued };
                let place = self.entries.len() + 1;
                self.entries.push(Entry { id, key, place, due, since: due, attempt: 0, state });
                self.advance(key);
            }
            Step::Claim { limit } => {
                store.join_lines(at(self.now)).await.expect("join");
                self.join_lines();
                let due = self.claimable().into_iter().filter(|(due, _)| *due <= self.now);
                let mut expected: Vec<usize> = due.take(limit as usize).map(|(_, n)| n).collect();
                expected.sort_unstable();
                let claimed = claim(store, limit, self.now).await;
                assert_eq!(claimed.len(), expected.len());
                for (claimed, n) in claimed.into_iter().zip(expected) {
                    let entry = &mut self.entries[n];
                    entry.attempt += 1;
                    entry.due = self.now + 60;
                    entry.state = State::Claimed(self.claims.len());
                    assert_eq!((claimed.event.id, claimed.event.attempt), (entry.id, entry.attempt));
                    self.claims.push(claimed);
                }
            }
            Step::Finish { index, end } if !self.claims.is_empty() => {
                let index = index % self.claims.len();
                let held = self.entries.iter().position(|e| e.state == State::Claimed(index));
                let disposition = match end {
                    End::Done => Disposition::Done,
                    End::Dead => dead(),
                    End::RetryIn(seconds) => retry(self.now + seconds),
                    End::ReleaseFor(seconds) => Disposition::Release { due_at: at(self.now + seconds) },
                };
                assert_eq!(finish(store, &self.claims[index], disposition).await, held.is_some());
                let Some(n) = held else { return };
                match end {
                    End::Done => self.leave(n, State::Done),
                    End::Dead => self.leave(n, State::Dead),
                    End::RetryIn(seconds) | End::ReleaseFor(seconds) => {
                        let entry = &mut self.entries[n];
                        (entry.due, entry.state) = (self.now + seconds, State::Queued);
                        entry.attempt -= u32::from(matches!(end, End::ReleaseFor(_)));
                    }
                }
            }
            Step::Redrive { index } if !self.entries.is_empty() => {
                let n = index % self.entries.len();
                let id = self.entries[n].id;
                let redriven = store.redrive(&app("shop"), &Letters::Named(vec![id]), 10, at(self.now), actor()).await;
                let redriven = redriven.expect("redrive").ids;
                let is_dead = self.entries[n].state == State::Dead;
                assert_eq!(redriven.len(), usize::from(is_dead));
                if is_dead {
                    let entry = &mut self.entries[n];
                    (entry.due, entry.since, entry.state) = (self.now, self.now, State::Queued);
                    self.advance(self.entries[n].key);
                }
            }
            Step::Finish { .. } | Step::Redrive { .. } => {}
            Step::Restart => {
                take_over(store).await;
                for entry in &mut self.entries {
                    if let State::Claimed(_) = entry.state {
                        (entry.due, entry.state) = (entry.since, State::Queued);
                    }
                }
            }
        }
        assert_eq!(next_due(store).await, self.claimable().first().map(|(due, _)| at(*due)));
    }

    fn count(&self, counts: impl Fn(State) -> bool) -> u64 {
        self.entries.iter().filter(|e| counts(e.state)).count() as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_time: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn the_queue_does_what_a_simple_one_does(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (_dir, store) = store_with_app().await;
            let mut queue = Queue::default();
            for step in steps {
                queue.step(&store, step).await;
            }
            let waiting = queue.count(|state| matches!(state, State::Queued | State::Scheduled));
            let running = queue.count(|state| matches!(state, State::Claimed(_)));
            assert_eq!(figures(&store).await, (waiting, running, queue.count(|state| state == State::Dead)));
            assert_eq!(store.inner.queue.backlog.of(&app("shop")), waiting + running);
            store.close().await;
        });
    }
}

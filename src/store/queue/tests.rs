use std::collections::HashSet;

use futures_util::future::try_join_all;

use super::super::AppChange;
use super::super::testing::{app, at, event, ready_version, store};
use super::*;

pub(super) async fn store_with_app() -> (tempfile::TempDir, Store) {
    let (dir, store) = store().await;
    ready_version(&store, "shop").await;
    (dir, store)
}

pub(super) fn keyed(key: &str, payload: u64) -> NewEvent {
    let payload = RawJson::trusted(&payload.to_string());
    NewEvent { ordering_key: Some(key.to_owned()), payload, ..event("shop") }
}

pub(super) async fn add(store: &Store, event: NewEvent) -> EventId {
    store.enqueue(event).await.expect("enqueue").event_id
}

pub(super) async fn claim(store: &Store, limit: u32, now: u64) -> Vec<ClaimedEvent> {
    store.claim(&[(app("shop"), limit)], at(now + 60), at(now)).await.expect("claim")
}

pub(super) async fn finish(store: &Store, claimed: &ClaimedEvent, disposition: Disposition) -> bool {
    let failed = matches!(disposition, Disposition::Retry { .. } | Disposition::Dead { .. });
    let failure = failed.then(|| FunctionFailure::new(FailureKind::Thrown, "Error", "boom".to_owned()));
    let attempt = AttemptEnd { invocation: None, failure };
    store.finish_claim(claimed, disposition, Vec::new(), Some(attempt), at(500)).await.expect("finish")
}

pub(super) fn retry(due: u64) -> Disposition {
    Disposition::Retry { due_at: at(due) }
}

pub(super) fn dead() -> Disposition {
    Disposition::Dead { reason: DeadReason::AttemptsExhausted }
}

/// When the app's next event may be claimed.
pub(super) async fn next_due(store: &Store) -> Option<SystemTime> {
    let due = store.due().await.expect("due");
    due.apps.into_iter().find(|(id, _)| *id == app("shop")).map(|(_, at)| at)
}

pub(super) async fn figures(store: &Store) -> (u64, u64, u64) {
    let figures = store.queue_figures(&app("shop"), at(1000)).await.expect("figures");
    (figures.queued, figures.running, figures.dead)
}

pub(super) fn payloads(claimed: &[ClaimedEvent]) -> Vec<&str> {
    claimed.iter().map(|c| c.event.payload.as_str()).collect()
}

#[tokio::test]
async fn a_thousand_concurrent_events_are_durable_in_few_transactions() {
    let (dir, store) = store_with_app().await;
    let tasks = (0..1000).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.enqueue(keyed(&format!("k{n}"), n)).await })
    });
    let enqueued = try_join_all(tasks).await.expect("join");
    let ids: HashSet<EventId> = enqueued.into_iter().map(|e| e.expect("enqueue").event_id).collect();
    assert_eq!(ids.len(), 1000);
    let batches = store.queue_batches();
    assert!(batches <= 100, "{batches} transactions");
    store.close().await;
    assert!(matches!(store.enqueue(event("shop")).await, Err(Error::Closed)));

    let store = Store::open(&dir.path().join("store.db"), QueueLimits::default()).await.expect("reopen");
    assert_eq!(figures(&store).await, (1000, 0, 0));
    let claimed: HashSet<EventId> = claim(&store, 2000, 1).await.iter().map(|c| c.event.id).collect();
    assert_eq!(claimed, ids);
}

#[tokio::test]
async fn closing_commits_what_was_accepted() {
    let (dir, store) = store_with_app().await;
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            tokio::spawn({
                let s = store.clone();
                async move { s.enqueue(event("shop")).await }
            })
        })
        .collect();
    tokio::task::yield_now().await;
    store.close().await;
    let results = try_join_all(tasks).await.expect("join");
    let accepted = results.iter().filter(|r| r.is_ok()).count();
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(Error::Closed))), "{results:?}");
    let store = Store::open(&dir.path().join("store.db"), QueueLimits::default()).await.expect("reopen");
    assert_eq!(figures(&store).await.0, accepted as u64);
}

#[tokio::test]
async fn a_duplicate_gets_the_first_ones_id() {
    let (_dir, store) = store_with_app().await;
    ready_version(&store, "other").await;
    let with_key = |app_id: &str| NewEvent { idempotency_key: Some("once".to_owned()), ..event(app_id) };
    let first = store.enqueue(with_key("shop")).await.expect("enqueue");
    assert!(!first.duplicate);
    let again = NewEvent { version: VersionNumber(2), ..with_key("shop") };
    let second = store.enqueue(again).await.expect("enqueue");
    assert_eq!(second, Enqueued { duplicate: true, ..first });
    assert!(!store.enqueue(with_key("other")).await.expect("enqueue").duplicate, "keys belong to one app");

    let running = claim(&store, 1, 1).await.remove(0);
    assert!(finish(&store, &running, Disposition::Done).await);
    assert!(store.enqueue(with_key("shop")).await.expect("enqueue").duplicate, "also when it is done");
    let moment = Duration::from_millis(1);
    assert_eq!(store.purge_events(at(501), moment, moment, 10).await.expect("purge"), 1);
    assert!(!store.enqueue(with_key("shop")).await.expect("enqueue").duplicate, "not when it is forgotten");
}

#[tokio::test]
async fn of_concurrent_duplicates_one_is_queued() {
    let (_dir, store) = store_with_app().await;
    let events = (0..100).map(|n| {
        let key = Some(format!("key-{}", n % 4));
        store.enqueue(NewEvent { idempotency_key: key, ..event("shop") })
    });
    let enqueued = try_join_all(events).await.expect("enqueue");
    let ids: HashSet<EventId> = enqueued.iter().map(|e| e.event_id).collect();
    assert_eq!((ids.len(), enqueued.iter().filter(|e| !e.duplicate).count()), (4, 4));
    assert_eq!(figures(&store).await.0, 4);
}

#[tokio::test]
async fn an_event_of_an_unknown_app_spoils_no_other() {
    let (_dir, store) = store_with_app().await;
    let results = tokio::join!(
        store.enqueue(event("shop")),
        store.enqueue(event("nobody")),
        store.enqueue(NewEvent { idempotency_key: Some("k".to_owned()), ..event("nobody") }),
        store.enqueue(event("shop")),
    );
    assert!(results.0.is_ok() && results.3.is_ok());
    assert!(matches!(results.1, Err(Error::UnknownApp(id)) if id == app("nobody")));
    assert!(matches!(results.2, Err(Error::UnknownApp(_))));
}

#[tokio::test]
async fn events_are_claimed_when_due_and_the_oldest_due_first() {
    let (_dir, store) = store_with_app().await;
    let due = |due, payload: &str| NewEvent { due_at: at(due), payload: RawJson::trusted(payload), ..event("shop") };
    add(&store, due(30, "30")).await;
    add(&store, due(10, "10")).await;
    add(&store, due(20, "20")).await;
    assert!(claim(&store, 10, 9).await.is_empty());
    assert_eq!(next_due(&store).await, Some(at(10)));
    let first = claim(&store, 1, 25).await;
    assert_eq!(payloads(&first), ["10"]);
    assert_eq!((first[0].event.attempt, first[0].event.enqueued_at), (1, at(0)));
    assert_eq!(payloads(&claim(&store, 10, 25).await), ["20"]);
    assert!(claim(&store, 0, 30).await.is_empty());
    assert_eq!(payloads(&claim(&store, 10, 30).await), ["30"]);
    assert_eq!(figures(&store).await, (0, 3, 0));
}

#[tokio::test]
async fn a_key_keeps_its_order_through_retries() {
    let (_dir, store) = store_with_app().await;
    for payload in 1..=3 {
        add(&store, keyed("a", payload)).await;
    }
    add(&store, keyed("b", 9)).await;
    let claimed = claim(&store, 10, 1).await;
    assert_eq!(payloads(&claimed), ["1", "9"], "one of each key");
    assert!(claim(&store, 10, 2).await.is_empty());

    assert!(finish(&store, &claimed[0], retry(100)).await);
    assert!(claim(&store, 10, 99 - 60).await.is_empty(), "nothing overtakes a retry");
    assert!(finish(&store, &claimed[1], Disposition::Done).await);
    assert_eq!(next_due(&store).await, Some(at(100)), "those behind it do not count");
    let again = claim(&store, 10, 100).await;
    assert_eq!((payloads(&again), again[0].event.attempt), (vec!["1"], 2));
    assert!(finish(&store, &again[0], dead()).await, "a dead letter lets the next one go");
    let second = claim(&store, 10, 101).await;
    assert_eq!(payloads(&second), ["2"]);
    assert!(finish(&store, &second[0], Disposition::Skipped { reason: "disabled".to_owned() }).await);
    assert_eq!(payloads(&claim(&store, 10, 102).await), ["3"]);
}

#[tokio::test]
async fn the_same_key_under_another_trigger_or_app_is_another_order() {
    let (_dir, store) = store_with_app().await;
    ready_version(&store, "other").await;
    add(&store, keyed("a", 1)).await;
    add(&store, NewEvent { app: app("other"), ..keyed("a", 2) }).await;
    add(&store, NewEvent { trigger_type: TriggerType::stored("UserReadMessage".to_owned()), ..keyed("a", 3) }).await;
    let shares = [(app("other"), 10), (app("shop"), 10)];
    let claimed = store.claim(&shares, at(60), at(1)).await.expect("claim");
    assert_eq!(payloads(&claimed), ["2", "1", "3"]);
}

#[tokio::test]
async fn an_older_event_that_returns_waits_for_the_one_in_flight() {
    let (_dir, store) = store_with_app().await;
    add(&store, keyed("a", 1)).await;
    add(&store, keyed("a", 2)).await;
    let first = claim(&store, 10, 1).await;
    assert!(finish(&store, &first[0], dead()).await);
    let second = claim(&store, 10, 2).await;
    assert_eq!(payloads(&second), ["2"]);
    assert_eq!(store.redrive(&app("shop"), &Letters::ALL, 10, at(3)).await.expect("redrive").ids.len(), 1);
    assert!(claim(&store, 10, 3).await.is_empty());
    let taken_over = claim(&store, 10, 100).await;
    assert_eq!(payloads(&taken_over), ["2"], "and its expired claim can be taken over");
    assert!(finish(&store, &taken_over[0], Disposition::Done).await);
    assert_eq!(payloads(&claim(&store, 10, 101).await), ["1"]);
}

#[tokio::test]
async fn an_expired_claim_is_taken_over_and_the_fence_refuses_the_late_finisher() {
    let (_dir, store) = store_with_app().await;
    add(&store, keyed("a", 1)).await;
    let late = claim(&store, 1, 0).await.remove(0);
    assert!(claim(&store, 1, 59).await.is_empty());
    assert!(store.renew_claim(&late, at(120)).await.expect("renew"));
    assert!(claim(&store, 1, 119).await.is_empty(), "it was renewed");
    let taker = claim(&store, 1, 120).await.remove(0);
    assert_eq!((taker.event.id, taker.event.attempt), (late.event.id, 2));

    assert!(!store.renew_claim(&late, at(999)).await.expect("renew"));
    assert!(!finish(&store, &late, Disposition::Done).await);
    assert_eq!(figures(&store).await, (0, 1, 0));
    assert!(finish(&store, &taker, Disposition::Done).await);
    assert!(!finish(&store, &taker, retry(0)).await, "a claim ends once");
    assert!(!store.renew_claim(&taker, at(999)).await.expect("renew"));
    assert_eq!((figures(&store).await, next_due(&store).await), ((0, 0, 0), None));
}

#[tokio::test]
async fn an_expired_claim_that_nobody_took_over_can_still_be_finished() {
    let (_dir, store) = store_with_app().await;
    add(&store, event("shop")).await;
    let claimed = claim(&store, 1, 0).await.remove(0);
    assert_eq!(next_due(&store).await, Some(at(60)));
    assert!(finish(&store, &claimed, Disposition::Done).await);
    assert!(claim(&store, 1, 100).await.is_empty());
}

#[tokio::test]
async fn a_release_returns_the_attempt_and_a_restart_does_not() {
    let (_dir, store) = store_with_app().await;
    add(&store, event("shop")).await;
    let first = claim(&store, 1, 0).await.remove(0);
    assert!(finish(&store, &first, Disposition::Release { due_at: at(10) }).await);
    assert!(claim(&store, 1, 9).await.is_empty());
    let second = claim(&store, 1, 10).await.remove(0);
    assert_eq!(second.event.attempt, 1);

    assert_eq!(store.release_claims().await.expect("release"), 1);
    assert_eq!(store.release_claims().await.expect("release"), 0);
    assert!(!finish(&store, &second, Disposition::Done).await, "it is not ours any more");
    assert_eq!(claim(&store, 1, 11).await.remove(0).event.attempt, 2);
}

#[tokio::test]
async fn attempts_are_numbered_without_a_gap_whatever_ended_them() {
    let (_dir, store) = store_with_app().await;
    let id = add(&store, event("shop")).await;
    claim(&store, 1, 1).await;
    store.release_claims().await.expect("release"); // The service was killed.
    // Spent already: it dies without having run once more.
    let second = claim(&store, 1, 2).await.remove(0);
    assert!(store.finish_claim(&second, dead(), Vec::new(), None, at(2)).await.expect("finish"));
    store.redrive(&app("shop"), &Letters::ALL, 10, at(3)).await.expect("redrive");
    let third = claim(&store, 1, 4).await.remove(0);
    assert_eq!((third.event.attempt, third.event.attempts_before), (2, 1));
    let end = AttemptEnd { invocation: Some(InvocationId::new()), failure: None };
    assert!(store.finish_claim(&third, Disposition::Done, Vec::new(), Some(end), at(5)).await.expect("finish"));
    let attempts = store.event(&app("shop"), id).await.expect("read").expect("there").attempts;
    let seen: Vec<_> = attempts.iter().map(|one| (one.number, one.failure.as_ref().map(|f| f.name.as_str()))).collect();
    assert_eq!(seen, [(1, Some("EndUnknown")), (2, None)]);
}

#[tokio::test]
async fn the_oldest_event_is_the_first_whose_time_has_come() {
    let (_dir, store) = store_with_app().await;
    let oldest = async |now: u64| store.queue_figures(&app("shop"), at(now)).await.expect("figures").oldest_enqueued_at;
    add(&store, NewEvent { due_at: at(100), ..event("shop") }).await;
    add(&store, NewEvent { due_at: at(100), ..keyed("a", 1) }).await;
    assert_eq!((oldest(99).await, oldest(100).await), (None, Some(at(0))), "scheduled, with a key and without");
    add(&store, NewEvent { enqueued_at: at(5), due_at: at(5), ..event("shop") }).await;
    assert_eq!(oldest(99).await, Some(at(5)));
    let claimed = claim(&store, 1, 6).await.remove(0);
    assert_eq!(oldest(99).await, Some(at(5)), "it runs");
    assert!(finish(&store, &claimed, retry(500)).await);
    assert_eq!(oldest(99).await, Some(at(5)), "it waits for its next attempt");
}

#[tokio::test]
async fn only_finished_events_are_purged_and_in_batches() {
    let (_dir, store) = store_with_app().await;
    for _ in 0..6 {
        add(&store, event("shop")).await;
    }
    let claimed = claim(&store, 5, 1).await;
    let skipped = Disposition::Skipped { reason: "gone".to_owned() };
    for (n, disposition) in [Disposition::Done, skipped, Disposition::Done, dead()].into_iter().enumerate() {
        assert!(store.finish_claim(&claimed[n], disposition, Vec::new(), None, at(n as u64)).await.expect("finish"));
    }
    let purge = async |now: u64, limit| {
        let second = Duration::from_secs(1);
        store.purge_events(at(now), second, second, limit).await.expect("purge")
    };
    assert_eq!(purge(3, 1).await, 1);
    assert_eq!(purge(3, 10).await, 1, "the third ended at the bound");
    assert_eq!(purge(1000, 10).await, 1);
    assert_eq!(purge(1000, 10).await, 0);
    assert_eq!(figures(&store).await, (1, 1, 1));
    let dead_letters = store.dead_letters(&app("shop"), None, 10, 1 << 20).await.expect("list").0;
    assert_eq!(dead_letters[0].reason.as_deref(), Some("ATTEMPTS_EXHAUSTED"));
    let old = async |before: u64| store.purge_old_dead_letters(at(before), 10).await.expect("purge");
    assert_eq!((old(3).await, old(4).await, old(1000).await), (0, 1, 0), "it died at 3");
}

#[tokio::test]
async fn the_queue_is_never_scanned() {
    let (_dir, store) = store_with_app().await;
    let plan = async |sql: &str, binds: usize| {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let query = (0..binds).fold(sqlx::query(explain), |query, _| query.bind(0));
        let rows = query.fetch_all(store.write()).await.expect("plan");
        let lines: Vec<String> = rows.iter().map(|row| get::<String>(row, "detail").expect("detail")).collect();
        lines.join("\n")
    };
    let claim = plan(CLAIM, 5).await;
    assert!(claim.contains("SEARCH e USING INDEX events_due (app_id=? AND due_at<?)"), "{claim}");
    let due = plan(DUE, 0).await;
    assert!(due.contains("SEARCH e USING INDEX events_due (app_id>?)"), "{due}");
    let advance = plan(line::ADVANCE, 1).await;
    assert!(advance.contains("INDEX events_waiting (app_id=? AND trigger_type=? AND ordering_key=?)"), "{advance}");
    assert!(advance.contains("INDEX events_head (app_id=? AND trigger_type=? AND ordering_key=?)"), "{advance}");
    let release = plan(RELEASE, 0).await;
    // Of the first column alone: all that is not finished, and nothing else.
    assert!(release.contains("events_due"), "{release}");
    let advance_new = plan(insert::ADVANCE_NEW, 2).await;
    assert!(advance_new.contains("SEARCH k USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"), "{advance_new}");
    assert!(
        advance_new.contains("INDEX events_waiting (app_id=? AND trigger_type=? AND ordering_key=?)"),
        "{advance_new}"
    );
    assert!(
        advance_new.contains("INDEX events_head (app_id=? AND trigger_type=? AND ordering_key=?)"),
        "{advance_new}"
    );
    for plan in [claim, due, advance, advance_new] {
        assert!(!plan.contains("TEMP B-TREE"), "the limit has to stop the search early: {plan}");
        // The first app is read from the front of the index; `due` is what was found so far.
        let scans = plan.lines().filter(|line| line.starts_with("SCAN") && !line.contains("events_due"));
        assert!(scans.clone().all(|line| line.starts_with("SCAN due") || line.starts_with("SCAN (subquery")), "{plan}");
    }
}

/// What the queue should do, simply.
mod model {
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
                    let redriven = store.redrive(&app("shop"), &Letters::Named(vec![id]), 10, at(self.now)).await;
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
                    store.release_claims().await.expect("release");
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
}

#[tokio::test]
async fn times_before_the_epoch_do_no_harm() {
    let (_dir, store) = store_with_app().await;
    let past = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
    add(&store, NewEvent { due_at: past, ..event("shop") }).await;
    assert_eq!(next_due(&store).await, Some(past));
    assert_eq!(claim(&store, 1, 0).await.len(), 1);
}

#[tokio::test]
async fn finished_events_are_kept_as_long_as_their_app_says_and_as_their_keys_count() {
    let (_dir, store) = store_with_app().await;
    ready_version(&store, "keeper").await;
    let change = AppChange { history_retention: Some(Some(Duration::from_secs(50))), ..AppChange::default() };
    store.update_app(&app("keeper"), change).await.expect("update");
    for id in ["shop", "keeper"] {
        add(&store, event(id)).await;
        let claimed = store.claim(&[(app(id), 1)], at(61), at(1)).await.expect("claim").remove(0);
        assert!(store.finish_claim(&claimed, Disposition::Done, Vec::new(), None, at(10)).await.expect("finish"));
    }
    let purge = async |now: u64, keep_min| {
        let (default, keep_min) = (Duration::from_secs(20), Duration::from_secs(keep_min));
        store.purge_events(at(now), default, keep_min, 10).await.expect("purge")
    };
    assert_eq!(purge(31, 30).await, 0, "the key counts longer than the default");
    assert_eq!(purge(31, 0).await, 1, "the shop's");
    assert_eq!(purge(60, 0).await, 0, "the keeper's is only as old");
    assert_eq!(purge(61, 0).await, 1);
}

#[tokio::test]
async fn a_purge_of_events_walks_the_index_of_ages() {
    let (_dir, store) = store_with_app().await;
    let sql = "EXPLAIN QUERY PLAN SELECT e.seq FROM apps a CROSS JOIN events e WHERE e.app_id = a.id AND e.state < 4
               AND e.finished_at < 5 - CASE WHEN COALESCE(a.history_retention_ms, 1) > 2
                   THEN COALESCE(a.history_retention_ms, 1) ELSE 2 END LIMIT 9";
    let rows = sqlx::query(sql).fetch_all(store.read()).await.expect("plan");
    let plan: Vec<String> = rows.iter().map(|row| get(row, "detail").expect("detail")).collect();
    assert!(plan.iter().any(|step| step.contains("INDEX events_by_age (app_id=? AND finished_at<?)")), "{plan:?}");
}

#[tokio::test]
async fn a_damaged_row_becomes_a_dead_letter_and_the_others_run() {
    let (_dir, store) = store_with_app().await;
    add(&store, event("shop")).await;
    let healthy = add(&store, event("shop")).await;
    let damage = "UPDATE events SET version = -1 WHERE seq = (SELECT MIN(seq) FROM events)";
    sqlx::query(damage).execute(store.write()).await.expect("damage");
    let claimed = claim(&store, 10, 1).await;
    assert_eq!(claimed.iter().map(|claimed| claimed.event.id).collect::<Vec<_>>(), [healthy]);
    assert_eq!(figures(&store).await, (0, 1, 1));
    let (letters, _) = store.dead_letters(&app("shop"), None, 10, 1 << 20).await.expect("list");
    assert_eq!((letters[0].reason.as_deref(), letters[0].version.0), (Some("DAMAGED"), 0), "as much as is left");
    sqlx::query("UPDATE events SET id = 'x' WHERE state = 4").execute(store.write()).await.expect("damage");
    let shown = store.dead_letters(&app("shop"), None, 10, 1 << 20).await.expect("list");
    assert_eq!(shown, (Vec::new(), None));
    let redriven = store.redrive(&app("shop"), &Letters::ALL, 10, at(2)).await.expect("redrive");
    assert!(redriven.ids.is_empty() && redriven.last.is_some(), "{redriven:?}");
    let purged = store.purge_dead_letters(&app("shop"), &Letters::ALL, 10).await.expect("purge");
    assert!(purged.last.is_some());
    assert_eq!(figures(&store).await, (0, 1, 0));
}

/// So many, oldest first.
async fn dead_letters(store: &Store, count: usize) -> Vec<EventId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(add(store, event("shop")).await);
    }
    for claimed in claim(store, count as u32, 1).await {
        assert!(finish(store, &claimed, dead()).await);
    }
    ids
}

#[tokio::test]
async fn dead_letters_come_in_pages_of_so_many_and_of_so_many_bytes() {
    let (_dir, store) = store_with_app().await;
    let ids = dead_letters(&store, 5).await;
    let page = async |after, limit, bytes| {
        let (letters, next) = store.dead_letters(&app("shop"), after, limit, bytes).await.expect("list");
        (letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), next)
    };
    let (first, next) = page(None, 2, 1 << 20).await;
    assert_eq!(first, ids[..2]);
    let (rest, end) = page(next, 3, 1 << 20).await;
    assert_eq!((&rest[..], end), (&ids[2..], None), "just as many as there are");
    let (alone, next) = page(None, 10, 0).await;
    assert_eq!((&alone[..], next.is_some()), (&ids[..1], true), "one comes in any case");
    assert_eq!(page(next, 1, 0).await.0, ids[1..2]);
}

#[tokio::test]
async fn all_dead_letters_are_moved_batch_by_batch_and_each_once() {
    let (_dir, store) = store_with_app().await;
    let ids = dead_letters(&store, 5).await;
    let first = store.redrive(&app("shop"), &Letters::ALL, 3, at(2)).await.expect("redrive");
    assert_eq!(first.ids, ids[..3]);
    // Dead once more, before the next batch.
    for claimed in claim(&store, 10, 3).await {
        assert!(finish(&store, &claimed, dead()).await);
    }
    let second = store.redrive(&app("shop"), &Letters::After(first.last.expect("some")), 3, at(4)).await;
    let second = second.expect("redrive");
    assert_eq!(second.ids, ids[3..]);
    let none = store.redrive(&app("shop"), &Letters::After(second.last.expect("some")), 3, at(5)).await;
    assert_eq!(none.expect("redrive"), Moved::default());
    assert_eq!((figures(&store).await, store.inner.queue.backlog.of(&app("shop"))), ((2, 0, 3), 2));
    let named = Letters::Named(vec![ids[4], ids[0], EventId::new()]);
    let purged = store.purge_dead_letters(&app("shop"), &named, 10).await.expect("purge");
    assert_eq!(purged.ids, ids[..1], "one is queued, and one is not known");
}

#[tokio::test]
async fn duplicates_in_one_group_take_no_place_under_the_limit() {
    let (dir, store) = store_with_app().await;
    store.close().await;
    let limits = QueueLimits { of_app: 2, in_all: 100 };
    let store = Store::open(&dir.path().join("store.db"), limits).await.expect("reopen");
    let keyed = |key: &str| NewEvent { idempotency_key: Some(key.to_owned()), ..event("shop") };
    let before = store.queue_batches();
    let (one, again, two, three, known) = tokio::join!(
        store.enqueue(keyed("one")),
        store.enqueue(keyed("one")),
        store.enqueue(keyed("two")),
        store.enqueue(keyed("three")),
        store.enqueue(keyed("two")),
    );
    assert_eq!(store.queue_batches() - before, 1);
    let (one, two) = (one.expect("one"), two.expect("two"));
    assert_eq!(again.expect("again"), Enqueued { duplicate: true, ..one });
    assert_eq!(known.expect("known"), Enqueued { duplicate: true, ..two });
    assert!(!one.duplicate && !two.duplicate);
    assert!(matches!(three, Err(Error::QueueFull { limit: 2, .. })), "{three:?}");
}

#[tokio::test]
async fn a_large_group_keeps_the_order_of_its_lines() {
    let (_dir, store) = store_with_app().await;
    // No more than tokio lets one task send at a time: then others would go before.
    let events = (0..120).map(|n| store.enqueue(keyed(&format!("line {}", n % 3), n)));
    let before = store.queue_batches();
    try_join_all(events).await.expect("enqueue");
    assert_eq!(store.queue_batches() - before, 1);
    for n in (0..120).step_by(3) {
        let claimed = claim(&store, 10, 1).await;
        assert_eq!(payloads(&claimed), [n, n + 1, n + 2].map(|n| n.to_string()));
        for claimed in &claimed {
            assert!(finish(&store, claimed, Disposition::Done).await);
        }
    }
    assert_eq!(figures(&store).await, (0, 0, 0));
}

mod model;
mod order;
mod plans;
mod retention;

use std::collections::HashSet;

use futures_util::future::try_join_all;

use super::super::AppChange;
use super::super::db;
use super::super::replicas::RELEASE;
use super::super::testing::{Place, actor, app, at, event, ready_version, sqlite_store, store};
use super::*;

pub(super) async fn store_with_app() -> (Place, Store) {
    let (dir, store) = store().await;
    ready_version(&store, "shop").await;
    (dir, store)
}

/// From those that ran here before: how many events.
pub(super) async fn take_over(store: &Store) -> u64 {
    store.take_over(Duration::ZERO, at(500)).await.expect("take over").events
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

    let store = dir.open().await;
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
    let store = dir.open().await;
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
async fn an_event_keeps_its_trace_through_retries_and_one_that_does_not_read_costs_nothing() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (_dir, store) = store_with_app().await;
    let trace = TraceContext::parse(PARENT, Some("a=1,b=2"));
    let bare = TraceContext::parse(&PARENT.replace("-01", "-00"), None);
    assert!(trace.is_some() && bare.is_some());
    let traces = [trace, bare, None];
    for (payload, trace) in (1..).zip(traces.clone()) {
        add(&store, NewEvent { trace, ..keyed(&format!("k{payload}"), payload) }).await;
    }
    let seen = |claimed: &[ClaimedEvent]| claimed.iter().map(|one| one.event.trace.clone()).collect::<Vec<_>>();
    let first = claim(&store, 10, 1).await;
    assert_eq!(seen(&first), traces);
    for claimed in &first {
        assert!(finish(&store, claimed, retry(2)).await);
    }
    assert_eq!(seen(&claim(&store, 10, 2).await), traces);
    let damage = "UPDATE events SET traceparent = 'nonsense'";
    db::query(damage).execute(store.write()).await.expect("damage");
    assert_eq!(seen(&claim(&store, 10, 200).await), [None, None, None]);
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

    assert_eq!(take_over(&store).await, 1);
    assert_eq!(take_over(&store).await, 0);
    assert!(!finish(&store, &second, Disposition::Done).await, "it is not ours any more");
    assert_eq!(claim(&store, 1, 11).await.remove(0).event.attempt, 2);
}

#[tokio::test]
async fn attempts_are_numbered_without_a_gap_whatever_ended_them() {
    let (_dir, store) = store_with_app().await;
    let id = add(&store, event("shop")).await;
    claim(&store, 1, 1).await;
    take_over(&store).await; // The service was killed.
    // Spent already: it dies without having run once more.
    let second = claim(&store, 1, 2).await.remove(0);
    assert!(store.finish_claim(&second, dead(), Vec::new(), None, at(2)).await.expect("finish"));
    store.redrive(&app("shop"), &Letters::ALL, 10, at(3), actor()).await.expect("redrive");
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
async fn times_before_the_epoch_do_no_harm() {
    let (_dir, store) = store_with_app().await;
    let past = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
    add(&store, NewEvent { due_at: past, ..event("shop") }).await;
    assert_eq!(next_due(&store).await, Some(past));
    assert_eq!(claim(&store, 1, 0).await.len(), 1);
}

#[tokio::test]
async fn a_damaged_row_becomes_a_dead_letter_and_the_others_run() {
    let (_dir, store) = store_with_app().await;
    add(&store, event("shop")).await;
    let healthy = add(&store, event("shop")).await;
    let damage = "UPDATE events SET version = -1 WHERE seq = (SELECT MIN(seq) FROM events)";
    db::query(damage).execute(store.write()).await.expect("damage");
    let claimed = claim(&store, 10, 1).await;
    assert_eq!(claimed.iter().map(|claimed| claimed.event.id).collect::<Vec<_>>(), [healthy]);
    assert_eq!(figures(&store).await, (0, 1, 1));
    let (letters, _) = store.dead_letters(&app("shop"), None, 10, 1 << 20).await.expect("list");
    assert_eq!((letters[0].reason.as_deref(), letters[0].version.0), (Some("DAMAGED"), 0), "as much as is left");
    db::query("UPDATE events SET id = 'x' WHERE state = 4").execute(store.write()).await.expect("damage");
    let shown = store.dead_letters(&app("shop"), None, 10, 1 << 20).await.expect("list");
    assert_eq!(shown, (Vec::new(), None));
    let redriven = store.redrive(&app("shop"), &Letters::ALL, 10, at(2), actor()).await.expect("redrive");
    assert!(redriven.ids.is_empty() && redriven.last.is_some(), "{redriven:?}");
    let purged = store.purge_dead_letters(&app("shop"), &Letters::ALL, 10, actor()).await.expect("purge");
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
    let first = store.redrive(&app("shop"), &Letters::ALL, 3, at(2), actor()).await.expect("redrive");
    assert_eq!(first.ids, ids[..3]);
    // Dead once more, before the next batch.
    for claimed in claim(&store, 10, 3).await {
        assert!(finish(&store, &claimed, dead()).await);
    }
    let second = store.redrive(&app("shop"), &Letters::After(first.last.expect("some")), 3, at(4), actor()).await;
    let second = second.expect("redrive");
    assert_eq!(second.ids, ids[3..]);
    let none = store.redrive(&app("shop"), &Letters::After(second.last.expect("some")), 3, at(5), actor()).await;
    assert_eq!(none.expect("redrive"), Moved::default());
    assert_eq!((figures(&store).await, store.inner.queue.backlog.of(&app("shop"))), ((2, 0, 3), 2));
    let named = Letters::Named(vec![ids[4], ids[0], EventId::new()]);
    let purged = store.purge_dead_letters(&app("shop"), &named, 10, actor()).await.expect("purge");
    assert_eq!(purged.ids, ids[..1], "one is queued, and one is not known");
}

#[tokio::test]
async fn duplicates_in_one_group_take_no_place_under_the_limit() {
    let (dir, store) = store_with_app().await;
    store.close().await;
    let limits = QueueLimits { of_app: 2, in_all: 100 };
    let store = Store::open(dir.database(), limits).await.expect("reopen");
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

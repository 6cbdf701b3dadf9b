//! Events of one key run in the order they came.

use super::*;

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
    assert_eq!(store.redrive(&app("shop"), &Letters::ALL, 10, at(3), actor()).await.expect("redrive").ids.len(), 1);
    assert!(claim(&store, 10, 3).await.is_empty());
    let taken_over = claim(&store, 10, 100).await;
    assert_eq!(payloads(&taken_over), ["2"], "and its expired claim can be taken over");
    assert!(finish(&store, &taken_over[0], Disposition::Done).await);
    assert_eq!(payloads(&claim(&store, 10, 101).await), ["1"]);
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

//! What has ended is kept for so long, and then goes.

use super::*;

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
async fn finished_events_are_kept_as_long_as_their_app_says_and_as_their_keys_count() {
    let (_dir, store) = store_with_app().await;
    ready_version(&store, "keeper").await;
    let change = AppChange { history_retention: Some(Some(Duration::from_secs(50))), ..AppChange::default() };
    store.update_app(&app("keeper"), change, actor()).await.expect("update");
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
    let (_dir, store) = sqlite_store().await;
    let sql = "EXPLAIN QUERY PLAN SELECT e.seq FROM apps a CROSS JOIN events e WHERE e.app_id = a.id AND e.state < 4
               AND e.finished_at < 5 - CASE WHEN COALESCE(a.history_retention_ms, 1) > 2
                   THEN COALESCE(a.history_retention_ms, 1) ELSE 2 END LIMIT 9";
    let rows = db::query(sql).fetch_all(store.read()).await.expect("plan");
    let plan: Vec<String> = rows.iter().map(|row| get(row, "detail").expect("detail")).collect();
    assert!(plan.iter().any(|step| step.contains("INDEX events_by_age (app_id=? AND finished_at<?)")), "{plan:?}");
}

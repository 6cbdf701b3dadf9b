//! How the database finds what the queue asks for: costs that grow with the backlog would go unnoticed in small tests.

use super::*;

#[tokio::test]
async fn the_queue_is_never_scanned() {
    let (_dir, store) = sqlite_store().await;
    let plan = async |sql: &str, binds: usize| {
        let explain = db::Builder::new(format!("EXPLAIN QUERY PLAN {sql}")).build();
        let query = (0..binds).fold(explain, |query, _| query.bind(0));
        let rows = query.fetch_all(store.write()).await.expect("plan");
        let lines: Vec<String> = rows.iter().map(|row| get::<String>(row, "detail").expect("detail")).collect();
        lines.join("\n")
    };
    let claim = plan(CLAIM, 6).await;
    assert!(claim.contains("SEARCH e USING INDEX events_due (app_id=? AND due_at<?)"), "{claim}");
    let due = plan(DUE, 0).await;
    assert!(due.contains("SEARCH e USING INDEX events_due (app_id>?)"), "{due}");
    let advance = plan(line::ADVANCE, 1).await;
    assert!(advance.contains("INDEX events_waiting (app_id=? AND trigger_type=? AND ordering_key=?)"), "{advance}");
    assert!(advance.contains("INDEX events_head (app_id=? AND trigger_type=? AND ordering_key=?)"), "{advance}");
    let release = plan(RELEASE, 0).await;
    assert!(release.contains("SCAN events USING INDEX events_claimed"), "{release}");
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
        assert!(scans.clone().all(|line| line.starts_with("SCAN due") || line.starts_with("SCAN first")), "{plan}");
    }
}

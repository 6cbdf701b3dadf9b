//! One memory budget for all apps: who lacks some gets it from idle workers, and no more than that.

use std::collections::BTreeSet;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, wait_until};
use crate::pool::{Gate, WHICH, hold, until_busy};
use crate::publish_request::Publish;

/// Of a worker, by default.
const WORKER_BYTES: u64 = 256 << 20;

/// A service with room for so many workers.
async fn room_for(workers: u64) -> TestServer {
    let budget = format!("memory_budget_bytes={}", workers * WORKER_BYTES + (1 << 20));
    TestServer::with(&[&budget, "wait_max=20s"]).await
}

async fn pids(app: &TestApp) -> BTreeSet<u32> {
    app.pool().await.worker_pids.into_iter().collect()
}

#[tokio::test]
async fn a_shortage_in_one_app_costs_another_as_many_idle_workers_as_it_takes() {
    let server = room_for(4).await;
    let gate = Gate::new(&server);
    let one = gate.function("one").on(&server).await;
    let other = gate.function("other").on(&server).await;
    let running = hold(&other, 3);
    until_busy(&other, 3).await;
    let before = pids(&other).await;
    gate.open();
    running.join_all().await;
    gate.close();
    wait_until("three are idle", async || other.pool().await.workers_idle == 3).await;
    let running = hold(&one, 2);
    until_busy(&one, 2).await;
    wait_until("one has ended", async || pids(&other).await.len() < 3).await;
    // A third caller elsewhere takes longer to be answered than it took the idle ones to end.
    let answers: Vec<_> = [other.login("jane").await, other.login("joe").await].iter().map(Answered::json).collect();
    let left = pids(&other).await;
    assert!(left.len() == 2 && left.is_subset(&before), "{before:?} → {left:?}, {answers:?}");
    assert_eq!(other.pool().await.workers_started_total, 3);
    gate.open();
    running.join_all().await;
    server.stop().await;
}

#[tokio::test]
async fn workers_that_are_kept_warm_give_way_to_a_caller_who_would_get_none() {
    let server = room_for(2).await;
    // Twice as much as there is.
    let greedy = Publish::login("greedy", WHICH).limits(|limits| limits.workers_min = 4).on(&server).await;
    wait_until("it has all there is", async || pids(&greedy).await.len() == 2).await;
    let modest = server.deploy_function("modest", LOGIN, WHICH).await;
    modest.login("jane").await.json();
    greedy.login("jane").await.json();
    assert_eq!((pids(&greedy).await.len(), pids(&modest).await.len()), (1, 1));
    server.stop().await;
}

#[tokio::test]
async fn what_was_used_last_stays_while_others_take_turns() {
    let server = room_for(2).await;
    let [often, one, other] = ["often", "one", "other"];
    for app in [often, one, other] {
        server.deploy_function(app, LOGIN, WHICH).await;
    }
    let [often, one, other] = [often, one, other].map(|app| server.app(app));
    let worker = often.login("jane").await.json();
    for round in 0..4 {
        for seldom in [&one, &other] {
            seldom.login("jane").await.json();
            assert_eq!(often.login("jane").await.json(), worker, "round {round}: it is the same all the time");
        }
    }
    server.stop().await;
}

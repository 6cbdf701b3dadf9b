//! One key, one execution, one recorded outcome.

use chatfn::proto::{self, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, wait_until};
use crate::pool::{Gate, until_busy};

/// No two executions answer the same.
const UNIQUE: &str = "export const handleEvent = (event) => {
    if (event.username === 'throw') throw new Error(process.hrtime.bigint().toString());
    return process.hrtime.bigint().toString();
}";

fn keyed(app: &TestApp, username: &str, key: &str) -> proto::InvokeRequest {
    let mut request = app.call(LOGIN, &json!({ "username": username }).to_string());
    request.idempotency_key = key.to_owned();
    request
}

#[tokio::test]
async fn a_key_that_comes_again_gets_the_recorded_outcome() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, UNIQUE).await;
    for case in ["jane", "throw"] {
        let first = app.send(keyed(&app, case, case)).await.expect("an answer");
        let again = app.send(keyed(&app, case, case)).await.expect("an answer");
        assert_eq!(first, again);
        let other = app.send(keyed(&app, case, &format!("another {case}"))).await.expect("an answer");
        assert_ne!(other.invocation_id, first.invocation_id);
    }
    assert_eq!(app.history().await.len(), 4);
    let elsewhere = server.deploy_function("elsewhere", LOGIN, UNIQUE).await;
    let mine = elsewhere.send(keyed(&elsewhere, "jane", "jane")).await.expect("an answer");
    assert_ne!(
        mine.json(),
        app.send(keyed(&app, "jane", "jane")).await.expect("an answer").json(),
        "keys are the app's"
    );
    server.stop().await;
}

#[tokio::test]
async fn calls_with_one_key_that_come_together_are_one_execution() {
    let server = TestServer::start().await;
    let gate = Gate::new();
    let app = gate.function("demo").on(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let app = app.clone();
        calls.spawn(async move { app.send(keyed(&app, "hold", "one")).await.expect("an answer") });
    }
    until_busy(&app, 1).await;
    // While the first still runs, after a deadline that it misses.
    let mut hasty = tonic::Request::new(keyed(&app, "hold", "one"));
    hasty.set_timeout(std::time::Duration::from_millis(50));
    server.invocations().invoke(hasty).await.expect_err("too early");
    gate.open();
    let answers = calls.join_all().await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    answers[0].json();
    assert_eq!(app.history().await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_recorded_outcome_survives_the_death_of_the_service() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, UNIQUE).await;
    let first = app.send(keyed(&app, "jane", "one")).await.expect("an answer");
    let server = server.crash_and_restart().await;
    let app = server.app("demo");
    assert_eq!(app.send(keyed(&app, "jane", "one")).await.expect("an answer"), first);
    server.stop().await;
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_window() {
    let server = TestServer::with(&["idempotency_window=1s"]).await;
    let app = server.deploy_function("demo", LOGIN, UNIQUE).await;
    let first = app.send(keyed(&app, "jane", "one")).await.expect("an answer").json();
    wait_until("it runs again", async || {
        app.send(keyed(&app, "jane", "one")).await.expect("an answer").json() != first
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn what_another_invocation_spoiled_is_not_recorded() {
    let server = TestServer::start().await;
    let gate = Gate::new();
    let app =
        gate.function("demo").limits(|limits| (limits.concurrency, limits.workers_max) = (2, 1)).on(&server).await;
    let call = |key: &'static str| {
        let app = app.clone();
        tokio::spawn(async move { app.send(keyed(&app, "hold", key)).await })
    };
    let (first, second) = (call("first"), call("second"));
    wait_until("both run", async || app.history().await.len() == 2).await;
    let worker = app.pool().await.worker_pids[0];
    kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL).expect("signal");
    for call in [first, second] {
        let answer = call.await.expect("joins").expect("an answer");
        assert_eq!((answer.failure().kind(), answer.failure().retryable), (ErrorKind::Collateral, true));
    }
    gate.open();
    for key in ["first", "second"] {
        app.send(keyed(&app, "hold", key)).await.expect("an answer").json();
    }
    server.stop().await;
}

//! One key, one execution, one recorded outcome.

use std::time::Duration;

use chatfn::proto::{self, ErrorKind, invoke_response::Outcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestApp, TestServer, wait_until};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

/// No two executions answer the same.
const UNIQUE: &str = "export const handleEvent = (event, context) => {
    if (event.username === 'deny') context.deny('no');
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
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let app = app.clone();
        calls.spawn(async move { app.send(keyed(&app, "hold", "one")).await.expect("an answer") });
    }
    until_busy(&app, 1).await;
    // While the first still runs, after a deadline that it misses.
    let mut hasty = tonic::Request::new(keyed(&app, "hold", "one"));
    hasty.set_timeout(Duration::from_millis(50));
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
    let gate = Gate::new(&server);
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

#[tokio::test]
async fn a_known_key_is_answered_although_its_function_is_gone() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", UNIQUE).function(SENT, "export const handleEvent = () => 1").on(&server).await;
    let refused = app.send(keyed(&app, "deny", "one")).await.expect("an answer");
    assert_eq!(refused.verdict(), proto::Verdict::Deny);
    let event = |key: &str| {
        let mut request = app.call(SENT, SENT_EVENT);
        request.idempotency_key = key.to_owned();
        app.send(request)
    };
    let accepted = |answer: proto::InvokeResponse| match answer.outcome {
        Some(Outcome::Accepted(accepted)) => accepted,
        other => panic!("{other:?}"),
    };
    let first = accepted(event("one").await.expect("an answer"));
    let disabled =
        Publish::login("demo", UNIQUE).disabled().function(SENT, "export const handleEvent = () => 1").disabled();
    let removed = Publish::login("demo", UNIQUE).disabled();
    for version in [disabled, removed] {
        version.on(&server).await;
        for key in ["two", ""] {
            let skipped = app.send(keyed(&app, "deny", key)).await.expect("an answer");
            assert_eq!(skipped.verdict(), proto::Verdict::Allow);
            assert!(matches!(skipped.outcome, Some(Outcome::Skipped(_))), "{skipped:?}");
            assert!(matches!(event(key).await.expect("an answer").outcome, Some(Outcome::Skipped(_))));
        }
        assert_eq!(app.send(keyed(&app, "deny", "one")).await.expect("an answer"), refused);
        let again = accepted(event("one").await.expect("an answer"));
        assert_eq!((again.event_id, again.duplicate), (first.event_id.clone(), true));
    }
    server.stop().await;
}

#[tokio::test]
async fn what_never_ran_is_not_recorded_whatever_the_policy_makes_of_it() {
    let allow = || proto::FailureAction::Allow.into();
    let stands_in = proto::FailurePolicy {
        on_error: allow(),
        on_overload: allow(),
        default_json: b"\"stands in\"".to_vec().into(),
        ..Default::default()
    };
    for policy in [proto::FailurePolicy::default(), stands_in] {
        let server = TestServer::start().await;
        let gate = Gate::new(&server);
        gate.open();
        let publish = Publish::login("demo", UNIQUE).policy(policy.clone());
        let publish = publish.initialization("require('fs').readFileSync(process.env.GATE)");
        publish.variable("GATE", &gate.path()).on(&server).await;
        let server = server.crash_and_restart().await; // Which closes the gate.
        let app = server.app("demo");
        let failed = app.send(keyed(&app, "jane", "one")).await.expect("an answer");
        match failed.outcome {
            Some(Outcome::Error(error)) => assert_eq!(error.kind(), ErrorKind::InitFailed),
            _ => assert_eq!(failed.json(), json!("stands in")),
        }
        gate.open();
        wait_until("it runs once it can", async || {
            let answer = app.send(keyed(&app, "jane", "one")).await.expect("an answer");
            matches!(&answer.outcome, Some(Outcome::Result(_))) && answer.json() != json!("stands in")
        })
        .await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_callers_own_deadline_is_no_verdict_on_those_who_can_wait() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let hasty = {
        let (mut invocations, mut request) = (server.invocations(), tonic::Request::new(keyed(&app, "hold", "one")));
        request.set_timeout(Duration::from_secs(1));
        tokio::spawn(async move { invocations.invoke(request).await })
    };
    until_busy(&app, 1).await;
    let patient = {
        let app = app.clone();
        tokio::spawn(async move { app.send(keyed(&app, "hold", "one")).await })
    };
    if let Ok(answer) = hasty.await.expect("joins") {
        assert_eq!(answer.get_ref().failure().kind(), ErrorKind::TimedOut);
    }
    gate.open();
    let answer = patient.await.expect("joins").expect("an answer");
    answer.json();
    assert_eq!(app.send(keyed(&app, "hold", "one")).await.expect("an answer"), answer);
    assert_eq!(app.history().await.len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_its_outcome_to_the_next() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let first = {
        let app = app.clone();
        tokio::spawn(async move { app.send(keyed(&app, "hold", "one")).await })
    };
    until_busy(&app, 1).await;
    let running = app.history().await.remove(0).invocation_id;
    first.abort();
    let second = {
        let app = app.clone();
        tokio::spawn(async move { app.send(keyed(&app, "hold", "one")).await })
    };
    let other = hold(&app, 1);
    until_busy(&app, 2).await;
    gate.open();
    other.join_all().await;
    let answer = second.await.expect("joins").expect("an answer");
    answer.json();
    assert_eq!(answer.invocation_id, running);
    assert_eq!(app.history().await.len(), 2);
    server.stop().await;
}

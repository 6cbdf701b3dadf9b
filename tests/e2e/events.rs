//! Non-blocking events: what was accepted runs, in spite of crashes, failures and changes of mind.

use std::time::Duration;

use chatfn::proto::{self, InvocationStatus, invoke_response::Outcome};
use serde_json::json;
use tonic::Code;

use crate::harness::{SENT, SENT_EVENT, TestApp, TestServer, reason, wait_until};
use crate::pool::Gate;
use crate::publish_request::Publish;

/// Throws where the message says so; waits for the file in `GATE` where there is one.
pub const HANDLES: &str = "import { existsSync } from 'fs';
export const handleEvent = async (event, context) => {
    while (process.env.GATE && !existsSync(process.env.GATE)) await new Promise((resolve) => setTimeout(resolve, 10));
    if (event.message.body === 'throw') throw new Error('attempt ' + context.invocation.attempt);
    return [event.message.body, context.function.version];
}";

pub fn event(body: &str) -> String {
    json!({ "user": { "name": "jane" }, "channel": { "id": 1 }, "message": { "body": body } }).to_string()
}

pub async fn accept(app: &TestApp, request: proto::InvokeRequest) -> proto::Accepted {
    let answer = app.send(request).await.expect("accepted");
    assert_eq!((answer.verdict, answer.invocation_id.as_str()), (0, ""));
    match answer.outcome {
        Some(Outcome::Accepted(accepted)) => accepted,
        other => panic!("not accepted: {other:?}"),
    }
}

/// What succeeded, oldest first.
pub async fn results(app: &TestApp) -> Vec<String> {
    let rows = app.history().await;
    let succeeded = rows.iter().rev().filter(|row| row.status() == InvocationStatus::Succeeded);
    succeeded.map(|row| String::from_utf8_lossy(&row.result_json).into_owned()).collect()
}

pub async fn until_dead(app: &TestApp) {
    wait_until("it is dead", async || app.show().await.queue.is_some_and(|queue| queue.dead == 1)).await;
}

/// Why the only dead letter is one, and what its last attempt came to.
async fn epitaph(server: &TestServer) -> (String, String) {
    let request = proto::ListDeadLettersRequest { app_id: "demo".to_owned(), ..Default::default() };
    let listed = server.events().list_dead_letters(request).await.expect("a list").into_inner();
    let [letter] = &listed.events[..] else { panic!("not one: {listed:?}") };
    let last = letter.attempts.iter().filter_map(|attempt| attempt.error.as_ref()).next_back();
    (letter.reason.clone(), last.map(|error| error.message.clone()).unwrap_or_default())
}

#[tokio::test]
async fn an_accepted_event_survives_the_death_of_the_service() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = Publish::sent("demo", HANDLES).variable("GATE", &gate.path()).on(&server).await;
    for body in ["first", "second", "third"] {
        accept(&app, app.call(SENT, &event(body))).await;
    }
    let server = server.crash_and_restart().await;
    gate.open();
    let app = server.app("demo");
    wait_until("all ran", async || results(&app).await.len() >= 3).await;
    let ran = results(&app).await;
    for body in ["first", "second", "third"] {
        assert!(ran.contains(&format!("[\"{body}\",1]")), "{ran:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_event_that_keeps_failing_is_retried_and_becomes_a_dead_letter() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(3, Duration::from_millis(10)).on(&server).await;
    let accepted = accept(&app, app.call(SENT, &event("throw"))).await;
    until_dead(&app).await;
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.queued, queue.running), (0, 0));
    let rows = app.history().await;
    let attempts: Vec<_> =
        rows.iter().rev().map(|row| (row.attempt, row.error.as_ref().map(|error| error.message.as_str()))).collect();
    assert_eq!(attempts, [(1, Some("attempt 1")), (2, Some("attempt 2")), (3, Some("attempt 3"))]);
    assert!(rows.iter().all(|row| row.event_id == accepted.event_id && row.status() == InvocationStatus::Failed));
    server.stop().await;
}

#[tokio::test]
async fn an_event_whose_worker_dies_is_retried_too() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event, context) => {
        if (context.invocation.attempt === 1) process.kill(process.pid, 'SIGKILL');
        return context.invocation.attempt === 1 ? new Promise(() => {}) : context.invocation.attempt;
    }";
    let app = Publish::sent("demo", source).retry(2, Duration::from_millis(10)).on(&server).await;
    accept(&app, app.call(SENT, SENT_EVENT)).await;
    wait_until("the second attempt succeeds", async || results(&app).await == ["2"]).await;
    assert_eq!(app.show().await.queue.expect("figures").dead, 0);
    server.stop().await;
}

#[tokio::test]
async fn an_event_with_a_known_key_is_a_duplicate() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).on(&server).await;
    let mut request = app.call(SENT, &event("once"));
    request.idempotency_key = "one".to_owned();
    let first = accept(&app, request.clone()).await;
    let again = accept(&app, request.clone()).await;
    assert_eq!((first.duplicate, again.duplicate), (false, true));
    assert_eq!(first.event_id, again.event_id);
    let server = server.crash_and_restart().await;
    let app = server.app("demo");
    assert_eq!(accept(&app, request).await, again);
    let plain = accept(&app, app.call(SENT, &event("last"))).await;
    assert!(!plain.duplicate);
    wait_until("the last one ran", async || results(&app).await.contains(&"[\"last\",1]".to_owned())).await;
    // The service may have been killed while it ran: that is a second attempt, not a second event, and it may end after the last one.
    let succeeded =
        |row: &proto::Invocation| row.event_id == first.event_id && row.status() == InvocationStatus::Succeeded;
    wait_until("the first one ran", async || app.history().await.iter().any(succeeded)).await;
    assert_eq!(app.history().await.iter().filter(|row| succeeded(row)).count(), 1);
    server.stop().await;
}

#[tokio::test]
async fn of_events_that_come_together_with_one_key_one_is_queued() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).on(&server).await;
    let mut request = app.call(SENT, &event("once"));
    request.idempotency_key = "one".to_owned();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (app, request) = (app.clone(), request.clone());
        calls.spawn(async move { accept(&app, request).await });
    }
    let accepted = calls.join_all().await;
    assert_eq!(accepted.iter().filter(|accepted| !accepted.duplicate).count(), 1);
    assert!(accepted.iter().all(|one| one.event_id == accepted[0].event_id));
    wait_until("it ran", async || !results(&app).await.is_empty()).await;
    assert_eq!(app.history().await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn events_with_one_ordering_key_run_one_after_the_other() {
    let server = TestServer::start().await;
    // The earlier, the slower: without the key they would overtake each other.
    let source = "export const handleEvent = async (event) => {
        const n = Number(event.message.body);
        await new Promise((resolve) => setTimeout(resolve, 20 - n));
        return n;
    }";
    let app = Publish::sent("demo", source).on(&server).await;
    for n in 0..20 {
        let mut request = app.call(SENT, &event(&n.to_string()));
        request.ordering_key = "channel 1".to_owned();
        accept(&app, request).await;
    }
    wait_until("all ran", async || results(&app).await.len() == 20).await;
    let mut rows = app.history().await;
    rows.reverse();
    let order: Vec<String> = rows.iter().map(|row| String::from_utf8_lossy(&row.result_json).into_owned()).collect();
    assert_eq!(order, (0..20).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    let at = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos)).expect("a time");
    for pair in rows.windows(2) {
        assert!(at(pair[0].finished_at) <= at(pair[1].created_at), "they overlap: {pair:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_ordering_key_holds_through_a_retry() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event, context) => {
        if (event.message.body === 'first' && context.invocation.attempt < 3) throw new Error('not yet');
        return event.message.body;
    }";
    let app = Publish::sent("demo", source).retry(5, Duration::from_millis(10)).on(&server).await;
    for body in ["first", "second"] {
        let mut request = app.call(SENT, &event(body));
        request.ordering_key = "one".to_owned();
        accept(&app, request).await;
    }
    wait_until("both ran", async || results(&app).await.len() == 2).await;
    assert_eq!(results(&app).await, ["\"first\"", "\"second\""]);
    server.stop().await;
}

#[tokio::test]
async fn an_event_stays_on_the_version_it_was_queued_for() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let publish = Publish::sent("demo", HANDLES).variable("GATE", &gate.path()).timeout(Duration::from_secs(60));
    let app = publish.clone().on(&server).await;
    let accepted = app.send(app.call(SENT, &event("old"))).await.expect("accepted");
    assert_eq!(accepted.version, 1);
    // Version 2 fails all; the event is still waiting in the gate's worker, and comes back after a crash.
    Publish::sent("demo", "export const handleEvent = () => { throw new Error('new') }").on(&server).await;
    let server = server.crash_and_restart().await;
    gate.open();
    let app = server.app("demo");
    wait_until("it ran", async || results(&app).await == ["[\"old\",1]"]).await;
    assert!(app.history().await.iter().all(|row| row.version == 1));
    server.stop().await;
}

#[tokio::test]
async fn a_version_that_queued_events_need_is_not_deleted_and_runs_them_though_the_next_one_disables_the_function() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = Publish::sent("demo", HANDLES).variable("GATE", &gate.path()).on(&server).await;
    accept(&app, app.call(SENT, &event("old"))).await;
    Publish::sent("demo", HANDLES).disabled().on(&server).await;
    let request = proto::DeleteVersionRequest { app_id: app.id.clone(), version: 1 };
    let refused = server.versions().delete_version(request.clone()).await.expect_err("needed");
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "VERSION_NEEDED_BY_EVENTS".to_owned()));
    let skipped = app.invoke(SENT, &event("new")).await.expect("skipped");
    assert!(matches!(skipped.outcome, Some(Outcome::Skipped(_))), "{skipped:?}");
    gate.open();
    wait_until("it can go", async || server.versions().delete_version(request.clone()).await.is_ok()).await;
    assert_eq!(results(&app).await, ["[\"old\",1]"]);
    server.stop().await;
}

#[tokio::test]
async fn a_full_pool_delays_events_and_loses_none() {
    let server = TestServer::with(&["waiting_max=1", "wait_max=200ms"]).await;
    let app = Publish::sent("demo", HANDLES).limits(|limits| limits.workers_max = 1).on(&server).await;
    for n in 0..30 {
        accept(&app, app.call(SENT, &event(&n.to_string()))).await;
    }
    wait_until("all ran", async || results(&app).await.len() == 30).await;
    let queue = app.show().await.queue.expect("figures");
    assert_eq!(queue.dead, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_key_belongs_to_its_trigger_type() {
    let server = TestServer::start().await;
    let read = "UserReadMessage";
    let files = [("functions/UserSentMessage.ts", HANDLES), ("functions/UserReadMessage.ts", HANDLES)];
    let app = server.deploy("demo", &files).await;
    let keyed = |trigger_type: &str, event: &str| {
        let mut request = app.call(trigger_type, event);
        request.idempotency_key = "message-1".to_owned();
        request
    };
    let sent = accept(&app, keyed(SENT, &event("hi"))).await;
    let seen = r#"{"user":{"name":"jane"},"message":{"body":"hi"},"receipt":{}}"#;
    let other = accept(&app, keyed(read, seen)).await;
    assert!(!sent.duplicate && !other.duplicate);
    assert_ne!(sent.event_id, other.event_id);
    assert!(accept(&app, keyed(SENT, &event("hi"))).await.duplicate);
    server.stop().await;
}

#[tokio::test]
async fn an_event_that_gets_too_old_becomes_a_dead_letter_whatever_attempts_it_has_left() {
    let server = TestServer::start().await;
    let mut publish = Publish::sent("demo", HANDLES).retry(100, Duration::from_millis(20));
    let function = &mut publish.0.spec.as_mut().expect("a spec").functions[0];
    function.retry.as_mut().expect("a policy").max_age = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let app = publish.on(&server).await;
    accept(&app, app.call(SENT, &event("throw"))).await;
    until_dead(&app).await;
    let (reason, error) = epitaph(&server).await;
    assert_eq!(reason, "TOO_OLD");
    assert!(error.contains("attempt "), "{error}");
    let attempts = app.history().await.len();
    assert!((1..100).contains(&attempts), "{attempts}");
    server.stop().await;
}

#[tokio::test]
async fn an_event_whose_version_cannot_be_loaded_becomes_a_dead_letter_and_is_not_logged_each_time() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let publish = Publish::sent("demo", HANDLES).variable("GATE", &gate.path()).retry(4, Duration::from_millis(10));
    let app = publish.on(&server).await;
    accept(&app, app.call(SENT, &event("never"))).await;
    let (data, settings) = server.crash();
    std::fs::remove_dir_all(data.path().join("data/artifacts/demo")).expect("remove");
    let mut server = TestServer::restart((data, settings)).await;
    server.expect_log("failed to load the version of an event");
    let app = server.app("demo");
    until_dead(&app).await;
    let (reason, error) = epitaph(&server).await;
    assert_eq!(reason, "ATTEMPTS_EXHAUSTED");
    assert!(error.contains("manifest.json"), "{error}");
    let complaints = async || server.log().iter().filter(|line| line.contains(" ERROR ")).count();
    wait_until("it is logged", async || complaints().await > 0).await;
    assert_eq!(complaints().await, 1, "{:?}", server.log());
    server.stop().await;
}

#[tokio::test]
async fn an_app_can_be_deleted_while_its_events_run() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let publish = Publish::sent("demo", HANDLES).variable("GATE", &gate.path()).timeout(Duration::from_secs(60));
    let app = publish.clone().on(&server).await;
    for body in ["first", "second", "third"] {
        accept(&app, app.call(SENT, &event(body))).await;
    }
    crate::pool::until_busy(&app, 3).await;
    server.apps().delete_app(proto::DeleteAppRequest { app_id: app.id.clone() }).await.expect("deleted");
    let gone = app.invoke(SENT, &event("late")).await.expect_err("it is gone");
    assert_eq!(reason(&gone), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    wait_until("its workers are gone", async || server.worker_processes().is_empty()).await;
    // The next one of that name has nothing of it.
    gate.open();
    let app = publish.on(&server).await;
    accept(&app, app.call(SENT, &event("new"))).await;
    wait_until("it ran", async || !results(&app).await.is_empty()).await;
    assert_eq!(results(&app).await, ["[\"new\",1]"]);
    assert_eq!(app.show().await.queue.expect("figures").dead, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_function_that_wants_batches_is_given_the_events_of_a_key_together() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (events, context) => {
        const bodies = events.map((event) => event.message.body);
        if (bodies.includes('throw')) throw new Error('attempt ' + context.invocation.attempt);
        return bodies;
    }";
    let publish = Publish::sent("demo", source).retry(2, Duration::from_millis(1));
    let app = publish.batch(3, Duration::from_secs(3600)).on(&server).await;
    let send = async |key: &str, body: &str| {
        let request = proto::InvokeRequest { ordering_key: key.to_owned(), ..app.call(SENT, &event(body)) };
        accept(&app, request).await;
    };
    for body in ["first", "second", "third"] {
        send("jane", body).await;
    }
    wait_until("they ran", async || !results(&app).await.is_empty()).await;
    // Without a key there is nothing to wait for.
    send("", "alone").await;
    wait_until("it ran", async || results(&app).await.len() == 2).await;
    assert_eq!(results(&app).await, [r#"["first","second","third"]"#, r#"["alone"]"#]);
    // All of a batch fail together, and each keeps its attempts.
    for body in ["throw", "beside it", "and it"] {
        send("joe", body).await;
    }
    wait_until("they are dead", async || app.show().await.queue.is_some_and(|queue| queue.dead == 3)).await;
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.queued, queue.running), (0, 0));
    assert_eq!(results(&app).await.len(), 2);
    server.stop().await;
}

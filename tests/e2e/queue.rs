//! The queue from outside: states, schedules, loops, limits and shares.

use std::time::{Duration, SystemTime};

use chatfn::proto::invocation_service_client::InvocationServiceClient;
use chatfn::proto::{self, EventState, InvocationStatus};
use serde_json::json;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::events::{HANDLES, accept, event, results, until_dead};
use crate::harness::{Answered, LOGIN, SENT, TestApp, TestServer, reason, wait_until};
use crate::pool::{Gate, until_busy};
use crate::publish_request::Publish;

const HOPS: &str = "export const handleEvent = (event, context) => context.invocation.hops";

/// Holds every event until the gate opens.
fn gated(app: &str, gate: &Gate) -> Publish {
    Publish::sent(app, HANDLES).variable("GATE", &gate.path()).timeout(Duration::from_secs(60))
}

fn keyed(app: &TestApp, body: &str) -> proto::InvokeRequest {
    let mut request = app.call(SENT, &event(body));
    request.ordering_key = "one".to_owned();
    request
}

fn at(time: SystemTime) -> Option<prost_types::Timestamp> {
    // As the store keeps it.
    let mut at = prost_types::Timestamp::from(time);
    at.nanos -= at.nanos % 1_000_000;
    Some(at)
}

fn moment(time: Option<prost_types::Timestamp>) -> SystemTime {
    time.expect("a time").try_into().expect("a time")
}

async fn until_state(app: &TestApp, event_id: &str, state: EventState) {
    wait_until(state.as_str_name(), async || app.event(event_id).await.state() == state).await;
}

/// Reported by a function that so many led to.
async fn with_hops(app: &TestApp, request: proto::InvokeRequest, hops: &str) -> Result<proto::InvokeResponse, Status> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-chatfn-hops", hops.parse().expect("ascii"));
    InvocationServiceClient::new(app.channel()).invoke(request).await.map(tonic::Response::into_inner)
}

fn queue_full() -> (Code, String) {
    (Code::ResourceExhausted, "QUEUE_FULL".to_owned())
}

#[tokio::test]
async fn an_event_is_queued_then_runs_then_is_done() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gated("demo", &gate).on(&server).await;
    let first = accept(&app, keyed(&app, "first")).await.event_id;
    let second = accept(&app, keyed(&app, "second")).await.event_id;
    until_state(&app, &first, EventState::Running).await;
    let (runs, waits) = (app.event(&first).await, app.event(&second).await);
    assert_eq!((runs.next_attempt_at, runs.finished_at), (None, None));
    assert_eq!((waits.state(), waits.ordering_key.as_str(), waits.version), (EventState::Queued, "one", 1));
    assert!(waits.next_attempt_at.is_some() && waits.attempts.is_empty() && waits.finished_at.is_none());
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.queued, queue.running, queue.oldest_enqueued_at), (1, 1, runs.enqueued_at));
    gate.open();
    until_state(&app, &second, EventState::Done).await;
    for (id, body) in [(first, "first"), (second, "second")] {
        let done = app.event(&id).await;
        let [attempt] = &done.attempts[..] else { panic!("not one attempt: {done:?}") };
        assert_eq!((done.state(), attempt.number, &attempt.error), (EventState::Done, 1, &None));
        assert!(moment(done.enqueued_at) <= moment(attempt.started_at));
        assert!(moment(attempt.started_at) <= moment(attempt.finished_at));
        assert_eq!(done.finished_at, attempt.finished_at);
        let row = app.invocation(&attempt.invocation_id).await;
        assert_eq!((row.status(), row.attempt, row.event_id), (InvocationStatus::Succeeded, 1, id));
        assert_eq!(done.event_json, event(body));
    }
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.claims_total, queue.retries_total, queue.oldest_enqueued_at), (2, 0, None));
    server.stop().await;
}

#[tokio::test]
async fn between_attempts_an_event_is_queued_and_tells_what_failed_and_when_it_comes_back() {
    let server = TestServer::start().await;
    let mut publish = Publish::sent("demo", HANDLES).retry(5, Duration::from_secs(3600));
    let function = &mut publish.0.spec.as_mut().expect("a spec").functions[0];
    function.retry.as_mut().expect("a policy").max_backoff = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let app = publish.on(&server).await;
    let id = accept(&app, app.call(SENT, &event("throw"))).await.event_id;
    wait_until("it failed", async || !app.event(&id).await.attempts.is_empty()).await;
    let failed = app.event(&id).await;
    assert_eq!(failed.attempts[0].error.as_ref().expect("an error").message, "attempt 1");
    // A jitter of nearly nothing may have sent it off again.
    if failed.state() == EventState::Queued && failed.attempts.len() == 1 {
        assert!(moment(failed.next_attempt_at) >= moment(failed.attempts[0].finished_at), "{failed:?}");
    }
    assert_eq!(failed.deliver_at, failed.enqueued_at);
    assert!(app.show().await.queue.expect("figures").retries_total >= 1);
    server.stop().await;
}

#[tokio::test]
async fn a_dead_letter_that_is_redriven_to_a_disabled_function_is_skipped() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, Duration::from_millis(1)).on(&server).await;
    let id = accept(&app, app.call(SENT, &event("throw"))).await.event_id;
    until_dead(&app).await;
    Publish::sent("demo", HANDLES).disabled().on(&server).await;
    let request =
        proto::RedriveDeadLettersRequest { app_id: app.id.clone(), event_ids: vec![id.clone()], ..Default::default() };
    assert_eq!(server.events().redrive_dead_letters(request).await.expect("redriven").into_inner().count, 1);
    until_state(&app, &id, EventState::Skipped).await;
    let skipped = app.event(&id).await;
    assert_eq!((skipped.reason.as_str(), skipped.attempts.len()), ("FUNCTION_DISABLED", 1));
    server.stop().await;
}

#[tokio::test]
async fn a_scheduled_event_waits_for_its_time_and_blocks_nobody_of_its_key() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).on(&server).await;
    let later = at(SystemTime::now() + Duration::from_secs(3600));
    let mut request = keyed(&app, "later");
    request.deliver_at = later;
    let scheduled = accept(&app, request.clone()).await.event_id;
    request.ordering_key = String::new();
    accept(&app, request).await;
    let now = accept(&app, keyed(&app, "now")).await.event_id;
    until_state(&app, &now, EventState::Done).await;
    let waits = app.event(&scheduled).await;
    assert_eq!((waits.state(), waits.deliver_at, waits.next_attempt_at), (EventState::Queued, later, later));
    assert!(moment(waits.enqueued_at) < moment(waits.deliver_at));
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.queued, queue.oldest_enqueued_at), (2, None), "what need not run yet is not late");
    // Also not after a restart.
    let server = server.crash_and_restart().await;
    let app = server.app("demo");
    let after = accept(&app, keyed(&app, "after")).await.event_id;
    until_state(&app, &after, EventState::Done).await;
    assert_eq!(app.event(&scheduled).await, waits);
    server.stop().await;
}

#[tokio::test]
async fn a_scheduled_event_runs_when_its_time_has_come_and_then_stands_in_line() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gated("demo", &gate).on(&server).await;
    let due = SystemTime::now() + Duration::from_millis(1500);
    let mut ids = Vec::new();
    // One with a key, one without; a time that has passed means now.
    for (mut request, time) in [
        (keyed(&app, "later"), due),
        (app.call(SENT, &event("alone")), due),
        (keyed(&app, "past"), SystemTime::UNIX_EPOCH),
    ] {
        request.deliver_at = at(time);
        ids.push(accept(&app, request).await.event_id);
    }
    let [later, alone, past] = &ids[..] else { panic!("three") };
    until_state(&app, past, EventState::Running).await;
    until_state(&app, alone, EventState::Running).await;
    // Its time has come too, but another of its key runs.
    assert_eq!(app.event(later).await.state(), EventState::Queued);
    gate.open();
    until_state(&app, later, EventState::Done).await;
    until_state(&app, alone, EventState::Done).await;
    let started = async |id: &str| moment(app.event(id).await.attempts[0].started_at);
    assert!(started(later).await >= moment(at(due)) && started(alone).await >= moment(at(due)));
    assert!(started(past).await < started(later).await);
    let of_past = app.event(past).await;
    assert_eq!(of_past.deliver_at, of_past.enqueued_at);
    server.stop().await;
}

#[tokio::test]
async fn a_schedule_that_means_nothing_is_refused() {
    let server = TestServer::with(&["schedule_max=1h"]).await;
    let app = Publish::sent("demo", HANDLES).function(LOGIN, "export const handleEvent = () => 1").on(&server).await;
    let soon = SystemTime::now() + Duration::from_secs(60);
    let late = SystemTime::now() + Duration::from_secs(2 * 3600);
    let end_of_time = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    for (trigger_type, body, deliver_at, expected) in [
        (LOGIN, r#"{"username":"jane"}"#.to_owned(), at(soon), "DELIVER_AT_BLOCKING"),
        (SENT, event("late"), at(late), "DELIVER_AT_TOO_FAR"),
        (SENT, event("never"), end_of_time, "DELIVER_AT_TOO_FAR"),
    ] {
        let mut request = app.call(trigger_type, &body);
        request.deliver_at = deliver_at;
        let refused = app.send(request).await.expect_err(expected);
        assert_eq!(reason(&refused), (Code::InvalidArgument, expected.to_owned()));
    }
    let mut request = app.call(SENT, &event("soon"));
    request.deliver_at = at(soon);
    accept(&app, request).await;
    assert_eq!(app.show().await.queue.expect("figures").queued, 1, "only the one within an hour");
    server.stop().await;
}

#[tokio::test]
async fn a_function_sees_how_many_led_to_its_event() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HOPS).function(LOGIN, HOPS).on(&server).await;
    let login = || app.call(LOGIN, r#"{"username":"jane"}"#);
    for hops in ["0", "1", "5"] {
        assert_eq!(with_hops(&app, login(), hops).await.expect("ran").json(), json!(hops.parse::<u32>().expect("n")));
        with_hops(&app, app.call(SENT, &event("hi")), hops).await.expect("accepted");
        wait_until("it saw them", async || results(&app).await.iter().filter(|seen| *seen == hops).count() == 2).await;
    }
    assert_eq!(app.login("jane").await.json(), json!(0));
    server.stop().await;
}

#[tokio::test]
async fn a_loop_ends_as_a_dead_letter_or_is_refused() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HOPS).function(LOGIN, HOPS).on(&server).await;
    let login = || app.call(LOGIN, r#"{"username":"jane"}"#);
    let refused = with_hops(&app, login(), "6").await.expect_err("a loop");
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "LOOP".to_owned()));
    for nonsense in ["-1", "1.5", "many", "", "4294967296"] {
        for request in [login(), app.call(SENT, &event("hi"))] {
            let refused = with_hops(&app, request, nonsense).await.expect_err(nonsense);
            assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_HOPS".to_owned()), "{nonsense:?}");
        }
    }
    with_hops(&app, keyed(&app, "loop"), "6").await.expect("accepted");
    until_dead(&app).await;
    let request = proto::ListDeadLettersRequest { app_id: app.id.clone(), ..Default::default() };
    let letter = server.events().list_dead_letters(request).await.expect("a list").into_inner().events.remove(0);
    assert_eq!((letter.reason.as_str(), letter.hops, letter.attempts.len()), ("LOOP", 6, 0));
    assert!(letter.finished_at.is_some());
    // It never ran, holds nobody of its key up, and whoever redrives it means it.
    let next = accept(&app, keyed(&app, "next")).await.event_id;
    until_state(&app, &next, EventState::Done).await;
    let id = letter.event_id;
    let request = proto::RedriveDeadLettersRequest { app_id: app.id.clone(), event_ids: vec![id.clone()], all: false };
    server.events().redrive_dead_letters(request).await.expect("redriven");
    until_state(&app, &id, EventState::Done).await;
    assert_eq!((app.event(&id).await.hops, app.event(&id).await.attempts[0].number), (0, 1));
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_more_until_events_have_ended() {
    let server = TestServer::with(&["events_queued_per_app_max=3"]).await;
    let gate = Gate::new(&server);
    let app = gated("demo", &gate).on(&server).await;
    let mut first = app.call(SENT, &event("first"));
    first.idempotency_key = "first".to_owned();
    let accepted = accept(&app, first.clone()).await;
    // One that runs, one that waits in line and one that is scheduled all count.
    let mut scheduled = app.call(SENT, &event("scheduled"));
    scheduled.deliver_at = at(SystemTime::now() + Duration::from_secs(3600));
    accept(&app, scheduled).await;
    accept(&app, keyed(&app, "second")).await;
    let full = async |app: &TestApp| {
        let refused = app.invoke(SENT, &event("more")).await.expect_err("it is full");
        assert_eq!(reason(&refused), queue_full());
        assert!(refused.get_error_details().retry_info().and_then(|info| info.retry_delay).is_some());
    };
    full(&app).await;
    // What was accepted stays accepted.
    let again = accept(&app, first.clone()).await;
    assert_eq!((again.event_id, again.duplicate), (accepted.event_id.clone(), true));
    let other = gated("other", &gate).on(&server).await;
    accept(&other, other.call(SENT, &event("elsewhere"))).await;
    // A restart forgets none of it.
    let server = server.crash_and_restart().await;
    let app = server.app("demo");
    full(&app).await;
    assert!(accept(&app, first).await.duplicate);
    gate.open();
    until_state(&app, &accepted.event_id, EventState::Done).await;
    wait_until("both ran", async || results(&app).await.len() == 2).await;
    wait_until("there is room", async || app.show().await.queue.is_some_and(|queue| queue.queued + queue.running == 1))
        .await;
    gate.close();
    accept(&app, app.call(SENT, &event("fourth"))).await;
    accept(&app, app.call(SENT, &event("fifth"))).await;
    full(&app).await;
    gate.open();
    wait_until("all ran", async || results(&app).await.len() == 4).await;
    server.stop().await;
}

#[tokio::test]
async fn the_queue_of_all_apps_together_has_a_limit_too_and_dead_letters_are_not_in_it() {
    let server = TestServer::with(&["events_queued_max=2"]).await;
    let gate = Gate::new(&server);
    let app = gated("demo", &gate).retry(1, Duration::from_millis(1)).on(&server).await;
    let other = gated("other", &gate).on(&server).await;
    accept(&app, app.call(SENT, &event("throw"))).await;
    accept(&other, other.call(SENT, &event("waits"))).await;
    for app in [&app, &other] {
        assert_eq!(reason(&app.invoke(SENT, &event("more")).await.expect_err("it is full")), queue_full());
    }
    gate.open();
    until_dead(&app).await;
    wait_until("it ran", async || results(&other).await.len() == 1).await;
    gate.close();
    wait_until("there is room", async || app.send(keyed(&app, "throw")).await.is_ok()).await;
    wait_until("there is room", async || other.send(keyed(&other, "one")).await.is_ok()).await;
    assert_eq!(reason(&app.invoke(SENT, &event("more")).await.expect_err("it is full")), queue_full());
    // What an app had goes with it.
    server.apps().delete_app(proto::DeleteAppRequest { app_id: other.id.clone() }).await.expect("deleted");
    accept(&app, app.call(SENT, &event("fits"))).await;
    gate.open();
    wait_until("it is over", async || app.show().await.queue.is_some_and(|queue| queue.dead == 2)).await;
    server.stop().await;
}

#[tokio::test]
async fn one_apps_backlog_keeps_no_other_waiting() {
    let server = TestServer::with(&["dispatch_concurrency=3", "dispatch_concurrency_per_app=2"]).await;
    let gate = Gate::new(&server);
    let noisy = gated("noisy", &gate).on(&server).await;
    let quiet = Publish::sent("quiet", HANDLES).on(&server).await;
    for n in 0..30 {
        accept(&noisy, noisy.call(SENT, &event(&n.to_string()))).await;
    }
    until_busy(&noisy, 2).await;
    // Enough for several rounds, while the noisy one has its share and no more.
    for n in 0..10 {
        accept(&quiet, quiet.call(SENT, &event(&n.to_string()))).await;
    }
    wait_until("the quiet one's ran", async || results(&quiet).await.len() == 10).await;
    let queue = noisy.show().await.queue.expect("figures");
    assert_eq!((queue.running, queue.queued), (2, 28));
    // After a restart it is the same.
    let server = server.crash_and_restart().await;
    let (noisy, quiet) = (server.app("noisy"), server.app("quiet"));
    until_busy(&noisy, 2).await;
    accept(&quiet, quiet.call(SENT, &event("again"))).await;
    wait_until("it ran", async || results(&quiet).await.len() == 11).await;
    let queue = noisy.show().await.queue.expect("figures");
    assert_eq!((queue.running, queue.queued), (2, 28));
    gate.open();
    wait_until("all ran", async || results(&noisy).await.len() == 30).await;
    server.stop().await;
}

#[tokio::test]
async fn the_figures_of_an_app_that_is_deleted_are_not_the_next_ones() {
    let server = TestServer::start().await;
    let publish = Publish::sent("demo", HANDLES).retry(2, Duration::from_millis(1));
    let app = publish.clone().on(&server).await;
    accept(&app, app.call(SENT, &event("throw"))).await;
    until_dead(&app).await;
    server.apps().delete_app(proto::DeleteAppRequest { app_id: app.id.clone() }).await.expect("deleted");
    publish.on(&server).await;
    assert_eq!(app.show().await.queue.expect("figures"), proto::QueueFigures::default());
    server.stop().await;
}

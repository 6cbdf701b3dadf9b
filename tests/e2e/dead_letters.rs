//! Dead letters: what they tell, and what becomes of them.

use std::time::Duration;

use chatfn::proto::{self, ErrorKind, EventState, InvocationStatus, invoke_response::Outcome};
use tonic::Code;

use crate::events::{HANDLES, accept, event, results, until_dead};
use crate::harness::{LOGIN, SENT, TestApp, TestServer, reason, refusal, wait_until};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

const TINY: Duration = Duration::from_millis(1);
const WORKS: &str = "export const handleEvent = (event, context) => [event.message.body, context.invocation.attempt]";

async fn letters(server: &TestServer, app: &TestApp) -> Vec<proto::Event> {
    let request = proto::ListDeadLettersRequest { app_id: app.id.clone(), page_size: 1000, ..Default::default() };
    server.events().list_dead_letters(request).await.expect("a list").into_inner().events
}

async fn redrive(
    server: &TestServer,
    app: &TestApp,
    ids: &[&str],
    all: bool,
) -> Result<proto::RedriveDeadLettersResponse, tonic::Status> {
    let event_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = proto::RedriveDeadLettersRequest { app_id: app.id.clone(), event_ids, all };
    server.events().redrive_dead_letters(request).await.map(tonic::Response::into_inner)
}

async fn purge(
    server: &TestServer,
    app: &TestApp,
    ids: &[&str],
    all: bool,
) -> Result<proto::PurgeDeadLettersResponse, tonic::Status> {
    let event_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = proto::PurgeDeadLettersRequest { app_id: app.id.clone(), event_ids, all };
    server.events().purge_dead_letters(request).await.map(tonic::Response::into_inner)
}

/// So many of them, oldest first, of a function that throws.
async fn dead(server: &TestServer, app: &TestApp, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(accept(app, app.call(SENT, &event("throw"))).await.event_id);
    }
    wait_until("they are dead", async || letters(server, app).await.len() == count).await;
    ids
}

#[tokio::test]
async fn a_dead_letter_tells_every_attempts_error_and_invocation() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(3, TINY).on(&server).await;
    let mut request = app.call(SENT, &event("throw"));
    request.ordering_key = "channel 1".to_owned();
    let accepted = accept(&app, request).await;
    until_dead(&app).await;
    let letters = letters(&server, &app).await;
    assert_eq!(letters, [app.event(&accepted.event_id).await]);
    let letter = &letters[0];
    assert_eq!((letter.state(), letter.reason.as_str()), (EventState::Dead, "ATTEMPTS_EXHAUSTED"));
    assert_eq!((letter.app_id.as_str(), letter.trigger_type.as_str(), letter.version), ("demo", SENT, 1));
    assert_eq!((letter.event_json.as_ref(), letter.ordering_key.as_str()), (event("throw").as_bytes(), "channel 1"));
    assert!(letter.finished_at.is_some() && letter.next_attempt_at.is_none(), "{letter:?}");
    assert_eq!(letter.deliver_at, letter.enqueued_at);
    let attempts: Vec<_> = letter.attempts.iter().map(|one| (one.number, one.error.clone().expect("failed"))).collect();
    for (n, (number, error)) in (1..).zip(&attempts) {
        assert_eq!((*number, error.kind(), error.message.clone()), (n, ErrorKind::Thrown, format!("attempt {n}")));
        assert!(error.stack.contains("UserSentMessage.ts"), "{error:?}");
    }
    assert_eq!(attempts.len(), 3);
    // Each is an invocation in the history, with its number.
    for attempt in &letter.attempts {
        let row = app.invocation(&attempt.invocation_id).await;
        assert_eq!(
            (row.attempt, row.event_id.clone(), row.status()),
            (attempt.number, accepted.event_id.clone(), InvocationStatus::Failed)
        );
    }
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.claims_total, queue.retries_total, queue.dead_letters_total), (3, 2, 1));
    assert_eq!(queue.oldest_enqueued_at, None);
    server.stop().await;
}

#[tokio::test]
async fn a_redrive_runs_on_the_active_version_and_the_attempts_go_on_counting() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(2, TINY).on(&server).await;
    let id = dead(&server, &app, 1).await.remove(0);
    // The next version is no better at first.
    Publish::sent("demo", HANDLES).retry(2, TINY).on(&server).await;
    let answer = redrive(&server, &app, &[&id], false).await.expect("redriven");
    assert_eq!((&answer.event_ids[..], answer.count), (std::slice::from_ref(&id), 1));
    wait_until("it is dead again", async || app.event(&id).await.attempts.len() == 4).await;
    let again = app.event(&id).await;
    assert_eq!((again.state(), again.version), (EventState::Dead, 2), "as many attempts as before, and no more");
    Publish::sent("demo", WORKS).on(&server).await;
    let answer = redrive(&server, &app, &[], true).await.expect("redriven");
    assert_eq!((answer.count, answer.event_ids.len()), (1, 0));
    wait_until("it is done", async || app.event(&id).await.state() == EventState::Done).await;
    assert_eq!(results(&app).await, [r#"["throw",5]"#]);
    let done = app.event(&id).await;
    assert_eq!((done.version, done.reason.as_str()), (3, ""));
    let attempts: Vec<_> = done.attempts.iter().map(|one| (one.number, one.error.is_some())).collect();
    assert_eq!(attempts, [(1, true), (2, true), (3, true), (4, true), (5, false)]);
    assert_eq!(app.invocation(&done.attempts[4].invocation_id).await.attempt, 5);
    assert_eq!(redrive(&server, &app, &[&id], false).await.expect("no dead letter").count, 0);
    server.stop().await;
}

#[tokio::test]
async fn of_dead_letters_those_that_are_named_go_or_all() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, TINY).on(&server).await;
    let ids = dead(&server, &app, 4).await;
    let listed: Vec<_> = letters(&server, &app).await.into_iter().map(|letter| letter.event_id).collect();
    assert_eq!(listed, ids, "the oldest first");
    let stranger = "0199e0c8-0000-7000-8000-000000000000";
    let purged = purge(&server, &app, &[&ids[1], stranger], false).await.expect("purged");
    assert_eq!((purged.event_ids, purged.count), (vec![ids[1].clone()], 1));
    assert_eq!(redrive(&server, &app, &[stranger, &ids[1]], false).await.expect("none").count, 0);
    let request = proto::GetEventRequest { app_id: app.id.clone(), event_id: ids[1].clone() };
    let gone = server.events().get_event(request).await.expect_err("it is gone");
    assert_eq!(reason(&gone), (Code::NotFound, "EVENT_NOT_FOUND".to_owned()));
    // What is not a dead letter is not purged, by no name.
    let gate = Gate::new(&server);
    let publish = Publish::sent("demo", HANDLES).retry(1, TINY).timeout(Duration::from_secs(60));
    publish.variable("GATE", &gate.path()).on(&server).await;
    let waiting = accept(&app, app.call(SENT, &event("waits"))).await.event_id;
    assert_eq!(purge(&server, &app, &[&waiting], false).await.expect("none").count, 0);
    assert_eq!(purge(&server, &app, &[], true).await.expect("purged").count, 3);
    assert!(letters(&server, &app).await.is_empty());
    gate.open();
    wait_until("it ran", async || app.event(&waiting).await.state() == EventState::Done).await;
    server.stop().await;
}

#[tokio::test]
async fn more_dead_letters_than_a_batch_are_all_redriven_and_each_once() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, TINY).on(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..520 {
        let app = app.clone();
        calls.spawn(async move {
            let mut request = app.call(SENT, &event("throw"));
            request.ordering_key = "all in one line".to_owned();
            // Beyond the limit of hops: dead at once.
            let mut request = tonic::Request::new(request);
            request.metadata_mut().insert("x-chatfn-hops", "6".parse().expect("ascii"));
            let mut client = proto::invocation_service_client::InvocationServiceClient::new(app.channel());
            client.invoke(request).await.expect("accepted")
        });
    }
    calls.join_all().await;
    wait_until("they are dead", async || app.show().await.queue.is_some_and(|queue| queue.dead == 520)).await;
    let answer = redrive(&server, &app, &[], true).await.expect("redriven");
    assert_eq!((answer.count, answer.event_ids.len()), (520, 0));
    wait_until("all ran once", async || {
        app.show().await.queue.is_some_and(|queue| (queue.dead, queue.dead_letters_total) == (520, 520))
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn dead_letters_come_in_pages() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, TINY).on(&server).await;
    let ids = dead(&server, &app, 5).await;
    let (mut seen, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = proto::ListDeadLettersRequest { app_id: app.id.clone(), page_size: 2, page_token };
        let page = server.events().list_dead_letters(request).await.expect("a page").into_inner();
        sizes.push(page.events.len());
        seen.extend(page.events.into_iter().map(|letter| letter.event_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen, sizes), (ids, vec![2, 2, 1]));
    server.stop().await;
}

#[tokio::test]
async fn a_page_of_large_letters_fits_into_what_clients_take() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = () => { throw new Error('no') }";
    let app = Publish::sent("demo", source).retry(1, TINY).on(&server).await;
    let body = event(&"x".repeat(900 << 10));
    for _ in 0..5 {
        accept(&app, app.call(SENT, &body)).await;
    }
    wait_until("they are dead", async || app.show().await.queue.is_some_and(|queue| queue.dead == 5)).await;
    let request = proto::ListDeadLettersRequest { app_id: app.id.clone(), ..Default::default() };
    let page = server.events().list_dead_letters(request.clone()).await.expect("a page").into_inner();
    assert_eq!(page.events.len(), 3);
    let request = proto::ListDeadLettersRequest { page_token: page.next_page_token, ..request };
    let page = server.events().list_dead_letters(request).await.expect("a page").into_inner();
    assert_eq!((page.events.len(), page.next_page_token.as_str()), (2, ""));
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_selects_nothing_or_both_or_no_id_is_refused() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, TINY).on(&server).await;
    let id = dead(&server, &app, 1).await.remove(0);
    let nobody = server.app("nobody");
    let selection = (Code::InvalidArgument, "INVALID_SELECTION".to_owned());
    let no_id = (Code::InvalidArgument, "INVALID_ID".to_owned());
    let no_app = (Code::NotFound, "APP_NOT_FOUND".to_owned());
    let both = async |app: &TestApp, ids: &[&str], all, expected: &(Code, String)| {
        assert_eq!(reason(&redrive(&server, app, ids, all).await.expect_err("refused")), *expected, "{ids:?} {all}");
        assert_eq!(reason(&purge(&server, app, ids, all).await.expect_err("refused")), *expected, "{ids:?} {all}");
    };
    both(&app, &[], false, &selection).await;
    both(&app, &[&id], true, &selection).await;
    both(&app, &[&id, "nonsense"], false, &no_id).await;
    both(&nobody, &[], true, &no_app).await;
    let get =
        |app_id: &str, event_id: &str| proto::GetEventRequest { app_id: app_id.into(), event_id: event_id.into() };
    let unknown = (Code::NotFound, "EVENT_NOT_FOUND".to_owned());
    server.deploy_function("other", LOGIN, "export const handleEvent = () => 1").await;
    for (request, expected) in [
        (get("demo", "nonsense"), &no_id),
        (get("nobody", &id), &no_app),
        (get("other", &id), &unknown), // It is another's.
    ] {
        assert_eq!(reason(&server.events().get_event(request).await.expect_err("refused")), *expected);
    }
    let mut request = proto::ListDeadLettersRequest { app_id: "nobody".to_owned(), ..Default::default() };
    assert_eq!(reason(&server.events().list_dead_letters(request.clone()).await.expect_err("no app")), no_app);
    request.app_id = app.id.clone();
    request.page_token = "nonsense".to_owned();
    let refused = server.events().list_dead_letters(request).await.expect_err("no token");
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".to_owned()));
    assert_eq!(letters(&server, &app).await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_dead_letter_lets_the_next_of_its_key_run_and_returns_to_its_old_place() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = Publish::sent("demo", HANDLES)
        .retry(1, TINY)
        .timeout(Duration::from_secs(60))
        .variable("GATE", &gate.path())
        .on(&server)
        .await;
    let keyed = |body: &str| {
        let mut request = app.call(SENT, &event(body));
        request.ordering_key = "one".to_owned();
        request
    };
    let first = accept(&app, keyed("throw")).await.event_id;
    gate.open();
    accept(&app, keyed("second")).await;
    wait_until("the second ran", async || results(&app).await == [r#"["second",1]"#]).await;
    assert_eq!(app.event(&first).await.state(), EventState::Dead);
    // Behind the one that runs, before those that wait.
    gate.close();
    accept(&app, keyed("third")).await;
    until_busy(&app, 1).await;
    let last = accept(&app, keyed("last")).await.event_id;
    assert_eq!(redrive(&server, &app, &[&first], false).await.expect("redriven").count, 1);
    assert_eq!(app.event(&first).await.state(), EventState::Queued);
    gate.open();
    wait_until("the last ran", async || app.event(&last).await.state() == EventState::Done).await;
    let order: Vec<_> = app.history().await.into_iter().rev().map(|row| (row.event_id, row.attempt)).collect();
    let place = |id: &str, attempt| order.iter().position(|row| *row == (id.to_owned(), attempt)).expect("it ran");
    assert!(place(&first, 2) < place(&last, 1), "{order:?}");
    server.stop().await;
}

#[tokio::test]
async fn dead_letters_outlive_the_service_and_a_draining_one_touches_none() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = Publish::sent("demo", HANDLES).retry(1, TINY).on(&server).await;
    let id = dead(&server, &app, 1).await.remove(0);
    let before = app.event(&id).await;
    let held = gate.function("holds").on(&server).await;
    let running = hold(&held, 1);
    until_busy(&held, 1).await;
    server.terminate();
    wait_until("it drains", async || {
        let answer = redrive(&server, &app, &["0199e0c8-0000-7000-8000-000000000000"], false).await;
        answer.is_err_and(|status| reason(&status) == (Code::Unavailable, "DRAINING".to_owned()))
    })
    .await;
    let draining = (Code::Unavailable, "DRAINING".to_owned());
    assert_eq!(refusal(async || redrive(&server, &app, &[&id], false).await).await, draining);
    assert_eq!(refusal(async || purge(&server, &app, &[], true).await).await, draining);
    gate.open();
    for answer in running.join_all().await {
        assert!(matches!(answer.outcome, Some(Outcome::Result(_))));
    }
    let server = crate::shutdown::ended(server).await;
    let app = server.app("demo");
    assert_eq!(letters(&server, &app).await, [before]);
    assert_eq!(app.show().await.queue.expect("figures").dead, 1);
    server.stop().await;
}

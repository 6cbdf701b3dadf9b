//! What ran, how it ended and what it cost, page by page.

use std::time::Duration;

use chatfn::proto::invocation_service_client::InvocationServiceClient;
use chatfn::proto::{self, InvocationStatus};
use serde_json::json;
use tonic::{Code, Status};

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestApp, TestServer, reason, wait_until};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

const MIXED: &str = "export const handleEvent = (event, context) => {
    if (event.username === 'throw') throw new Error('oops');
    if (event.username === 'deny') context.deny('no', { code: 'NO' });
    return event.username;
}";

async fn list(
    server: &TestServer,
    request: proto::ListInvocationsRequest,
) -> Result<proto::ListInvocationsResponse, Status> {
    server.invocations().list_invocations(request).await.map(tonic::Response::into_inner)
}

fn of(app: &TestApp) -> proto::ListInvocationsRequest {
    proto::ListInvocationsRequest { app_id: app.id.clone(), ..Default::default() }
}

#[tokio::test]
async fn an_invocation_is_running_until_it_ends() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    wait_until("it is listed", async || !app.history().await.is_empty()).await;
    let row = app.history().await.remove(0);
    assert_eq!((row.status(), row.finished_at.is_none(), row.attempt), (InvocationStatus::Running, true, 1));
    assert_eq!(&row.event_json[..], br#"{"username":"hold"}"#);
    gate.open();
    let answer = running.join_all().await.remove(0);
    let ended = app.invocation(&row.invocation_id).await;
    assert_eq!((ended.status(), &ended.invocation_id), (InvocationStatus::Succeeded, &answer.invocation_id));
    assert_eq!(ended.created_at, row.created_at);
    server.stop().await;
}

#[tokio::test]
async fn each_outcome_is_recorded_as_it_was_answered() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, MIXED).await;
    let (returned, denied, thrown) = (app.login("jane").await, app.login("deny").await, app.login("throw").await);
    let row = app.invocation(&returned.invocation_id).await;
    assert_eq!((row.app_id.as_str(), row.trigger_type.as_str(), row.version), ("demo", LOGIN, 1));
    assert_eq!((row.status(), &row.result_json[..]), (InvocationStatus::Succeeded, &b"\"jane\""[..]));
    assert_eq!((row.event_id.as_str(), row.error, row.denied), ("", None, None));
    let row = app.invocation(&denied.invocation_id).await;
    assert_eq!((row.status(), row.denied.expect("a denial").code.as_str()), (InvocationStatus::Succeeded, "NO"));
    let row = app.invocation(&thrown.invocation_id).await;
    assert_eq!((row.status(), row.error.as_ref()), (InvocationStatus::Failed, Some(thrown.failure())));
    let times = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos)).expect("a time");
    assert!(times(row.created_at) <= times(row.finished_at));
    server.stop().await;
}

#[tokio::test]
async fn what_an_invocation_cost_is_measured() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = () => {
        const kept = Buffer.alloc(64 << 20, 1), until = process.cpuUsage().user + 200_000;
        while (process.cpuUsage().user < until) {}
        return kept.length;
    }";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).on(&server).await;
    let answer = app.login("jane").await;
    let row = app.invocation(&answer.invocation_id).await;
    let millis = |span: Option<prost_types::Duration>| {
        span.map_or(0, |span| span.seconds * 1000 + i64::from(span.nanos) / 1_000_000)
    };
    let cpu = millis(row.cpu_time);
    assert!((190..5_000).contains(&cpu), "{cpu} ms");
    assert!(row.peak_memory_bytes > 64 << 20, "{}", row.peak_memory_bytes);
    assert!(millis(row.timings.expect("timings").run) >= 190);
    let run = |timings: Option<proto::Timings>| millis(timings.and_then(|timings| timings.run));
    assert_eq!(run(row.timings), run(answer.timings));
    server.stop().await;
}

#[tokio::test]
async fn pages_hold_every_invocation_once_newest_first() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, MIXED).await;
    let mut made = Vec::new();
    for n in 0..23 {
        made.push(app.login(&n.to_string()).await.invocation_id);
    }
    let mut listed = Vec::new();
    let mut request = proto::ListInvocationsRequest { page_size: 10, ..of(&app) };
    let mut sizes = Vec::new();
    loop {
        let page = list(&server, request.clone()).await.expect("a page");
        sizes.push(page.invocations.len());
        listed.extend(page.invocations.into_iter().map(|row| row.invocation_id));
        if sizes.len() == 1 {
            app.login("between two pages").await; // Newer than all: it belongs to no later page.
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    made.reverse();
    assert_eq!((listed, sizes), (made, vec![10, 10, 3]));
    let exactly = list(&server, proto::ListInvocationsRequest { page_size: 24, ..of(&app) }).await.expect("a page");
    assert_eq!((exactly.invocations.len(), exactly.next_page_token.as_str()), (24, ""));
    server.stop().await;
}

#[tokio::test]
async fn filters_select_and_wrong_ones_are_refused() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", MIXED).function(SENT, "export const handleEvent = () => 1").on(&server).await;
    app.login("jane").await;
    app.login("throw").await;
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    wait_until("the event ran", async || {
        app.history().await.iter().filter(|row| row.finished_at.is_some()).count() == 3
    })
    .await;
    server.deploy_function("demo", LOGIN, MIXED).await;
    app.login("jane").await;
    let event_id =
        app.history().await.iter().map(|row| row.event_id.clone()).find(|id| !id.is_empty()).expect("an event");
    let (failed, succeeded) = (InvocationStatus::Failed.into(), InvocationStatus::Succeeded.into());
    let table = [
        (of(&app), 4),
        (proto::ListInvocationsRequest { status: failed, ..of(&app) }, 1),
        (proto::ListInvocationsRequest { status: succeeded, ..of(&app) }, 3),
        (proto::ListInvocationsRequest { status: InvocationStatus::Running.into(), ..of(&app) }, 0),
        (proto::ListInvocationsRequest { trigger_type: "User Sent Message".into(), ..of(&app) }, 1),
        (proto::ListInvocationsRequest { trigger_type: LOGIN.into(), status: succeeded, ..of(&app) }, 2),
        (proto::ListInvocationsRequest { version: 2, ..of(&app) }, 1),
        (proto::ListInvocationsRequest { event_id, ..of(&app) }, 1),
    ];
    for (request, rows) in table {
        assert_eq!(list(&server, request.clone()).await.expect("a page").invocations.len(), rows, "{request:?}");
    }
    let refused = [
        (proto::ListInvocationsRequest { app_id: "nobody".into(), ..of(&app) }, Code::NotFound, "APP_NOT_FOUND"),
        (proto::ListInvocationsRequest { page_size: 1001, ..of(&app) }, Code::InvalidArgument, "INVALID_PAGE_SIZE"),
        (
            proto::ListInvocationsRequest { page_token: "x".into(), ..of(&app) },
            Code::InvalidArgument,
            "INVALID_PAGE_TOKEN",
        ),
        (
            proto::ListInvocationsRequest { trigger_type: "x".into(), ..of(&app) },
            Code::InvalidArgument,
            "UNKNOWN_TRIGGER_TYPE",
        ),
        (proto::ListInvocationsRequest { status: 9, ..of(&app) }, Code::InvalidArgument, "INVALID_FILTER"),
        (proto::ListInvocationsRequest { event_id: "x".into(), ..of(&app) }, Code::InvalidArgument, "INVALID_ID"),
    ];
    for (request, code, name) in refused {
        let status = list(&server, request.clone()).await.expect_err("refused");
        assert_eq!(reason(&status), (code, name.to_owned()), "{request:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn one_apps_history_is_not_anothers() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, MIXED).await;
    let other = server.deploy_function("other", LOGIN, MIXED).await;
    let mine = app.login("jane").await;
    assert!(other.history().await.is_empty());
    for (app_id, invocation_id, code, name) in [
        ("other", mine.invocation_id.as_str(), Code::NotFound, "INVOCATION_NOT_FOUND"),
        ("nobody", mine.invocation_id.as_str(), Code::NotFound, "APP_NOT_FOUND"),
        ("demo", "not an id", Code::InvalidArgument, "INVALID_ID"),
        ("demo", "00000000-0000-7000-8000-000000000000", Code::NotFound, "INVOCATION_NOT_FOUND"),
    ] {
        let request = proto::GetInvocationRequest { app_id: app_id.into(), invocation_id: invocation_id.into() };
        let status = server.invocations().get_invocation(request).await.expect_err("refused");
        assert_eq!(reason(&status), (code, name.to_owned()), "{app_id} {invocation_id}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_ran_when_the_service_was_killed_is_shown_as_failed() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let running = {
        let app = app.clone();
        tokio::spawn(async move { app.invoke(LOGIN, r#"{"username":"hold"}"#).await })
    };
    wait_until("it runs", async || app.history().await.iter().any(|row| row.status() == InvocationStatus::Running))
        .await;
    let server = server.crash_and_restart().await;
    running.await.expect("joins").expect_err("the service is gone");
    let row = server.app("demo").history().await.remove(0);
    assert_eq!((row.status(), row.finished_at.is_some()), (InvocationStatus::Failed, true));
    let error = row.error.expect("an error");
    assert_eq!(error.name, "ServiceStopped", "{error:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_page_fits_into_what_clients_take_by_default() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => 'x'.repeat(Number(event.username))";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).on(&server).await;
    let sizes = [1, 900_000, 900_000, 900_000, 900_000, 5_000_000, 2, 3];
    for size in sizes {
        app.login(&size.to_string()).await;
    }
    // Without the raised limit that the other tests' clients have.
    let mut ordinary = InvocationServiceClient::new(server.channel.clone());
    let mut request = of(&app);
    let mut pages = Vec::new();
    loop {
        let page = match ordinary.list_invocations(request.clone()).await {
            Ok(page) => page.into_inner(),
            Err(status) => {
                assert_eq!(status.code(), Code::OutOfRange, "{status}");
                list(&server, request.clone()).await.expect("the large one")
            }
        };
        pages.push(page.invocations.iter().map(|row| row.result_json.len() - 2).collect::<Vec<_>>());
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [vec![3, 2], vec![5_000_000], vec![900_000, 900_000, 900_000], vec![900_000, 1]]);
    server.stop().await;
}

#[tokio::test]
async fn what_found_no_worker_after_all_is_not_running_for_ever() {
    let server = TestServer::with(&["wait_max=500ms"]).await;
    let gate = Gate::new(&server);
    gate.open();
    // The first worker initializes at once and hears nothing any more; the next one's initialization waits for the gate.
    let slow = "import { existsSync } from 'fs';
        while (!existsSync(process.env.GATE)) await new Promise((resolve) => setTimeout(resolve, 10));";
    let source = "export const handleEvent = () => require('fs').closeSync(3)";
    let app = Publish::login("demo", source).initialization(slow).variable("GATE", &gate.path()).on(&server).await;
    app.login("jane").await.json();
    gate.close();
    let refused = app.invoke(LOGIN, r#"{"username":"joe"}"#).await.expect_err("no worker in time");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let row = app.history().await.remove(0);
    assert_eq!(&row.event_json[..], br#"{"username":"joe"}"#);
    assert_eq!((row.status(), row.finished_at.is_some()), (InvocationStatus::Failed, true));
    assert_eq!(row.error.expect("an error").name, "NotRun");
    gate.open();
    server.stop().await;
}

#[tokio::test]
async fn how_long_history_is_kept_is_the_apps_own_setting() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, MIXED).await;
    let keep = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let update = async |history_retention| {
        let request = proto::UpdateAppRequest { app_id: app.id.clone(), history_retention, ..Default::default() };
        let updated = server.apps().update_app(request).await?.into_inner().app.expect("an app");
        Ok::<_, Status>(updated.settings.expect("settings").history_retention)
    };
    assert_eq!(app.show().await.settings.expect("settings").history_retention, None);
    assert_eq!(update(keep(60, 0)).await.expect("a minute"), keep(60, 0));
    for (seconds, nanos) in [(59, 0), (-1, 0), (0, 1)] {
        assert_eq!(update(keep(seconds, nanos)).await.expect_err("refused").code(), Code::InvalidArgument, "{seconds}");
    }
    let server_settings = app.show().await.settings.expect("settings");
    assert_eq!(server_settings.history_retention, keep(60, 0), "a refused one changes nothing");
    assert_eq!(update(None).await.expect("nothing"), keep(60, 0), "absent changes nothing");
    assert_eq!(update(keep(0, 0)).await.expect("the default again"), None);
    app.login("jane").await;
    assert_eq!(app.history().await[0].result_json, json!("jane").to_string());
    server.stop().await;
}

#[tokio::test]
async fn what_is_older_than_its_app_keeps_is_deleted() {
    let server = TestServer::with(&["history_retention=1ms"]).await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => console.log('hi')").await;
    let keeper = server.deploy_function("keeper", LOGIN, MIXED).await;
    let history_retention = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let request = proto::UpdateAppRequest { app_id: keeper.id.clone(), history_retention, ..Default::default() };
    server.apps().update_app(request).await.expect("updates");
    for app in [&app, &keeper] {
        app.login("jane").await;
        assert_eq!(app.history().await.len(), 1);
    }
    // Old rows go once a minute, and first at the start.
    let server = server.crash_and_restart().await;
    let (app, keeper) = (server.app("demo"), server.app("keeper"));
    wait_until("it is gone", async || app.history().await.is_empty()).await;
    let request = proto::TailLogsRequest { app_id: app.id.clone(), ..Default::default() };
    wait_until("its line is gone", async || {
        let mut lines = server.invocations().tail_logs(request.clone()).await.expect("lines").into_inner();
        lines.message().await.expect("an end").is_none()
    })
    .await;
    assert_eq!(keeper.history().await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_history_that_cannot_be_written_holds_up_no_answer() {
    use sqlx::{ConnectOptions, Connection};
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, MIXED).await;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(server.data().join("data/chatfn.db"));
    let mut other = file.connect().await.expect("opens");
    // Another writer. The service would wait five seconds for it, and then log an error, which this test does not announce.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("locks");
    let mut made = Vec::new();
    for n in 0..20 {
        made.push(app.login(&n.to_string()).await.invocation_id);
    }
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("unlocks");
    other.close().await.expect("closes");
    made.reverse();
    assert_eq!(app.history().await.into_iter().map(|row| row.invocation_id).collect::<Vec<_>>(), made);
    server.stop().await;
}

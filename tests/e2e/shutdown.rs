//! SIGTERM: nothing new, what runs may finish, and an end in any case.

use std::time::Duration;

use chatfn::proto::{self, ErrorKind, InvocationStatus, invoke_response::Outcome};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::harness::{
    Answered, LOGIN, SENT, SENT_EVENT, TestApp, TestServer, processes_of, reason, refusal, wait_until,
};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

const SPINS: &str = "export const handleEvent = (event) => { while (event.username === 'spin') {} return 'fine'; }";

pub async fn health(server: &TestServer) -> ServingStatus {
    let mut client = HealthClient::new(server.channel.clone());
    match client.check(HealthCheckRequest::default()).await {
        Ok(answer) => answer.into_inner().status(),
        Err(_) => ServingStatus::Unknown, // Its connection was told to go just now.
    }
}

/// Health says that it leaves a moment earlier: until then it serves.
async fn until_refused(app: &TestApp) {
    wait_until("it refuses", async || {
        let refused = app.invoke(LOGIN, r#"{"username":"jane"}"#).await.err();
        refused.is_some_and(|status| reason(&status) == (Code::Unavailable, "DRAINING".to_owned()))
    })
    .await;
}

/// Started again, after it has ended by itself.
pub async fn ended(mut server: TestServer) -> TestServer {
    assert!(server.wait().await.success());
    TestServer::restart(server.crash()).await
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_refuses_what_is_new() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let running = hold(&app, 2);
    until_busy(&app, 2).await;
    assert_eq!(health(&server).await, ServingStatus::Serving);
    server.terminate();
    until_refused(&app).await;
    assert_eq!(health(&server).await, ServingStatus::NotServing);
    let draining = (Code::Unavailable, "DRAINING".to_owned());
    assert_eq!(refusal(async || app.invoke(LOGIN, r#"{"username":"jane"}"#).await).await, draining);
    assert_eq!(refusal(async || app.invoke(SENT, SENT_EVENT).await).await, draining);
    assert_eq!(refusal(async || server.publish(Publish::login("other", SPINS).0).await).await, draining);
    assert_eq!(app.pool().await.workers_busy, 2, "still running");
    gate.open();
    for answer in running.join_all().await {
        answer.json();
    }
    server.ended_well().await;
}

#[tokio::test]
async fn what_ran_during_the_drain_is_in_the_history() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    server.terminate();
    wait_until("it does not serve", async || health(&server).await == ServingStatus::NotServing).await;
    gate.open();
    let answer = running.join_all().await.remove(0);
    let server = ended(server).await;
    let row = server.app("demo").invocation(&answer.invocation_id).await;
    assert_eq!(row.status(), InvocationStatus::Succeeded);
    server.stop().await;
}

#[tokio::test]
async fn a_drain_ends_although_a_function_does_not() {
    let mut server = TestServer::with(&["drain_timeout=500ms"]).await;
    server.expect_log("the drain timeout is over");
    let app = Publish::login("demo", SPINS).timeout(Duration::from_secs(600)).on(&server).await;
    let running = {
        let app = app.clone();
        tokio::spawn(async move { app.invoke(LOGIN, r#"{"username":"spin"}"#).await })
    };
    until_busy(&app, 1).await;
    server.terminate();
    let answer = running.await.expect("joins").expect("an answer");
    assert_eq!((answer.failure().kind(), answer.failure().retryable), (ErrorKind::Collateral, true));
    server.ended_well().await;
}

#[tokio::test]
async fn a_drain_waits_for_queued_events_that_run_and_leaves_the_rest_for_the_next_start() {
    let server = TestServer::with(&["dispatch_concurrency=1"]).await;
    let gate = Gate::new(&server);
    let source = "import { existsSync } from 'fs';
    export const handleEvent = async (event) => {
        while (!existsSync(process.env.GATE)) await new Promise((resolve) => setTimeout(resolve, 10));
        return event.message.body;
    }";
    let app =
        Publish::sent("demo", source).timeout(Duration::from_secs(60)).variable("GATE", &gate.path()).on(&server).await;
    for body in ["first", "second"] {
        let event = SENT_EVENT.replace("hi", body);
        assert!(matches!(app.invoke(SENT, &event).await.expect("accepted").outcome, Some(Outcome::Accepted(_))));
    }
    until_busy(&app, 1).await;
    server.terminate();
    wait_until("it does not serve", async || health(&server).await == ServingStatus::NotServing).await;
    gate.open();
    let server = ended(server).await;
    gate.open();
    let app = server.app("demo");
    wait_until("both ran", async || {
        app.history().await.iter().filter(|row| row.status() == InvocationStatus::Succeeded).count() == 2
    })
    .await;
    let mut rows = app.history().await;
    rows.sort_by(|a, b| a.invocation_id.cmp(&b.invocation_id));
    let results: Vec<_> = rows.iter().map(|row| (row.result_json.as_ref(), row.attempt)).collect();
    assert_eq!(results, [(&b"\"first\""[..], 1), (&b"\"second\""[..], 1)]);
    server.stop().await;
}

#[tokio::test]
async fn a_follower_of_the_log_is_told_the_end() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SPINS).on(&server).await;
    let request = proto::TailLogsRequest { app_id: app.id.clone(), follow: true, ..Default::default() };
    let mut lines = server.invocations().tail_logs(request).await.expect("follows").into_inner();
    let follower = tokio::spawn(async move {
        while lines.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    });
    server.stop().await;
    follower.await.expect("joins").expect("a clean end");
}

#[tokio::test]
async fn a_client_that_never_reads_its_stream_does_not_hold_the_shutdown() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = () => { for (let n = 0; n < 50; n += 1) console.log('x'.repeat(4000)); }";
    let app = Publish::login("demo", source).on(&server).await;
    let request = proto::TailLogsRequest { app_id: app.id.clone(), follow: true, ..Default::default() };
    // A window of a few bytes, so that the server soon has to wait for this reader.
    let endpoint = tonic::transport::Endpoint::from_shared(server.address.clone()).expect("address");
    let channel = endpoint.initial_stream_window_size(1024).connect().await.expect("connects");
    let mut client = proto::invocation_service_client::InvocationServiceClient::new(channel);
    let unread = client.tail_logs(request).await.expect("follows").into_inner();
    for _ in 0..5 {
        app.login("jane").await;
    }
    server.stop().await;
    drop(unread);
}

#[tokio::test]
async fn a_draining_service_activates_and_deletes_nothing() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    gate.function("demo").on(&server).await;
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    server.terminate();
    until_refused(&app).await;
    let app_id = app.id.clone();
    let activate = proto::ActivateVersionRequest { app_id: app_id.clone(), version: 1 };
    let delete = proto::DeleteVersionRequest { app_id: app_id.clone(), version: 1 };
    let delete_app = proto::DeleteAppRequest { app_id };
    let refused = [
        refusal(async || server.versions().activate_version(activate.clone()).await).await,
        refusal(async || server.versions().delete_version(delete.clone()).await).await,
        refusal(async || server.apps().delete_app(delete_app.clone()).await).await,
    ];
    for refused in refused {
        assert_eq!(refused, (Code::Unavailable, "DRAINING".to_owned()));
    }
    gate.open();
    running.join_all().await;
    let server = ended(server).await;
    assert_eq!(server.app("demo").show().await.active_version, 2);
    server.stop().await;
}

#[tokio::test]
async fn what_a_function_left_behind_in_its_worker_holds_up_neither_retirement_nor_shutdown() {
    let server = TestServer::with(&["idle_ttl=200ms"]).await;
    let source = "const net = require('net');
    export const handleEvent = () => {
        setInterval(() => {}, 10);
        net.createServer().listen(0, '127.0.0.1', function () { net.connect(this.address().port); });
        process.on('exit', () => { while (true) {} });
        process.on('SIGTERM', () => {});
        return 'fine';
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    app.login("jane").await.json();
    wait_until("it retires", async || app.pool().await.worker_pids.is_empty()).await;
    app.login("jane").await.json();
    server.stop().await;
}

#[tokio::test]
async fn a_second_signal_ends_the_service_at_once() {
    let mut server = TestServer::start().await;
    let app = Publish::login("demo", SPINS).timeout(Duration::from_secs(600)).on(&server).await;
    let running = {
        let app = app.clone();
        tokio::spawn(async move { app.invoke(LOGIN, r#"{"username":"spin"}"#).await })
    };
    until_busy(&app, 1).await;
    server.terminate();
    wait_until("it does not serve", async || health(&server).await == ServingStatus::NotServing).await;
    server.terminate();
    assert!(!server.wait().await.success(), "it did not drain");
    assert!(running.await.expect("joins").is_err());
    wait_until("no process is left", async || processes_of(server.data()).is_empty()).await;
}

//! Which version serves: make before break, activation later, rollback.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chatfn::proto::{self, VersionState};
use tonic::Code;

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestServer, reason, request, wait_until};
use crate::inspect::{answering, map, messages, with};

#[tokio::test]
async fn traffic_moves_to_a_new_version_without_an_error_or_a_cold_start() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    app.login("jane").await;
    let stop = Arc::new(AtomicBool::new(false));
    let caller = tokio::spawn({
        let (app, stop) = (app.clone(), Arc::clone(&stop));
        async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let answer = app.login("jane").await;
                assert_eq!(answer.json(), answer.version, "each version answers with its number");
                seen.push((answer.version, answer.cold_start));
            }
            seen
        }
    });
    let slow_start = [
        ("init.js", "module.exports = new Promise((done) => setTimeout(done, 300));"),
        ("functions/UserAttemptedStartSession.js", "exports.handleEvent = () => 2"),
    ];
    server.publish(request("demo", &slow_start)).await.expect("publishes");
    assert_eq!(app.login("jane").await.version, 2, "once the publish has ended the new version serves");
    stop.store(true, Ordering::Relaxed);
    let seen = caller.await.expect("no call failed");
    assert!(seen.is_sorted_by_key(|(version, _)| *version), "{seen:?}");
    assert!(seen.len() > 1 && seen[0].0 == 1, "{seen:?}");
    assert!(seen.iter().all(|(_, cold)| !cold), "{seen:?}");
    server.stop().await;
}

#[tokio::test]
async fn what_runs_on_the_old_version_finishes_there() {
    let server = TestServer::start().await;
    let slow = "export const handleEvent = (event) => new Promise((done) => setTimeout(done, event.username === 'slow' ? 3000 : 0, 'old'))";
    let app = server.deploy_function("demo", LOGIN, slow).await;
    let running = tokio::spawn({
        let app = app.clone();
        async move { app.login("slow").await }
    });
    wait_until("it runs", async || app.pool().await.workers_busy == 1).await;
    server.publish(answering("demo", "new")).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), "new");
    let finished = running.await.expect("runs");
    assert_eq!((finished.version, finished.json()), (1, "old".into()));
    wait_until("the old worker is gone", async || app.pool().await.worker_pids.len() == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_version_can_be_published_without_serving_and_be_activated_later() {
    let server = TestServer::start().await;
    let first = proto::PublishVersionRequest { activate: Some(false), ..answering("demo", "one") };
    let (version, progress) = server.publish_with_progress(first).await.expect("publishes");
    assert_eq!((version.state(), version.active), (VersionState::Ready, false));
    assert!(messages(&progress, "activate").is_empty(), "{progress:?}");
    let app = server.app("demo");
    assert_eq!(app.show().await.active_version, 0);
    let pinned = app.send(proto::InvokeRequest { version: Some(1), ..app.call(LOGIN, r#"{"username":"jane"}"#) }).await;
    assert_eq!(pinned.expect("runs where it is pinned").json(), "one");
    assert!(app.activate(1).await.expect("activates").active);
    assert_eq!(app.login("jane").await.json(), "one");
    assert!(app.activate(1).await.expect("again is the same").active);
    for (number, code, wanted) in
        [(7, Code::NotFound, "VERSION_NOT_FOUND"), (0, Code::InvalidArgument, "INVALID_VERSION")]
    {
        let status = app.activate(number).await.expect_err(wanted);
        assert_eq!(status.code(), code, "{status:?}");
        assert!(number == 0 || reason(&status).1 == wanted);
    }
    server.stop().await;
}

/// T13 and T16 of reference/peers.md: code, initialization, environment and limits come back together, warm and at once; an
/// environment changes without the code; queued retries stay on their version.
#[tokio::test]
async fn a_rollback_restores_handler_initialization_and_environment() {
    let server = TestServer::start().await;
    let function =
        "export const handleEvent = (event, context) => [context.initialization, process.env.MOOD, context.env.MOOD]";
    let versioned = |init: &str, mood: &str| {
        let files = [("functions/UserAttemptedStartSession.ts", function), ("init.ts", init)];
        with(request("demo", &files), |spec| spec.environment = map(&[("MOOD", mood)]))
    };
    let app = server.app("demo");
    let first = server.publish(versioned("module.exports = process.env.MOOD + 1", "calm")).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), serde_json::json!(["calm1", "calm", "calm"]));
    let second = server.publish(versioned("module.exports = process.env.MOOD + 1", "wild")).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), serde_json::json!(["wild1", "wild", "wild"]));
    assert_eq!(server.artifacts("demo").len(), 1, "equal code is stored once: {first:?} {second:?}");
    server.publish(versioned("module.exports = process.env.MOOD + 3", "odd")).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), serde_json::json!(["odd3", "odd", "odd"]));

    let began = Instant::now();
    app.activate(1).await.expect("rolls back");
    let answer = app.login("jane").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((answer.version, answer.cold_start), (1, false));
    assert_eq!(answer.json(), serde_json::json!(["calm1", "calm", "calm"]));
    // And it is what serves after a restart.
    let server = server.crash_and_restart().await;
    assert_eq!(server.app("demo").login("jane").await.json(), serde_json::json!(["calm1", "calm", "calm"]));
    server.stop().await;
}

#[tokio::test]
async fn an_events_retry_stays_on_the_version_it_was_queued_for() {
    let server = TestServer::start().await;
    let function = "export const handleEvent = (event, context) => {\n  if (context.invocation.attempt === 1) throw new Error('not yet');\n  return 'old';\n}";
    let backoff = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let retry =
        proto::RetryPolicy { max_attempts: 9, initial_backoff: backoff(2), max_backoff: backoff(2), max_age: None };
    let source = |source: &str| {
        with(request("demo", &[]), |spec| {
            spec.functions.push(proto::FunctionSpec {
                trigger_type: SENT.to_owned(),
                code: Some(proto::function_spec::Code::Source(source.to_owned())),
                retry: Some(retry),
                ..Default::default()
            });
        })
    };
    server.publish(source(function)).await.expect("publishes");
    let app = server.app("demo");
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    wait_until("the first attempt failed", async || app.history().await.iter().any(|row| row.attempt == 1)).await;
    server.publish(source("export const handleEvent = () => 'new'")).await.expect("publishes");
    wait_until("the retry ran", async || app.history().await.iter().any(|row| row.result_json == r#""old""#)).await;
    assert!(app.history().await.iter().all(|row| row.version == 1));
    server.stop().await;
}

#[tokio::test]
async fn a_rollback_to_a_version_that_no_longer_initializes_changes_nothing() {
    let server = TestServer::start().await;
    let files = [
        ("functions/UserAttemptedStartSession.ts", "export const handleEvent = () => 1"),
        ("init.js", "exports.a = 1"),
    ];
    let old = server.publish(request("demo", &files)).await.expect("publishes");
    server.publish(answering("demo", "new")).await.expect("publishes");
    let tree =
        server.data_directory().join("artifacts/demo").join(old.digest.trim_start_matches("blake3:")).join("tree");
    std::fs::write(tree.join("init.js"), "throw new Error('the disk played a trick');").expect("damage it");
    let app = server.app("demo");
    let status = app.activate(1).await.expect_err("it does not initialize");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "VERIFICATION_FAILED".to_owned()));
    assert!(status.message().contains("the disk played a trick"), "{}", status.message());
    assert_eq!(app.login("jane").await.json(), "new");
    assert_eq!(app.show().await.active_version, 2);
    server.stop().await;
}

/// As if another Node had built its versions.
async fn as_built_by(node_version: &str, data: &Path) {
    use sqlx::ConnectOptions;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("data/chatfn.db"));
    let mut store = file.connect().await.expect("opens");
    let changed = sqlx::query("UPDATE versions SET node_version = $1").bind(node_version).execute(&mut store).await;
    assert!(changed.expect("changes").rows_affected() > 0);
}

#[tokio::test]
async fn a_version_of_another_node_is_warned_of_once_and_still_serves() {
    let server = TestServer::start().await;
    server.publish(answering("demo", "one")).await.expect("publishes");
    server.publish(answering("demo", "two")).await.expect("publishes");
    let (data, settings) = server.crash();
    as_built_by("v20.0.1", data.path()).await;
    let mut server = TestServer::restart((data, settings)).await;
    server.expect_log("publish it again");
    let app = server.app("demo");
    assert_eq!(app.version(1).await.expect("a version").node_version, "v20.0.1");
    for number in [2, 1, 2, 1] {
        app.activate(number).await.expect("activates");
        server.assert_serves("demo", number).await;
    }
    let warned: Vec<_> = server.log().into_iter().filter(|line| line.contains("publish it again")).collect();
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(warned[0].contains("v20.0.1") && warned[0].contains("version=2"), "{warned:?}");
    server.publish(answering("demo", "three")).await.expect("publishes");
    server.assert_serves("demo", 3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_budget_for_one_worker_is_enough_to_publish_again_and_to_roll_back() {
    let server = TestServer::with(&["memory_budget_bytes=268435456"]).await;
    server.publish(answering("demo", "one")).await.expect("publishes");
    server.assert_serves("demo", 1).await;
    server.publish(answering("demo", "two")).await.expect("the idle worker makes room");
    server.assert_serves("demo", 2).await;
    server.app("demo").activate(1).await.expect("rolls back");
    server.assert_serves("demo", 1).await;
    server.stop().await;
}

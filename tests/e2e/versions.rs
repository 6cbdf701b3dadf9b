//! What callers are told of versions, and what they may do to them: numbers, keys, bases, deletion, secrets.

use std::collections::BTreeSet;
use std::time::Duration;

use chatfn::proto::{self, VersionState};
use tonic::Code;

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestServer, reason, request, wait_until};
use crate::inspect::{answering, login, map, messages, with};
use crate::publish_request::Publish;

#[tokio::test]
async fn a_deleted_version_is_gone_with_its_files_and_its_number() {
    let server = TestServer::start().await;
    for text in ["one", "two", "three"] {
        server.publish(answering("demo", text)).await.expect("publishes");
    }
    let app = server.app("demo");
    let status = app.delete(3).await.expect_err("it is active");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "VERSION_ACTIVE".to_owned()));
    assert_eq!(server.artifacts("demo").len(), 3);
    app.delete(2).await.expect("deletes");
    let gone = (Code::NotFound, "VERSION_NOT_FOUND".to_owned());
    assert_eq!(reason(&app.delete(2).await.expect_err("gone")), gone);
    assert_eq!(reason(&app.version(2).await.expect_err("gone")), gone);
    assert_eq!(reason(&app.activate(2).await.expect_err("gone")), gone);
    assert_eq!(
        reason(&server.app("other").delete(1).await.expect_err("no app")),
        (Code::NotFound, "APP_NOT_FOUND".to_owned())
    );
    server.assert_tidy("demo").await;
    assert_eq!(server.artifacts("demo").len(), 2);
    // A number is never used again: not that of a deleted version, not that of a failed one.
    app.activate(1).await.expect("activates");
    app.delete(3).await.expect("deletes");
    server.publish(login("demo", "throw new Error('no')")).await.expect_err("it throws");
    assert_eq!(server.publish(answering("demo", "five")).await.expect("publishes").number, 5);
    let states = [(1, VersionState::Ready), (4, VersionState::Failed), (5, VersionState::Ready)];
    assert_eq!(app.states().await, states.into());
    let status = app.activate(4).await.expect_err("it failed");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "VERSION_NOT_READY".to_owned()));
    app.delete(4).await.expect("a failed version can be deleted");
    server.stop().await;
}

/// What an invocation loads late must still be there, also when another version serves since.
#[tokio::test]
async fn a_version_keeps_its_files_until_its_last_invocation_has_ended() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = async (event) => {\n  \
                  await new Promise((done) => setTimeout(done, Number(event.username)));\n  return require('../lib/lazy').text;\n}";
    let slow = || {
        let lazy = "exports.text = 'loaded late'";
        Publish::login("demo", source).timeout(Duration::from_secs(60)).file("lib/lazy.js", lazy)
    };
    let app = slow().on(&server).await;
    let call = |milliseconds: &'static str| {
        let app = app.clone();
        tokio::spawn(async move { app.login(milliseconds).await })
    };
    let short = call("2000");
    wait_until("it runs", async || app.pool().await.workers_busy == 1).await;
    server.publish(answering("demo", "two")).await.expect("publishes");
    app.delete(1).await.expect("deletes once it has ended");
    assert_eq!(short.await.expect("answers").json(), "loaded late");
    assert_eq!(server.artifacts("demo").len(), 1);

    slow().on(&server).await;
    let long = call("12000");
    wait_until("it runs", async || app.pool().await.workers_busy == 1).await;
    server.publish(answering("demo", "four")).await.expect("publishes");
    let status = app.delete(3).await.expect_err("it runs for longer than a delete waits");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "VERSION_STILL_RUNNING".to_owned()));
    assert_eq!(long.await.expect("answers").json(), "loaded late");
    app.delete(3).await.expect("deletes");
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn a_publish_on_top_of_another_version_than_the_newest_is_refused() {
    let server = TestServer::start().await;
    let on = |base| proto::PublishVersionRequest { base_version: Some(base), ..answering("demo", "x") };
    let moved = (Code::FailedPrecondition, "BASE_VERSION_MOVED".to_owned());
    assert_eq!(reason(&server.publish(on(1)).await.expect_err("there is none")), moved);
    server.publish(on(0)).await.expect("the first");
    assert_eq!(reason(&server.publish(on(0)).await.expect_err("there is one")), moved);
    server.publish(on(1)).await.expect("the second");
    // Of two that build on the same one only one gets through.
    let (one, other) = tokio::join!(server.publish(on(2)), server.publish(on(2)));
    let refused: Vec<_> = [one, other].into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.iter().map(reason).collect::<Vec<_>>(), [moved]);
    let ready = server.app("demo").states().await.into_values().filter(|state| *state == VersionState::Ready);
    assert_eq!(ready.count(), 3);
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn a_publish_with_the_same_key_is_built_once() {
    let server = TestServer::start().await;
    let keyed = |key: &str| proto::PublishVersionRequest { idempotency_key: key.to_owned(), ..answering("demo", "x") };
    let (one, other) = tokio::join!(server.publish(keyed("a")), server.publish(keyed("a")));
    let (one, other) = (one.expect("publishes"), other.expect("publishes"));
    assert_eq!(one, other);
    assert!(one.active && one.number == 1);
    let (again, progress) = server.publish_with_progress(keyed("a")).await.expect("the same");
    assert_eq!(again, one);
    assert!(messages(&progress, "verify").is_empty(), "{progress:?}");
    assert_eq!(messages(&progress, "activate"), ["version 1 is active already"]);
    assert_eq!(server.publish(keyed("b")).await.expect("another").number, 2);
    // A key whose publish failed may be tried again.
    let failing = proto::PublishVersionRequest { idempotency_key: "c".to_owned(), ..login("demo", "throw 1") };
    server.publish(failing).await.expect_err("it throws");
    assert_eq!(server.publish(keyed("c")).await.expect("now it works").number, 4);
    // A restart does not forget: this is the retry of a caller that never heard the answer.
    let server = server.crash_and_restart().await;
    assert_eq!(server.publish(keyed("c")).await.expect("the same").number, 4);
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_publish_leaves_its_version_active_and_another_request_is_refused() {
    let server = TestServer::start().await;
    let keyed = |text: &str, activate| {
        let (idempotency_key, activate) = ("release-1".to_owned(), Some(activate));
        proto::PublishVersionRequest { idempotency_key, activate, ..answering("demo", text) }
    };
    let first = server.publish(keyed("one", false)).await.expect("publishes");
    assert!(!first.active);
    server.publish(answering("demo", "two")).await.expect("publishes");
    let app = server.app("demo");
    let (again, progress) = server.publish_with_progress(keyed("one", false)).await.expect("the same");
    assert_eq!((again.number, again.active, progress.iter().all(|step| step.phase == "validate")), (1, false, true));
    assert_eq!(app.login("jane").await.json(), "two");
    // The first caller's aim, asked for again: it serves in the end, from a worker that was initialized before.
    let (again, progress) = server.publish_with_progress(keyed("one", true)).await.expect("the same");
    assert_eq!((again.number, again.active), (1, true));
    assert_eq!(messages(&progress, "activate"), ["version 1 is active"]);
    let answer = app.login("jane").await;
    assert_eq!((answer.json(), answer.cold_start), ("one".into(), false));

    let message = server.refuse(keyed("other", true), Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED").await;
    assert!(message.contains("version 1"), "{message}");
    let variable = with(keyed("one", true), |spec| spec.environment = map(&[("MODE", "other")]));
    server.refuse(variable, Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED").await;
    assert_eq!(app.versions().await.len(), 2);
    // Another app's keys are its own.
    let elsewhere = proto::PublishVersionRequest { app_id: "elsewhere".to_owned(), ..keyed("other", true) };
    server.publish(elsewhere).await.expect("publishes");
    server.stop().await;
}

#[tokio::test]
async fn of_publishes_at_a_time_the_newest_serves_and_too_many_are_refused() {
    let server = TestServer::with(&["builds_waiting_max=3"]).await;
    let texts = ["a", "b", "c"];
    let publishes = texts.map(|text| server.publish(answering("demo", text)));
    let done = futures_util::future::join_all(publishes).await;
    let numbers: BTreeSet<_> = done.into_iter().map(|one| one.expect("publishes").number).collect();
    assert_eq!(numbers, BTreeSet::from([1, 2, 3]));
    assert_eq!(server.app("demo").show().await.active_version, 3, "whichever ended last");
    server.assert_tidy("demo").await;
    let slow = "module.exports = new Promise((done) => setTimeout(done, 3000));";
    let files = [("functions/UserAttemptedStartSession.ts", "export const handleEvent = () => 1"), ("init.js", slow)];
    let busy: Vec<_> = ["p", "q", "r"].map(|app| server.publish(request(app, &files))).into_iter().collect();
    let busy = futures_util::future::join_all(busy);
    let refused = async {
        wait_until("all three run", async || {
            for app in ["p", "q", "r"] {
                let request = proto::GetAppRequest { app_id: app.to_owned() };
                if server.apps().get_app(request).await.is_err() {
                    return false;
                }
            }
            true
        })
        .await;
        server.refuse(answering("demo", "d"), Code::ResourceExhausted, "TOO_MANY_PUBLISHES").await;
    };
    let (busy, ()) = tokio::join!(busy, refused);
    assert!(busy.iter().all(Result::is_ok), "{busy:?}");
    server.publish(answering("demo", "e")).await.expect("there is room again");
    server.stop().await;
}

#[tokio::test]
async fn versions_are_told_in_full_but_for_their_secrets() {
    let server = TestServer::start().await;
    let secret = "correct horse battery staple";
    let mut published = with(answering("demo", "x"), |spec| {
        spec.environment = map(&[("API_KEY", secret), ("NODE_ENV", "production")]);
        spec.limits = Some(proto::Limits { workers_max: 2, ..Default::default() });
    });
    let stream = server.publish_with_progress(published.clone()).await.expect("publishes");
    assert!(!format!("{stream:?}").contains(secret));
    let app = server.app("demo");
    let version = app.version(1).await.expect("a version");
    assert_eq!(version, stream.0);
    assert!(!format!("{version:?}").contains(secret));
    assert_eq!(version.environment_names, ["API_KEY", "NODE_ENV"]);
    assert!(version.digest.starts_with("blake3:") && version.digest.len() == 7 + 64, "{}", version.digest);
    assert!(version.size_bytes > 0 && version.created_at.is_some() && version.node_version.starts_with('v'));
    assert_eq!((version.app_id.as_str(), version.active, version.has_initialization_script), ("demo", true, false));
    let limits = version.limits.expect("limits");
    assert_eq!((limits.workers_max, limits.memory_bytes, limits.concurrency), (2, 256 << 20, 1));
    let function = &version.functions[0];
    assert_eq!((function.trigger_type.as_str(), function.timeout.map(|t| t.seconds)), (LOGIN, Some(5)));
    assert!(version.layer.is_empty() && version.dependencies.is_empty() && version.failure.is_empty());
    assert!(!server.log().iter().any(|line| line.contains(secret)));
    // The digest names the closure: the same request has the same, another limit another.
    assert_eq!(server.publish(published.clone()).await.expect("publishes").digest, version.digest);
    published = with(published, |spec| spec.limits = Some(proto::Limits { workers_max: 3, ..Default::default() }));
    assert_ne!(server.publish(published).await.expect("publishes").digest, version.digest);

    let page = async |page_size, page_token: &str| {
        let request =
            proto::ListVersionsRequest { app_id: "demo".to_owned(), page_size, page_token: page_token.to_owned() };
        server.versions().list_versions(request).await.map(tonic::Response::into_inner)
    };
    let first = page(2, "").await.expect("a page");
    let numbers =
        |page: &proto::ListVersionsResponse| page.versions.iter().map(|version| version.number).collect::<Vec<_>>();
    assert_eq!(numbers(&first), [3, 2]);
    let last = page(2, &first.next_page_token).await.expect("a page");
    assert_eq!((numbers(&last), last.next_page_token.as_str()), (vec![1], ""));
    assert_eq!(page(1001, "").await.expect_err("too large").code(), Code::InvalidArgument);
    assert_eq!(page(2, "nonsense").await.expect_err("no token of ours").code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test]
async fn a_version_that_queued_events_need_stays_until_they_are_done() {
    let server = TestServer::start().await;
    let failing = with(request("demo", &[]), |spec| {
        spec.functions.push(proto::FunctionSpec {
            trigger_type: SENT.to_owned(),
            code: Some(proto::function_spec::Code::Source(
                "exports.handleEvent = () => { throw new Error('no') }".to_owned(),
            )),
            ..Default::default()
        });
    });
    server.publish(failing).await.expect("publishes");
    let app = server.app("demo");
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    server.publish(answering("demo", "two")).await.expect("publishes");
    let status = app.delete(1).await.expect_err("its event waits for a retry");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "VERSION_NEEDED_BY_EVENTS".to_owned()));
    server.assert_tidy("demo").await;
    // The app as a whole goes with everything of it.
    server.apps().delete_app(proto::DeleteAppRequest { app_id: "demo".to_owned() }).await.expect("deletes");
    assert_eq!(reason(&app.version(2).await.expect_err("gone")), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    assert!(server.artifacts("demo").is_empty());
    wait_until("no worker is left", async || server.worker_processes().is_empty()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_publish_goes_on_when_its_caller_hangs_up() {
    let server = TestServer::start().await;
    let mut steps = server.versions().publish_version(answering("demo", "one")).await.expect("begins").into_inner();
    steps.message().await.expect("a step");
    drop(steps);
    wait_until("it is active", async || {
        let request = proto::GetAppRequest { app_id: "demo".to_owned() };
        let shown = server.apps().get_app(request).await;
        shown.is_ok_and(|shown| shown.into_inner().app.is_some_and(|app| app.active_version == 1))
    })
    .await;
    server.assert_serves("demo", 1).await;
    server.stop().await;
}

//! Changes of one app at the same time: a build holds nobody up, and nobody takes its files away.

use std::time::Duration;

use chatfn::proto::publish_version_response::Event;
use chatfn::proto::{self, VersionState};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::{Answered, TestServer, reason};
use crate::inspect::{answering, login, map, messages, with};

type Published = JoinHandle<Result<(proto::Version, Vec<proto::Progress>), Status>>;

/// Begins a publish whose initialization takes this long; returns once that runs.
async fn initializing(server: &TestServer, seconds: u32, needs: &[(&str, &str)]) -> Published {
    let request = with(login("demo", "exports.handleEvent = (event, context) => context.initialization"), |spec| {
        let wait = format!("new Promise((done) => setTimeout(done, {seconds}000))");
        let loaded: String = needs.iter().map(|(name, _)| format!(" + typeof require('{name}')")).collect();
        spec.initialization_script = format!("await {wait};\nmodule.exports = {{ loaded: ''{loaded} }};");
        spec.dependencies = map(needs);
    });
    let mut steps = server.versions().publish_version(request).await.expect("begins").into_inner();
    let (verifies, began) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let (mut verifies, mut progress) = (Some(verifies), Vec::new());
        loop {
            match steps.message().await?.expect("a step").event.expect("an event") {
                Event::Progress(step) => {
                    if step.phase == "verify" {
                        verifies.take().map(|verifies| verifies.send(()));
                    }
                    progress.push(step);
                }
                Event::Version(version) => return Ok((version, progress)),
            }
        }
    });
    began.await.expect("it gets there");
    task
}

#[tokio::test]
async fn a_rollback_and_a_delete_do_not_wait_for_a_build_and_leave_it_its_files() {
    let server = TestServer::start().await;
    for text in ["one", "two"] {
        server.publish(answering("demo", text)).await.expect("publishes");
    }
    let app = server.app("demo");
    let building = initializing(&server, 6, &[("ms", "2.1.2")]).await;
    assert!(app.activate(1).await.expect("rolls back").active);
    app.delete(2).await.expect("deletes");
    server.publish(login("demo", "throw new Error('no')")).await.expect_err("it throws");
    let states = [(1, VersionState::Ready), (3, VersionState::Building), (4, VersionState::Failed)];
    assert_eq!(app.states().await, states.into());
    assert!(!building.is_finished());
    // The rollback was asked for after the publish, so it is what stays.
    let (version, progress) = building.await.expect("no panic").expect("publishes");
    assert_eq!((version.number, version.state(), version.active), (3, VersionState::Ready, false));
    let told = messages(&progress, "activate");
    assert!(told.len() == 1 && told[0].contains("goes on serving"), "{told:?}");
    assert_eq!(app.login("jane").await.json(), "one");
    server.assert_tidy("demo").await;
    app.activate(3).await.expect("its files are there");
    assert_eq!(app.login("jane").await.json(), serde_json::json!({ "loaded": "function" }));
    server.stop().await;
}

#[tokio::test]
async fn a_publish_that_began_later_and_ended_sooner_goes_on_serving() {
    let server = TestServer::start().await;
    let slow = initializing(&server, 4, &[]).await;
    assert!(server.publish(answering("demo", "quick")).await.expect("publishes").active);
    assert!(!slow.is_finished());
    let (version, _) = slow.await.expect("no panic").expect("publishes");
    assert_eq!((version.number, version.active), (1, false));
    server.assert_serves("demo", 2).await;
    server.stop().await;
}

#[tokio::test]
async fn an_app_that_is_deleted_takes_its_builds_with_it() {
    let server = TestServer::with(&["init_timeout=60s"]).await;
    server.publish(answering("demo", "one")).await.expect("publishes");
    let building = initializing(&server, 50, &[]).await;
    let delete = server.apps().delete_app(proto::DeleteAppRequest { app_id: "demo".to_owned() }).await;
    delete.expect("deletes");
    let refused = tokio::time::timeout(Duration::from_secs(20), building).await.expect("soon").expect("no panic");
    let status = refused.expect_err("its app is gone");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "APP_DELETED".to_owned()));
    assert!(server.artifacts("demo").is_empty() && server.worker_processes().is_empty());
    let first = server.publish(answering("demo", "again")).await.expect("publishes");
    assert_eq!((first.number, first.active), (1, true));
    server.assert_tidy("demo").await;
    server.stop().await;
}

//! SIGKILL of the service in the middle of a publish: afterwards there is the old state or the new, and nothing in between.

use std::collections::BTreeSet;

use chatfn::proto::publish_version_response::Event;
use chatfn::proto::{self, VersionState};

use crate::harness::{Answered, LOGIN, TestServer, processes_of, wait_until};
use crate::inspect::{answering, login, map, with};

/// Kills the service when a publish tells this, and starts it again once every process of it is gone.
async fn killed_when(
    server: TestServer,
    request: proto::PublishVersionRequest,
    moment: impl Fn(&proto::Progress) -> bool,
) -> TestServer {
    let mut steps = server.versions().publish_version(request).await.expect("begins").into_inner();
    loop {
        match steps.message().await.expect("a step").expect("not the end").event.expect("an event") {
            Event::Progress(step) if moment(&step) => break,
            Event::Progress(_) => {}
            Event::Version(version) => panic!("the moment did not come: {version:?}"),
        }
    }
    let (data, settings) = server.crash();
    wait_until("no process is left over", async || processes_of(data.path()).is_empty()).await;
    let mut server = TestServer::restart((data, settings)).await;
    server.expect_log("versions were being built when the service stopped");
    assert_eq!(server.listed("tmp"), BTreeSet::new());
    server
}

/// The newest version either came to be, or it did not; its app serves, and can be published again.
async fn assert_whole(server: &TestServer, app: &str, published: u64) {
    server.assert_tidy(app).await;
    let versions = server.app(app).versions().await;
    let newest = &versions[0];
    let serves = match newest.state() {
        // The kill came before the version had a number, or after its commit.
        VersionState::Ready => newest.number,
        VersionState::Failed => {
            assert!(newest.failure.contains("the service stopped"), "{}", newest.failure);
            versions.iter().find(|version| version.state() == VersionState::Ready).expect("the one before").number
        }
        other => panic!("{other:?}: {newest:?}"),
    };
    // Killed before it had a number, it left the one before as the newest: which may have FAILED itself.
    assert!([published, published - 1].contains(&newest.number), "{newest:?}");
    let answer = server.app(app).login("jane").await;
    assert_eq!((answer.version, answer.json()), (serves, format!("v{serves}").into()));
}

#[tokio::test]
async fn a_kill_in_any_phase_of_a_publish_leaves_the_old_version_or_the_new_one() {
    let mut server = TestServer::start().await;
    server.publish(answering("demo", "v1")).await.expect("publishes");
    for phase in ["validate", "transpile", "install", "verify", "store", "activate"] {
        let next = server.app("demo").versions().await[0].number + 1;
        let request = answering("demo", &format!("v{next}"));
        server = killed_when(server, request, |step| step.phase == phase).await;
        assert_whole(&server, "demo", next).await;
        if phase == "activate" {
            assert_eq!(server.app("demo").login("jane").await.version, next, "it was told to be active");
        }
    }
    let next = server.app("demo").versions().await[0].number + 1;
    let version = server.publish(answering("demo", "last")).await.expect("publishes");
    assert_eq!(version.number, next);
    assert_eq!(server.app("demo").login("jane").await.json(), "last");
    server.stop().await;
}

#[tokio::test]
async fn a_kill_while_npm_runs_leaves_neither_npm_nor_its_files() {
    let server = TestServer::start().await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 'v1'").await;
    let request = || {
        with(login("demo", "exports.handleEvent = () => require('ms')('1s')"), |spec| {
            spec.dependencies = map(&[("ms", "2.1.2")])
        })
    };
    // npm's first own line: it runs, and its directory is there.
    let server = killed_when(server, request(), |step| step.message.starts_with("npm http")).await;
    assert_whole(&server, "demo", 2).await;
    assert_eq!(server.layers("demo"), BTreeSet::new());
    assert_eq!(server.publish(request()).await.expect("publishes").number, 3);
    assert_eq!(server.app("demo").login("jane").await.json(), 1000);
    server.stop().await;
}

#[tokio::test]
async fn a_kill_while_the_initialization_script_hangs_leaves_no_worker_and_no_layer() {
    let server = TestServer::start().await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 'v1'").await;
    let request = with(answering("demo", "v2"), |spec| {
        spec.dependencies = map(&[("ms", "2.1.2")]);
        spec.initialization_script = "while (true) {}".to_owned();
    });
    let server = killed_when(server, request, |step| step.phase == "verify").await;
    assert_whole(&server, "demo", 2).await;
    assert_eq!(server.app("demo").versions().await[0].state(), VersionState::Failed);
    server.stop().await;
}

#[tokio::test]
async fn a_service_that_is_asked_to_stop_ends_a_publish_that_does_not() {
    let mut server = TestServer::with(&["drain_timeout=1s"]).await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 'v1'").await;
    let request = with(answering("demo", "v2"), |spec| {
        spec.initialization_script = "await new Promise((never) => setTimeout(never, 1e8))".to_owned()
    });
    let mut steps = server.versions().publish_version(request).await.expect("begins").into_inner();
    loop {
        let Event::Progress(step) = steps.message().await.expect("a step").expect("more").event.expect("an event")
        else {
            panic!("a version")
        };
        if step.phase == "verify" {
            break;
        }
    }
    server.terminate();
    let status = steps.message().await.expect_err("it ends with an error");
    assert_eq!(crate::harness::reason(&status), (tonic::Code::Unavailable, "DRAINING".to_owned()));
    server.wait().await;
    let server = TestServer::restart(server.crash()).await;
    server.assert_failed_and_tidy("demo", "shutting down").await;
    server.stop().await;
}

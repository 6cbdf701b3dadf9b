//! Publishing what is to differ instead of a whole project, and reading back what was published.

use std::collections::BTreeSet;

use bytes::Bytes;
use chatfn::proto::{self, VersionState};
use tonic::{Code, Status};

use crate::harness::{Answered, LOGIN, TestApp, TestServer, reason, wait_until};
use crate::inspect::map;
use crate::publish_request::Publish;

const SHOW: &str = "exports.handleEvent = (event, context) => ({ secret: process.env.SECRET, other: process.env.OTHER, \
                    init: context.initialization })";

fn change(app: &str, changes: proto::VersionChanges) -> proto::PublishVersionRequest {
    proto::PublishVersionRequest { app_id: app.to_owned(), changes: Some(changes), ..Default::default() }
}

fn variable(name: &str, value: &str) -> proto::VersionChanges {
    proto::VersionChanges { environment: map(&[(name, value)]), ..Default::default() }
}

fn source(trigger_type: &str, source: &str) -> proto::FunctionSpec {
    let code = Some(proto::function_spec::Code::Source(source.to_owned()));
    proto::FunctionSpec { trigger_type: trigger_type.to_owned(), code, ..Default::default() }
}

impl TestApp {
    async fn spec(&self, version: u64) -> Result<proto::VersionSpec, Status> {
        let request = proto::GetVersionSpecRequest { app_id: self.id.clone(), version };
        let mut client = proto::version_service_client::VersionServiceClient::new(self.channel());
        Ok(client.get_version_spec(request).await?.into_inner().spec.expect("a spec"))
    }
}

#[tokio::test]
async fn changes_leave_everything_else_as_it_was() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW)
        .variable("SECRET", "hunter2")
        .initialization("exports.ready = 1")
        .limits(|limits| limits.memory_bytes = 200 << 20)
        .on(&server)
        .await;
    let second = server.publish(change("demo", variable("OTHER", "x"))).await.expect("publishes");
    assert_eq!((second.number, second.active), (2, true));
    assert_eq!(second.environment_names, ["OTHER", "SECRET"]);
    let before = app.version(1).await.expect("the first");
    assert_eq!((&second.limits, &second.functions), (&before.limits, &before.functions));
    // The same code: the same artifact.
    assert_eq!(second.digest, before.digest);
    let shown = app.login("jane").await.json();
    assert_eq!(shown, serde_json::json!({"secret": "hunter2", "other": "x", "init": {"ready": 1}}));
    let unset = proto::VersionChanges { environment_removed: vec!["SECRET".to_owned()], ..Default::default() };
    server.publish(change("demo", unset)).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), serde_json::json!({"other": "x", "init": {"ready": 1}}));
    // On top of a version of the past.
    let from_first = proto::VersionChanges { version: 1, ..variable("OTHER", "y") };
    let fourth = server.publish(change("demo", from_first)).await.expect("publishes");
    assert_eq!(fourth.environment_names, ["OTHER", "SECRET"]);
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn an_app_is_set_up_step_by_step_before_it_has_a_function() {
    let server = TestServer::start().await;
    let first = server.publish(change("demo", variable("SECRET", "s"))).await.expect("publishes");
    assert!(first.functions.is_empty() && first.active);
    let app = server.app("demo");
    let answer = app.login("jane").await;
    assert!(matches!(answer.outcome, Some(proto::invoke_response::Outcome::Skipped(_))), "{answer:?}");
    let script = proto::VersionChanges { initialization_script: Some("exports.a = 2".into()), ..Default::default() };
    server.publish(change("demo", script)).await.expect("publishes");
    let function = proto::VersionChanges { functions: vec![source(LOGIN, SHOW)], ..Default::default() };
    server.publish(change("demo", function)).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), serde_json::json!({"secret": "s", "init": {"a": 2}}));
    let removed = proto::VersionChanges { functions_removed: vec![LOGIN.to_owned()], ..Default::default() };
    assert!(server.publish(change("demo", removed)).await.expect("publishes").functions.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn no_change_is_lost_however_many_come_together() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW).on(&server).await;
    let names: Vec<String> = (0..8).map(|n| format!("NAME_{n}")).collect();
    let publishes = names.iter().map(|name| server.publish(change("demo", variable(name, "1"))));
    for ended in futures_util::future::join_all(publishes).await {
        ended.expect("publishes");
    }
    let active = app.show().await.active_version;
    let version = app.version(active).await.expect("the active one");
    assert_eq!(version.environment_names, names);
    // A whole project in between does not make one fail either: it is made again on top of that.
    let slow = "await new Promise((done) => setTimeout(done, 1500)); export const ready = 1;";
    let script = proto::VersionChanges { initialization_script: Some(slow.into()), ..Default::default() };
    let whole = async {
        let building = async || app.states().await.values().any(|state| *state == VersionState::Building);
        wait_until("the change is being built", building).await;
        Publish::login("demo", SHOW).variable("WHOLE", "1").on(&server).await
    };
    let (changed, _) = tokio::join!(server.publish(change("demo", script)), whole);
    let changed = changed.expect("publishes");
    assert!(changed.active && changed.has_initialization_script, "{changed:?}");
    assert_eq!(changed.environment_names, ["WHOLE"]);
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn what_was_published_is_read_back_without_secrets() {
    let server = TestServer::start().await;
    let text = "exports.handleEvent = () => 1 // ä";
    let app = Publish::login("demo", text)
        .file("lib/a.js", "exports.b = 2")
        .file(".npmrc", "//registry/:_authToken=hunter3")
        .variable("SECRET", "hunter2")
        .on(&server)
        .await;
    let spec = app.spec(1).await.expect("its sources");
    assert_eq!(spec.functions[0].code, Some(proto::function_spec::Code::Source(text.to_owned())));
    assert_eq!(spec.files.keys().collect::<Vec<_>>(), ["lib/a.js"]);
    assert!(spec.environment.is_empty());
    for name in server.artifacts("demo") {
        let kept = server.data_directory().join("artifacts/demo").join(name).join("spec.json");
        let kept = std::fs::read_to_string(kept).expect("the sources");
        assert!(kept.contains("exports.b") && !kept.contains("hunter"), "{kept}");
    }
    // What was read can be published: it comes to the same.
    let again = proto::PublishVersionRequest { app_id: "demo".into(), spec: Some(spec), ..Default::default() };
    let digest = app.version(1).await.expect("the first").digest;
    assert_eq!(server.publish(again).await.expect("publishes").digest, digest);
    let missing = app.spec(9).await.expect_err("no such version");
    assert_eq!(reason(&missing), (Code::NotFound, "VERSION_NOT_FOUND".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn changes_that_cannot_be_made_are_refused() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW).on(&server).await;
    let mut both = change("demo", variable("A", "1"));
    both.spec = Some(proto::VersionSpec::default());
    server.refuse(both, Code::InvalidArgument, "SPEC_AND_CHANGES").await;
    let from = |version| change("demo", proto::VersionChanges { version, ..variable("A", "1") });
    server.refuse(from(7), Code::NotFound, "VERSION_NOT_FOUND").await;
    server.publish(Publish::login("demo", "throw new Error('no')").0).await.expect_err("it throws");
    server.refuse(from(2), Code::FailedPrecondition, "VERSION_HAS_NO_SOURCES").await;
    server.refuse(change("demo", variable("PATH", "/")), Code::InvalidArgument, "FORBIDDEN_VARIABLE").await;
    let files = [("functions/UserFlew.ts".to_owned(), Bytes::from_static(b"1"))].into();
    let unknown = proto::VersionChanges { files, ..Default::default() };
    server.refuse(change("demo", unknown), Code::InvalidArgument, "UNKNOWN_TRIGGER_TYPE").await;
    let based = proto::PublishVersionRequest { base_version: Some(9), ..change("demo", variable("A", "1")) };
    server.refuse(based, Code::FailedPrecondition, "BASE_VERSION_MOVED").await;
    // A version of before sources were kept.
    for name in server.artifacts("demo") {
        let manifest = server.data_directory().join("artifacts/demo").join(name).join("manifest.json");
        let text = std::fs::read_to_string(&manifest).expect("the manifest");
        let mut old: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        old.as_object_mut().expect("an object").remove("spec").expect("it was there");
        std::fs::write(&manifest, old.to_string()).expect("written");
    }
    let message = server.refuse(from(0), Code::FailedPrecondition, "VERSION_HAS_NO_SOURCES").await;
    assert!(message.contains("publish the whole project once"), "{message}");
    assert_eq!(app.states().await.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]));
    server.stop().await;
}

#[tokio::test]
async fn a_repeat_of_changes_with_the_same_key_changes_nothing() {
    let server = TestServer::start().await;
    Publish::login("demo", SHOW).on(&server).await;
    let keyed = |value: &str| proto::PublishVersionRequest {
        idempotency_key: "k".into(),
        ..change("demo", variable("OTHER", value))
    };
    let first = server.publish(keyed("1")).await.expect("publishes").number;
    assert_eq!(server.publish(keyed("1")).await.expect("answers").number, first);
    server.refuse(keyed("2"), Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED").await;
    server.stop().await;
}

#[tokio::test]
async fn a_whole_project_keeps_the_variables_that_it_does_not_name_if_it_is_asked_to() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW).variable("SECRET", "s").variable("OTHER", "o").on(&server).await;
    let keeping = Publish::login("demo", SHOW).variable("OTHER", "new").0;
    let keeping = proto::PublishVersionRequest { keep_environment: true, ..keeping };
    server.publish(keeping).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), serde_json::json!({"secret": "s", "other": "new"}));
    let none = proto::PublishVersionRequest { keep_environment: true, ..Publish::login("demo", "").0 };
    let none = proto::PublishVersionRequest { spec: Some(proto::VersionSpec::default()), ..none };
    server.refuse(none, Code::InvalidArgument, "NO_FUNCTIONS").await;
    Publish::login("demo", SHOW).on(&server).await;
    assert_eq!(app.login("jane").await.json(), serde_json::json!({}));
    server.stop().await;
}

const SLOW: &str = "await new Promise((done) => setTimeout(done, 1500)); export const ready = 1;";

fn slow() -> proto::VersionChanges {
    proto::VersionChanges { initialization_script: Some(SLOW.into()), ..Default::default() }
}

#[tokio::test]
async fn a_rollback_while_changes_are_made_stays_and_so_do_the_changes() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", "exports.handleEvent = () => 'good'").on(&server).await;
    Publish::login("demo", "exports.handleEvent = () => 'bad'").on(&server).await;
    let rollback = async {
        let building = async || app.states().await.values().any(|state| *state == VersionState::Building);
        wait_until("the change is being built", building).await;
        app.activate(1).await.expect("activates")
    };
    let (changed, _) = tokio::join!(server.publish(change("demo", slow())), rollback);
    assert!(changed.expect("publishes").has_initialization_script);
    assert_eq!(app.login("jane").await.json(), "good");
    let active = app.version(app.show().await.active_version).await.expect("the active one");
    assert!(active.has_initialization_script, "{active:?}");
    server.stop().await;
}

#[tokio::test]
async fn changes_that_wait_do_not_bring_a_deleted_app_back() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW).on(&server).await;
    let delete = async {
        let building = async || app.states().await.values().any(|state| *state == VersionState::Building);
        wait_until("the first is being built", building).await;
        let request = proto::DeleteAppRequest { app_id: "demo".into() };
        server.apps().delete_app(request).await.expect("deletes");
    };
    let (first, second, ()) = tokio::join!(
        server.publish(change("demo", slow())),
        server.publish(change("demo", proto::VersionChanges { environment: map(&[("A", "1")]), ..slow() })),
        delete
    );
    // Which of them was being built is chance.
    for ended in [first, second] {
        let reason = reason(&ended.expect_err("its app is gone")).1;
        assert!(["APP_NOT_FOUND", "APP_DELETED"].contains(&reason.as_str()), "{reason}");
    }
    let request = proto::GetAppRequest { app_id: "demo".into() };
    let gone = server.apps().get_app(request).await.expect_err("it stays away");
    assert_eq!(reason(&gone), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    server.stop().await;
}

//! Drafts and replays: functions run on the side, and nothing of it stays.

use chatfn::proto::replay_invocations_response::Event;
use chatfn::proto::{self, ErrorKind, Verdict};
use tonic::{Code, Status};

use crate::harness::{LOGIN, SENT, SENT_EVENT, TestApp, TestServer, reason, wait_until};
use crate::publish_request::Publish;

impl TestApp {
    fn runner(&self) -> proto::invocation_service_client::InvocationServiceClient<tonic::transport::Channel> {
        proto::invocation_service_client::InvocationServiceClient::new(self.channel())
    }

    async fn test(&self, trigger_type: &str, event: &str, source: &str) -> Result<proto::TestFunctionResponse, Status> {
        let request = proto::TestFunctionRequest {
            app_id: self.id.clone(),
            trigger_type: trigger_type.to_owned(),
            event_json: event.to_owned().into(),
            source: source.to_owned(),
            ..Default::default()
        };
        self.runner().test_function(request).await.map(tonic::Response::into_inner)
    }

    async fn replay(
        &self,
        version: u64,
        change: impl FnOnce(&mut proto::ReplayInvocationsRequest),
    ) -> Result<(Vec<proto::Replayed>, proto::ReplaySummary), Status> {
        let mut request = proto::ReplayInvocationsRequest { app_id: self.id.clone(), version, ..Default::default() };
        change(&mut request);
        let mut stream = self.runner().replay_invocations(request).await?.into_inner();
        let mut replayed = Vec::new();
        loop {
            match stream.message().await?.expect("a summary at the end").event.expect("an event") {
                Event::Replayed(one) => replayed.push(one),
                Event::Summary(summary) => return Ok((replayed, summary)),
            }
        }
    }
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).expect("JSON")
}

fn result(response: &proto::TestFunctionResponse) -> serde_json::Value {
    match &response.outcome {
        Some(proto::test_function_response::Outcome::Result(result)) => json(&result.json),
        other => panic!("not a result: {other:?}"),
    }
}

#[tokio::test]
async fn a_draft_runs_against_the_active_runtime_and_leaves_nothing_behind() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", "exports.handleEvent = () => 'published'")
        .variable("SECRET", "hunter2")
        .initialization("console.log('starting'); exports.ready = 1")
        .on(&server)
        .await;
    let draft = "export function handleEvent(event: { username: string }, context) {\n  console.log('hello', event.username);\n  \
                 return { secret: context.env.SECRET, ready: context.initialization.ready };\n}";
    let tested = app.test(LOGIN, r#"{"username":"jane"}"#, draft).await.expect("it runs");
    assert_eq!(result(&tested), serde_json::json!({"secret": "hunter2", "ready": 1}));
    assert_eq!((tested.verdict(), tested.version), (Verdict::Allow, 1));
    let texts: Vec<&str> = tested.logs.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["starting", "hello jane"]);
    // Without a source: the function as it is. Of another trigger type: as if it had been added.
    assert_eq!(result(&app.test(LOGIN, r#"{"username":"j"}"#, "").await.expect("it runs")), "published");
    let sent = app.test(SENT, SENT_EVENT, "exports.handleEvent = (event) => event.message").await.expect("it runs");
    assert_eq!(sent.verdict(), Verdict::Unspecified);
    let failed = app.test(LOGIN, r#"{"username":"j"}"#, "exports.handleEvent = () => { throw new Error('oh') }");
    let failed = failed.await.expect("its failure is an outcome");
    let Some(proto::test_function_response::Outcome::Error(error)) = &failed.outcome else { panic!("{failed:?}") };
    assert_eq!((error.kind(), error.message.as_str(), failed.verdict()), (ErrorKind::Thrown, "oh", Verdict::Deny));
    assert!(error.stack.contains("functions/UserAttemptedStartSession.ts:1"), "{}", error.stack);
    assert!(app.history().await.is_empty());
    assert_eq!(app.versions().await.len(), 1);
    server.assert_tidy("demo").await;
    let before = app.pool().await.workers_started_total;
    assert_eq!(app.login("jane").await.version, 1);
    assert_eq!(app.pool().await.workers_started_total, before, "the draft had a worker of its own");
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_draft_is_said() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", "exports.handleEvent = () => 1").on(&server).await;
    let refused = async |trigger: &str, event: &str, source: &str| {
        reason(&app.test(trigger, event, source).await.expect_err("refused"))
    };
    let invalid = |reason: &str| (Code::InvalidArgument, reason.to_owned());
    assert_eq!(refused(LOGIN, "{", "").await, invalid("INVALID_JSON"));
    assert_eq!(refused("UserFlew", "{}", "").await, invalid("UNKNOWN_TRIGGER_TYPE"));
    assert_eq!(refused(SENT, SENT_EVENT, "").await, invalid("ENTRY_NOT_FOUND"));
    let syntax = app.test(LOGIN, r#"{"username":"j"}"#, "exports.handleEvent = (").await.expect_err("refused");
    assert_eq!(syntax.code(), Code::InvalidArgument);
    assert!(syntax.message().contains("functions/UserAttemptedStartSession.ts"), "{}", syntax.message());
    let unknown = server.app("other").test(LOGIN, r#"{"username":"j"}"#, "").await.expect_err("no app");
    assert_eq!(reason(&unknown), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    let init = "throw new Error('at load'); exports.handleEvent = () => 1";
    let failed = app.test(LOGIN, r#"{"username":"j"}"#, init).await.expect("its failure is an outcome");
    let Some(proto::test_function_response::Outcome::Error(error)) = &failed.outcome else { panic!("{failed:?}") };
    assert_eq!(error.kind(), ErrorKind::InitFailed);
    server.assert_tidy("demo").await;
    server.stop().await;
}

const RECORDED: &str = "exports.handleEvent = (event, context) => {\n  if (event.username === 'thrown') throw new Error('no');\n  \
                        if (event.username === 'denied') return context.deny('never');\n  return { name: event.username };\n}";

#[tokio::test]
async fn recorded_invocations_show_what_a_version_would_do_otherwise() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", RECORDED).function(SENT, "exports.handleEvent = () => 'sent'").on(&server).await;
    for username in ["jane", "thrown", "denied", "john"] {
        app.login(username).await;
    }
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    wait_until("the event has run", async || {
        app.history().await.iter().filter(|i| i.finished_at.is_some()).count() == 5
    })
    .await;
    let (replayed, summary) = app.replay(0, |_| {}).await.expect("replays");
    assert_eq!((summary.version, summary.replayed, summary.changed), (1, 5, 0), "{replayed:#?}");
    assert!(replayed.iter().all(|one| one.differences.is_empty()), "{replayed:#?}");
    assert_eq!((replayed[0].trigger_type.as_str(), replayed[4].trigger_type.as_str()), (SENT, LOGIN));

    let changed = RECORDED.replace("return { name: event.username }", "return { name: event.username.toUpperCase() }");
    let changed = changed.replace("throw new Error('no')", "throw new TypeError('no')").replace("never", "ever");
    let second = proto::PublishVersionRequest { activate: Some(false), ..Publish::login("demo", &changed).0 };
    assert_eq!(server.publish(second).await.expect("publishes").number, 2);
    let (replayed, summary) = app.replay(2, |_| {}).await.expect("replays");
    assert_eq!((summary.version, summary.replayed, summary.changed), (2, 5, 5), "{replayed:#?}");
    let differences: Vec<&str> = replayed.iter().map(|one| one.differences[0].as_str()).collect();
    assert_eq!(differences, ["outcome", "result", "denial", "error", "result"]);
    let after = replayed[1].after.as_ref().expect("an end");
    let Some(proto::replay_outcome::Outcome::Result(result)) = &after.outcome else { panic!("{after:?}") };
    assert_eq!(json(&result.json), serde_json::json!({"name": "JOHN"}));
    let (replayed, _) = app.replay(2, |request| request.last = 2).await.expect("replays");
    assert_eq!(replayed.len(), 2);
    let (replayed, _) =
        app.replay(2, |request| request.trigger_type = "User Sent Message".into()).await.expect("replays");
    assert_eq!(replayed.len(), 1);
    assert_eq!(app.history().await.len(), 5, "nothing of it is recorded");
    let none = app.replay(9, |_| {}).await.expect_err("no such version");
    assert_eq!(reason(&none), (Code::NotFound, "VERSION_NOT_FOUND".to_owned()));
    let many = app.replay(1, |request| request.last = 1001).await.expect_err("too many");
    assert_eq!(reason(&many), (Code::InvalidArgument, "INVALID_REPLAY_LAST".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn a_publish_that_changes_too_much_of_what_was_recorded_does_not_get_through() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", RECORDED).on(&server).await;
    for username in ["a", "b", "c"] {
        app.login(username).await;
    }
    app.history().await; // Written, so that the gate sees it.
    let gated = |source: &str, max_changed| {
        let verification = Some(proto::Verification { replay_last: 10, max_changed, allow_egress: false });
        proto::PublishVersionRequest { verification, ..Publish::login("demo", source).0 }
    };
    let changed = RECORDED.replace("'denied'", "'c'");
    let message = server.refuse(gated(&changed, 0), Code::FailedPrecondition, "REPLAY_CHANGED").await;
    assert!(message.starts_with("1 of 3 recorded invocations came out otherwise"), "{message}");
    server.assert_failed_and_tidy("demo", "came out otherwise").await;
    let (steps, version) = server.publish_steps(gated(&changed, 1)).await;
    assert!(version.expect("publishes").active);
    let told = crate::inspect::messages(&steps, "replay");
    assert!(told.iter().any(|line| line.contains("verdict, outcome")), "{told:?}");
    assert_eq!(told.last().map(String::as_str), Some("3 of 4 came out the same"));
    server.stop().await;
}

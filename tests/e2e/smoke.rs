//! The main job, once through.

use chatfn::proto::{self, invoke_response::Outcome};

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestServer, wait_until};

#[tokio::test]
async fn a_function_is_published_invoked_and_seen_in_the_history() {
    let server = TestServer::start().await;
    let source = "async function handleEvent(event: UserAttemptedStartSessionEvent, context: Context) {\n  \
                  console.log('hello', event.username);\n  return { hello: event.username, app: context.app.id };\n}";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let response = app.login("jane").await;
    assert_eq!(response.json(), serde_json::json!({ "hello": "jane", "app": "demo" }));
    assert_eq!(response.verdict(), proto::Verdict::Allow);
    assert_eq!(response.decided_by(), proto::DecidedBy::Function);
    let invocation = app.invocation(&response.invocation_id).await;
    assert_eq!(invocation.status(), proto::InvocationStatus::Succeeded);
    assert_eq!(invocation.logs.len(), 1);
    assert_eq!(invocation.logs[0].text, "hello jane");
    server.stop().await;
}

#[tokio::test]
async fn an_event_of_a_non_blocking_trigger_is_accepted_and_runs() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", SENT, "export const handleEvent = (event) => event.message.body").await;
    let response = app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    let Some(Outcome::Accepted(accepted)) = response.outcome else { panic!("accepted: {response:?}") };
    assert!(!accepted.duplicate);
    wait_until("the event ran", async || app.history().await.iter().any(|row| row.result_json == "\"hi\"")).await;
    let row = app.history().await.remove(0);
    assert_eq!((row.event_id, row.attempt), (accepted.event_id, 1));
    server.stop().await;
}

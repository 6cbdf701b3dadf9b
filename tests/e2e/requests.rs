//! Request ids and invocation ids: in the answer, and on the lines of the log.

use chatfn::proto;
use serde_json::Value;
use tonic::Request;

use crate::harness::{LOGIN, TestServer, wait_until};
use crate::metrics::scrape;

/// Lines of the log as JSON. All of them are.
fn lines(server: &TestServer) -> Vec<Value> {
    server.log().iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

/// What the spans of a line say.
fn spoken(line: &Value, field: &str) -> Option<String> {
    let spans = line["spans"].as_array()?;
    spans.iter().find_map(|span| span[field].as_str()).map(str::to_owned)
}

#[tokio::test]
async fn a_calls_id_is_in_its_answer_and_on_its_lines_with_the_invocations() {
    let server = TestServer::with(&["log_format=json", "log_level=chatfn=debug"]).await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    let call = |id: Option<&str>| {
        let mut request = Request::new(app.call(LOGIN, r#"{"username":"jane"}"#));
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().expect("ascii"));
        }
        request
    };
    let id_of = |answer: &tonic::Response<proto::InvokeResponse>| {
        answer.metadata().get("x-request-id").expect("an id").to_str().expect("ascii").to_owned()
    };
    let given = server.invocations().invoke(call(Some("gateway-42"))).await.expect("an answer");
    assert_eq!(id_of(&given), "gateway-42");
    let made = server.invocations().invoke(call(None)).await.expect("an answer");
    let replaced = server.invocations().invoke(call(Some("two words"))).await.expect("an answer");
    let (made_id, replaced_id) = (id_of(&made), id_of(&replaced));
    assert!(made_id.len() == 36 && replaced_id.len() == 36 && made_id != replaced_id);
    for (id, answer) in [("gateway-42", given), (&made_id, made), (&replaced_id, replaced)] {
        let invocation = answer.get_ref().invocation_id.clone();
        wait_until("the call's lines are there", async || {
            let lines = lines(&server);
            let of_call: Vec<_> =
                lines.iter().filter(|line| spoken(line, "request_id").as_deref() == Some(id)).collect();
            let says = |line: &&Value, text: &str| line["fields"]["message"] == text;
            let ended = of_call.iter().find(|line| says(line, "an invocation ended"));
            let answered = of_call.iter().any(|line| {
                says(line, "a call was answered")
                    && line["fields"]["method"] == "chatfunctions.v1.InvocationService/Invoke"
                    && line["fields"]["code"] == "0"
            });
            answered && ended.is_some_and(|line| spoken(line, "invocation_id") == Some(invocation.clone()))
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_refused_call_has_an_id_too_and_every_call_is_counted_by_its_code() {
    let server = TestServer::start().await;
    let mut request = Request::new(proto::GetAppRequest { app_id: "nobody".to_owned() });
    request.metadata_mut().insert("x-request-id", "asked-once".parse().expect("ascii"));
    let refused = server.apps().get_app(request).await.expect_err("there is none");
    assert_eq!(refused.metadata().get("x-request-id").expect("an id"), "asked-once");
    let client = reqwest::Client::new();
    let answer = client.get(format!("{}/healthz", server.address)).header("x-request-id", "probe").send().await;
    assert_eq!(answer.expect("an answer").headers()["x-request-id"], "probe");
    client.get(format!("{}/not/there", server.address)).send().await.expect("an answer");
    let seen = scrape(&server).await;
    let count = |method, code| seen.value("chatfn_requests_total", &[("method", method), ("code", code)]);
    assert_eq!(count("chatfunctions.v1.AppService/GetApp", "5"), 1.0);
    assert_eq!(count("GET /healthz", "200"), 1.0);
    assert_eq!(seen.value("chatfn_request_seconds_count", &[("method", "other")]), 1.0);
    server.stop().await;
}

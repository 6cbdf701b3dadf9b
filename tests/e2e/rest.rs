//! The REST API by a plain HTTP client. ChatKitty's own is in `rest_sdk.rs`.

use chatfn::proto;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::credentials::{Credential, create, wanted};
use crate::harness::{LOGIN, SENT, SENT_EVENT, TestServer, request, wait_until};

/// Callers of one app.
struct Rest {
    base: String,
    token: Option<String>,
    app: Option<&'static str>,
}

const ANSWERS: &str = "export const handleEvent = (event) => { console.log('got', event.username); return ANSWER; };";

impl Rest {
    fn with(server: &TestServer, credential: &Credential) -> Self {
        Self { base: server.address.clone(), token: Some(credential.secret.clone()), app: None }
    }

    /// Whom an open service takes for its operator.
    fn operator(server: &TestServer, app: Option<&'static str>) -> Self {
        Self { base: server.address.clone(), token: None, app }
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method: Method = method.parse().expect("a method");
        let mut request = Client::new().request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        match self.app {
            Some(app) => request.header("X-Chatfn-App", app),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Value {
        fine(self.request("GET", path)).await
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Value {
        fine(with_json(self.request(method, path), &body)).await
    }

    async fn refused(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        refusal(with_json(self.request(method, path), &body)).await
    }

    async fn create(&self, trigger_type: &str) -> u64 {
        let wanted = json!({ "type": trigger_type, "name": trigger_type, "initializeAsynchronously": true });
        let created = self.send("POST", "/v1/runtimes/nodejs/functions", wanted).await;
        created["id"].as_u64().expect("an id")
    }

    /// A version that answers this expression.
    async fn version(&self, id: u64, answer: &str) -> Value {
        let script = ANSWERS.replace("ANSWER", answer);
        self.send("POST", &format!("/v1/functions/{id}/versions"), json!({ "handlerScript": script })).await
    }
}

fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header("content-type", "application/json").body(body.to_string())
}

async fn json_of(response: Response) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON")
}

async fn fine(request: RequestBuilder) -> Value {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let body = json_of(response).await;
    assert!(status.is_success(), "{status} {body}");
    body
}

/// The status and the error of an answer that has ChatKitty's shape of one.
async fn refusal(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let challenge = response.headers().contains_key("www-authenticate");
    assert_eq!(challenge, status == StatusCode::UNAUTHORIZED);
    let body = json_of(response).await;
    assert!(body["message"].is_string() && body["timestamp"].is_string(), "{body}");
    assert_eq!(body.get("error_description").is_some(), challenge, "{body}");
    (status.as_u16(), body["error"].as_str().expect("an error").to_owned())
}

fn is(status: u16, error: &str) -> (u16, String) {
    (status, error.to_owned())
}

#[tokio::test]
async fn rest_asks_who_calls_and_for_which_app() {
    let server = TestServer::start().await;
    let publisher = create(&server, wanted("demo", &["publish"])).await.expect("created");
    let manager = create(&server, wanted("demo", &["manage"])).await.expect("created");
    let invoker = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let other = create(&server, wanted("other", &["publish", "manage"])).await.expect("created");
    let demo = Rest::with(&server, &publisher);
    let id = demo.create(LOGIN).await;
    let version = demo.version(id, "1").await["id"].as_u64().expect("an id");
    let runtime = "/v1/runtimes/nodejs";

    let nobody = Rest { base: server.address.clone(), token: Some("cfs_nonsense".to_owned()), app: None };
    assert_eq!(refusal(nobody.request("GET", runtime)).await, is(401, "UNAUTHENTICATED"));
    let invoker = Rest::with(&server, &invoker);
    assert_eq!(refusal(invoker.request("GET", runtime)).await, is(403, "PERMISSION_DENIED"));
    let manager = Rest::with(&server, &manager);
    assert_eq!(manager.get(runtime).await["version"], "1.0.1");
    let put = manager.refused("PUT", "/v1/runtimes/nodejs/environment-variables", json!({})).await;
    assert_eq!(put, is(403, "PERMISSION_DENIED"));
    assert_eq!(refusal(demo.request("GET", "/v1/dead-letters")).await, is(403, "PERMISSION_DENIED"));

    let other = Rest::with(&server, &other);
    for path in ["", "/current-version", "/versions", "/invocations"] {
        let path = format!("/v1/functions/{id}{path}");
        assert_eq!(refusal(other.request("GET", &path)).await, is(404, "FUNCTION_NOT_FOUND"), "{path}");
    }
    let script = json!({ "handlerScript": "export const handleEvent = () => 1" });
    let taken = other.refused("POST", &format!("/v1/functions/{id}/versions"), script).await;
    assert_eq!(taken, is(404, "FUNCTION_NOT_FOUND"));
    let theirs = refusal(other.request("GET", &format!("/v1/function-versions/{version}"))).await;
    assert_eq!(theirs, is(404, "VERSION_NOT_FOUND"));
    let lying = other.request("GET", runtime).header("X-Chatfn-App", "demo");
    assert_eq!(refusal(lying).await, is(403, "PERMISSION_DENIED"));

    let unnamed = Rest::operator(&server, None);
    assert_eq!(refusal(unnamed.request("GET", runtime)).await, is(400, "APP_MISSING"));
    assert_eq!(Rest::operator(&server, Some("demo")).get(runtime).await["version"], "1.0.1");
    let rebound = Rest::operator(&server, Some("demo")).request("GET", runtime).header("host", "evil.example");
    assert_eq!(refusal(rebound).await, is(403, "FOREIGN_HOST"));
    let nowhere = Rest::operator(&server, Some("nowhere"));
    assert_eq!(refusal(nowhere.request("GET", runtime)).await, is(404, "APP_NOT_FOUND"));
    let bad = Rest::operator(&server, Some("../x"));
    assert_eq!(refusal(bad.request("GET", runtime)).await, is(400, "INVALID_APP_ID"));
    server.stop().await;
}

#[tokio::test]
async fn rest_refuses_what_it_does_not_have_in_one_shape() {
    let server = TestServer::with(&["publish_bytes_max=65536"]).await;
    let rest = Rest::operator(&server, Some("demo"));
    for (method, path) in [
        ("GET", "/v1"),
        ("GET", "/v1/users"),
        ("POST", "/v1/channels/1/messages"),
        ("DELETE", "/v1/runtimes/nodejs"),
        ("POST", "/v1/runtimes/nodejs"),
        ("PUT", "/v1/functions/1/versions"),
        ("GET", "/v1/functions/"),
        ("GET", "/v1/functions/x"),
        ("GET", "/v1/function-versions/-1"),
    ] {
        assert_eq!(refusal(rest.request(method, path)).await, is(404, "NOT_FOUND"), "{method} {path}");
    }
    let functions = "/v1/runtimes/nodejs/functions";
    let unknown = rest.refused("POST", functions, json!({ "type": "UserFlew", "name": "x" })).await;
    assert_eq!(unknown, is(400, "UNKNOWN_TRIGGER_TYPE"));
    let untyped = rest.request("POST", functions).body("{}");
    assert_eq!(refusal(untyped).await, is(415, "UNSUPPORTED_MEDIA_TYPE"));
    assert_eq!(rest.refused("POST", functions, json!([])).await, is(400, "INVALID_JSON"));
    let id = rest.create(LOGIN).await;
    let versions = format!("/v1/functions/{id}/versions");
    let large = json!({ "handlerScript": "x".repeat(64 << 10) });
    assert_eq!(rest.refused("POST", &versions, large).await, is(413, "REQUEST_TOO_LARGE"));
    assert_eq!(rest.refused("POST", &versions, json!({ "handlerScript": " " })).await, is(400, "INVALID_FUNCTION"));
    for query in ["?size=101", "?page=-1", "?sort=handlerScript"] {
        let error = if query.contains("sort") { "INVALID_SORT" } else { "INVALID_PAGE" };
        assert_eq!(refusal(rest.request("GET", &format!("{versions}{query}"))).await, is(400, error), "{query}");
    }
    let document = fine(Client::new().get(format!("{}/v1/openapi.json", server.address))).await;
    assert_eq!(document["openapi"], "3.1.0");
    server.stop().await;
}

#[tokio::test]
async fn rest_current_versions_follow_the_app_back_and_forth() {
    let server = TestServer::start().await;
    let rest = Rest::operator(&server, Some("demo"));
    let id = rest.create(LOGIN).await;
    let first = rest.version(id, "1").await;
    let second = rest.version(id, "2").await;
    assert_eq!((&first["versionNumber"], &second["versionNumber"]), (&json!(1), &json!(2)));
    // What does not concern the function gives it no version.
    rest.send("PUT", "/v1/runtimes/nodejs/environment-variables", json!({ "A": "1" })).await;
    assert_eq!(rest.version(id, "2").await["id"], second["id"], "the same again");
    let current = format!("/v1/functions/{id}/current-version");
    assert_eq!(rest.get(&current).await["id"], second["id"]);

    let activated = rest.send("POST", "/v1/runtimes/nodejs/versions/2/activate", json!({})).await;
    assert_eq!((&activated["number"], &activated["active"]), (&json!(2), &json!(true)));
    let back = rest.send("POST", "/v1/runtimes/nodejs/rollback", json!({})).await;
    assert_eq!((&back["number"], &back["active"]), (&json!(1), &json!(true)));
    let shown = rest.get(&current).await;
    assert_eq!((&shown["id"], &shown["handlerScript"]), (&first["id"], &json!(ANSWERS.replace("ANSWER", "1"))));
    assert_eq!(rest.get(&format!("/v1/functions/{id}")).await["currentVersionNumber"], 1);
    assert_eq!(rest.refused("POST", "/v1/runtimes/nodejs/rollback", json!({})).await, is(409, "NO_EARLIER_VERSION"));
    let unknown = rest.refused("POST", "/v1/runtimes/nodejs/versions/99/activate", json!({})).await;
    assert_eq!(unknown, is(404, "VERSION_NOT_FOUND"));

    let page = rest.get(&format!("/v1/functions/{id}/versions?size=1&page=1")).await;
    assert_eq!(page["page"], json!({ "number": 1, "size": 1, "totalElements": 2, "totalPages": 2 }));
    assert_eq!(page["_embedded"]["versions"][0]["versionNumber"], 1);
    assert!(page["_links"].get("next").is_none());
    let oldest = rest.get(&format!("/v1/functions/{id}/versions?size=1&sort=versionNumber,asc")).await;
    assert_eq!(oldest["_embedded"]["versions"][0]["versionNumber"], 1);
    let next = oldest["_links"]["next"]["href"].as_str().expect("a link").to_owned();
    assert_eq!(rest.get(&next).await["_embedded"]["versions"][0]["versionNumber"], 2);
    let versions = rest.get("/v1/runtimes/nodejs/versions").await;
    assert_eq!(
        (&versions["page"]["totalElements"], &versions["_embedded"]["versions"][0]["number"]),
        (&json!(4), &json!(4))
    );

    // What was published in other ways is there too, and what went away is no longer current.
    server.deploy_function("demo", SENT, "export const handleEvent = () => {}").await;
    let all = rest.get("/v1/runtimes/nodejs/functions?sort=id,desc").await;
    let functions = all["_embedded"]["functions"].as_array().expect("functions");
    let states: Vec<_> = functions.iter().map(|function| (&function["type"], &function["enabled"])).collect();
    assert_eq!(states, [(&json!(SENT), &json!(true)), (&json!(LOGIN), &json!(false))]);
    assert_eq!(refusal(rest.request("GET", &current)).await, is(404, "VERSION_NOT_FOUND"));
    assert_eq!(rest.get(&format!("/v1/function-versions/{}", first["id"])).await["versionNumber"], 1);
    server.stop().await;
}

#[tokio::test]
async fn rest_gives_no_value_of_a_variable_back_and_keeps_those_that_are_masked() {
    let server = TestServer::start().await;
    let rest = Rest::operator(&server, Some("demo"));
    let variables = "/v1/runtimes/nodejs/environment-variables";
    let runtime = rest.send("PUT", variables, json!({ "A": "one", "B": "two" })).await;
    assert_eq!(runtime["environmentVariables"], json!({ "A": "********", "B": "********" }));
    let id = rest.create(LOGIN).await;
    rest.version(id, "[process.env.A, process.env.B, process.env.C]").await;
    let changed = rest.send("PUT", variables, json!({ "A": "********", "C": "three" })).await;
    assert_eq!(changed["environmentVariables"], json!({ "A": "********", "C": "********" }));
    let answer = server.app("demo").login("jane").await;
    let Some(proto::invoke_response::Outcome::Result(result)) = answer.outcome else { panic!("{answer:?}") };
    assert_eq!(serde_json::from_slice::<Value>(&result.json).expect("JSON"), json!(["one", null, "three"]));
    let nothing = rest.refused("PUT", variables, json!({ "D": "********" })).await;
    assert_eq!(nothing, is(400, "MASKED_VALUE"));
    assert_eq!(rest.refused("PUT", variables, json!({ "A": 1 })).await, is(400, "INVALID_JSON"));
    assert_eq!(rest.refused("PUT", variables, json!({ "PATH": "/" })).await, is(400, "FORBIDDEN_VARIABLE"));
    let script = rest.send("PUT", "/v1/runtimes/nodejs/initialization-script", json!({ "script": "export {}" })).await;
    assert_eq!(script["initializationScript"], json!({ "script": "export {}" }));
    let none = rest.send("PUT", "/v1/runtimes/nodejs/initialization-script", json!({ "script": "" })).await;
    assert!(none.get("initializationScript").is_none(), "{none}");
    server.stop().await;
}

#[tokio::test]
async fn rest_tests_drafts_and_pages_through_invocations() {
    let server = TestServer::start().await;
    let rest = Rest::operator(&server, Some("demo"));
    let id = rest.create(LOGIN).await;
    rest.version(id, "event.username === 'eve' ? missing : 7").await;
    let app = server.app("demo");
    for name in ["jane", "eve", "john"] {
        app.login(name).await;
    }
    let path = format!("/v1/functions/{id}/invocations?size=2");
    let page = rest.get(&path).await;
    assert_eq!(page["page"], json!({ "number": 0, "size": 2, "totalElements": 3, "totalPages": 2 }));
    let shown = page["_embedded"]["invocations"].as_array().expect("invocations");
    assert_eq!((&shown[0]["args"], &shown[0]["result"]), (&json!({ "username": "john" }), &json!({ "value": 7 })));
    assert_eq!(
        (&shown[1]["status"], &shown[1]["result"]["error"]["name"]),
        (&json!("FAILED"), &json!("ReferenceError"))
    );
    let second = rest.get(&format!("{path}&page=1")).await;
    assert_eq!(second["_embedded"]["invocations"][0]["args"], json!({ "username": "jane" }));

    let source =
        "export const handleEvent = (event, context) => { console.log('draft'); context.deny('no', { code: 'N' }); }";
    let draft = json!({ "event": { "username": "x" }, "source": source, "language": "javascript" });
    let test = format!("/v1/functions/{id}/test");
    let tested = rest.send("POST", &test, draft).await;
    assert_eq!(
        (&tested["verdict"], &tested["outcome"]["denied"]["reason"]),
        (&json!("DENY"), &json!("no")),
        "{tested}"
    );
    assert_eq!(tested["logs"][0]["text"], "draft");
    let as_it_is = rest.send("POST", &test, json!({ "event": { "username": "x" } })).await;
    assert_eq!(as_it_is["outcome"], json!({ "result": 7 }));
    assert_eq!(rest.refused("POST", &test, json!({ "event": {} })).await, is(400, "SCHEMA_MISMATCH"));
    assert_eq!(rest.get(&path).await["page"]["totalElements"], 3, "a test is not recorded");
    server.stop().await;
}

/// Reads until the events hold this text.
async fn read_until(response: &mut Response, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) {
        let chunk = response.chunk().await.expect("goes on").unwrap_or_else(|| panic!("it ended: {read}"));
        read.push_str(&String::from_utf8_lossy(&chunk));
    }
    read
}

#[tokio::test]
async fn rest_streams_logs_until_the_credential_is_revoked() {
    let server = TestServer::start().await;
    let client = create(&server, wanted("demo", &["publish"])).await.expect("created");
    let rest = Rest::with(&server, &client);
    let id = rest.create(LOGIN).await;
    rest.version(id, "1").await;
    let app = server.app("demo");
    app.login("before").await;
    let logs = "/v1/runtimes/nodejs/logs";
    let response = rest.request("GET", &format!("{logs}?follow=false")).send().await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert!(response.text().await.expect("ends").contains("got before"));
    let mut stream = rest.request("GET", &format!("{logs}?type={LOGIN}")).send().await.expect("an answer");
    read_until(&mut stream, "got before").await;
    app.login("after").await;
    let read = read_until(&mut stream, "got after").await;
    assert!(read.contains("event: log\n") && read.contains("\"level\":\"INFO\""), "{read}");
    assert_eq!(refusal(rest.request("GET", &format!("{logs}?level=LOUD"))).await, is(400, "INVALID_FILTER"));
    let revoke = proto::RevokeCredentialRequest { app_id: "demo".to_owned(), client_id: client.id.clone() };
    server.apps().revoke_credential(revoke).await.expect("revoked");
    while stream.chunk().await.expect("ends well").is_some() {}
    assert_eq!(refusal(rest.request("GET", logs)).await, is(401, "UNAUTHENTICATED"));

    let operator = Rest::operator(&server, Some("demo"));
    let mut stream = operator.request("GET", logs).send().await.expect("an answer");
    read_until(&mut stream, "got after").await;
    server.terminate();
    while stream.chunk().await.expect("ends well").is_some() {}
    server.ended_well().await;
}

#[tokio::test]
async fn rest_sends_dead_letters_off_again() {
    let server = TestServer::start().await;
    let rest = Rest::operator(&server, Some("demo"));
    let mut publish = request(
        "demo",
        &[(&format!("functions/{SENT}.ts"), "export const handleEvent = () => { throw new Error('no'); }")],
    );
    let retry = Some(proto::RetryPolicy { max_attempts: 1, ..Default::default() });
    let function = proto::FunctionSpec { trigger_type: SENT.to_owned(), retry, ..Default::default() };
    publish.spec.as_mut().expect("a spec").functions.push(function);
    server.publish(publish).await.expect("publishes");
    let app = server.app("demo");
    for _ in 0..2 {
        app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    }
    wait_until("they are dead", async || app.show().await.queue.is_some_and(|queue| queue.dead == 2)).await;
    let page = rest.get("/v1/dead-letters?size=1").await;
    let letter = &page["_embedded"]["deadLetters"][0];
    assert_eq!((&letter["type"], &letter["attempts"][0]["error"]["message"]), (&json!(SENT), &json!("no")), "{letter}");
    let next = page["_links"]["next"]["href"].as_str().expect("a link");
    let last = rest.get(next).await;
    assert!(last["_links"].get("next").is_none() && last["_embedded"]["deadLetters"][0]["id"] != letter["id"]);
    let redrive = "/v1/dead-letters/redrive";
    let sent = rest.send("POST", redrive, json!({ "eventIds": [letter["id"]] })).await;
    assert_eq!(sent, json!({ "eventIds": [letter["id"]], "count": 1 }));
    assert_eq!(rest.refused("POST", redrive, json!({})).await, is(400, "INVALID_SELECTION"));
    assert_eq!(refusal(rest.request("GET", "/v1/dead-letters?after=x")).await, is(400, "INVALID_PAGE"));
    server.stop().await;
}

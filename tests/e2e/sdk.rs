//! The platform's SDK in functions: ChatKitty's real package against a double of its Platform API, and another one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::routing::post;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chatfn::proto;
use serde_json::{Value, json};

use crate::harness::{Answered, LOGIN, TestApp, TestServer, request};
use crate::inspect::map;

#[derive(Debug, Clone, PartialEq)]
struct Heard {
    what: String,
    hops: String,
    traceparent: String,
    body: Value,
}

/// A double of ChatKitty's authorization server and Platform API.
#[derive(Default)]
struct Platform {
    tokens: Mutex<Vec<String>>,
    heard: Mutex<Vec<Heard>>,
}

impl Platform {
    /// On an address of this machine that a rule can open for functions. Ends with the test's runtime.
    async fn start() -> (Arc<Self>, SocketAddr) {
        let platform = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind((own_address(), 0)).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let routes = Router::new().route("/oauth/token", post(token)).fallback(api).with_state(Arc::clone(&platform));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (platform, address)
    }

    fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().expect("lock"))
    }
}

async fn token(State(platform): State<Arc<Platform>>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let basic = text("authorization").strip_prefix("Basic ").and_then(|text| BASE64_STANDARD.decode(text).ok());
    let client = String::from_utf8(basic.unwrap_or_default()).expect("UTF-8");
    let form = String::from_utf8_lossy(&body).into_owned();
    let grant = form.contains("name=\"grant_type\"") && form.contains("\r\nclient_credentials\r\n");
    platform.tokens.lock().expect("lock").push(client.clone());
    if !text("content-type").starts_with("multipart/form-data; boundary=") || !grant || client != "client:secret" {
        return (StatusCode::UNAUTHORIZED, json!({ "error": "invalid_client" }).to_string());
    }
    (StatusCode::OK, json!({ "access_token": "t0ken", "token_type": "bearer", "expires_in": 3600 }).to_string())
}

async fn api(
    State(platform): State<Arc<Platform>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let answer = |code, body: Value| (code, [("content-type", "application/json")], body.to_string());
    if text("authorization") != "Bearer t0ken" {
        return answer(StatusCode::UNAUTHORIZED, json!({ "message": "no token" }));
    }
    if method == Method::HEAD {
        // Whether a user exists.
        let found = uri.query() == Some("name=jane%40example.com");
        return answer(if found { StatusCode::OK } else { StatusCode::NOT_FOUND }, Value::Null);
    }
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    platform.heard.lock().expect("lock").push(Heard {
        what: format!("{method} {uri}"),
        hops: text("x-chatfn-hops"),
        traceparent: text("traceparent"),
        body: body.clone(),
    });
    match body["name"].as_str() {
        Some("taken") => answer(StatusCode::CONFLICT, json!({ "message": "the name is taken" })),
        _ => answer(StatusCode::CREATED, json!({ "id": 7, "echo": body })),
    }
}

/// Functions never reach loopback; no packet is sent to learn this.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("203.0.113.1:9").expect("this test needs a machine with an address besides loopback");
    socket.local_addr().expect("an address").ip()
}

/// The service as an operator of ChatKitty's would configure it, with its platform at `address`.
async fn service(address: SocketAddr) -> TestServer {
    let rule = json!([{ "network": address.ip(), "ports": [address.port()] }]);
    TestServer::with(&[
        r#"default_dependencies={"chatkitty-platform-sdk":"2.4.0"}"#,
        &format!("egress.allow={rule}"),
        &format!("sdk.options.basePath=http://{address}"),
        &format!("sdk.options.authorizationBasePath=http://{address}/oauth/token"),
    ])
    .await
}

async fn deploy(
    server: &TestServer,
    app: &str,
    source: &str,
    environment: &[(&str, &str)],
    limits: proto::Limits,
) -> TestApp {
    let mut request = request(app, &[(&format!("functions/{LOGIN}.ts"), source)]);
    let spec = request.spec.as_mut().expect("a spec");
    spec.environment = map(environment);
    spec.limits = Some(limits);
    server.publish(request).await.expect("publishes");
    server.app(app)
}

const CREDENTIALS: [(&str, &str); 2] = [("CHATKITTY_CLIENT_ID", "client"), ("CHATKITTY_CLIENT_SECRET", "secret")];

const LOGS_IN: &str = r#"
async function handleEvent(event: { username: string }, context: any) {
  const user = { name: event.username, displayName: event.username.toUpperCase(), isGuest: false };
  const created = await context.getUserApi().createUser(user);
  const message = { type: 'TEXT', body: `${event.username} is here` };
  const sent = await context.ChatKitty.Channels.sendChannelMessage(17, message);
  return [created.status, created.data, sent.data];
}"#;

#[tokio::test]
async fn chatkittys_sdk_gets_one_token_for_many_calls_and_tells_hops_and_trace() {
    let (platform, address) = Platform::start().await;
    let server = service(address).await;
    let one_worker = proto::Limits { concurrency: 4, workers_max: 1, ..Default::default() };
    let app = deploy(&server, "chat", LOGS_IN, &CREDENTIALS, one_worker).await;
    assert!(platform.tokens.lock().expect("lock").is_empty(), "it asks for no token before it needs one");

    let jane = json!({ "name": "jane", "displayName": "JANE", "isGuest": false });
    let message = json!({ "type": "TEXT", "body": "jane is here" });
    let answer = app.login("jane").await.json();
    assert_eq!(answer, json!([201, { "id": 7, "echo": jane }, { "id": 7, "echo": message }]));
    let heard = |what: &str, hops: &str, body| {
        let traceparent = String::new(); // Nobody else knows of that trace.
        Heard { what: what.to_owned(), hops: hops.to_owned(), traceparent, body }
    };
    let expected = [heard("POST /v1/users", "1", jane), heard("POST /v1/channels/17/messages", "1", message)];
    assert_eq!(platform.heard(), expected);

    // At the same time in one process: each with its own count and trace.
    let traceparent = |hops: u32| format!("00-4bf92f3577b34da6a3ce929d0e0e473{hops}-00f067aa0ba902b7-01");
    let calls = [0, 2, 4].map(|hops| {
        let mut call = tonic::Request::new(app.call(LOGIN, &json!({ "username": format!("u{hops}") }).to_string()));
        call.metadata_mut().insert("x-chatfn-hops", hops.into());
        call.metadata_mut().insert("traceparent", traceparent(hops).parse().expect("ascii"));
        let mut client = server.invocations();
        async move { client.invoke(call).await.expect("an answer").into_inner().json() }
    });
    futures_util::future::join_all(calls).await;
    let heard = platform.heard();
    assert_eq!(heard.len(), 6, "{heard:?}");
    for Heard { hops, traceparent: seen, body, .. } in heard {
        let text = body.to_string();
        let own: u32 =
            ["u0", "u2", "u4"].iter().find(|name| text.contains(**name)).expect("one")[1..].parse().expect("a number");
        assert_eq!((hops, seen), ((own + 1).to_string(), traceparent(own)), "{text}");
    }
    assert_eq!(*platform.tokens.lock().expect("lock"), ["client:secret"]);
    server.stop().await;
}

#[tokio::test]
async fn errors_of_the_platform_and_of_its_configuration_reach_the_function() {
    let (platform, address) = Platform::start().await;
    let server = service(address).await;
    let limits = proto::Limits::default;
    let app = deploy(&server, "chat", LOGS_IN, &CREDENTIALS, limits()).await;
    let taken = app.login("taken").await;
    assert!(taken.failure().message.contains("409"), "{taken:?}");
    let catches = r#"exports.handleEvent = (event, context) => context.ChatKitty.Users.createUser({ name: 'taken' })
      .catch(({ response }) => [response.status, response.data.message]);"#;
    let app = deploy(&server, "chat", catches, &CREDENTIALS, limits()).await;
    assert_eq!(app.login("jane").await.json(), json!([409, "the name is taken"]));

    let wrong = [("CHATKITTY_CLIENT_ID", "client"), ("CHATKITTY_CLIENT_SECRET", "wr0ng")];
    let app = deploy(&server, "wrong", LOGS_IN, &wrong, limits()).await;
    let refused = app.login("jane").await;
    assert!(refused.failure().message.contains("401") && !format!("{refused:?}").contains("wr0ng"), "{refused:?}");

    let before = platform.tokens.lock().expect("lock").len();
    let app = deploy(&server, "bare", LOGS_IN, &CREDENTIALS[..1], limits()).await;
    let unset = app.login("jane").await;
    let failure = unset.failure();
    assert_eq!((failure.name.as_str(), failure.code.as_str()), ("SdkUnavailable", "SDK_NOT_CONFIGURED"));
    assert!(failure.message.contains("needs the environment variable CHATKITTY_CLIENT_SECRET"), "{failure:?}");
    assert_eq!(platform.tokens.lock().expect("lock").len(), before);
    server.stop().await;
}

/// What ChatKitty's guide to Firebase has developers paste, but for where `firebase` is from: the real one asks Google.
const GUIDE: &str = r"
const firebase = require('../lib/firebase');

async function handleEvent(
  event: UserAttemptedStartSessionEvent,
  context: Context
) {
  const email = event.username;
  const password = event.authParams.password;

  const userApi = context.getUserApi();

  const userCredential = await firebase
    .auth()
    .signInWithEmailAndPassword(email, password);

  await userApi.getUserExists(email).catch(async () => {
    await userApi.createUser({
      name: event.username,
      displayName: userCredential.user.displayName || event.username,
    });
  });
}
";
const FIREBASE: &str = "exports.auth = () => ({ signInWithEmailAndPassword: async (email, password) => {\n  \
                        if (password !== 'right') throw new Error('auth/wrong-password');\n  return { user: {} };\n} });";

#[tokio::test]
async fn the_guides_login_works_as_it_is_printed() {
    let (platform, address) = Platform::start().await;
    let server = service(address).await;
    let mut request = request("chat", &[(&format!("functions/{LOGIN}.ts"), GUIDE), ("lib/firebase.js", FIREBASE)]);
    request.spec.as_mut().expect("a spec").environment = map(&CREDENTIALS);
    server.publish(request).await.expect("publishes");
    let app = server.app("chat");
    let login = async |username: &str, password: &str| {
        let event = json!({ "username": username, "authParams": { "password": password } });
        app.invoke(LOGIN, &event.to_string()).await.expect("an answer")
    };
    assert_eq!(login("jane@example.com", "right").await.json(), Value::Null);
    assert_eq!(platform.heard(), [], "jane is there");
    assert_eq!(login("joe@example.com", "right").await.json(), Value::Null);
    let heard = platform.heard();
    let joe = json!({ "name": "joe@example.com", "displayName": "joe@example.com" });
    assert_eq!((heard[0].what.as_str(), &heard[0].body), ("POST /v1/users", &joe));
    let refused = login("joe@example.com", "wrong").await;
    assert_eq!((refused.failure().message.as_str(), refused.verdict()), ("auth/wrong-password", proto::Verdict::Deny));
    server.stop().await;
}

#[tokio::test]
async fn another_platform_brings_its_own_sdk() {
    let server = TestServer::with(&[
        r#"default_dependencies={"lru-cache":"10.4.3"}"#,
        "sdk.package=lru-cache",
        "sdk.export=LRUCache",
        "sdk.property=acme",
        r#"sdk.options={"max":2,"key":"k-${ACME_KEY}","left_out":"${ACME_NOT?}"}"#,
    ])
    .await;
    let source = "exports.handleEvent = ({ username }, { acme, ChatKitty, getUserApi }) => {
        acme.set(username, 1); return [[...acme.keys()], typeof ChatKitty, typeof getUserApi]; }";
    let one_worker = proto::Limits { workers_max: 1, ..Default::default() };
    let app = deploy(&server, "acme", source, &[("ACME_KEY", "secret")], one_worker).await;
    for name in ["a", "b"] {
        app.login(name).await;
    }
    assert_eq!(app.login("c").await.json(), json!([["c", "b"], "undefined", "undefined"]), "one instance, max 2");
    let app = deploy(&server, "acme", source, &[], proto::Limits::default()).await;
    assert!(app.login("a").await.failure().message.contains("needs the environment variable ACME_KEY"));
    server.stop().await;

    let server = TestServer::start().await;
    let app = deploy(&server, "none", LOGS_IN, &CREDENTIALS, proto::Limits::default()).await;
    let failure = app.login("jane").await.failure().clone();
    assert_eq!((failure.name.as_str(), failure.code.as_str()), ("SdkUnavailable", "SDK_NOT_INSTALLED"));
    assert!(failure.message.contains("add it to the app's dependencies"), "{failure:?}");
    server.stop().await;
}

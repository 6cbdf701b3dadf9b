//! How often an app may be called, and how often an address may send a wrong token.

use std::time::Duration;

use chatfn::proto;
use reqwest::StatusCode;
use serde_json::Value;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::credentials::{Credential, bearer, create, wanted};
use crate::credentials_oauth::access_token;
use crate::harness::{LOGIN, SENT, SENT_EVENT, TestServer, binary, reason};

/// Far more than any limit here lets through, even if each takes a second.
const MANY: usize = 300;
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn limited() -> (Code, String) {
    (Code::ResourceExhausted, "RATE_LIMITED".to_owned())
}

/// Calls until one is refused; how many were not.
async fn until_refused(call: impl AsyncFn() -> Result<(), Status>) -> (usize, Status) {
    for n in 0..MANY {
        if let Err(status) = call().await {
            return (n, status);
        }
    }
    panic!("{MANY} calls were let through");
}

async fn invoke(server: &TestServer, app: &str, trigger_type: &str, event: &str) -> Result<(), Status> {
    server.app(app).invoke(trigger_type, event).await.map(|_| ())
}

async fn test_function(server: &TestServer, app: &str) -> Result<(), Status> {
    let request = proto::TestFunctionRequest {
        app_id: app.to_owned(),
        trigger_type: LOGIN.to_owned(),
        event_json: r#"{"username":"jane"}"#.into(),
        ..Default::default()
    };
    server.invocations().test_function(request).await.map(|_| ())
}

#[tokio::test]
async fn an_app_that_is_called_too_often_is_refused_and_others_are_not() {
    let server = TestServer::with(&["rate_per_app=1", "rate_burst_per_app=3"]).await;
    for app in ["demo", "events", "drafts", "other"] {
        server.deploy_function(app, LOGIN, "export const handleEvent = () => 1").await;
    }
    let (before, status) = until_refused(async || invoke(&server, "demo", LOGIN, r#"{"username":"jane"}"#).await).await;
    assert!(before >= 3, "{before}");
    assert_eq!(reason(&status), limited());
    let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("when");
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
    let (before, status) = until_refused(async || invoke(&server, "events", SENT, SENT_EVENT).await).await;
    assert!(before >= 3 && reason(&status) == limited(), "{before} {status}");
    let (before, status) = until_refused(async || test_function(&server, "drafts").await).await;
    assert!(before >= 3 && reason(&status) == limited(), "{before} {status}");
    invoke(&server, "other", LOGIN, r#"{"username":"jane"}"#).await.expect("another app");
    // What nobody calls is nobody's burst.
    let unknown = async || invoke(&server, "missing", LOGIN, r#"{"username":"jane"}"#).await;
    for _ in 0..5 {
        assert!(unknown().await.map_or_else(|status| reason(&status) != limited(), |()| true));
    }
    server.stop().await;
}

#[tokio::test]
async fn rest_says_429_and_when_to_come_again() {
    let server = TestServer::with(&["rate_per_app=1"]).await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    let client = reqwest::Client::new();
    let functions = client.get(format!("{}/v1/runtimes/nodejs/functions", server.address));
    let functions = functions.header("x-chatfn-app", "demo").send().await.expect("an answer");
    let functions: Value = serde_json::from_slice(&functions.bytes().await.expect("a body")).expect("JSON");
    let id = functions["_embedded"]["functions"][0]["id"].as_u64().expect("an id");
    for _ in 0..MANY {
        let request = client.post(format!("{}/v1/functions/{id}/test", server.address));
        let request = request.header("x-chatfn-app", "demo").header("content-type", "application/json");
        let answer = request.body(r#"{"event":{"username":"jane"}}"#).send().await.expect("an answer");
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(answer.headers()["retry-after"], "1");
            let body: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
            assert_eq!(body["error"], "RATE_LIMITED");
            server.stop().await;
            return;
        }
        assert_eq!(answer.status(), StatusCode::OK);
    }
    panic!("{MANY} calls were let through");
}

async fn chatfn(server: &TestServer, args: &[&str]) -> (bool, String) {
    let mut command = binary();
    command.args(args).args(["--address", &server.address]).env("CHATFN_TOKEN", TOKEN);
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

async fn guarded(settings: &[&str]) -> (tempfile::NamedTempFile, TestServer) {
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), TOKEN).expect("write");
    let token = format!("operator_token_file={}", file.path().display());
    let server = TestServer::with(&[&[token.as_str()], settings].concat()).await;
    (file, server)
}

#[tokio::test]
async fn operators_give_an_app_a_limit_of_its_own_and_apps_do_not() {
    let (_file, server) = guarded(&[]).await;
    let by = async |app: &str, scopes: &[&str]| -> Credential {
        create(&server, bearer(wanted(app, scopes), TOKEN)).await.expect("created")
    };
    let manager = by("demo", &["manage", "invoke"]).await;
    let call = async || {
        let call = server.app("demo").call(LOGIN, r#"{"username":"jane"}"#);
        server.invocations().invoke(bearer(call, &manager.secret)).await.map(|_| ())
    };
    for _ in 0..20 {
        call().await.expect("no limit");
    }
    let (good, said) = chatfn(&server, &["apps", "update", "demo", "--rate", "1", "--rate-burst", "2"]).await;
    assert!(good && said.contains("1 a second") && said.contains("2 at once"), "{said}");
    let (_, status) = until_refused(call).await;
    assert_eq!(reason(&status), limited());

    for (rate_per_second, rate_burst, quota_per_day) in
        [(Some(1000), None, None), (None, Some(1000), None), (Some(0), Some(0), None), (None, None, Some(0))]
    {
        let request = proto::UpdateAppRequest {
            app_id: "demo".to_owned(),
            rate_per_second,
            rate_burst,
            quota_per_day,
            ..Default::default()
        };
        let refused = server.apps().update_app(bearer(request, &manager.secret)).await.expect_err("not by itself");
        assert_eq!(reason(&refused), (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()));
    }
    let described = proto::UpdateAppRequest {
        app_id: "demo".to_owned(),
        description: Some("a shop".to_owned()),
        ..Default::default()
    };
    let shown = server.apps().update_app(bearer(described, &manager.secret)).await.expect("that it may").into_inner();
    let settings = shown.app.and_then(|app| app.settings).expect("settings");
    assert_eq!((settings.rate_per_second, settings.rate_burst), (Some(1), Some(2)));
    let too_much =
        proto::UpdateAppRequest { app_id: "demo".to_owned(), rate_per_second: Some(1_000_001), ..Default::default() };
    let refused = server.apps().update_app(bearer(too_much, TOKEN)).await.expect_err("too much");
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_RATE".to_owned()));

    let (good, said) = chatfn(&server, &["apps", "update", "demo", "--rate", "0", "--rate-burst", "0", "--json"]).await;
    assert!(good, "{said}");
    let shown: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&shown["rate_per_second"], &shown["description"]), (&Value::Null, &"a shop".into()));
    for _ in 0..20 {
        call().await.expect("no limit again");
    }
    let (good, said) = chatfn(&server, &["apps", "update", "demo"]).await;
    assert!(!good && said.contains("nothing to change"), "{said}");
    server.stop().await;
}

/// The app's quota, as GetApp tells: used, and of how much.
pub async fn quota(server: &TestServer, app: &str) -> Option<(u64, u64)> {
    let request = proto::GetAppRequest { app_id: app.to_owned() };
    let app = server.apps().get_app(request).await.expect("an app").into_inner().app.expect("an app");
    app.quota.map(|quota| (quota.used, quota.limit))
}

pub fn exceeded() -> (Code, String) {
    (Code::ResourceExhausted, "QUOTA_EXCEEDED".to_owned())
}

#[tokio::test]
async fn an_app_has_no_more_than_its_quota_in_a_day_also_after_a_restart() {
    let server = TestServer::with(&["quota_per_app=3"]).await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    server.deploy_function("other", LOGIN, "export const handleEvent = () => 1").await;
    let login = async |server: &TestServer, app: &str| invoke(server, app, LOGIN, r#"{"username":"jane"}"#).await;
    for _ in 0..3 {
        login(&server, "demo").await.expect("within the quota");
    }
    assert_eq!(quota(&server, "demo").await, Some((3, 3)));
    let status = login(&server, "demo").await.expect_err("beyond it");
    assert_eq!(reason(&status), exceeded());
    let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("when");
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(86_400), "{wait:?}");
    login(&server, "other").await.expect("another app");

    let server = server.stop_and_restart().await;
    assert_eq!(reason(&login(&server, "demo").await.expect_err("still beyond it")), exceeded());
    let request = proto::UpdateAppRequest { app_id: "demo".to_owned(), quota_per_day: Some(5), ..Default::default() };
    server.apps().update_app(request).await.expect("changed");
    for _ in 0..2 {
        login(&server, "demo").await.expect("within its own quota");
    }
    assert_eq!(reason(&login(&server, "demo").await.expect_err("beyond it")), exceeded());
    assert_eq!(quota(&server, "demo").await, Some((5, 5)));
    server.stop().await;
}

#[tokio::test]
async fn an_address_that_sends_wrong_tokens_is_held_off_by_grpc_rest_and_oauth_alike() {
    let (_file, server) = guarded(&["auth_failures_per_minute=3", r#"trusted_proxies=["127.0.0.0/8"]"#]).await;
    let created =
        async |scopes: &[&str]| create(&server, bearer(wanted("demo", scopes), TOKEN)).await.expect("created");
    let (seen, unseen) = (created(&["invoke", "manage"]).await, created(&["manage"]).await);
    let show = |token: &str| bearer(proto::GetAppRequest { app_id: "demo".to_owned() }, token);
    server.apps().get_app(show(&seen.secret)).await.expect("it may");
    let access = access_token(&server, &seen).await;

    let mut refused = Vec::new();
    for _ in 0..MANY {
        let status = server.apps().get_app(show("cfs_wrong")).await.expect_err("wrong");
        refused.push(reason(&status));
        if status.code() != Code::Unauthenticated {
            assert!(status.get_error_details().retry_info().is_some_and(|info| info.retry_delay.is_some()));
            break;
        }
    }
    assert!(refused.len() > 3, "{refused:?}");
    let held_off = (Code::ResourceExhausted, "TOO_MANY_FAILURES".to_owned());
    assert_eq!(refused.last(), Some(&held_off));
    for guess in [TOKEN, &unseen.secret] {
        assert_eq!(reason(&server.apps().get_app(show(guess)).await.expect_err("not now")), held_off);
    }
    for known in [&seen.secret, &access] {
        server.apps().get_app(show(known)).await.expect("those who were seen go on");
    }
    let client = reqwest::Client::new();
    let rest = client.get(format!("{}/v1/runtimes/nodejs", server.address)).bearer_auth(&unseen.secret);
    let rest = rest.send().await.expect("an answer");
    assert_eq!(rest.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(rest.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds") > 0);
    let grant = |secret: &str| {
        let post = client.post(format!("{}/oauth/token", server.address)).basic_auth(&unseen.id, Some(secret));
        post.header("content-type", "application/x-www-form-urlencoded").body("grant_type=client_credentials")
    };
    let oauth = grant(&unseen.secret).send().await.expect("an answer");
    assert_eq!(oauth.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(oauth.headers().contains_key("retry-after"));

    // Others behind the same proxy are not held off.
    let mut elsewhere: Request<_> = show(TOKEN);
    elsewhere.metadata_mut().insert("x-forwarded-for", "198.51.100.7".parse().expect("ascii"));
    server.apps().get_app(elsewhere).await.expect("another address");
    let oauth = grant(&unseen.secret).header("x-forwarded-for", "198.51.100.7").send().await.expect("an answer");
    assert_eq!(oauth.status(), StatusCode::OK);
    server.stop().await;
}

//! `POST /oauth/token`, by hand and by ChatKitty's own client.

use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chatfn::proto;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::credentials::{Credential, bearer, create, wanted};
use crate::harness::{LOGIN, TestServer};

const GRANT: &str = "grant_type=client_credentials";
const URLENCODED: &str = "application/x-www-form-urlencoded";

fn post(server: &TestServer, content_type: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    let url = format!("{}/oauth/token", server.address);
    Client::new().post(url).header("content-type", content_type).body(body)
}

fn form(server: &TestServer, body: impl Into<reqwest::Body>) -> RequestBuilder {
    post(server, URLENCODED, body)
}

/// The answer's status and JSON; every answer must forbid to be kept.
async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    assert_eq!(response.headers()["cache-control"], "no-store");
    let challenge = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
    assert_eq!(challenge, (status == StatusCode::UNAUTHORIZED).then_some("Basic realm=\"chatfn\""));
    let body = response.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

/// All that this credential may.
pub async fn access_token(server: &TestServer, credential: &Credential) -> String {
    let request = form(server, GRANT).basic_auth(&credential.id, Some(&credential.secret));
    let (status, granted) = answer(request).await;
    assert_eq!(status, StatusCode::OK, "{granted}");
    granted["access_token"].as_str().expect("a token").to_owned()
}

async fn may_invoke(server: &TestServer, token: &str) -> bool {
    let call = server.app("demo").call(LOGIN, r#"{"username":"jane"}"#);
    server.invocations().invoke(bearer(call, token)).await.is_ok()
}

async fn may_show(server: &TestServer, token: &str) -> bool {
    let request = proto::GetAppRequest { app_id: "demo".to_owned() };
    server.apps().get_app(bearer(request, token)).await.is_ok()
}

/// As `form-data` of npm writes it.
fn multipart(fields: &[(&str, &str)]) -> (String, String) {
    const BOUNDARY: &str = "--------------------------515890814546601021194782";
    let part = |(name, value): &(&str, &str)| {
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let body = fields.iter().map(part).collect::<String>() + &format!("--{BOUNDARY}--\r\n");
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

#[tokio::test]
async fn a_token_is_given_in_every_way_that_clients_ask_for_it() {
    let server = TestServer::start().await;
    let client = create(&server, wanted("demo", &["manage", "invoke"])).await.expect("created");
    let Credential { id, secret } = &client;
    let basic = |request: RequestBuilder| request.basic_auth(id, Some(secret));
    let (content_type, body) = multipart(&[("grant_type", "client_credentials")]);
    let named = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret), ("other", "x")];
    let (_, with_secret) = multipart(&named);
    let everything = "invoke manage";
    for (request, scope) in [
        (basic(form(&server, GRANT)), everything),
        (basic(post(&server, "Application/X-WWW-Form-urlencoded; charset=UTF-8", GRANT)), everything),
        (basic(post(&server, &content_type, body)), everything),
        (post(&server, &content_type, with_secret), everything),
        (form(&server, format!("{GRANT}&client_id={id}&client_secret={secret}&scope=")), everything),
        (basic(form(&server, format!("{GRANT}&client_id={id}"))), everything),
        (basic(form(&server, format!("{GRANT}&scope=invoke"))), "invoke"),
        (basic(form(&server, format!("{GRANT}&scope=manage+invoke%20manage"))), everything),
    ] {
        let shown = format!("{request:?}");
        let (status, granted) = answer(request).await;
        assert_eq!(status, StatusCode::OK, "{granted} {shown}");
        let token = granted["access_token"].as_str().expect("a token").to_owned();
        let rest = json!({ "access_token": token, "token_type": "bearer", "expires_in": 3600, "scope": scope });
        assert_eq!(granted, rest);
        assert!(may_invoke(&server, &token).await);
        assert_eq!(may_show(&server, &token).await, scope == everything, "{scope}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_gives_no_token_is_answered_as_the_rfc_has_it() {
    let server = TestServer::start().await;
    let client = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let other = create(&server, wanted("other", &["invoke"])).await.expect("created");
    let Credential { id, secret } = &client;
    let with = |body: &str| form(&server, body.to_owned()).basic_auth(id, Some(secret));
    let by = |id: &str, secret: &str| form(&server, GRANT).basic_auth(id, Some(secret));
    let (content_type, body) = multipart(&[("grant_type", "client_credentials"), ("grant_type", "password")]);
    let json_body = r#"{"grant_type":"client_credentials"}"#;
    let many = format!("{GRANT}{}", "&x=".repeat(16));
    let wrong_scheme = form(&server, GRANT).header("authorization", format!("Bearer {secret}"));
    let no_pair = form(&server, GRANT).header("authorization", format!("Basic {}", BASE64_STANDARD.encode(id)));
    for (request, error) in [
        (by(id, &other.secret), "invalid_client"),
        (by(&other.id, secret), "invalid_client"),
        (by(id, ""), "invalid_client"),
        (by("", secret), "invalid_client"),
        (by("cfc_00000000000000000000000000000000", secret), "invalid_client"),
        (form(&server, GRANT), "invalid_client"),
        (form(&server, format!("{GRANT}&client_id={id}")), "invalid_client"),
        (wrong_scheme, "invalid_client"),
        (no_pair, "invalid_client"),
        (with("grant_type=password"), "unsupported_grant_type"),
        (with(""), "invalid_request"),
        (with("scope=invoke"), "invalid_request"),
        (with(&format!("{GRANT}&{GRANT}")), "invalid_request"),
        (with(&format!("{GRANT}&client_secret={secret}")), "invalid_request"),
        (with(&format!("{GRANT}&client_id={}", other.id)), "invalid_request"),
        (with(&many), "invalid_request"),
        (with(&format!("{GRANT}&x={}", "x".repeat(16 << 10))), "invalid_request"),
        (post(&server, "application/json", json_body).basic_auth(id, Some(secret)), "invalid_request"),
        (post(&server, &content_type, body).basic_auth(id, Some(secret)), "invalid_request"),
        (post(&server, &content_type, "nonsense").basic_auth(id, Some(secret)), "invalid_request"),
        (post(&server, "multipart/form-data", "x").basic_auth(id, Some(secret)), "invalid_request"),
        (with(&format!("{GRANT}&scope=publish")), "invalid_scope"),
        (with(&format!("{GRANT}&scope=invoke+operator")), "invalid_scope"),
        (with(&format!("{GRANT}&scope=everything")), "invalid_scope"),
    ] {
        let (status, refused) = answer(request).await;
        let expected = if error == "invalid_client" { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
        assert_eq!((status, refused["error"].as_str()), (expected, Some(error)), "{refused}");
        assert!(!refused.to_string().contains("cfs_") && refused.get("access_token").is_none(), "{refused}");
    }
    let padded = format!("{GRANT}&x={}", "x".repeat((16 << 10) - GRANT.len() - 3));
    assert_eq!(answer(with(&padded)).await.0, StatusCode::OK, "exactly as much as is allowed");
    let get = Client::new().get(format!("{}/oauth/token", server.address)).send().await.expect("an answer");
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
    server.stop().await;
}

#[allow(clippy::disallowed_methods, reason = "the client as its users run it")]
fn run(program: &str, args: &[&str], directory: &std::path::Path) -> String {
    let output = Command::new(program).args(args).current_dir(directory).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn chatkittys_own_client_gets_a_token_that_works() {
    const ASK: &str = "
        const { ChatKitty } = require('chatkitty-platform-sdk');
        const [clientId, clientSecret, authorizationBasePath] = process.argv.slice(1);
        const client = new ChatKitty({ clientId, clientSecret, authorizationBasePath });
        client.Runtime.configuration.accessToken().then((token) => process.stdout.write(token));
    ";
    let server = TestServer::start().await;
    let client = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let directory = tempfile::tempdir().expect("temp dir");
    let url = format!("{}/oauth/token", server.address);
    let token = tokio::task::spawn_blocking(move || {
        let install = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "chatkitty-platform-sdk@2.4.0"];
        run("npm", &install, directory.path());
        run("node", &["-e", ASK, &client.id, &client.secret, &url], directory.path())
    });
    assert!(may_invoke(&server, &token.await.expect("joins")).await);
    server.stop().await;
}

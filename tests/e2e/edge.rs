//! The edges of the service: probes, reflection, the operator's token, and configurations that it refuses.

use std::process::{Command, Output};

use chatfn::proto::app_service_client::AppServiceClient;
use chatfn::proto::invocation_service_client::InvocationServiceClient;
use chatfn::proto::{self};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{LOGIN, TestServer, reason, wait_until};
use crate::pool::{Gate, hold, until_busy};

const SERVICES: [&str; 4] = [
    "chatfunctions.v1.InvocationService",
    "chatfunctions.v1.VersionService",
    "chatfunctions.v1.EventService",
    "chatfunctions.v1.AppService",
];

#[tokio::test]
async fn health_knows_the_service_as_a_whole_and_each_of_its_parts() {
    let server = TestServer::start().await;
    let mut client = HealthClient::new(server.channel.clone());
    for service in [""].into_iter().chain(SERVICES) {
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.expect(service);
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let unknown = client.check(HealthCheckRequest { service: "chatfunctions.v1.Nothing".to_owned() }).await;
    assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
    server.stop().await;
}

/// The names that reflection lists.
async fn reflected(server: &TestServer, token: Option<&str>) -> Result<Vec<String>, tonic::Status> {
    let message = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut request = Request::new(tokio_stream::once(message));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ascii"));
    }
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers = client.server_reflection_info(request).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.message_response) {
        Some(MessageResponse::ListServicesResponse(list)) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => panic!("no list: {other:?}"),
    }
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let server = TestServer::start().await;
    let names = reflected(&server, None).await.expect("a list");
    for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.iter().any(|name| name == service), "{service}: {names:?}");
    }
    server.stop().await;
}

/// Status line and body of a plain HTTP/1.1 request.
async fn get(server: &TestServer, path: &str) -> String {
    let host = server.address.strip_prefix("http://").expect("http");
    let mut stream = TcpStream::connect(host).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test]
async fn probes_work_over_plain_http_on_the_same_port() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    for (path, status, body) in
        [("/healthz", "HTTP/1.1 200 ", "ok\n"), ("/readyz", "HTTP/1.1 200 ", "ready\n"), ("/nothing", "HTTP/1.1 ", "")]
    {
        let answer = get(&server, path).await;
        assert!(answer.starts_with(status) && answer.ends_with(body), "{path}: {answer}");
    }
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    server.terminate();
    wait_until("it is not ready", async || get(&server, "/readyz").await.starts_with("HTTP/1.1 503 ")).await;
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200 "), "alive all the same");
    gate.open();
    running.join_all().await;
    server.ended_well().await;
}

#[tokio::test]
async fn with_a_token_nothing_but_the_probes_is_open() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), format!("{TOKEN}\n")).expect("write");
    let server = TestServer::with(&[&format!("operator_token_file={}", file.path().display())]).await;
    assert!(!server.log().iter().any(|line| line.contains("open: no operator_token_file")));
    let list = async |token: Option<&str>| {
        let mut request = Request::new(proto::ListAppsRequest::default());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token.parse().expect("ascii"));
        }
        AppServiceClient::new(server.channel.clone()).list_apps(request).await
    };
    for wrong in
        [None, Some("Bearer wrong"), Some(TOKEN), Some("Bearer "), Some("Basic 0123456789abcdef0123456789abcdef")]
    {
        let status = list(wrong).await.expect_err("refused");
        assert_eq!(reason(&status), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()), "{wrong:?}");
    }
    list(Some(&format!("Bearer {TOKEN}"))).await.expect("accepted");
    let invoke =
        InvocationServiceClient::new(server.channel.clone()).invoke(server.app("demo").call(LOGIN, "{}")).await;
    assert_eq!(invoke.expect_err("refused").code(), Code::Unauthenticated);
    assert_eq!(reflected(&server, None).await.expect_err("refused").code(), Code::Unauthenticated);
    reflected(&server, Some(TOKEN)).await.expect("accepted");
    HealthClient::new(server.channel.clone()).check(HealthCheckRequest::default()).await.expect("open");
    assert!(
        get(&server, "/healthz").await.starts_with("HTTP/1.1 200 ")
            && get(&server, "/readyz").await.starts_with("HTTP/1.1 200 ")
    );
    server.stop().await;
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_refused_by_the_settings_name() {
    let short = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(short.path(), "too short\n").expect("write");
    let short = format!("operator_token_file={}", short.path().display());
    let script = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(script.path(), "#!/bin/sh\nexec node \"$@\"\n").expect("write");
    let script = format!("node={}", script.path().display());
    let table = [
        ("waiting_maximum=7", "waiting_maximum"),
        ("idle_ttl=soon", "soon"),
        ("idle_ttl=5", "\"5\""),
        ("waiting_max=many", "many"),
        ("waiting_max=0", "waiting_max"),
        ("waiting_max=-1", "-1"),
        ("result_bytes_max=999999999999", "result_bytes_max"),
        ("worker_memory_percent_max=101", "worker_memory_percent_max"),
        ("worker_memory_percent_max=9", "worker_memory_percent_max"),
        ("log_line_bytes_max=255", "log_line_bytes_max"),
        ("log_level=lou=d=er", "log_level"),
        ("log_format=xml", "xml"),
        ("operator_token_file=/nothing/here", "/nothing/here"),
        (&short, "16 characters"),
        ("node=/nothing/node", "/nothing/node"),
        (&script, "process.execPath"),
        ("npm=/nothing/npm", "/nothing/npm"),
        ("npm=/bin/sh", "npm-cli.js"),
        ("drain_timeout=0s", "drain_timeout"),
        ("memory_budget_bytes=1000000", "memory_budget_bytes"),
        ("no equals sign", "KEY=VALUE"),
    ];
    for (setting, named) in table {
        let said = TestServer::refused(&[setting]);
        let checked = chatfn(&["serve", "--check-config", "--set", setting]);
        assert!(!checked.status.success(), "--check-config accepts {setting}");
        let (name, _) = setting.split_once('=').unwrap_or((setting, ""));
        assert!(said.contains(name) && said.contains(named), "{setting}: {said}");
        assert!(
            said.matches(" for key ").count() < 2 && said.matches("unknown field").count() < 2,
            "said twice: {said}"
        );
    }
}

#[allow(clippy::disallowed_methods, reason = "tests start the service as users do")]
fn chatfn(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chatfn")).args(args).current_dir(std::env::temp_dir()).output().expect("runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_token() {
    let data = tempfile::tempdir().expect("temp dir");
    let data = data.path().join("data").display().to_string();
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = chatfn(&["serve", "--listen", address, "--data-dir", &data]);
        assert!(!refused.status.success() && said(&refused).contains("operator_token_file"), "{}", said(&refused));
    }
    assert!(!std::path::Path::new(&data).exists(), "refused before anything was made");
}

#[tokio::test]
async fn check_config_prints_the_whole_configuration_and_starts_nothing() {
    let data = tempfile::tempdir().expect("temp dir");
    let data = data.path().join("data").display().to_string();
    let checked = chatfn(&["serve", "--check-config", "--data-dir", &data, "--set", "idle_ttl=90s"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let printed: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    assert_eq!((&printed["idle_ttl"], &printed["data_dir"]), (&"1m 30s".into(), &data.as_str().into()));
    assert!(!std::path::Path::new(&data).exists());
    let refused = chatfn(&["serve", "--check-config", "--set", "idle_ttle=90s"]);
    assert!(!refused.status.success() && said(&refused).contains("idle_ttle"), "{}", said(&refused));
}

#[tokio::test]
async fn a_second_service_on_the_same_data_is_refused() {
    let server = TestServer::start().await;
    let data = server.data().join("data").display().to_string();
    let refused = chatfn(&["serve", "--listen", "127.0.0.1:0", "--data-dir", &data]);
    assert!(!refused.status.success() && said(&refused).contains("in use by another chatfn"), "{}", said(&refused));
    server.app("nobody").invoke(LOGIN, r#"{"username":"jane"}"#).await.expect_err("the first one still answers");
    server.stop().await;
}

//! TLS and mTLS on the port: who gets in, what changes while it runs, and what is refused before anything starts.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use chatfn::proto::app_service_client::AppServiceClient;
use chatfn::proto::{self};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::certificates::{Ca, Pair};
use crate::harness::{LOGIN, TestServer, binary, wait_until};

const HOST: &str = "127.0.0.1";

fn trusting(ca: &Ca) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.pem()))
}

fn showing(ca: &Ca, pair: &Pair) -> ClientTlsConfig {
    trusting(ca).identity(Identity::from_pem(&pair.cert, &pair.key))
}

fn settings(directory: &Path) -> Vec<String> {
    vec![
        format!("tls.cert_file={}", directory.join("cert.pem").display()),
        format!("tls.key_file={}", directory.join("key.pem").display()),
    ]
}

fn borrowed(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

/// A CA, and a directory with a certificate of its.
fn certified() -> (Ca, TempDir) {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("temp dir"));
    ca.issue(HOST, 30).write(directory.path());
    (ca, directory)
}

async fn connect(server: &TestServer, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(server.address.clone()).expect("an address");
    endpoint.tls_config(tls).expect("certificates").connect().await
}

/// A client without a certificate may find out only with its first call: in TLS 1.3 it is done with its handshake before the service is.
async fn may_list(server: &TestServer, tls: ClientTlsConfig) -> bool {
    match connect(server, tls).await {
        Ok(channel) => AppServiceClient::new(channel).list_apps(proto::ListAppsRequest::default()).await.is_ok(),
        Err(_) => false,
    }
}

fn web(ca: &Ca) -> reqwest::ClientBuilder {
    let ca = reqwest::Certificate::from_pem(ca.pem().as_bytes()).expect("PEM");
    reqwest::Client::builder().tls_certs_only([ca])
}

#[tokio::test]
async fn grpc_and_rest_go_through_tls_and_nothing_goes_beside_it() {
    let (ca, directory) = certified();
    let server = TestServer::secured(&borrowed(&settings(directory.path())), trusting(&ca)).await;
    assert!(server.address.starts_with("https://"), "{}", server.address);
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = (event) => event.username").await;
    app.login("jane").await;
    for client in [web(&ca), web(&ca).http1_only()] {
        let client = client.build().expect("a client");
        let url = format!("{}/v1/runtimes/nodejs", server.address);
        let answer = client.get(url).header("x-chatfn-app", "demo").send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    assert!(!may_list(&server, trusting(&Ca::new())).await, "it is not who another CA says");
    let plain = server.address.replace("https://", "http://");
    let answer = reqwest::get(format!("{plain}/healthz")).await;
    assert!(answer.is_err(), "{answer:?}");
    let plain = Channel::from_shared(plain).expect("an address").connect().await;
    if let Ok(channel) = plain {
        AppServiceClient::new(channel).list_apps(proto::ListAppsRequest::default()).await.expect_err("refused");
    }
    server.stop().await;
}

#[tokio::test]
async fn handshakes_that_stall_hold_up_nobody_and_give_way() {
    let (ca, directory) = certified();
    let mut settings = settings(directory.path());
    settings.push("tls.handshake_timeout=1h".to_owned());
    let server = TestServer::secured(&borrowed(&settings), trusting(&ca)).await;
    let host = server.address.strip_prefix("https://").expect("https");
    let mut silent = Vec::new();
    for _ in 0..520 {
        silent.push(TcpStream::connect(host).await.expect("connects"));
    }
    assert!(may_list(&server, trusting(&ca)).await);
    let mut nothing = [0];
    assert!(matches!(silent[0].read(&mut nothing).await, Ok(0) | Err(_)), "the oldest is ended");
    let newest = silent.last().expect("many").try_read(&mut nothing);
    assert!(newest.is_err_and(|err| err.kind() == ErrorKind::WouldBlock), "the newest is not");
    drop(silent);
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    let (ca, directory) = certified();
    let mut settings = settings(directory.path());
    settings.push("tls.handshake_timeout=100ms".to_owned());
    let server = TestServer::secured(&borrowed(&settings), trusting(&ca)).await;
    let mut silent =
        TcpStream::connect(server.address.strip_prefix("https://").expect("https")).await.expect("connects");
    assert!(matches!(silent.read(&mut [0]).await, Ok(0) | Err(_)));
    server.stop().await;
}

/// As Kubernetes updates a mounted secret: the files are links into a directory that is a link itself, and that one is swapped.
fn mount(directory: &Path, revision: &str, pair: &Pair) {
    let own = directory.join(revision);
    std::fs::create_dir(&own).expect("make");
    pair.write(&own);
    symlink(revision, directory.join("..new")).expect("link");
    std::fs::rename(directory.join("..new"), directory.join("..data")).expect("swap");
    for name in ["cert.pem", "key.pem"] {
        let _ = symlink(format!("..data/{name}"), directory.join(name));
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_those_that_there_are_go_on() {
    let (old, new) = (Ca::new(), Ca::new());
    let directory = tempfile::tempdir().expect("temp dir");
    let at = directory.path();
    mount(at, "1", &old.issue(HOST, 30));
    let mut server = TestServer::secured(&borrowed(&settings(at)), trusting(&old)).await;
    mount(at, "2", &new.issue(HOST, 30));
    wait_until("the new certificate is shown", async || may_list(&server, trusting(&new)).await).await;
    assert!(!may_list(&server, trusting(&old)).await, "the old one is shown no more");
    // This connection trusts the old CA alone: it could not be made again.
    server.apps().list_apps(proto::ListAppsRequest::default()).await.expect("it goes on");

    server.expect_log("tls: the files changed and cannot be used");
    let told = || server.log().iter().filter(|line| line.contains("tls: the files changed")).count();
    let broken = Pair { key: old.issue(HOST, 30).key, ..new.issue(HOST, 30) };
    mount(at, "3", &broken);
    wait_until("it says what is wrong", async || told() > 0).await;
    let said = server.log().into_iter().find(|line| line.contains("tls: the files changed")).expect("a line");
    assert!(said.contains("is not the key of the certificate") && !said.contains("PRIVATE"), "{said}");
    assert!(may_list(&server, trusting(&new)).await, "the one before serves on");
    mount(at, "4", &old.issue(HOST, 30));
    kill(Pid::from_raw(server.pid().cast_signed()), Signal::SIGHUP).expect("signal");
    wait_until("the next one is shown", async || may_list(&server, trusting(&old)).await).await;
    assert_eq!(told(), 1, "told once: {:?}", server.log());
    server.stop().await;
}

#[tokio::test]
async fn with_mtls_clients_need_a_certificate_of_the_ca_and_a_token_all_the_same() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let (ca, directory) = certified();
    let (clients, other) = (Ca::new(), Ca::new());
    let at = directory.path();
    std::fs::write(at.join("token"), TOKEN).expect("write");
    std::fs::write(at.join("clients.pem"), clients.pem()).expect("write");
    let mut settings = settings(at);
    settings.push(format!("tls.client_ca_file={}", at.join("clients.pem").display()));
    let own = clients.issue("client", 30);
    let server = TestServer::secured(&borrowed(&settings), showing(&ca, &own)).await;
    assert!(may_list(&server, showing(&ca, &own)).await);
    assert!(!may_list(&server, trusting(&ca)).await, "without one");
    assert!(!may_list(&server, showing(&ca, &other.issue("client", 30))).await, "another CA's");
    assert!(!may_list(&server, showing(&ca, &clients.issue("client", -1))).await, "an old one");
    // The CA is read again, too.
    std::fs::write(at.join("clients.pem"), other.pem()).expect("write");
    wait_until("the other CA is known", async || may_list(&server, showing(&ca, &other.issue("client", 30))).await)
        .await;
    assert!(!may_list(&server, showing(&ca, &own)).await, "and the first one no more");
    server.stop().await;

    std::fs::write(at.join("clients.pem"), clients.pem()).expect("write");
    settings.push("tls.client_auth=optional".to_owned());
    let server = TestServer::secured(&borrowed(&settings), trusting(&ca)).await;
    assert!(may_list(&server, trusting(&ca)).await && may_list(&server, showing(&ca, &own)).await);
    assert!(!may_list(&server, showing(&ca, &other.issue("client", 30))).await, "a wrong one is worse than none");
    server.stop().await;

    settings.push(format!("operator_token_file={}", at.join("token").display()));
    let server = TestServer::secured(&borrowed(&settings), showing(&ca, &own)).await;
    let list = server.apps().list_apps(proto::ListAppsRequest::default()).await;
    assert_eq!(list.expect_err("no token").code(), tonic::Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_before_anything_starts() {
    let (ca, directory) = certified();
    let at = directory.path();
    let check = |settings: &[String]| {
        let mut command = binary();
        command.args(["serve", "--check-config"]).current_dir(at);
        settings.iter().for_each(|setting| {
            command.arg("--set").arg(setting);
        });
        let output = command.output().expect("runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(&settings(at)), (true, String::new()));
    ca.issue(HOST, 3).write(at);
    let (good, said) = check(&settings(at));
    assert!(good && said.contains("expires at") && said.contains("within a week"), "{said}");
    std::fs::write(at.join("key.pem"), ca.issue(HOST, 30).key).expect("write");
    let (good, said) = check(&settings(at));
    assert!(!good && said.contains("tls.key_file") && said.contains("is not the key"), "{said}");
    let said = TestServer::refused(&borrowed(&settings(at)));
    assert!(said.contains("tls.key_file") && !said.contains("PRIVATE"), "{said}");
    std::fs::remove_file(at.join("cert.pem")).expect("remove");
    let (good, said) = check(&settings(at));
    assert!(!good && said.contains("tls.cert_file") && said.contains("cert.pem"), "{said}");
    for (setting, named) in [
        ("tls.cert_file=x", "tls.key_file"),
        ("tls.client_ca_file=x", "tls.cert_file"),
        ("tls.client_auth=sometimes", "sometimes"),
        ("tls.handshake_timeout=0s", "tls.handshake_timeout"),
        ("tls.certificate=x", "certificate"),
    ] {
        let (good, said) = check(&[setting.to_owned()]);
        assert!(!good && said.contains(named), "{setting}: {said}");
    }
}

async fn chatfn(config: &Path, args: &[&str]) -> (bool, String) {
    let mut command = binary();
    command.args(args).env("XDG_CONFIG_HOME", config).env_remove("CHATFN_ADDRESS");
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

#[tokio::test]
async fn commands_speak_tls_by_flags_and_by_profile() {
    let (ca, directory) = certified();
    let (at, clients) = (directory.path(), Ca::new());
    std::fs::write(at.join("ca.pem"), ca.pem() + &clients.pem()).expect("write");
    let own = clients.issue("client", 30);
    std::fs::create_dir_all(at.join("chatfn")).expect("make");
    own.write(&at.join("chatfn"));
    let mut settings = settings(at);
    settings.push(format!("tls.client_ca_file={}", at.join("ca.pem").display()));
    let server = TestServer::secured(&borrowed(&settings), showing(&ca, &own)).await;
    let file = |name: &str| at.join(name).display().to_string();
    let (trusted, cert, key) = (file("ca.pem"), file("chatfn/cert.pem"), file("chatfn/key.pem"));
    let address = ["--address", server.address.as_str()];
    let run = async |tls: &[&str]| chatfn(at, &[&["apps"], &address[..], tls].concat()).await;
    let shown = ["--tls-ca", &trusted, "--tls-cert", &cert, "--tls-key", &key];
    let (good, said) = run(&shown).await;
    assert!(good && said.contains("There are no apps"), "{said}");
    let (good, said) = run(&[]).await;
    assert!(!good && said.contains("--tls-ca"), "{said}");
    let (good, said) = run(&shown[..2]).await;
    assert!(!good, "{said}");
    let (good, said) = run(&shown[..4]).await;
    assert!(!good && said.contains("--tls-key"), "{said}");
    let (good, said) = run(&["--tls-ca", &key]).await;
    assert!(!good && said.contains("holds no certificate"), "{said}");
    let plain = server.address.replace("https://", "http://");
    let (good, said) = chatfn(at, &["apps", "--address", &plain, "--tls-ca", &trusted]).await;
    assert!(!good && said.contains("are for https://"), "{said}");

    let profile = format!(
        "[profiles.default]\naddress = {:?}\ntls_ca = {trusted:?}\ntls_cert = 'cert.pem'\ntls_key = 'key.pem'\n",
        server.address
    );
    std::fs::write(at.join("chatfn/profiles.toml"), profile).expect("write");
    let (good, said) = chatfn(at, &["apps"]).await;
    assert!(good && said.contains("There are no apps"), "{said}");
    server.stop().await;
}

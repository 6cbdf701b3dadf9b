//! `package-lock.json`: kept to where it fits, and leading nowhere but to the operator's registry.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use chatfn::proto;
use serde_json::json;
use tempfile::NamedTempFile;
use tonic::Code;

use crate::harness::{Answered, LOGIN, TestServer, request};
use crate::inspect::{map, messages, with};

pub const IS_NUMBER_6: &str =
    "sha512-Wu1VHeILBK8KAWJUAiSZQX94GmOE45Rg6/538fKwiloUu21KncEkYGPqob2oSZ5mUT73vLGrHQjKw3KMPwfDzg==";
const MS: &str = "sha512-sGkPx+VjMtmA6MX27oA4FBFELFCZZ4S4XqeGOXCv68tT+jb3vk/RyaKWP0PTKyWtmLSM0b+adUTEvbs1PEaH2w==";

/// As npm writes one for `is-number`, which the project needs in this range, and `ms`, which it develops with.
pub fn lockfile(range: &str, version: &str, integrity: &str) -> String {
    json!({
        "name": "theirs", "version": "3.2.1", "lockfileVersion": 3, "requires": true,
        "packages": {
            "": { "name": "theirs", "version": "3.2.1", "dependencies": { "is-number": range }, "devDependencies": { "ms": "2.1.2" } },
            "node_modules/is-number": {
                "version": version, "resolved": format!("https://registry.npmjs.org/is-number/-/is-number-{version}.tgz"),
                "integrity": integrity,
            },
            "node_modules/ms": {
                "version": "2.1.2", "resolved": "https://registry.npmjs.org/ms/-/ms-2.1.2.tgz", "integrity": MS, "dev": true,
            },
        },
    })
    .to_string()
}

/// An app that answers which `is-number` it has.
fn locked(app: &str, range: &str, lockfile: &str) -> proto::PublishVersionRequest {
    let function = (
        "functions/UserAttemptedStartSession.ts",
        "export const handleEvent = () => require('is-number/package.json').version",
    );
    let package = json!({ "dependencies": { "is-number": range }, "devDependencies": { "ms": "2.1.2" } }).to_string();
    request(app, &[function, ("package.json", &package), ("package-lock.json", lockfile)])
}

#[tokio::test]
async fn a_lockfile_that_matches_is_kept_to_and_another_is_resolved_again() {
    let server = TestServer::start().await;
    let six = lockfile(">=6.0.0", "6.0.0", IS_NUMBER_6);
    let version = server.publish(locked("kept", ">=6.0.0", &six)).await.expect("publishes");
    assert_eq!(version.dependencies, map(&[("is-number", "6.0.0")]), "7.0.0 is in the range, too");
    assert_eq!(server.app("kept").login("jane").await.json(), "6.0.0");

    let version = server.publish(locked("moved", "^7.0.0", &six)).await.expect("publishes");
    assert_eq!(version.dependencies, map(&[("is-number", "7.0.0")]));
    assert_eq!(server.app("moved").login("jane").await.json(), "7.0.0");

    // Content that is not what the lockfile says is not installed, and what served goes on.
    let forged = lockfile(">=6.0.0", "6.0.0", &IS_NUMBER_6.replace("Wu1V", "AAAA"));
    let message = server.refuse(locked("kept", ">=6.0.0", &forged), Code::FailedPrecondition, "INSTALL_FAILED").await;
    assert!(message.contains("EINTEGRITY"), "{message}");
    server.assert_failed_and_tidy("kept", "EINTEGRITY").await;
    server.stop().await;
}

const ONCE: &str = "sha512-lNaJgI+2Q5URQBkccEKHTQOPaXdUxnZZElQTZY0MFUAuaEqe1E+Nyvgdz/aIyNi6Z9MzO5dv1H8n58/GELp3+w==";
const WRAPPY_1_0_1: &str =
    "sha512-42h1d25nW6G/N7l16Oz4vqCOLIFobFBOwZrBYlCxJ/QuS2o1Gdn1PzSoiYndbnL9rgGIGZ6Qn09AIpyhrkepfw==";

/// A project that needs `once`, which needs any `wrappy@1`: the newest is 1.0.2, its lockfile says 1.0.1.
fn with_an_old_transitive_version(app: &str) -> proto::PublishVersionRequest {
    let locked = |version: &str, name: &str, integrity: &str, needs: serde_json::Value| {
        let resolved = format!("https://registry.npmjs.org/{name}/-/{name}-{version}.tgz");
        json!({ "version": version, "resolved": resolved, "integrity": integrity, "dependencies": needs })
    };
    let lockfile = json!({
        "name": "theirs", "lockfileVersion": 3, "requires": true,
        "packages": {
            "": { "name": "theirs", "dependencies": { "once": "^1.4.0" } },
            "node_modules/once": locked("1.4.0", "once", ONCE, json!({ "wrappy": "1" })),
            "node_modules/wrappy": locked("1.0.1", "wrappy", WRAPPY_1_0_1, json!({})),
        },
    });
    let function = (
        "functions/UserAttemptedStartSession.ts",
        "export const handleEvent = () => require('wrappy/package.json').version",
    );
    let package = ("package.json", r#"{ "name": "theirs", "dependencies": { "once": "^1.4.0" } }"#);
    request(app, &[function, package, ("package-lock.json", &lockfile.to_string())])
}

async fn assert_installed_exactly(server: &TestServer, dependencies: &[(&str, &str)]) {
    let request = with_an_old_transitive_version("exact");
    let (version, progress) = server.publish_with_progress(request).await.expect("publishes");
    let installing = messages(&progress, "install");
    assert!(installing.iter().any(|line| line.contains("npm ci")), "{installing:?}");
    assert_eq!(version.dependencies, map(dependencies));
    assert_eq!(server.app("exact").login("jane").await.json(), "1.0.1");
    // The layer keeps what it was made from.
    let kept = server.data_directory().join("layers/exact").join(&version.layer).join("package-lock.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(kept).expect("there")).expect("JSON");
    assert_eq!(kept["packages"]["node_modules/wrappy"]["version"], "1.0.1");
    for (name, exact) in dependencies {
        assert_eq!(kept["packages"][format!("node_modules/{name}")]["version"], *exact, "{name}");
    }
}

#[tokio::test]
async fn a_lockfile_that_matches_is_installed_exactly_also_beside_default_dependencies() {
    let server = TestServer::start().await;
    assert_installed_exactly(&server, &[("once", "1.4.0")]).await;
    // Without it, the newest.
    let resolved = with(with_an_old_transitive_version("newest"), |spec| {
        spec.files.remove("package-lock.json");
    });
    let (_, progress) = server.publish_with_progress(resolved).await.expect("publishes");
    assert!(!messages(&progress, "install").iter().any(|line| line.contains("npm ci")), "{progress:?}");
    assert_eq!(server.app("newest").login("jane").await.json(), "1.0.2");
    server.stop().await;

    let server = TestServer::with(&["default_dependencies.ms=2.1.2"]).await;
    assert_installed_exactly(&server, &[("ms", "2.1.2"), ("once", "1.4.0")]).await;
    server.stop().await;
}

/// Answers every request with 404, and keeps what was asked for.
fn registry_without_packages(listener: TcpListener) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answer = |mut stream: TcpStream, asked: &Mutex<Vec<String>>| {
        let mut first = String::new();
        let mut lines = BufReader::new(stream.try_clone()?);
        lines.read_line(&mut first)?;
        let mut rest = String::new();
        while rest != "\r\n" {
            rest.clear();
            lines.read_line(&mut rest)?;
        }
        asked.lock().expect("no panic").push(first);
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    };
    let kept = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &asked);
        }
    }); // Ends with the test's process.
    kept
}

#[tokio::test]
async fn a_lockfile_cannot_send_npm_to_a_place_that_is_not_a_registry() {
    let internal = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("http://{}/is-number-6.0.0.tgz", internal.local_addr().expect("its address"));
    internal.set_nonblocking(true).expect("non-blocking");
    let server = TestServer::start().await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    let public = "https://registry.npmjs.org/is-number/-/is-number-6.0.0.tgz";
    let led = lockfile(">=6.0.0", "6.0.0", IS_NUMBER_6).replace(public, &place);
    let message = server.refuse(locked("demo", ">=6.0.0", &led), Code::InvalidArgument, "INVALID_LOCKFILE").await;
    assert!(message.contains("is-number") && message.contains(&place), "{message}");
    assert!(message.contains("https://registry.npmjs.org/"), "{message}");
    let asked = internal.accept().expect_err("nobody asked it");
    assert_eq!(asked.kind(), ErrorKind::WouldBlock);
    server.assert_serves("demo", 1).await;
    assert_eq!(server.app("demo").versions().await.len(), 1, "refused before anything happened");
    server.stop().await;
}

#[tokio::test]
async fn a_lockfile_of_the_public_registry_is_installed_from_the_one_that_is_configured() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let registry = format!("http://{}/npm/", listener.local_addr().expect("its address"));
    let asked = registry_without_packages(listener);
    let npmrc = NamedTempFile::new().expect("a file");
    std::fs::write(npmrc.path(), format!("registry = {registry}\n")).expect("write");
    let server = TestServer::with(&[&format!("npm_userconfig={}", npmrc.path().display())]).await;
    let public = lockfile(">=6.0.0", "6.0.0", IS_NUMBER_6);
    let own = public.replace("https://registry.npmjs.org/", &registry);
    for lockfile in [public, own] {
        asked.lock().expect("no panic").clear();
        server.refuse(locked("demo", ">=6.0.0", &lockfile), Code::FailedPrecondition, "INSTALL_FAILED").await;
        let asked = asked.lock().expect("no panic").clone();
        assert_eq!(asked, ["GET /npm/is-number/-/is-number-6.0.0.tgz HTTP/1.1\r\n"]);
    }
    server.stop().await;
}

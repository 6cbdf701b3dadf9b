//! Installs that fail: each says why, and leaves the app as it was.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use chatfn::proto;
use tempfile::{NamedTempFile, TempDir};
use tonic::Code;

use crate::harness::{LOGIN, TestServer, request, wait_until};
use crate::inspect::{login, map, messages, with};

const FINE: &str = "export const handleEvent = () => 'fine'";

fn needing(app: &str, dependencies: &[(&str, &str)]) -> proto::PublishVersionRequest {
    with(login(app, FINE), |spec| spec.dependencies = map(dependencies))
}

/// An npm configuration whose registry is this port of the machine.
fn registry(port: u16) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("registry=http://127.0.0.1:{port}/\n")).expect("write");
    file
}

fn setting(name: &str, value: &Path) -> String {
    format!("{name}={}", value.display())
}

#[tokio::test]
async fn a_package_or_version_that_does_not_exist_is_told_in_npms_words() {
    let server = TestServer::start().await;
    server.deploy_function("demo", LOGIN, FINE).await;
    let name = "chatfn-surely-nobody-publishes-this";
    let message = server.refuse(needing("demo", &[(name, "1.0.0")]), Code::FailedPrecondition, "INSTALL_FAILED").await;
    assert!(message.contains("E404") && message.contains(name), "{message}");
    assert!(!message.contains("Log files"), "npm's remark about its own logs explains nothing: {message}");
    server.assert_failed_and_tidy("demo", "E404").await;
    let message =
        server.refuse(needing("demo", &[("is-number", "99.0.0")]), Code::FailedPrecondition, "INSTALL_FAILED").await;
    assert!(message.contains("ETARGET") && message.contains("is-number@99.0.0"), "{message}");
    server.assert_failed_and_tidy("demo", "ETARGET").await;
    assert!(!message.contains(server.data().to_str().expect("UTF-8")), "{message}");
    server.stop().await;
}

/// Answers each request as a registry does while it is down.
fn answer_503(listener: &TcpListener) {
    for mut connection in listener.incoming().flatten() {
        let _ = connection.read(&mut [0; 4096]);
        let _ =
            connection.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
}

async fn assert_away(port: u16, why: &str) {
    let npmrc = registry(port);
    let server = TestServer::with(&[&setting("npm_userconfig", npmrc.path())]).await;
    server.deploy_function("demo", LOGIN, FINE).await;
    let message = server.refuse(needing("demo", &[("ms", "2.1.2")]), Code::Unavailable, "REGISTRY_UNAVAILABLE").await;
    assert!(message.contains(why), "{message}");
    server.assert_failed_and_tidy("demo", why).await;
    server.stop().await;
}

#[tokio::test]
async fn a_registry_that_is_away_is_unavailable() {
    let listener = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("its address").port();
    let (down, closed) = (listener(), port(&listener()));
    let down_port = port(&down);
    std::thread::spawn(move || answer_503(&down)); // Ends with the test's process.
    tokio::join!(assert_away(closed, "Connection refused"), assert_away(down_port, "E503"));
}

#[tokio::test]
async fn a_registry_that_never_answers_ends_at_the_install_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let npmrc = registry(silent.local_addr().expect("its address").port());
    let server = TestServer::with(&[&setting("npm_userconfig", npmrc.path()), "install_timeout=3s"]).await;
    server.deploy_function("demo", LOGIN, FINE).await;
    let (progress, result) = server.publish_steps(needing("demo", &[("ms", "2.1.2")])).await;
    let status = result.expect_err("it never answers");
    assert_eq!(crate::harness::reason(&status), (Code::FailedPrecondition, "INSTALL_TIMED_OUT".to_owned()));
    assert!(messages(&progress, "verify").is_empty(), "{progress:?}");
    server.assert_failed_and_tidy("demo", "3s").await;
    // Code needs no registry.
    assert_eq!(server.publish(login("demo", FINE)).await.expect("publishes").number, 3);
    let app = server.app("demo");
    // A worker is Node and its init.
    wait_until("npm is gone", async || server.worker_processes().len() == 2 * app.pool().await.worker_pids.len()).await;
    server.stop().await;
}

async fn assert_bounded(setting: &str, name: &str) {
    let server = TestServer::with(&[setting]).await;
    let small = server.publish(needing("demo", &[("ms", "2.1.2")])).await.expect("within the limit");
    let large = needing("demo", &[("ejs", "2.7.4"), ("ms", "2.1.2")]); // 140 kB in 17 files.
    let message = server.refuse(large, Code::FailedPrecondition, "INSTALL_TOO_LARGE").await;
    assert!(message.contains(name), "{message}");
    server.assert_failed_and_tidy("demo", name).await;
    assert_eq!(server.layers("demo"), [small.layer].into());
    server.stop().await;
}

#[tokio::test]
async fn an_installed_tree_is_bounded_in_bytes_and_in_files() {
    let bytes = assert_bounded("install_bytes_max=100000", "install_bytes_max");
    tokio::join!(bytes, assert_bounded("install_files_max=14", "install_files_max"));
}

/// A small file system of its own, unmounted at the end, also of a panic.
struct SmallDisk(TempDir);

#[allow(clippy::disallowed_methods, reason = "only the superuser's own tools can make a disk that is full")]
impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("temp dir");
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory.path());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

#[allow(clippy::disallowed_methods, reason = "as above")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_publish_and_nothing_else() {
    let Some(disk) = SmallDisk::mount("4m") else {
        println!("skipped, because this user cannot mount a small file system");
        return;
    };
    let data = tempfile::tempdir_in(disk.0.path()).expect("temp dir");
    let server = TestServer::restart((data.into(), Vec::new())).await;
    server.deploy_function("demo", LOGIN, FINE).await;
    // npm writes more than there is room for.
    server.refuse(needing("demo", &[("lodash", "4.17.21")]), Code::FailedPrecondition, "DISK_FULL").await;
    server.assert_failed_and_tidy("demo", "disk is full").await;
    // So do the sources themselves.
    let ballast = "x".repeat(3 << 20);
    let files = [("functions/UserAttemptedStartSession.ts", FINE), ("a.txt", &ballast), ("b.txt", &ballast)];
    server.refuse(request("demo", &files), Code::FailedPrecondition, "DISK_FULL").await;
    server.assert_failed_and_tidy("demo", "disk is full").await;
    assert_eq!(
        server.publish(login("demo", "export const handleEvent = () => 2")).await.expect("there is room").number,
        4
    );
    server.stop().await;
}

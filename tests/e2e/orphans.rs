//! Nothing that a function started outlives its worker, and no worker outlives the service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatfn::proto::{self, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, alive, name_of, processes_of, wait_until};
use crate::publish_request::Publish;

/// `hide` starts processes in every way that loses their parent; `spin` never ends.
const HIDES: &str = r#"
const { spawn } = require('child_process');
export const handleEvent = (event) => {
  while (event.username === 'spin') {}
  if (event.username !== 'hide') return;
  const detached = spawn('sleep', ['300'], { detached: true, stdio: 'ignore' });
  detached.unref();
  const shell = spawn('sh', ['-c', "setsid sh -c 'echo $$; exec sleep 300' & (setsid sh -c 'echo $$; exec sleep 300' &)"], { stdio: ['ignore', 'pipe', 'ignore'] });
  return new Promise((resolve) => {
    let text = '';
    shell.stdout.on('data', (chunk) => {
      text += chunk;
      if (text.trim().split('\n').length === 2 && text.endsWith('\n')) resolve();
    });
  });
};
"#;

/// Publishes and hides; the worker, its init and the three that it hid.
async fn hidden(server: &TestServer, spin: Duration) -> (TestApp, Vec<u32>) {
    let limits = |limits: &mut proto::Limits| limits.subprocesses = true;
    let app = Publish::login("demo", HIDES).timeout(spin).limits(limits).on(server).await;
    app.login("hide").await.json();
    let hidden = async || server.worker_processes().iter().filter(|pid| name_of(**pid) == "sleep").count();
    wait_until("three are hidden", async || hidden().await == 3).await;
    let pids = server.worker_processes();
    assert!(pids.len() >= 5 && pids.contains(&app.pool().await.worker_pids[0]), "{pids:?}");
    (app, pids)
}

async fn assert_all_end(pids: &[u32]) {
    wait_until("all are gone", async || alive(pids).is_empty()).await;
}

async fn assert_nothing_of(data: &Path) {
    wait_until("no process is left", async || alive(&processes_of(data)).is_empty()).await;
}

#[tokio::test]
async fn what_a_function_hid_ends_with_its_worker_at_a_timeout() {
    let server = TestServer::start().await;
    let (app, pids) = hidden(&server, Duration::from_secs(2)).await;
    assert_eq!(app.login("spin").await.failure().kind(), ErrorKind::TimedOut);
    assert_all_end(&pids).await;
    server.stop().await;
}

#[tokio::test]
async fn what_a_function_hid_ends_when_its_worker_retires() {
    let server = TestServer::with(&["idle_ttl=200ms"]).await;
    let (_app, pids) = hidden(&server, Duration::from_secs(60)).await;
    assert_all_end(&pids).await;
    wait_until("no process is left", async || alive(&server.worker_processes()).is_empty()).await;
    server.stop().await;
}

#[tokio::test]
async fn what_a_function_hid_ends_with_the_service() {
    let server = TestServer::start().await;
    let (_app, pids) = hidden(&server, Duration::from_secs(60)).await;
    server.stop().await; // Which looks for processes that are left.
    assert_eq!(alive(&pids), [0; 0]);
}

#[tokio::test]
async fn nothing_outlives_a_service_that_is_killed() {
    let server = TestServer::start().await;
    let (app, pids) = hidden(&server, Duration::from_secs(60)).await;
    let busy = {
        let app = app.clone();
        tokio::spawn(async move { app.invoke(LOGIN, r#"{"username":"spin"}"#).await })
    };
    wait_until("it spins", async || app.pool().await.workers_busy == 1).await;
    let (data, _) = server.crash();
    assert!(busy.await.expect("joins").is_err());
    assert_all_end(&pids).await;
    assert_nothing_of(data.path()).await;
}

#[tokio::test]
async fn nothing_outlives_a_service_that_is_killed_while_it_initializes_a_worker() {
    let server = TestServer::start().await;
    let request = Publish::login("demo", "exports.handleEvent = () => 1").initialization("for (;;) {}").0;
    let mut versions = server.versions();
    let publishing = tokio::spawn(async move { versions.publish_version(request).await?.into_inner().message().await });
    wait_until("its worker initializes", async || !server.worker_processes().is_empty()).await;
    let (data, _) = server.crash();
    let _ = publishing.await.expect("joins");
    assert_nothing_of(data.path()).await;
}

#[tokio::test]
async fn processes_that_keep_forking_end_with_their_worker() {
    let server = TestServer::start().await;
    let source = "const { spawn } = require('child_process');
    export const handleEvent = (event) => {
        while (event.username === 'spin') {}
        const script = 'while :; do (setsid sleep 300 &); sleep 0.02; done';
        const storm = spawn('setsid', ['sh', '-c', script], { detached: true, stdio: 'ignore' });
        storm.unref();
        return new Promise((resolve) => storm.on('spawn', () => resolve()));
    }";
    let limits = |limits: &mut proto::Limits| limits.subprocesses = true;
    let app = Publish::login("demo", source).timeout(Duration::from_secs(2)).limits(limits).on(&server).await;
    app.login("hide").await.json();
    wait_until("it forks", async || server.worker_processes().len() > 8).await;
    let before = server.worker_processes();
    assert_eq!(app.login("spin").await.failure().kind(), ErrorKind::TimedOut);
    assert_all_end(&before).await;
    server.stop().await; // Which looks for processes that are left.
}

#[tokio::test]
async fn a_workers_temporary_files_are_its_own_and_go_with_it() {
    let server = TestServer::with(&["idle_ttl=200ms"]).await;
    let source = "export const handleEvent = (event) => {
        const fs = require('fs'), file = require('path').join(require('os').tmpdir(), 'kept');
        const before = fs.existsSync(file);
        fs.writeFileSync(file, 'x');
        return [file, before];
    }";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).on(&server).await;
    let other = Publish::login("other", source).timeout(Duration::from_secs(60)).on(&server).await;
    assert_eq!(app.login("jane").await.json(), json!(["/tmp/kept", false]));
    assert_eq!(other.login("jane").await.json(), json!(["/tmp/kept", false]), "another worker's is another file");
    wait_until("both retire", async || server.worker_processes().is_empty()).await;
    assert_eq!(app.login("jane").await.json(), json!(["/tmp/kept", false]), "a new worker finds none of it");
    assert!(!Path::new("/tmp/kept").exists(), "nor does the host");
    assert_eq!(files_called("kept", server.data()), Vec::<PathBuf>::new());
    server.stop().await;
}

/// Anywhere below this directory.
fn files_called(name: &str, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    found
}

/// The service's child of that name.
fn broker_of(service: u32) -> Pid {
    let children = std::fs::read_to_string(format!("/proc/{service}/task/{service}/children")).expect("children");
    let is_broker = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "chatfn-broker")
    };
    let pid = children.split_whitespace().find(is_broker).expect("a broker");
    Pid::from_raw(pid.parse().expect("a pid"))
}

/// It ended by itself, said why, and left nothing.
async fn ended_for_want_of_its_broker(mut server: TestServer) {
    let status = server.wait().await;
    assert_eq!(status.code(), Some(1), "{:?}", server.log());
    wait_until("it says why", async || {
        server.log().iter().any(|line| line.starts_with("chatfn: the sandbox broker is gone"))
    })
    .await;
    let left_over = server.worker_processes();
    assert!(left_over.is_empty(), "left over: {left_over:?}");
    assert!(!server.log().iter().any(|line| line.contains("a step of the shutdown")), "{:?}", server.log());
}

#[tokio::test]
async fn what_a_function_hid_ends_with_the_broker() {
    let server = TestServer::start().await;
    let (_app, pids) = hidden(&server, Duration::from_secs(60)).await;
    kill(broker_of(server.pid()), Signal::SIGKILL).expect("signal");
    assert_all_end(&pids).await;
    ended_for_want_of_its_broker(server).await;
}

#[tokio::test]
async fn without_its_broker_the_service_answers_whom_it_can_and_ends_with_an_error() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", HIDES).timeout(Duration::from_secs(60)).on(&server).await;
    app.login("jane").await.json();
    let worker = server.worker_processes();
    let busy = {
        let app = app.clone();
        tokio::spawn(async move { app.login("spin").await })
    };
    wait_until("it spins", async || app.pool().await.workers_busy == 1).await;
    kill(broker_of(server.pid()), Signal::SIGKILL).expect("signal");
    let answer = busy.await.expect("joins");
    assert_eq!(answer.failure().kind(), ErrorKind::Collateral, "{:?}", answer.failure());
    assert_all_end(&worker).await;
    ended_for_want_of_its_broker(server).await;
}

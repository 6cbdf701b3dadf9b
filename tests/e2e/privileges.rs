//! `user`: what the service is once its broker has the privileges, and that everything works without them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use crate::harness::{Answered, TestServer, alive, binary, processes_of, wait_until};
use crate::inspect::{login, map, with};

/// Tells who it is, and uses a dependency.
const WHO: &str = "export const handleEvent = () => ({ uid: process.getuid(), ms: require('ms')('1s') })";

/// Only root can become somebody else.
fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped, because only root can become another user");
    }
    root
}

/// A service that was started as root, with this `user`, in a directory that others can reach.
async fn started_as_root(user: &str, settings: &[&str]) -> TestServer {
    let data = tempfile::tempdir().expect("temp dir");
    open_to_others(data.path());
    let user = format!("user={user}");
    let settings = std::iter::once(user.as_str()).chain(settings.iter().copied()).map(str::to_owned).collect();
    TestServer::restart((Arc::new(data), settings)).await
}

fn open_to_others(directory: &Path) {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A line of `/proc/<pid>/status`.
fn status(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).expect("the line");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn oom_score_adj(pid: u32) -> i32 {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it runs").trim().parse().expect("a number")
}

/// Named so, below this service.
fn child_named(parent: u32, name: &str) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("children");
    let mut pids = children.split_whitespace().map(|pid| pid.parse::<u32>().expect("a pid"));
    pids.find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name))
        .expect("the child")
}

/// Workers, by what their process calls itself: the broker and its supervisor show the directory as well.
fn workers(server: &TestServer) -> Vec<u32> {
    let named =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "node");
    server.worker_processes().into_iter().filter(named).collect()
}

/// SIGTERM; a clean end, after which nothing of it is left.
async fn ends_well(mut server: TestServer) {
    server.terminate();
    assert!(server.wait().await.success(), "{:?}", server.log());
    let (data, _): (Arc<TempDir>, _) = server.crash();
    wait_until("no process is left", async || alive(&processes_of(data.path())).is_empty()).await;
}

/// Publishes with a real dependency, invokes, and deletes a version with its files.
async fn publish_invoke_delete(server: &TestServer) -> serde_json::Value {
    let request = |version: &str| with(login("demo", WHO), |spec| spec.dependencies = map(&[("ms", version)]));
    server.publish(request("2.1.2")).await.expect("publishes");
    server.publish(request("2.1.3")).await.expect("publishes");
    let app = server.app("demo");
    assert_eq!(server.layers("demo").len(), 2);
    app.delete(1).await.expect("deletes");
    server.assert_tidy("demo").await;
    assert_eq!(server.layers("demo").len(), 1);
    app.login("jane").await.json()
}

/// All of a directory, links not followed.
fn owners(directory: &Path) -> std::collections::BTreeSet<u32> {
    let mut found = std::collections::BTreeSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).expect("it is there");
        found.insert(metadata.uid());
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(path).expect("readable").flatten().map(|entry| entry.path()));
        }
    }
    found
}

#[tokio::test]
async fn a_service_started_as_root_becomes_its_user_and_everything_works() {
    if !is_root() {
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").expect("look up").expect("every system has it");
    let (uid, gid) = (nobody.uid.to_string(), nobody.gid.to_string());
    let server = started_as_root("nobody", &[]).await;
    let four = |id: &str| [id; 4].join(" ");
    assert_eq!((status(server.pid(), "Uid"), status(server.pid(), "Gid")), (four(&uid), four(&gid)));
    assert!(!status(server.pid(), "Groups").split(' ').any(|group| group == "0"), "root's groups");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&status(server.pid(), set), 16), Ok(0), "{set}");
    }
    assert_eq!(status(server.pid(), "NoNewPrivs"), "1");
    // What of /proc belongs to root although the process does not: it cannot be looked into (proc(5), "dumpable").
    assert_eq!(std::fs::metadata(format!("/proc/{}/environ", server.pid())).expect("it runs").uid(), 0);
    assert_eq!(status(child_named(server.pid(), "chatfn-broker"), "Uid"), four("0"));
    for thread in std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads").flatten() {
        let status = std::fs::read_to_string(thread.path().join("status")).expect("it runs");
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("CapPrm:\t0000000000000000"), "{status}");
    }

    let answer = publish_invoke_delete(&server).await;
    assert_eq!(answer["ms"], 1000);
    let worker = answer["uid"].as_u64().expect("a uid");
    assert!(worker != 0 && worker != u64::from(nobody.uid.as_raw()), "a user of its own: {worker}");
    assert_eq!(owners(&server.data_directory()), [nobody.uid.as_raw()].into());

    let server = server.crash_and_restart().await;
    assert_eq!(server.app("demo").login("jane").await.json()["ms"], 1000);
    ends_well(server).await;
}

#[tokio::test]
async fn without_users_of_their_own_children_have_the_services_not_roots() {
    if !is_root() {
        return;
    }
    let server = started_as_root("65432:65433", &["isolation.mode=landlock"]).await;
    assert_eq!(status(server.pid(), "Uid"), "65432 65432 65432 65432");
    let answer = publish_invoke_delete(&server).await;
    assert_eq!((answer["uid"].as_u64(), answer["ms"].as_u64()), (Some(65432), Some(1000)));
    assert_eq!(owners(&server.data_directory()), [65432].into());
    ends_well(server).await;
}

#[tokio::test]
async fn privileges_cannot_be_gained_without_a_user_either() {
    let server = TestServer::start().await;
    assert_eq!(status(server.pid(), "NoNewPrivs"), "1");
    ends_well(server).await;
}

#[tokio::test]
async fn the_data_directory_of_somebody_else_is_refused() {
    if !is_root() {
        return;
    }
    let data = tempfile::tempdir().expect("temp dir");
    open_to_others(data.path());
    let directory = data.path().join("data");
    std::fs::create_dir(&directory).expect("make");
    let run = || {
        let mut command = binary();
        command.args(["serve", "--listen", "127.0.0.1:0", "--set", "user=65432", "--data-dir"]).arg(&directory);
        let output = command.current_dir(data.path()).output().expect("runs");
        assert!(!output.status.success(), "it was accepted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    std::fs::write(directory.join("chatfn.db"), "root's").expect("write");
    let told = run();
    let command = format!("chown -R 65432:65432 {}", directory.display());
    assert!(told.contains("belongs to uid 0") && told.contains(&command), "{told}");
    // Nor is it enough to own the directory alone.
    std::os::unix::fs::chown(&directory, Some(65432), Some(65432)).expect("chown");
    let told = run();
    assert!(told.contains("chatfn.db belongs to uid 0") && told.contains(&command), "{told}");
}

#[tokio::test]
async fn a_user_that_cannot_be_is_refused() {
    for (user, problem) in [("no-such-user", "there is no user no-such-user"), ("root", "which is root")] {
        let told = TestServer::refused(&[&format!("user={user}")]);
        assert!(told.contains(problem), "{told}");
    }
}

/// With a worker that spins.
async fn busy(user: &str) -> (TestServer, u32) {
    let server = started_as_root(user, &[]).await;
    server.publish(login("demo", "export const handleEvent = () => { while (true) {} }")).await.expect("publishes");
    let app = server.app("demo");
    tokio::spawn(async move { app.invoke(crate::harness::LOGIN, r#"{"username":"jane"}"#).await });
    let app = server.app("demo");
    wait_until("it spins", async || app.pool().await.workers_busy == 1).await;
    let worker = workers(&server)[0];
    (server, worker)
}

#[tokio::test]
async fn nothing_outlives_a_service_without_privileges_that_is_killed() {
    if !is_root() {
        return;
    }
    let (server, _) = busy("nobody").await;
    let (data, _): (Arc<TempDir>, _) = server.crash();
    wait_until("no process is left", async || alive(&processes_of(data.path())).is_empty()).await;
}

#[tokio::test]
async fn nothing_outlives_the_broker_of_a_service_that_could_not_end_it() {
    if !is_root() {
        return;
    }
    let (mut server, worker) = busy("nobody").await;
    let broker = child_named(server.pid(), "chatfn-broker");
    kill(Pid::from_raw(broker.cast_signed()), Signal::SIGKILL).expect("signal");
    assert_eq!(server.wait().await.code(), Some(1), "{:?}", server.log());
    assert_eq!(alive(&[worker]), [0; 0]);
    assert_eq!(alive(&server.worker_processes()), [0; 0]);
}

#[tokio::test]
async fn the_kernel_chooses_a_worker_when_memory_runs_out_never_the_service() {
    let server = TestServer::start().await;
    server.publish(login("demo", "export const handleEvent = () => 1")).await.expect("publishes");
    server.app("demo").login("jane").await;
    let broker = child_named(server.pid(), "chatfn-broker");
    let ours = [server.pid(), broker].map(oom_score_adj);
    let workers: Vec<i32> = workers(&server).into_iter().map(oom_score_adj).collect();
    assert!(!workers.is_empty() && workers.iter().all(|score| *score == 1000), "{workers:?}");
    assert!(ours.iter().all(|score| *score < 1000), "{ours:?}");
    ends_well(server).await;
}

//! Backups taken under load, of SQLite by `chatfn backup` and of PostgreSQL by its own tools, and services started on what was restored:
//! nothing that was acknowledged before is missing there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chatfn::proto::{self, EventState, InvocationStatus, invoke_response::Outcome};
use tempfile::TempDir;

use crate::cli::{Ran, ended};
use crate::harness::{Answered, SENT, SENT_EVENT, TestServer, binary, wait_until};
use crate::inspect::answering;
use crate::load::{self, Balancer, Load};
use crate::postgres::{database, sql};
use crate::replicas::Fleet;

/// What was acknowledged before a backup began.
struct Before {
    accepted: Vec<String>,
    /// Of an event whose time has not come.
    scheduled: String,
    invocation: String,
}

/// Publishes, runs and queues, and goes on with it.
async fn busy(server: &TestServer) -> (Load, Before) {
    let balancer = Balancer::default();
    balancer.add(server);
    load::publish("demo", server).await;
    let app = server.app("demo");
    let mut before = Before { accepted: Vec::new(), scheduled: String::new(), invocation: String::new() };
    for _ in 0..20 {
        before.accepted.push(event_id(app.invoke(SENT, SENT_EVENT).await.expect("an answer")));
    }
    let deliver_at = Some((SystemTime::now() + Duration::from_secs(6)).into());
    let later = proto::InvokeRequest { deliver_at, ..app.call(SENT, SENT_EVENT) };
    before.scheduled = event_id(app.send(later).await.expect("an answer"));
    before.invocation = app.login("jane").await.invocation_id;
    let recorded = || async { app.history().await.iter().any(|row| row.invocation_id == before.invocation) };
    wait_until("it is in the history", recorded).await;
    let mut load = Load::start(&balancer, &["demo"]);
    load.goes_on_for(50).await;
    (load, before)
}

fn event_id(answer: proto::InvokeResponse) -> String {
    match answer.outcome {
        Some(Outcome::Accepted(event)) => event.event_id,
        other => panic!("{other:?}"),
    }
}

/// All of it is there, and goes on.
async fn assert_goes_on(restored: &TestServer, before: &Before) {
    let app = restored.app("demo");
    assert_eq!(app.login("back").await.json(), "back");
    for id in before.accepted.iter().chain([&before.scheduled]) {
        wait_until("every acknowledged event runs", async || app.event(id).await.state() == EventState::Done).await;
    }
    assert_eq!(app.invocation(&before.invocation).await.status(), InvocationStatus::Succeeded, "the history is there");
    restored.publish(answering("demo", "newer")).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), "newer");
}

async fn chatfn(args: &[&str]) -> Ran {
    let mut command = binary();
    command.args(args).env("XDG_CONFIG_HOME", "/nonexistent");
    ended(command, "").await
}

async fn back_up(server: &TestServer, into: &Path) -> Ran {
    let data = server.data().join("data");
    let (into, data) = (into.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
    chatfn(&["backup", into, "--data-dir", data, "--json"]).await
}

async fn restore(backup: &Path, data: &Path) -> Ran {
    let (backup, data) = (backup.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
    chatfn(&["restore", backup, "--data-dir", data, "--json"]).await
}

/// On SQLite, whatever this run of the tests is for: `None` where that is PostgreSQL.
async fn on_sqlite() -> Option<TestServer> {
    let server = TestServer::with(&[]).await;
    let file = server.data().join("data/chatfn.db");
    if file.exists() { Some(server) } else { None }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[tokio::test]
async fn a_running_service_is_backed_up_under_load_and_another_goes_on_from_there() {
    let Some(server) = on_sqlite().await else { return };
    let (mut load, before) = busy(&server).await;
    let place = TempDir::new().expect("temp dir");
    let backup = place.path().join("backup");
    let told = back_up(&server, &backup).await.done().json();
    assert!(told["apps"] == 1 && told["files"] == 1 && told["artifacts"].is_null(), "{told}");
    load.goes_on_for(20).await;
    let modes = ["", "backup.json", "chatfn.db", "files"].map(|name| mode(&backup.join(name)));
    assert_eq!(modes, [0o700, 0o600, 0o600, 0o700]);
    assert_eq!(fs::read_dir(place.path()).expect("read").count(), 1, "nothing half-done is left beside it");
    let again = back_up(&server, &backup).await;
    assert!(again.code == Some(1) && again.err.contains("a backup goes to a path of its own"), "{again:?}");
    let inside = back_up(&server, &server.data().join("data/backup")).await;
    assert!(inside.code == Some(1) && inside.err.contains("is in the data directory"), "{inside:?}");

    let data = Arc::new(TempDir::new().expect("temp dir"));
    let restored = restore(&backup, &data.path().join("data")).await.done().json();
    assert_eq!((&restored["created_at"], &restored["apps"]), (&told["created_at"], &1.into()));
    let second = TestServer::restart((Arc::clone(&data), Vec::new())).await;
    assert_goes_on(&second, &before).await;
    let used = restore(&backup, second.data().join("data").as_path()).await;
    assert!(used.code == Some(1) && used.err.contains("has something in it"), "{used:?}");
    second.stop().await;
    let done = load.finish().await;
    println!("backup under load: {} calls, {} events", done.calls, done.accepted.len());
    server.stop().await;
}

/// Changes a copy of a backup, and sees that it is refused for it.
async fn assert_refused(backup: &Path, why: &str, damage: impl FnOnce(&Path)) {
    let place = TempDir::new().expect("temp dir");
    let copy = place.path().join("copy");
    fs::create_dir_all(copy.join("files")).expect("make");
    for name in files_of(backup) {
        fs::copy(backup.join(&name), copy.join(&name)).expect("copy");
    }
    damage(&copy);
    let data = place.path().join("data");
    let refused = restore(&copy, &data).await;
    assert!(refused.code == Some(1) && refused.err.contains(why), "{why}: {refused:?}");
    assert!(!data.exists(), "{why}: nothing was written");
}

fn files_of(backup: &Path) -> Vec<PathBuf> {
    let packed = fs::read_dir(backup.join("files")).expect("read").flatten();
    let packed = packed.map(|entry| Path::new("files").join(entry.file_name()));
    packed.chain(["backup.json".into(), "chatfn.db".into()]).collect()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("write");
}

#[tokio::test]
async fn a_backup_that_is_damaged_is_refused_before_anything_is_written() {
    let Some(server) = on_sqlite().await else { return };
    server.publish(answering("demo", "v1")).await.expect("publishes");
    let place = TempDir::new().expect("temp dir");
    let backup = place.path().join("backup");
    back_up(&server, &backup).await.done();
    server.stop().await;
    let packed = files_of(&backup).into_iter().find(|name| name.starts_with("files")).expect("a packed file");
    assert_refused(&backup, "its hash is not what it was", |copy| flip(&copy.join("chatfn.db"))).await;
    assert_refused(&backup, "its hash is not what it was", |copy| flip(&copy.join(&packed))).await;
    assert_refused(&backup, "No such file", |copy| fs::remove_file(copy.join(&packed)).expect("remove")).await;
    assert_refused(&backup, "bytes, and had", |copy| {
        fs::OpenOptions::new()
            .write(true)
            .open(copy.join("chatfn.db"))
            .and_then(|file| file.set_len(8192))
            .expect("cut");
    })
    .await;
    let told = |copy: &Path, change: &dyn Fn(&mut serde_json::Value)| {
        let path = copy.join("backup.json");
        let mut told = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        change(&mut told);
        fs::write(path, told.to_string()).expect("write");
    };
    assert_refused(&backup, "no backup of chatfn's", |copy| fs::remove_file(copy.join("backup.json")).expect("remove"))
        .await;
    assert_refused(&backup, "use a newer one", |copy| told(copy, &|told| told["format"] = 2.into())).await;
    assert_refused(&backup, "is not in it", |copy| told(copy, &|told| told["files"] = serde_json::json!([]))).await;
    assert_refused(&backup, "it names a file", |copy| told(copy, &|told| told["files"][0]["name"] = "../../x".into()))
        .await;

    let data = TempDir::new().expect("temp dir");
    fs::write(data.path().join("mine"), "").expect("write");
    let refused = restore(&backup, data.path()).await;
    assert!(refused.code == Some(1) && refused.err.contains("has something in it"), "{refused:?}");
    restore(&backup, &data.path().join("empty")).await.done();
}

#[tokio::test]
async fn what_chatfn_cannot_back_up_it_says() {
    let place = TempDir::new().expect("temp dir");
    let path = |name: &str| place.path().join(name).display().to_string();
    let none = chatfn(&["backup", &path("backup"), "--data-dir", &path("none")]).await;
    assert!(none.code == Some(1) && none.err.contains("there is no database"), "{none:?}");
    for command in ["backup", "restore"] {
        let elsewhere = chatfn(&[command, &path("backup"), "--database-url", "postgres://a:hunter2@b/c"]).await;
        assert!(elsewhere.code == Some(1) && elsewhere.err.contains("docs/backup.md"), "{elsewhere:?}");
        assert!(!elsewhere.err.contains("hunter2"), "{elsewhere:?}");
    }
    assert_eq!(fs::read_dir(place.path()).expect("read").count(), 0);
}

/// A program of PostgreSQL's, beside the server that the tests use.
#[allow(clippy::disallowed_methods, reason = "as an operator does")]
fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let restart = std::env::var("POSTGRES_RESTART").expect("set where there is a server");
    let control = restart.split(' ').find(|word| word.ends_with("/pg_ctl")).expect("pg_ctl");
    let output = Command::new(Path::new(control).with_file_name(program)).args(args).output().expect(program);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[tokio::test]
async fn a_dump_of_postgresql_under_load_is_restored_and_another_service_goes_on_from_there() {
    let Some(fleet) = Fleet::new() else { return };
    let server = fleet.replica().await;
    let (mut load, before) = busy(&server).await;
    let place = TempDir::new().expect("temp dir");
    let dump = place.path().join("chatfn.dump").display().to_string();
    // As docs/backup.md has it.
    run("pg_dump", &["--format=custom", "--file", &dump, "--dbname", &fleet.url]).expect("dumps");
    load.goes_on_for(20).await;
    let url = database().expect("there is a server");
    run("pg_restore", &["--exit-on-error", "--no-owner", "--dbname", &url, &dump]).expect("restores");

    let restored = fleet.at(url.clone());
    let second = restored.replica().await;
    assert_goes_on(&second, &before).await;
    assert_eq!(sql(&url, "SELECT COUNT(*) FROM replicas WHERE seen_at < 0"), "0");
    second.stop().await;
    let done = load.finish().await;
    println!("dump under load: {} calls, {} events", done.calls, done.accepted.len());
    server.stop().await;

    let cut = place.path().join("cut.dump").display().to_string();
    let bytes = fs::read(&dump).expect("read");
    fs::write(&cut, &bytes[..bytes.len() / 2]).expect("write");
    let refused = run("pg_restore", &["--file=/dev/null", &cut]).expect_err("it was cut off");
    assert!(refused.contains("could not read from input file"), "{refused}");
}

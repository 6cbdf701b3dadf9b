//! The commands that talk to a running service, as a user types them: through a pipe, and on a terminal.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{LOGIN, SENT, SENT_EVENT, TestServer, binary, wait_until};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

/// `chatfn …` by somebody who has no profile.
pub fn command(address: &str, args: &[&str]) -> Command {
    let mut command = binary();
    command.args(args).env("CHATFN_ADDRESS", address).env("XDG_CONFIG_HOME", "/nonexistent").env("TERM", "xterm");
    command
}

pub async fn ended(mut command: Command, stdin: &str) -> Ran {
    let stdin = stdin.to_owned();
    let run = move || {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        // It may end without reading.
        let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
        child.wait_with_output().expect("ends")
    };
    let output = tokio::task::spawn_blocking(run).await.expect("joins");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

pub async fn chatfn(server: &TestServer, args: &[&str]) -> Ran {
    ended(command(&server.address, args), "").await
}

pub fn project(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("temp dir");
    for (path, content) in files {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(path, content).expect("write");
    }
    directory
}

pub fn name(directory: &Path) -> &str {
    directory.to_str().expect("UTF-8")
}

pub const LOGIN_FILE: &str = "functions/UserAttemptedStartSession.ts";
/// Three ends, and a log line.
pub const ENDS: &str = "export const handleEvent = (event, context) => {
    console.log('hello', event.username, '\\u001b[2J');
    if (event.username === 'deny') context.deny('not you', { code: 'NO' });
    if (event.username === 'throw') throw new TypeError('boom');
    return { name: event.username, key: process.env.A_KEY };
};";

#[tokio::test]
async fn versions_are_listed_activated_and_rolled_back() {
    let server = TestServer::start().await;
    for source in [
        "export const handleEvent = () => 1",
        "export const handleEvent = () => 2",
        "export const handleEvent = () => 3",
    ] {
        server.deploy_function("demo", LOGIN, source).await;
    }
    let active = async || server.app("demo").show().await.active_version;
    let ran = chatfn(&server, &["versions", "demo"]).await.done();
    let lines: Vec<_> = ran.out.lines().collect();
    assert!(lines.len() == 4 && lines[0].starts_with("VERSION  STATE          CREATED"), "{ran:?}");
    assert!(lines[1].starts_with("3        READY, active  20") && lines[3].starts_with("1        READY   "), "{ran:?}");
    let ran = chatfn(&server, &["versions", "demo", "--limit", "2", "--json"]).await.done();
    let numbers = ran.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["number"].clone());
    assert_eq!(numbers.collect::<Vec<_>>(), [3, 2]);
    let ran = chatfn(&server, &["versions", "demo", "2"]).await.done();
    assert!(ran.out.starts_with("Version 2 of demo: READY, created 20"), "{ran:?}");

    let ran = chatfn(&server, &["rollback", "demo"]).await.done();
    assert_eq!((ran.out.as_str(), active().await), ("Version 2 of demo is active.\n", 2));
    let ran = chatfn(&server, &["rollback", "demo", "3"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("use `chatfn activate`"), "{ran:?}");
    let ran = chatfn(&server, &["rollback", "demo", "1", "--json"]).await.done();
    assert_eq!((&ran.json()["number"], active().await), (&1.into(), 1));
    let ran = chatfn(&server, &["rollback", "demo"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("no READY version before"), "{ran:?}");
    chatfn(&server, &["activate", "demo", "3"]).await.done();
    assert_eq!(active().await, 3);
    let ran = chatfn(&server, &["activate", "demo", "9"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("(VERSION_NOT_FOUND)\n`chatfn versions APP`"), "{ran:?}");
    let ran = chatfn(&server, &["activate", "demo"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    server.stop().await;
}

#[tokio::test]
async fn invoke_prints_the_outcome_and_its_exit_code_tells_of_failure() {
    let server = TestServer::start().await;
    server.deploy("demo", &[(LOGIN_FILE, ENDS), ("functions/UserSentMessage.ts", "export default () => {}")]).await;
    let login = async |event: &str, stdin: &str, more: &[&str]| {
        let args = [&["invoke", "demo", LOGIN, "--event", event], more].concat();
        ended(command(&server.address, &args), stdin).await
    };
    let ran = login(r#"{"username":"jane"}"#, "", &[]).await.done();
    for part in [
        "  verdict  ALLOW (FUNCTION)\n  result   {\"name\":\"jane\"}\n  log      hello jane \u{fffd}[2J\n  timings  queue ",
        "  ran      version 1 as invocation ",
    ] {
        assert!(ran.out.contains(part), "no {part:?} in {ran:?}");
    }
    let ran = login("-", r#"{"username":"deny"}"#, &[]).await.done();
    assert!(ran.out.contains("  verdict  DENY (FUNCTION)\n  denied   not you (NO)\n"), "{ran:?}");
    let event = project(&[("e.json", r#"{"username":"throw"}"#)]);
    let ran = login(name(&event.path().join("e.json")), "", &[]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("  error    THROWN\n           TypeError: boom\n"), "{ran:?}");
    assert!(ran.out.contains("functions/UserAttemptedStartSession.ts:4:"), "{ran:?}");
    let ran = login(r#"{"username":"throw"}"#, "", &["--json"]).await;
    assert_eq!((ran.code, &ran.json()["error"]["kind"]), (Some(1), &"THROWN".into()));
    let ran = login("{", "", &[]).await;
    assert!(ran.code == Some(1) && ran.err.contains("(INVALID_JSON)"), "{ran:?}");
    let ran = login("/nonexistent", "", &[]).await;
    assert!(ran.code == Some(1) && ran.err.contains("\"/nonexistent\""), "{ran:?}");
    let ran = chatfn(&server, &["invoke", "demo", SENT, "--event", SENT_EVENT, "--json"]).await.done();
    assert_eq!(ran.json()["accepted"]["duplicate"], false);
    let skipped = r#"{"channel":{},"event":{}}"#;
    let ran = chatfn(&server, &["invoke", "demo", "SystemTriggeredEvent", "--event", skipped]).await.done();
    assert!(ran.out.contains("  skipped  NO_FUNCTION\n"), "{ran:?}");

    let ran = chatfn(&server, &["invocations", "demo", "--status", "failed"]).await.done();
    let rows: Vec<_> = ran.out.lines().skip(1).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.ends_with("THROWN TypeError: boom")), "{ran:?}");
    let id = rows[0].split(' ').next().expect("an id");
    let ran = chatfn(&server, &["invocations", "demo", id]).await.done();
    for part in
        [LOGIN, "  FAILED\n", "  event    {\"username\":\"throw\"}\n", "  error    THROWN\n", "  log      hello throw"]
    {
        assert!(ran.out.contains(part), "no {part:?} in {ran:?}");
    }
    let one = chatfn(&server, &["invocations", "demo", id, "--json"]).await.done().json();
    assert_eq!((&one["event"]["username"], &one["logs"][0]["level"]), (&"throw".into(), &"INFO".into()));
    let ran = chatfn(&server, &["invocations", "demo", id, "--status", "failed"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    wait_until("the queued event ran", async || server.app("demo").history().await.len() == 5).await;
    server.stop().await;
}

#[tokio::test]
async fn apps_are_listed_shown_and_deleted_by_those_who_mean_it() {
    let server = TestServer::start().await;
    let ran = chatfn(&server, &["apps"]).await.done();
    assert!(ran.out.starts_with("There are no apps: chatfn publish"), "{ran:?}");
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    for args in [&["apps"][..], &["apps", "list"]] {
        let ran = chatfn(&server, args).await.done();
        assert!(ran.out.starts_with("APP   ACTIVE  WORKERS") && ran.out.contains("\ndemo  1       "), "{ran:?}");
    }
    assert_eq!(chatfn(&server, &["apps", "--json"]).await.done().json()["app_id"], "demo");
    assert_eq!(chatfn(&server, &["apps", "get", "demo", "--json"]).await.done().json()["active_version"], 1);
    assert!(chatfn(&server, &["apps", "get", "demo"]).await.done().out.contains("  active       1\n"));
    let ran = chatfn(&server, &["apps", "delete", "demo"]).await;
    assert!(ran.code == Some(2) && ran.err.contains("add --yes"), "{ran:?}");
    chatfn(&server, &["apps", "delete", "demo", "--yes"]).await.done();
    let ran = chatfn(&server, &["apps", "get", "demo"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("(APP_NOT_FOUND)\n`chatfn apps` lists"), "{ran:?}");
    server.stop().await;
}

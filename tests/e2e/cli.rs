//! The commands that talk to a running service, as a user types them: through a pipe, and on a terminal.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::pty::{Winsize, openpty};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{LOGIN, SENT, SENT_EVENT, TestServer, binary, request, wait_until};

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

fn name(directory: &Path) -> &str {
    directory.to_str().expect("UTF-8")
}

const LOGIN_FILE: &str = "functions/UserAttemptedStartSession.ts";
/// Three ends, and a log line.
const ENDS: &str = "export const handleEvent = (event, context) => {
    console.log('hello', event.username, '\\u001b[2J');
    if (event.username === 'deny') context.deny('not you', { code: 'NO' });
    if (event.username === 'throw') throw new TypeError('boom');
    return { name: event.username, key: process.env.A_KEY };
};";

#[tokio::test]
async fn publish_through_a_pipe_prints_plain_lines_and_a_report() {
    let server = TestServer::start().await;
    let project = project(&[
        (LOGIN_FILE, ENDS),
        ("functions/UserSentMessage.js", "exports.handleEvent = () => {}"),
        (".env", "NOT=sent"),
        ("events/UserSentMessage.json", "{}"),
        ("vars", "A_KEY=from the file\nB_KEY='b'\n"),
    ]);
    let dir = name(project.path());
    let vars = format!("{dir}/vars");
    let mut publish =
        command(&server.address, &["publish", dir, "--app", "demo", "--env", "A_KEY", "--env-file", &vars]);
    publish.env("A_KEY", "from here");
    let ran = ended(publish, "").await.done();
    for part in ["   validate  ", "     verify  ", "   activate  "] {
        assert!(ran.err.contains(part), "no {part:?} in {ran:?}");
    }
    for part in [
        "Version 1 of demo is active, after ",
        "  UserAttemptedStartSession  blocking      5s       functions/UserAttemptedStartSession.ts\n",
        "  UserSentMessage            non-blocking  30s      functions/UserSentMessage.js\n",
        "  dependencies  none\n",
        "  environment   A_KEY, B_KEY\n",
        "  digest        blake3:",
    ] {
        assert!(ran.out.contains(part), "no {part:?} in {ran:?}");
    }
    assert!(!format!("{}{}", ran.out, ran.err).contains('\u{1b}'), "{ran:?}");
    assert!(!ran.err.contains(".env"), "{ran:?}");
    let login = server.app("demo").login("jane").await;
    assert!(format!("{login:?}").contains("from here"), "--env wins: {login:?}");

    let ran = chatfn(&server, &["publish", dir, "--app", "demo", "--no-activate", "--json"]).await.done();
    let version = ran.json();
    assert_eq!(
        (&version["number"], &version["active"], &version["state"]),
        (&2.into(), &false.into(), &"READY".into())
    );
    assert_eq!(version["functions"][0]["timeout"], "5s");
    let warning =
        "chatfn: the active version has A_KEY, B_KEY, and this one will not: give them with --env or --env-file";
    let (first, steps) = ran.err.split_once('\n').expect("lines");
    assert_eq!(first, warning);
    let phases = steps.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["phase"].clone());
    assert!(phases.clone().any(|phase| phase == "verify") && phases.clone().count() > 2, "{steps}");

    let ran = chatfn(&server, &["publish", dir, "--app", "demo", "--base-version", "1"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("(BASE_VERSION_MOVED)\n") && ran.err.contains("publish on top of it"), "{ran:?}");
    server.stop().await;
}

#[tokio::test]
async fn publish_on_a_terminal_shows_a_bar_that_is_gone_at_the_end() {
    let server = TestServer::start().await;
    let project = project(&[(LOGIN_FILE, ENDS)]);
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).expect("a terminal");
    let mut publish = command(&server.address, &["publish", name(project.path()), "--app", "demo"]);
    let end = || Stdio::from(terminal.slave.try_clone().expect("clone"));
    publish.stdin(Stdio::null()).stdout(end()).stderr(end());
    let mut child = publish.spawn().expect("starts");
    drop((publish, terminal.slave));
    let mut master = std::fs::File::from(terminal.master);
    let shown = tokio::task::spawn_blocking(move || {
        let mut shown = Vec::new();
        // The error says that nobody holds the other end any more.
        let _ = master.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    let shown = shown.await.expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(0), "{shown}");
    assert!(shown.contains("\u{1b}[") && shown.contains("[==") && shown.contains("     verify  "), "{shown:?}");
    let (_, report) = shown.rsplit_once("Version 1 of demo is active").expect("a report");
    assert!(!report.contains('\u{1b}'), "{report:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_syntax_error_comes_with_its_frame_as_the_service_drew_it() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = () => {\n  return 1 +;\n};\n";
    let refused = server.publish(request("demo", &[(LOGIN_FILE, source)])).await.expect_err("wrong");
    let project = project(&[(LOGIN_FILE, source)]);
    let ran = chatfn(&server, &["publish", name(project.path()), "--app", "demo"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(refused.message().contains("\n") && refused.message().contains('^'), "{refused:?}");
    assert!(ran.err.ends_with(&format!("chatfn: {}\n(SYNTAX_ERROR)\n", refused.message())), "{ran:?}");
    server.stop().await;
}

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

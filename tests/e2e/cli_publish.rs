//! `chatfn publish` as a user types it: through a pipe, and on a terminal.

use std::io::Read;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use serde_json::Value;

use crate::cli::{ENDS, LOGIN_FILE, chatfn, command, ended, name, project};
use crate::harness::{TestServer, request};

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
    assert_eq!(version["environment_names"], serde_json::json!(["A_KEY", "B_KEY"]), "they stay");
    let steps = &ran.err;
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
async fn publish_checks_types_if_it_is_told_to() {
    let server = TestServer::start().await;
    let source = "async function handleEvent(event: UserAttemptedStartSessionEvent, context: Context) {\n  return event.usernam;\n}\n";
    let project = project(&[(LOGIN_FILE, source)]);
    let publish = ["publish", name(project.path()), "--app", "demo", "--typecheck"];
    let ran = chatfn(&server, &[&publish[..], &["error"]].concat()).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("(TYPE_ERRORS)") && ran.err.contains("  return event.usernam;\n"), "{ran:?}");
    let ran = chatfn(&server, &[&publish[..], &["warn", "--json"]].concat()).await.done();
    assert_eq!(ran.json()["number"], 2); // The one that was refused has a number too.
    let steps = ran.err.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let found: Vec<_> = steps.filter_map(|step| Some(step.get("diagnostics")?[0].clone())).collect();
    assert_eq!(found.len(), 1, "{ran:?}");
    assert_eq!((&found[0]["file"], &found[0]["line"]), (&LOGIN_FILE.into(), &2.into()));
    server.stop().await;
}

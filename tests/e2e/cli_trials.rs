//! The commands that change, compare and try versions, as a user types them.

use serde_json::Value;

use crate::cli::{LOGIN_FILE, chatfn, command, ended, name, project};
use crate::harness::{Answered, LOGIN, TestServer};
use crate::publish_request::Publish;

const SHOW: &str = "exports.handleEvent = (event) => ({ name: event.username, word: process.env.WORD })";

#[tokio::test]
async fn variables_are_set_and_removed_by_new_versions_and_never_shown() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW).variable("OTHER", "o").on(&server).await;
    let mut set = command(&server.address, &["env", "set", "WORD", "MORE=b=c", "--app", "demo", "--json"]);
    set.env("WORD", "hunter2");
    let ran = ended(set, "").await.done();
    assert_eq!(ran.json()["environment_names"], serde_json::json!(["MORE", "OTHER", "WORD"]));
    assert!(!format!("{}{}", ran.out, ran.err).contains("hunter2"));
    assert_eq!(app.login("jane").await.json()["word"], "hunter2");
    let listed = chatfn(&server, &["env", "list", "--app", "demo"]).await.done();
    assert_eq!(listed.out, "MORE\nOTHER\nWORD\n");
    let ran = chatfn(&server, &["env", "unset", "MORE", "WORD", "--app", "demo"]).await.done();
    assert!(ran.out.starts_with("Version 3 of demo is active, after "), "{ran:?}");
    assert_eq!(app.login("jane").await.json(), serde_json::json!({"name": "jane"}));
    let ran = chatfn(&server, &["env", "unset", "WROD", "--app", "demo"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("no variable WROD; it has OTHER"), "{ran:?}");
    let ran = chatfn(&server, &["env", "set", "--app", "demo"]).await;
    assert!(ran.code == Some(2) && ran.err.contains("which variables?"), "{ran:?}");
    let ran = chatfn(&server, &["env", "set", "PATH=/", "--app", "demo"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("FORBIDDEN_VARIABLE"), "{ran:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_diff_shows_what_two_versions_have_and_have_not() {
    let server = TestServer::start().await;
    let first =
        project(&[(LOGIN_FILE, "export const handleEvent = () => 1;\n"), ("lib/a.ts", "export const a = 1;\n")]);
    let second = project(&[(LOGIN_FILE, "export const handleEvent = () => 2;\n")]);
    let publish = async |directory: &std::path::Path, more: &[&str]| {
        let args = [&["publish", name(directory), "--app", "demo"], more].concat();
        chatfn(&server, &args).await.done()
    };
    publish(first.path(), &[]).await;
    publish(second.path(), &["--env", "WORD=hunter2"]).await;
    let ran = chatfn(&server, &["diff", "demo", "1", "2"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    for part in [
        "+ variable WORD: set\n",
        "--- functions/UserAttemptedStartSession.ts\n+++ functions/UserAttemptedStartSession.ts\n",
        "-export const handleEvent = () => 1;\n+export const handleEvent = () => 2;\n",
        "--- lib/a.ts\n+++ /dev/null\n",
    ] {
        assert!(ran.out.contains(part), "no {part:?} in {ran:?}");
    }
    assert!(!ran.out.contains("hunter2"));
    let ran = chatfn(&server, &["diff", "demo", "1", "2", "--json"]).await;
    assert_eq!(ran.json()["sources"]["lib/a.ts"], serde_json::json!({"from": "export const a = 1;\n"}));
    let ran = chatfn(&server, &["diff", "demo", "2", "2"]).await.done();
    assert_eq!(ran.out, "versions 2 and 2 do not differ (values of variables are not compared)\n");
    let ran = chatfn(&server, &["diff", "demo", "1", "9"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("VERSION_NOT_FOUND"), "{ran:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_draft_is_tested_and_recorded_invocations_are_replayed() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SHOW).variable("WORD", "w").on(&server).await;
    for username in ["jane", "joe"] {
        app.login(username).await;
    }
    let draft = project(&[
        (
            "draft.ts",
            "export const handleEvent = (event: any) => { console.log('hi'); return process.env.WORD + event.username }",
        ),
        ("fails.js", "exports.handleEvent = () => { throw new Error('oh') }"),
    ]);
    let file = |name: &str| draft.path().join(name).to_str().expect("UTF-8").to_owned();
    let event = r#"--event={"username":"x"}"#;
    let ran = chatfn(&server, &["test", "demo", LOGIN, &file("draft.ts"), event]).await.done();
    assert!(ran.out.contains("verdict  ALLOW\n  result   \"wx\"\n  log      hi\n"), "{ran:?}");
    let ran = chatfn(&server, &["test", "demo", LOGIN, &file("fails.js"), event, "--json"]).await;
    assert_eq!(
        (ran.code, &ran.json()["error"]["message"], &ran.json()["verdict"]),
        (Some(1), &"oh".into(), &"DENY".into())
    );
    assert_eq!(app.history().await.len(), 2);

    let ran = chatfn(&server, &["replay", "demo"]).await.done();
    assert_eq!(ran.out, "version 1: 0 of 2 came out otherwise\n");
    let changed = SHOW.replace("event.username", "event.username.length");
    Publish::login("demo", &changed).variable("WORD", "w").on(&server).await;
    let ran = chatfn(&server, &["replay", "demo", "--last", "1", "--version", "2"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.out.contains(r#"v1       ALLOW {"name":"joe","word":"w"}"#), "{ran:?}");
    assert!(ran.out.contains(r#"now      ALLOW {"name":3,"word":"w"}"#), "{ran:?}");
    assert!(ran.out.ends_with("version 2: 1 of 1 came out otherwise\n"), "{ran:?}");
    let ran = chatfn(&server, &["replay", "demo", "--version", "2", "--json"]).await;
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((lines.len(), &lines[0]["differences"][0], &lines[2]["changed"]), (3, &"result".into(), &2.into()));

    // As a gate of a pipeline.
    let gated = project(&[(LOGIN_FILE, "export const handleEvent = () => 3")]);
    let ran = chatfn(&server, &["publish", name(gated.path()), "--app", "demo", "--replay-last", "5"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("REPLAY_CHANGED"), "{ran:?}");
    let args = ["publish", name(gated.path()), "--app", "demo", "--replay-last", "5", "--max-changed", "5"];
    chatfn(&server, &args).await.done();
    server.stop().await;
}

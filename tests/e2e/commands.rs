//! The other commands, as a user types them.

use std::process::Output;

use std::time::Duration;

use crate::events::{HANDLES, accept, event, until_dead};
use crate::harness::{LOGIN, SENT, SENT_EVENT, TestServer, binary, wait_until};
use crate::publish_request::Publish;

async fn run(args: &[&str]) -> Output {
    let mut command = binary();
    // Where the examples are.
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins")
}

fn printed(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_demo_publishes_with_npm_and_prints_outcomes_logs_and_timings() {
    let output = run(&["demo", "examples/login"]).await;
    let (out, err) = printed(&output);
    assert!(output.status.success(), "{out}\n{err}");
    for part in [
        "install  ",
        "Version 1 is READY",
        "== UserAttemptedStartSession",
        "verdict  ALLOW (FUNCTION)",
        "== UserReceivedNotification",
        "accepted as event ",
        "  log      ",
        "  timings  queue ",
        "Version 1 is active",
    ] {
        assert!(out.contains(part), "no {part:?} in:\n{out}");
    }
    assert_eq!(out.matches("  result   ").count(), 2, "{out}");
}

#[tokio::test]
async fn the_bench_loads_a_service_and_prints_percentiles() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = (event) => event.username").await;
    app.login("jane").await; // One worker is there.
    let load =
        ["bench", "--server", &server.address, "--app", "demo", "--rate", "20", "--duration", "1s", "--warmup", "0s"];
    let output = run(&load).await;
    let (out, err) = printed(&output);
    assert!(output.status.success(), "{out}\n{err}");
    for part in ["asked for 20 calls/s", " 20 succeeded, 0 failed, 0 not started", "p50 ", "p99.9 ", "max "] {
        assert!(out.contains(part), "no {part:?} in:\n{out}");
    }
    let output = run(&[&load[..], &["--json"]].concat()).await;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["succeeded"], &report["errors"]), (&20.into(), &0.into()), "{report}");
    let latency = |name: &str| report["latency_micros"][name].as_u64().expect("a number");
    assert!(latency("p50") > 0 && latency("p50") <= latency("p99") && latency("p99") <= latency("max"), "{report}");
    server.stop().await;
}

#[tokio::test]
async fn the_bench_of_a_non_blocking_trigger_tells_when_functions_began() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", SENT, "export const handleEvent = () => {}").await;
    let load = ["bench", "--server", &server.address, "--app", "demo", "--trigger-type", SENT, "--event", SENT_EVENT];
    let times = ["--rate", "20", "--duration", "1s", "--warmup", "0s", "--starts"];
    let output = run(&[&load[..], &times, &["--json"]].concat()).await;
    let (out, err) = printed(&output);
    assert!(output.status.success(), "{out}\n{err}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let start = |name: &str| report["start_micros"][name].as_u64().expect("a number");
    assert!(start("p50") > 0 && start("p50") <= start("max"), "{report}");
    assert_eq!(app.history().await.len(), 20);
    let output = run(&[&load[..], &times].concat()).await;
    let (out, _) = printed(&output);
    assert!(out.contains("until the function began, at most, µs: p50 "), "{out}");
    server.stop().await;
}

#[tokio::test]
async fn a_bench_without_one_success_fails_and_says_why() {
    let server = TestServer::start().await;
    let load =
        ["bench", "--server", &server.address, "--app", "nobody", "--rate", "5", "--duration", "1s", "--warmup", "0s"];
    let output = run(&load).await;
    let (out, err) = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(err.contains("not one call succeeded") && err.contains("nobody"), "{err}");
    server.stop().await;
}

/// `chatfn events …` about the app `demo`.
async fn events(server: &TestServer, args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(&[&["events"], args, &["--app", "demo", "--address", &server.address]].concat()).await;
    let (out, err) = printed(&output);
    (output.status.code(), out, err)
}

#[tokio::test]
async fn dead_letters_are_listed_with_every_attempts_error_redriven_and_purged() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(2, Duration::from_millis(1)).on(&server).await;
    assert_eq!(
        events(&server, &["dead-letters"]).await,
        (Some(0), "demo has no dead letters.\n".to_owned(), String::new())
    );
    let mut request = app.call(SENT, &event("throw"));
    request.ordering_key = "channel \u{1b}[2J1".to_owned();
    let id = accept(&app, request).await.event_id;
    until_dead(&app).await;
    let (code, out, err) = events(&server, &["dead-letters"]).await;
    assert_eq!(code, Some(0), "{err}");
    let first = format!("{id}  UserSentMessage  version 1  DEAD: ATTEMPTS_EXHAUSTED\n");
    for part in
        [&first, "attempt 1 ", "attempt 2 ", "    Error: attempt 1\n", "    Error: attempt 2\n", r#""body":"throw""#]
    {
        assert!(out.contains(part), "no {part:?} in:\n{out}");
    }
    assert!(!out.contains('\u{1b}') && out.contains("channel \u{fffd}[2J1"), "nothing that steers a terminal: {out:?}");
    let (_, out, _) = events(&server, &["dead-letters", "--json"]).await;
    let letter: serde_json::Value = serde_json::from_str(&out).expect("one line of JSON");
    assert_eq!(
        (&letter["event_id"], &letter["state"], &letter["event"]["message"]["body"]),
        (&id.as_str().into(), &"DEAD".into(), &"throw".into())
    );
    assert_eq!(letter["attempts"][1]["error"]["message"], "attempt 2");

    let (code, out, err) = events(&server, &["redrive", &id]).await;
    assert_eq!((code, out.as_str()), (Some(0), "1 event queued again\n"), "{err}");
    wait_until("it is dead again", async || app.event(&id).await.attempts.len() == 4).await;
    until_dead(&app).await;
    let (code, out, _) = events(&server, &["get", &id]).await;
    assert_eq!(code, Some(0));
    assert!(
        out.contains("attempt 4 ")
            && out.contains("THROWN")
            && out.contains("handleEvent (functions/UserSentMessage.ts:"),
        "{out}"
    );

    let (code, out, _) = events(&server, &["redrive", "--all", "--json"]).await;
    let answer: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &answer["count"]), (Some(0), &1.into()));
    wait_until("it is dead again", async || app.event(&id).await.attempts.len() == 6).await;
    until_dead(&app).await;
    let (code, _, err) = events(&server, &["purge", "--all"]).await;
    assert!(code == Some(2) && err.contains("--yes"), "{err}");
    let stranger = "0199e0c8-0000-7000-8000-000000000000";
    let (code, out, err) = events(&server, &["purge", &id, stranger]).await;
    assert_eq!((code, out.as_str()), (Some(1), "1 event deleted\n"));
    assert!(err.contains(&format!("{stranger} is no dead letter of demo")), "{err}");
    let (code, out, _) = events(&server, &["purge", "--all", "--yes"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "0 events deleted\n"));
    let (code, out, err) = events(&server, &["get", &id]).await;
    assert!(code == Some(1) && out.is_empty() && err.contains("EVENT_NOT_FOUND"), "{out} {err}");
    server.stop().await;
}

#[tokio::test]
async fn a_list_of_dead_letters_ends_where_it_is_told() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, Duration::from_millis(1)).on(&server).await;
    for _ in 0..3 {
        accept(&app, app.call(SENT, &event("throw"))).await;
    }
    wait_until("they are dead", async || app.show().await.queue.is_some_and(|queue| queue.dead == 3)).await;
    for (limit, shown, more) in [("2", 2, true), ("3", 3, false), ("0", 3, false)] {
        let (_, out, _) = events(&server, &["dead-letters", "--limit", limit]).await;
        assert_eq!((out.matches("DEAD: ").count(), out.contains("There are more")), (shown, more), "{limit}: {out}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_command_takes_address_and_token_from_the_environment() {
    let directory = tempfile::tempdir().expect("temp dir");
    let file = directory.path().join("token");
    std::fs::write(&file, "a-token-of-the-operators\n").expect("write");
    let server = TestServer::with(&[&format!("operator_token_file={}", file.display())]).await;
    let answer = async |token: Option<&str>| {
        let mut command = binary();
        command.args(["events", "dead-letters", "--app", "nobody"]).env_remove("CHATFN_TOKEN");
        command
            .env("CHATFN_ADDRESS", server.address.trim_start_matches("http://"))
            .envs(token.map(|token| ("CHATFN_TOKEN", token)));
        let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins");
        (output.status.code(), printed(&output).1)
    };
    let (code, err) = answer(None).await;
    assert!(code == Some(1) && err.contains("(UNAUTHENTICATED)"), "{err}");
    let (code, err) = answer(Some("a-token-of-the-operators")).await;
    assert!(code == Some(1) && err.contains("there is no app nobody (APP_NOT_FOUND)"), "{err}");
    server.stop().await;
}

//! The other commands, as a user types them.

use std::process::Output;

use crate::harness::{LOGIN, TestServer, binary};

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
        "verdict  VERDICT_ALLOW (DECIDED_BY_FUNCTION)",
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

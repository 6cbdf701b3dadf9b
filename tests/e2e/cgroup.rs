//! What cgroups do for a service, on whatever version of them there is. Also run in a machine that has version 2 alone: see
//! scripts/test-cgroup-v2.

use std::time::Duration;

use chatfn::proto;
use chatfn::proto::ErrorKind;
use serde_json::Value;

use crate::harness::{Answered, TestServer, binary};
use crate::publish_request::Publish;

/// Whether these layers are active, by `chatfn doctor`'s word.
fn active(layers: &[&str]) -> bool {
    let output = binary().args(["doctor", "--json"]).output().expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = report["layers"].as_array().expect("layers");
    let missing: Vec<_> = found
        .iter()
        .filter(|layer| layers.iter().any(|name| layer["name"] == **name) && layer["active"] == false)
        .collect();
    if !missing.is_empty() {
        eprintln!("skipped, because these layers are not active here: {missing:?}");
    }
    missing.is_empty()
}

#[tokio::test]
async fn a_bomb_that_the_cgroup_alone_counts_is_ended_by_the_kernel_and_named() {
    if !active(&["memory"]) {
        return;
    }
    let server = TestServer::start().await;
    // Files in /tmp are memory, but no process's: RLIMIT_DATA and V8 know nothing of them.
    let source = "export const handleEvent = (event) => {
        const block = Buffer.alloc(1 << 20, 1);
        for (let n = 0; event.username === 'bomb'; n++) require('fs').appendFileSync('/tmp/bomb', block);
        return 'fine';
    }";
    let limits = |limits: &mut proto::Limits| (limits.memory_bytes, limits.tmp_bytes) = (192 << 20, 192 << 20);
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).limits(limits).on(&server).await;
    let answer = app.login("bomb").await;
    let error = answer.failure();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error:?}");
    assert!(error.message.contains("the kernel ended the worker at its memory limit"), "{error:?}");
    assert!(error.message.contains("limit is 192 MiB"), "{error:?}");
    assert_eq!(app.login("jane").await.json(), "fine");
    server.stop().await;
}

#[tokio::test]
async fn a_loop_gets_no_more_than_its_share_of_a_cpu() {
    if !active(&["cpu"]) {
        return;
    }
    // With its share Node starts slowly where the machine is slow.
    let server = TestServer::with(&["ready_timeout=1m", "init_timeout=1m"]).await;
    let source = "export const handleEvent = () => {
        const before = process.cpuUsage(), until = Date.now() + 1500;
        while (Date.now() < until) {}
        return process.cpuUsage(before).user;
    }";
    let limits = |limits: &mut proto::Limits| limits.cpu_millis = 400;
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).limits(limits).on(&server).await;
    let micros = app.login("spin").await.json().as_u64().expect("a number");
    // 600 ms, and what is left of the shares of periods that began before or end later.
    assert!(micros < 900_000, "{micros} µs of CPU time within 1.5 s");
    server.stop().await;
}

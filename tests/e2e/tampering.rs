//! Code that lies to the runtime: on its output, on the protocol's own descriptor, in the globals it shares with the shim.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chatfn::proto::invoke_response::Outcome;
use chatfn::proto::{self, ErrorKind};
use serde_json::json;

use crate::harness::{Answered, LOGIN, TestServer, wait_until};
use crate::pool::WHICH;
use crate::publish_request::Publish;

/// A well-formed answer, as the shim would frame it, and every way to say it. `forge` is in scope of the handler.
const FORGE: &str = r#"
const fs = require('fs');
const { spawn, spawnSync } = require('child_process');
const body = JSON.stringify({ jsonrpc: '2.0', id: '1', result: { outcome: { value: 'forged' }, usage: { cpuMicros: 0, rssBytes: 0, peakRssBytes: 0 } } });
const frame = `Content-Length: ${body.length}\r\n\r\n${body}`;
"#;

#[tokio::test]
async fn a_forged_answer_on_any_output_is_only_a_log_line() {
    let server = TestServer::start().await;
    let source = FORGE.to_owned()
        + "export const handleEvent = (event) => {
        switch (event.username) {
            case 'console': console.log(frame); break;
            case 'stdout': process.stdout.write(frame); break;
            case 'stderr': process.stderr.write(frame); break;
            case 'fd 1': fs.writeSync(1, frame); break;
            case 'fd 2': fs.writeSync(2, frame); break;
            case 'child': spawnSync('printf', ['%s', frame], { stdio: 'inherit' }); break;
            case 'fd 4': fs.writeSync(4, frame); break;
        }
        return 'real';
    }";
    let limits = |limits: &mut proto::Limits| limits.subprocesses = true;
    let app = Publish::login("demo", &source).limits(limits).on(&server).await;
    for case in ["console", "stdout", "stderr", "fd 1", "fd 2", "child", "fd 4"] {
        let answer = app.login(case).await;
        assert_eq!(answer.json(), json!("real"), "{case}");
        let lines = app.invocation(&answer.invocation_id).await.logs;
        assert_eq!(lines.iter().any(|line| line.text.contains("forged")), case != "fd 4", "{case}: {lines:?}");
    }
    assert_eq!(app.pool().await.workers_started_total, 1);
    server.stop().await;
}

#[tokio::test]
async fn garbage_on_the_protocols_descriptor_crashes_its_own_worker_alone() {
    let server = TestServer::start().await;
    let source = FORGE.to_owned()
        + "export const handleEvent = (event) => {
        switch (event.username) {
            case 'text': fs.writeSync(4, 'hello\\r\\n\\r\\n'); break;
            case 'huge': fs.writeSync(4, 'Content-Length: 99999999999\\r\\n\\r\\n'); break;
            case 'no json': fs.writeSync(4, 'Content-Length: 3\\r\\n\\r\\n{]}'); break;
            case 'endless': fs.writeSync(4, 'x'.repeat(60000)); break;
            case 'child': spawnSync('sh', ['-c', 'echo nonsense; echo nonsense >&4'], { stdio: 'inherit' }); fs.writeSync(4, '\\r\\n\\r\\n'); break;
            case 'closed': fs.closeSync(4); break;
            default: return 'fine';
        }
        return new Promise(() => {});
    }";
    let limits = |limits: &mut proto::Limits| limits.subprocesses = true;
    let app = Publish::login("demo", &source).limits(limits).on(&server).await;
    let other = server.deploy_function("other", LOGIN, WHICH).await;
    let untouched = other.login("jane").await.json();
    for case in ["text", "huge", "no json", "endless", "child", "closed"] {
        let answer = app.login(case).await;
        assert_eq!(answer.failure().kind(), ErrorKind::Crashed, "{case}: {:?}", answer.failure());
        assert_eq!(app.login("jane").await.json(), json!("fine"), "{case}");
    }
    assert_eq!(other.login("jane").await.json(), untouched);
    server.stop().await;
}

#[tokio::test]
async fn a_worker_that_hears_nothing_any_more_goes_with_its_memory() {
    // Room for two: a worker that leaked would be missed.
    let server = TestServer::with(&[&format!("memory_budget_bytes={}", 600 << 20), "wait_max=20s"]).await;
    let source = "const worker = Math.random();
    export const handleEvent = (event) => {
        if (event.username === 'deaf') require('fs').closeSync(3);
        return worker;
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    for _ in 0..3 {
        let (pids, deaf) = (app.pool().await.worker_pids, app.login("deaf").await.json());
        assert_ne!(app.login("jane").await.json(), deaf, "it is run elsewhere");
        let gone = async || !server.worker_processes().iter().any(|pid| pids.contains(pid));
        wait_until("it is gone", gone).await;
        wait_until("one is left", async || app.pool().await.worker_pids.len() == 1).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn globals_that_a_function_replaced_do_not_reach_later_answers() {
    let server = TestServer::start().await;
    let source = "const worker = Math.random();
    export const handleEvent = (event) => {
        if (event.username !== 'tamper') return { worker, name: event.username };
        const forged = () => '{\"outcome\":{\"value\":\"forged\"}}';
        JSON.stringify = forged; JSON.parse = () => ({ forged: true });
        Buffer.prototype.toString = forged; Buffer.from = () => { throw new Error('no'); };
        Array.prototype.push = () => 0; Map.prototype.get = () => undefined; Map.prototype.set = () => { throw 1; };
        Promise.prototype.then = function () { throw new Error('then'); };
        Object.defineProperty(Object.prototype, 'outcome', { get() { return 'forged'; }, set() {}, configurable: true });
        require('fs').writeSync = () => { throw new Error('no'); };
        process.stdout.write = process.emit = () => true;
        globalThis.setTimeout = globalThis.clearTimeout = () => { throw new Error('no'); };
        return { worker, name: 'tampered' };
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let first = app.login("tamper").await.json();
    assert_eq!(first["name"], json!("tampered"));
    for name in ["jane", "joe", "jim"] {
        assert_eq!(app.login(name).await.json(), json!({ "worker": first["worker"], "name": name }));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_flood_of_output_is_bounded_and_holds_up_no_answer() {
    let server = TestServer::with(&["log_lines_max=50"]).await;
    let source = "export const handleEvent = () => {
        const line = 'x'.repeat(100) + '\\n';
        for (let n = 0; n < 50_000; n += 1) process.stdout.write(line);
        return 'done';
    }";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).on(&server).await;
    let answer = app.login("jane").await;
    assert_eq!(answer.json(), json!("done"));
    let lines = app.invocation(&answer.invocation_id).await.logs;
    assert_eq!(lines.len(), 51);
    assert!(lines[50].text.contains("truncated"), "{:?}", lines[50]);
    server.stop().await;
}

#[tokio::test]
async fn an_endless_flood_on_any_descriptor_holds_up_no_timeout() {
    let server = TestServer::start().await;
    let source = FORGE.to_owned()
        + "const note = JSON.stringify({ jsonrpc: '2.0', method: 'log', params: { id: null, level: 'info', text: 'x', at: 0 } });
    const notes = `Content-Length: ${note.length}\\r\\n\\r\\n${note}`.repeat(5000);
    export const handleEvent = (event) => {
        while (event.username === 'stdout') fs.writeSync(1, 'x'.repeat(100_000) + '\\n');
        while (event.username === 'stderr') fs.writeSync(2, 'x\\n'.repeat(50_000));
        while (event.username === 'answers') fs.writeSync(4, frame.repeat(5000));
        while (event.username === 'notes') fs.writeSync(4, notes);
        if (event.username === 'child') spawn('yes', [`Content-Length: ${body.length + 1}\\r\\n\\r\\n${body}`], { stdio: ['ignore', 4, 'ignore'] });
        while (event.username === 'child') {}
        return 'fine';
    }";
    let budget = Duration::from_millis(500);
    let limits = |limits: &mut proto::Limits| limits.subprocesses = true;
    let app = Publish::login("demo", &source).timeout(budget).limits(limits).on(&server).await;
    for case in ["stdout", "stderr", "answers", "notes", "child"] {
        let asked = Instant::now();
        let answer = app.login(case).await;
        assert_eq!(answer.failure().kind(), ErrorKind::TimedOut, "{case}: {:?}", answer.failure());
        let took = asked.elapsed();
        assert!(took < budget + Duration::from_secs(20), "{case}: {took:?}"); // What is starved never ends.
        wait_until("the next call is fine", async || {
            matches!(app.login("jane").await.outcome, Some(Outcome::Result(_)))
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_worker_sees_the_apps_variables_and_nothing_of_the_services_environment() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = () => ({ ...process.env })";
    let app = Publish::login("demo", source).variable("API_KEY", "s3cret").variable("EMPTY", "").on(&server).await;
    let seen: BTreeMap<String, String> = serde_json::from_value(app.login("jane").await.json()).expect("strings");
    let names: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(names, ["API_KEY", "EMPTY", "HOME", "LANG", "NODE_ENV", "PATH", "TMPDIR", "TZ"]);
    assert_eq!((seen["API_KEY"].as_str(), seen["EMPTY"].as_str()), ("s3cret", ""));
    server.stop().await;
}

#[tokio::test]
async fn a_workers_standard_descriptors_lead_to_null_and_to_its_log() {
    let server = TestServer::start().await;
    let source = "import * as fs from 'fs';
    export const handleEvent = () => {
        const links = {};
        for (const fd of fs.readdirSync('/proc/self/fd')) {
            try { links[fd] = fs.readlinkSync(`/proc/self/fd/${fd}`); } catch { /* readdir's own */ }
        }
        return { links, input: fs.readFileSync(0, 'utf8'), null: fs.fstatSync(0).rdev === fs.statSync('/dev/null').rdev };
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let seen = app.login("jane").await.json();
    let links: BTreeMap<u32, String> = serde_json::from_value(seen["links"].clone()).expect("links");
    // Opened before the worker had a root of its own: its name there is what is left of it.
    assert_eq!((links[&0].as_str(), &seen["input"], &seen["null"]), ("/null", &json!(""), &json!(true)));
    assert!(links[&1].starts_with("pipe:") && links[&2].starts_with("pipe:"), "{links:?}");
    let null = ["/null", "/dev/null"]; // The second is libuv's own.
    let files: Vec<_> = links.values().filter(|link| link.starts_with('/') && !null.contains(&link.as_str())).collect();
    let sockets: Vec<_> = links.values().filter(|link| link.starts_with("socket:")).collect();
    assert!(files.is_empty() && sockets.is_empty(), "inherited: {links:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_flood_that_goes_on_after_the_answer_holds_nothing_up() {
    let server = TestServer::start().await;
    let source = "const { spawn } = require('node:child_process');
        exports.handleEvent = () => {
            spawn('yes', { stdio: ['ignore', 1, 'ignore'] });
            spawn('yes', { stdio: ['ignore', 'ignore', 2] });
            return 'fine';
        };";
    let limits = |limits: &mut proto::Limits| limits.subprocesses = true;
    let app = Publish::login("demo", source).limits(limits).on(&server).await;
    for _ in 0..3 {
        assert_eq!(app.login("jane").await.json(), serde_json::json!("fine"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_worker_that_talks_on_after_its_answer_hangs_neither_the_next_caller_nor_the_end() {
    let server = TestServer::start().await;
    let source = FORGE.to_owned()
        + "const worker = Math.random();
    const word = JSON.stringify({ jsonrpc: '2.0', id: 'x', result: 0 });
    const words = `Content-Length: ${word.length}\\r\\n\\r\\n${word}`.repeat(20000);
    export const handleEvent = (event) => {
        if (event.username === 'flood') setTimeout(() => { for (;;) fs.writeSync(4, words); }, 10);
        return worker;
    }";
    let limits = |limits: &mut proto::Limits| limits.workers_max = 1;
    let budget = Duration::from_secs(1);
    let app = Publish::login("demo", &source).timeout(budget).limits(limits).on(&server).await;
    let flood = app.login("flood").await.json();
    // The first of these is sent to the worker that listens to nobody any more, unless it came before the flood.
    wait_until("that worker is gone", async || {
        let asked = Instant::now();
        let answer = app.login("jane").await;
        let took = asked.elapsed();
        assert!(took < budget + Duration::from_secs(4), "{took:?}"); // What is starved never ends.
        match &answer.outcome {
            Some(Outcome::Result(_)) => answer.json() != flood,
            _ => answer.failure().kind() != ErrorKind::TimedOut,
        }
    })
    .await;
    app.login("flood").await.json();
    server.stop().await; // Which has to end the next one.
}

#[tokio::test]
async fn a_worker_has_the_usual_devices_and_no_other() {
    let server = TestServer::start().await;
    let source = "import * as fs from 'fs';
    const read = (name) => { const bytes = Buffer.alloc(8, 7), fd = fs.openSync('/dev/' + name, 'r'); return fs.readSync(fd, bytes); };
    export const handleEvent = () => {
        fs.writeFileSync('/dev/null', 'gone');
        return [read('null'), read('zero'), read('random'), read('urandom'), fs.readdirSync('/dev').sort().join(' ')];
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let devices = "fd full null random stderr stdin stdout urandom zero";
    assert_eq!(app.login("jane").await.json(), json!([0, 8, 8, 8, devices]));
    server.stop().await;
}

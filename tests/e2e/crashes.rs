//! A worker that ends: the one it ran for is told how, nobody else is, and the next call is fine.

use std::path::Path;
use std::time::Duration;

use chatfn::proto::{self, ErrorKind, invoke_response::Outcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, wait_until};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

#[tokio::test]
async fn every_way_to_end_a_worker_fails_its_own_invocation_alone() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        switch (event.username) {
            case 'exit': return process.exit(0);
            case 'exit 3': return process.exit(3);
            case 'abort': return process.abort();
            case 'kill': process.kill(process.pid, 'SIGKILL'); break;
            case 'segv': process.kill(process.pid, 'SIGSEGV'); break;
            case 'rejection': Promise.reject(new TypeError('nobody caught me')); break;
            case 'timer': setTimeout(() => { throw new RangeError('in a timer'); }, 1); break;
            case 'silenced':
                process.removeAllListeners('uncaughtException');
                setTimeout(() => { throw new Error('still told'); }, 1); break;
            default: return 'fine';
        }
        return new Promise(() => {});
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let table = [
        ("exit", "ProcessExit", "process.exit(0)"),
        ("exit 3", "ProcessExit", "process.exit(3)"),
        ("abort", "WorkerCrashed", "SIGABRT"),
        ("kill", "WorkerCrashed", "SIGKILL"),
        ("segv", "WorkerCrashed", "SIGSEGV"),
        ("rejection", "TypeError", "nobody caught me"),
        ("timer", "RangeError", "in a timer"),
        ("silenced", "Error", "still told"),
    ];
    for (case, name, message) in table {
        let answer = app.login(case).await;
        let error = answer.failure();
        assert_eq!((error.kind(), error.name.as_str()), (ErrorKind::Crashed, name), "{case}: {error:?}");
        assert!(error.message.contains(message), "{case}: {error:?}");
        assert!(!error.retryable, "{case}");
        assert_eq!(app.login("jane").await.json(), json!("fine"), "{case}");
    }
    server.stop().await;
}

async fn until_gone(app: &TestApp, pids: &[u32]) {
    let any = async || app.pool().await.worker_pids.iter().any(|pid| pids.contains(pid));
    wait_until("the worker is gone", async || !any().await).await;
}

/// The app's stored lines.
async fn log(server: &TestServer, app: &TestApp) -> Vec<String> {
    let request = proto::TailLogsRequest { app_id: app.id.clone(), tail_lines: 1000, ..Default::default() };
    let mut lines = server.invocations().tail_logs(request).await.expect("lines").into_inner();
    let mut texts = Vec::new();
    while let Some(line) = lines.message().await.expect("a line") {
        texts.push(line.entry.expect("an entry").text);
    }
    texts
}

#[tokio::test]
async fn a_large_answer_followed_by_an_exit_arrives_whole() {
    let server = TestServer::start().await;
    let source = "const worker = Math.random();
    export const handleEvent = (event) => {
        if (event.username === 'exit') process.nextTick(() => setImmediate(() => process.exit(0)));
        return event.username === 'jane' ? worker : 'x'.repeat(5 << 20);
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let (pids, worker) = (app.pool().await.worker_pids, app.login("jane").await.json());
    assert_eq!(app.login("exit").await.json().as_str().map(str::len), Some(5 << 20));
    until_gone(&app, &pids).await;
    assert_ne!(app.login("jane").await.json(), worker);
    server.stop().await;
}

#[tokio::test]
async fn an_error_after_the_answer_spoils_no_answer_and_is_logged() {
    let server = TestServer::start().await;
    let source = "const worker = Math.random();
    export const handleEvent = (event) => {
        if (event.username === 'late') setTimeout(() => Promise.reject(new Error('much too late')), 50);
        return worker;
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let pids = app.pool().await.worker_pids;
    let answer = app.login("late").await;
    until_gone(&app, &pids).await;
    assert_ne!(app.login("jane").await.json(), answer.json());
    wait_until("it is in the log", async || log(&server, &app).await.iter().any(|line| line.contains("much too late")))
        .await;
    let row = app.invocation(&answer.invocation_id).await;
    assert_eq!((row.status(), row.error), (proto::InvocationStatus::Succeeded, None));
    server.stop().await;
}

#[tokio::test]
async fn a_worker_that_ends_between_two_calls_fails_neither() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event, context) => {
        if (event.username === 'exit') setImmediate(() => process.exit(0));
        if (event.username === 'reject') setImmediate(() => Promise.reject(new Error('between')));
        if (event.username === 'deny') { try { context.deny('no'); } catch {} process.exit(0); }
        return 'fine';
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    for case in ["exit", "reject", "deny"].repeat(4) {
        let first = app.login(case).await;
        let next = app.login("jane").await;
        assert!(!matches!(first.outcome, Some(Outcome::Error(_))), "{case}: {:?}", first.outcome);
        assert_eq!(next.json(), json!("fine"), "after {case}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_an_earlier_invocation_left_behind_does_not_touch_the_next_one() {
    for concurrency in [1, 4] {
        let server = TestServer::start().await;
        let source = "const worker = Math.random(); let failed; const failure = new Promise((resolve) => { failed = resolve; });
        export const handleEvent = async (event) => {
            if (event.username === 'late') setTimeout(() => { setImmediate(failed); throw new Error('left behind'); }, 100);
            if (event.username === 'next') await failure;
            return worker;
        }";
        let limits = |limits: &mut proto::Limits| (limits.concurrency, limits.workers_max) = (concurrency, 1);
        let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).limits(limits).on(&server).await;
        let worker = app.login("late").await.json();
        assert_eq!(app.login("next").await.json(), worker, "it goes on where it began");
        wait_until("it is in the log", async || {
            log(&server, &app).await.iter().any(|line| line.contains("left behind"))
        })
        .await;
        assert_ne!(app.login("jane").await.json(), worker, "that worker takes nothing new");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_crash_leaves_other_workers_and_other_apps_alone() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        if (event.username === 'crash') process.kill(process.pid, 'SIGKILL');
        return new Promise((resolve) => setTimeout(() => resolve(event.username), 100));
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let other = server.deploy_function("other", LOGIN, source).await;
    let (first, crashed, second) = tokio::join!(app.login("jane"), app.login("crash"), other.login("joe"));
    assert_eq!((first.json(), second.json()), (json!("jane"), json!("joe")));
    assert_eq!(crashed.failure().kind(), ErrorKind::Crashed);
    server.stop().await;
}

#[tokio::test]
async fn idle_workers_that_all_die_at_once_are_nobodys_outcome() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    // Their temporary files take a while to remove; nobody waits for that.
    let litter = "const { tmpdir } = require('os'), fs = require('fs');
        for (let n = 0; n < 2000 && !fs.existsSync(process.env.GATE); n += 1) fs.writeFileSync(`${tmpdir()}/${n}`, '');";
    let limits = |limits: &mut proto::Limits| limits.workers_max = 6;
    let app = gate.function("demo").initialization(litter).limits(limits).on(&server).await;
    let running = hold(&app, 6);
    until_busy(&app, 6).await;
    gate.open();
    running.join_all().await;
    wait_until("all are idle", async || app.pool().await.workers_idle == 6).await;
    let workers = app.pool().await.worker_pids;
    for pid in &workers {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("signal");
    }
    // Gone for good: until its last thread has ended, the pipes of a process take what nobody will read.
    let exists = |pid: &u32| Path::new("/proc").join(pid.to_string()).exists();
    wait_until("they are dead", async || !workers.iter().any(exists)).await;
    app.login("jane").await.json();
    assert!(app.pool().await.worker_pids.iter().all(|pid| !workers.contains(pid)));
    server.stop().await;
}

#[tokio::test]
async fn among_many_calls_each_gets_its_own_outcome() {
    let server = TestServer::with(&["wait_max=60s"]).await;
    let source = "export const handleEvent = async (event) => {
        const [what] = event.username.split(' ');
        if (what === 'throw') throw new Error(event.username);
        if (what === 'exit') process.exit(7);
        if (what === 'kill') process.kill(process.pid, 'SIGKILL');
        if (what === 'reject') { Promise.reject(new Error(event.username)); await new Promise(() => {}); }
        await new Promise((resolve) => setTimeout(resolve, 5));
        return event.username;
    }";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).on(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..80 {
        let app = app.clone();
        let what = ["echo", "throw", "echo", "exit", "echo", "kill", "echo", "reject"][n % 8];
        calls.spawn(async move {
            let name = format!("{what} {n}");
            (what, name.clone(), app.login(&name).await)
        });
    }
    for (what, name, answer) in calls.join_all().await {
        match what {
            "echo" => assert_eq!(answer.json(), json!(name)),
            "throw" | "reject" => assert_eq!(answer.failure().message, name),
            "exit" => assert_eq!(answer.failure().name, "ProcessExit", "{name}"),
            _ => assert!(answer.failure().message.contains("SIGKILL"), "{name}: {:?}", answer.failure()),
        }
    }
    server.stop().await;
}

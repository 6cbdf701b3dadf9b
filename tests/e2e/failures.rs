//! A function that does not answer, throws, answers nonsense or takes all memory: each is told apart, and the next call is fine.

use std::time::{Duration, Instant};

use chatfn::proto::{self, ErrorKind, InvocationStatus, invoke_response::Outcome};
use serde_json::json;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, wait_until};
use crate::pool::WHICH;
use crate::publish_request::Publish;

/// Answers which worker it is, unless told to spin.
const SPINS: &str = "const worker = Math.random();
export const handleEvent = (event) => { while (event.username === 'spin') {} return worker; }";

#[tokio::test]
async fn an_endless_loop_is_answered_at_its_budget_and_its_worker_is_replaced() {
    let server = TestServer::start().await;
    let budget = Duration::from_millis(300);
    let app = Publish::login("demo", SPINS).timeout(budget).on(&server).await;
    let (pids, before) = (app.pool().await.worker_pids, app.login("jane").await.json());
    let asked = Instant::now();
    let answer = app.login("spin").await;
    let took = asked.elapsed();
    assert_eq!(answer.failure().kind(), ErrorKind::TimedOut);
    assert_eq!((answer.verdict(), answer.decided_by()), (proto::Verdict::Deny, proto::DecidedBy::Policy));
    assert!(took >= budget && took < budget + Duration::from_secs(1), "{took:?}");
    assert_ne!(app.login("jane").await.json(), before);
    wait_until("the first worker is gone", async || !app.pool().await.worker_pids.iter().any(|pid| pids.contains(pid)))
        .await;
    server.stop().await;
}

#[tokio::test]
async fn a_callers_shorter_deadline_bounds_the_run() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", SPINS).timeout(Duration::from_secs(60)).on(&server).await;
    app.login("jane").await.json();
    let mut request = tonic::Request::new(app.call(LOGIN, r#"{"username":"spin"}"#));
    request.set_timeout(Duration::from_millis(500));
    // Close to the deadline the answer may lose the race against the client's own clock.
    match server.invocations().invoke(request).await {
        Ok(answer) => assert_eq!(answer.get_ref().failure().kind(), ErrorKind::TimedOut),
        Err(status) => {
            assert!([tonic::Code::DeadlineExceeded, tonic::Code::Cancelled].contains(&status.code()), "{status}")
        }
    }
    wait_until("it is over", async || app.history().await[0].status() == InvocationStatus::Failed).await;
    let row = app.history().await.remove(0);
    assert_eq!(row.error.expect("an error").kind(), ErrorKind::TimedOut);
    let run = row.timings.and_then(|timings| timings.run).expect("timed");
    assert!(run.seconds == 0 && run.nanos <= 600_000_000, "{run:?}");
    app.login("jane").await.json();
    server.stop().await;
}

#[tokio::test]
async fn a_handler_that_heeds_its_signal_keeps_its_worker() {
    let server = TestServer::start().await;
    let source = "const worker = Math.random();
    export const handleEvent = (event, context) => new Promise((resolve) => {
        if (event.username !== 'wait') return resolve(worker);
        context.signal.addEventListener('abort', () => resolve('too late'));
    })";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(1)).on(&server).await;
    // It has 50 ms to heed it, which a busy machine may not give it each time; and one that answers first is in time.
    wait_until("a worker survives a timeout", async || {
        let before = app.login("jane").await.json();
        let answer = app.login("wait").await;
        let timed_out = matches!(&answer.outcome, Some(Outcome::Error(error)) if error.kind() == ErrorKind::TimedOut);
        app.login("jane").await.json() == before && timed_out
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_promise_that_never_settles_times_out() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => event.username === 'never' ? new Promise(() => {}) : 1";
    let app = Publish::login("demo", source).timeout(Duration::from_millis(200)).on(&server).await;
    let answer = app.login("never").await;
    let error = answer.failure();
    assert_eq!((error.kind(), error.name.as_str(), error.retryable), (ErrorKind::TimedOut, "TimedOut", false));
    assert_eq!(app.login("jane").await.json(), json!(1));
    server.stop().await;
}

/// One worker with room for eleven.
async fn shared_worker(server: &TestServer, source: &str) -> TestApp {
    let limits = |limits: &mut proto::Limits| (limits.concurrency, limits.workers_max) = (11, 1);
    Publish::login("demo", source).timeout(Duration::from_secs(60)).limits(limits).on(server).await
}

/// Ten calls that run on the app's worker until it ends.
async fn siblings(app: &TestApp) -> tokio::task::JoinSet<proto::InvokeResponse> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let app = app.clone();
        calls.spawn(async move { app.login("wait").await });
    }
    let running = async || app.history().await.iter().filter(|row| row.status() == InvocationStatus::Running).count();
    wait_until("ten run", async || running().await == 10).await;
    calls
}

async fn assert_collateral(calls: tokio::task::JoinSet<proto::InvokeResponse>) {
    for answer in calls.join_all().await {
        let error = answer.failure();
        assert_eq!((error.kind(), error.retryable), (ErrorKind::Collateral, true), "{error:?}");
    }
}

#[tokio::test]
async fn those_who_shared_a_worker_with_a_timeout_are_collateral() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        while (event.username === 'spin') {}
        return event.username === 'wait' ? new Promise(() => {}) : 'fine';
    }";
    let app = shared_worker(&server, source).await;
    let calls = siblings(&app).await;
    let mut request = tonic::Request::new(app.call(LOGIN, r#"{"username":"spin"}"#));
    request.set_timeout(Duration::from_millis(300));
    let _ = server.invocations().invoke(request).await;
    assert_collateral(calls).await;
    assert_eq!(app.login("jane").await.json(), json!("fine"));
    let rows = app.history().await;
    let timed_out =
        rows.iter().filter(|row| row.error.as_ref().is_some_and(|error| error.kind() == ErrorKind::TimedOut));
    assert_eq!(timed_out.count(), 1);
    server.stop().await;
}

#[tokio::test]
async fn those_who_shared_a_worker_with_a_crash_are_collateral() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        if (event.username === 'crash') setTimeout(() => { throw new Error('the culprit\\'s own'); });
        return ['crash', 'wait'].includes(event.username) ? new Promise(() => {}) : 'fine';
    }";
    let app = shared_worker(&server, source).await;
    let calls = siblings(&app).await;
    let culprit = app.login("crash").await;
    assert_eq!(culprit.failure().kind(), ErrorKind::Crashed);
    assert_eq!(culprit.failure().message, "the culprit's own");
    assert_collateral(calls).await;
    assert_eq!(app.login("jane").await.json(), json!("fine"));
    server.stop().await;
}

#[tokio::test]
async fn a_timeout_that_takes_its_worker_down_later_is_not_blamed_on_the_other_one() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event, context) => {
        const kill = () => process.kill(process.pid, 'SIGKILL');
        if (event.username === 'late') context.signal.addEventListener('abort', () => setTimeout(kill, 15));
        return new Promise(() => {});
    }";
    let limits = |limits: &mut proto::Limits| (limits.concurrency, limits.workers_max) = (2, 1);
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).limits(limits).on(&server).await;
    let waits = {
        let app = app.clone();
        tokio::spawn(async move { app.login("wait").await })
    };
    wait_until("it runs", async || app.history().await.len() == 1).await;
    let mut request = tonic::Request::new(app.call(LOGIN, r#"{"username":"late"}"#));
    request.set_timeout(Duration::from_millis(500));
    let _ = server.invocations().invoke(request).await;
    let answer = waits.await.expect("joins");
    let error = answer.failure();
    assert_eq!((error.kind(), error.retryable), (ErrorKind::Collateral, true), "{error:?}");
    server.stop().await;
}

#[tokio::test]
async fn what_is_thrown_arrives_with_the_tenants_own_lines_and_nothing_of_the_machine() {
    let server = TestServer::start().await;
    let source = "import { refuse } from '../lib/rules';
interface Odd { username: string }
export const handleEvent = async (event: Odd) => {
  switch (event.username) {
    case 'error': throw new TypeError('no such user');
    case 'code': throw Object.assign(new Error('refused'), { code: 'ECONNREFUSED' });
    case 'deep': return refuse(event.username);
    case 'cause': throw new Error('outer', { cause: new RangeError('inner') });
    case 'string': throw 'just text';
    case 'null': throw null;
    case 'object': throw { reason: 7 };
    case 'module': require(['no', 'such', 'module'].join('-'));
    case 'path': require('fs').readFileSync(__dirname + '/nothing.json');
  }
}";
    let rules = "export function refuse(name: string): never {\n  throw new Error(`refused ${name}`);\n}";
    let app = Publish::login("demo", source).file("lib/rules.ts", rules).on(&server).await;
    let table = [
        ("error", "TypeError", "no such user", "", "functions/UserAttemptedStartSession.ts:5:"),
        ("code", "Error", "refused", "ECONNREFUSED", "functions/UserAttemptedStartSession.ts:6:"),
        ("deep", "Error", "refused deep", "", "lib/rules.ts:2:"),
        ("cause", "Error", "outer", "", "inner"),
        ("string", "", "just text", "", ""),
        ("null", "", "null", "", ""),
        ("object", "", "reason", "", ""),
        (
            "module",
            "Error",
            "Require stack:\n- functions/",
            "MODULE_NOT_FOUND",
            "functions/UserAttemptedStartSession.ts:12:",
        ),
        ("path", "Error", "nothing.json", "ENOENT", "functions/UserAttemptedStartSession.ts:13:"),
    ];
    let data = server.data().display().to_string();
    for (case, name, message, code, stack) in table {
        let answer = app.login(case).await;
        let error = answer.failure();
        assert_eq!((error.kind(), error.retryable), (ErrorKind::Thrown, false), "{case}: {error:?}");
        assert!(name.is_empty() || error.name == name, "{case}: {error:?}");
        assert!(error.message.contains(message), "{case}: {error:?}");
        assert_eq!(error.code, code, "{case}");
        assert!(error.stack.contains(stack), "{case}: {}", error.stack);
        for hidden in
            [data.as_str(), "node:internal", "/shim/", "invocation.js", "chatfn.js", "/artifacts/", "/home/", "/work/"]
        {
            assert!(!error.stack.contains(hidden) && !error.message.contains(hidden), "{case}: {hidden}: {error:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_not_json_is_a_bad_result() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        const cycle: any = {}; cycle.self = cycle;
        const answers = { bigint: 1n, cycle, function: () => 1, symbol: Symbol('s'), nothing: undefined,
            json: { toJSON() { throw new Error('not today'); } } };
        return answers[event.username];
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    for case in ["bigint", "cycle", "function", "symbol", "json"] {
        let answer = app.login(case).await;
        let error = answer.failure();
        assert_eq!((error.kind(), error.retryable), (ErrorKind::BadResult, false), "{case}: {error:?}");
    }
    assert_eq!(app.login("nothing").await.json(), json!(null));
    assert_eq!(app.pool().await.workers_started_total, 1, "the worker is none the worse for it");
    server.stop().await;
}

#[tokio::test]
async fn a_result_may_be_as_large_as_the_limit_and_no_larger() {
    let server = TestServer::with(&["result_bytes_max=5000"]).await;
    let source = "export const handleEvent = (event) => 'é'.repeat(1000) + 'x'.repeat(Number(event.username))";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let fits = app.login("2998").await;
    assert_eq!(fits.json().as_str().map(str::len), Some(4998), "and two quotes");
    let answer = app.login("2999").await;
    assert_eq!(answer.failure().kind(), ErrorKind::BadResult);
    assert!(answer.failure().message.contains("5000"), "{:?}", answer.failure());
    server.stop().await;
}

#[tokio::test]
async fn running_out_of_memory_is_told_with_limit_and_peak() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        const kept = [];
        while (event.username === 'heap') kept.push(new Array(100_000).fill(kept.length + 0.5));
        while (event.username === 'buffer') kept.push(Buffer.alloc(8 << 20, 1));
        return 'fine';
    }";
    let limits = |limits: &mut proto::Limits| limits.memory_bytes = 192 << 20;
    let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).limits(limits).on(&server).await;
    let other = server.deploy_function("other", LOGIN, WHICH).await;
    let untouched = other.login("jane").await.json();
    for case in ["heap", "buffer"] {
        let answer = app.login(case).await;
        let error = answer.failure();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{case}: {error:?}");
        let row = app.invocation(&answer.invocation_id).await;
        assert!(row.peak_memory_bytes > 64 << 20, "{case}: {}", row.peak_memory_bytes);
        assert!(error.message.contains("192 MiB") && error.message.contains("peak"), "{case}: {error:?}");
        assert_eq!(app.login("jane").await.json(), json!("fine"), "{case}");
    }
    assert_eq!(other.login("jane").await.json(), untouched);
    server.stop().await;
}

//! Workers come when they are needed, stay while they are useful and go without anybody noticing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chatfn::proto::{self, ErrorKind, InvocationStatus, invoke_response::Outcome};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, reason, wait_until};
use crate::publish_request::Publish;

/// Answers which worker it is: a process id is the same in all.
pub const WHICH: &str = "const worker = Math.random(); export const handleEvent = () => worker";
/// `hold` ends when the file in `GATE` appears.
const HOLDS: &str = "import { existsSync } from 'fs';
const worker = Math.random();
export const handleEvent = async (event) => {
    while (event.username === 'hold' && !existsSync(process.env.GATE)) await new Promise((resolve) => setTimeout(resolve, 10));
    return worker;
}";

/// A gate for [`HOLDS`]: a file in the one directory of the host that all workers see, also those of a later start – at which the
/// service writes that directory anew, so that the gate is closed.
pub struct Gate {
    host: PathBuf,
    name: String,
}

impl Gate {
    pub fn new(server: &TestServer) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("gate-{}", MADE.fetch_add(1, Ordering::Relaxed));
        Self { host: server.data().join("data/shim").join(&name), name }
    }

    /// The same on another replica.
    pub fn on(&self, server: &TestServer) -> Self {
        Self { host: server.data().join("data/shim").join(&self.name), name: self.name.clone() }
    }

    /// Where functions see it.
    pub fn path(&self) -> String {
        format!("/shim/{}", self.name)
    }

    pub fn open(&self) {
        std::fs::write(&self.host, "{}").expect("write");
    }

    pub fn close(&self) {
        std::fs::remove_file(&self.host).expect("remove");
    }

    /// An app whose function answers which worker it is, once the gate is open where it was told to hold.
    pub fn function(&self, app: &str) -> Publish {
        Publish::login(app, HOLDS).timeout(Duration::from_secs(60)).variable("GATE", &self.path())
    }
}

/// Calls that hold until the gate opens.
pub fn hold(app: &TestApp, calls: usize) -> JoinSet<proto::InvokeResponse> {
    let mut held = JoinSet::new();
    for _ in 0..calls {
        let app = app.clone();
        held.spawn(async move { app.login("hold").await });
    }
    held
}

pub async fn until_busy(app: &TestApp, workers: u32) {
    wait_until("they run", async || app.pool().await.workers_busy == workers).await;
}

fn one_worker(limits: &mut proto::Limits) {
    limits.workers_max = 1;
}

#[tokio::test]
async fn a_burst_on_a_cold_app_starts_no_more_workers_than_allowed_and_answers_all() {
    let server = TestServer::with(&["wait_max=60s"]).await;
    let app = Publish::login("demo", WHICH)
        .timeout(Duration::from_secs(60))
        .limits(|limits| limits.workers_max = 2)
        .on(&server)
        .await;
    let server = server.crash_and_restart().await;
    let app = server.app(&app.id);
    assert_eq!(app.pool().await.workers_started_total, 0, "cold");
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        let app = app.clone();
        calls.spawn(async move { app.login("jane").await });
    }
    let answers = calls.join_all().await;
    let workers: BTreeSet<String> = answers.iter().map(|answer| answer.json().to_string()).collect();
    assert!((1..=2).contains(&workers.len()), "{workers:?}");
    assert!(app.pool().await.workers_started_total <= 2);
    assert!(answers.iter().any(|answer| answer.cold_start));
    server.stop().await;
}

#[tokio::test]
async fn a_cold_start_is_told_and_a_warm_one_is_none() {
    let server = TestServer::start().await;
    let slow = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100)";
    let app = Publish::login("demo", WHICH).initialization(slow).on(&server).await;
    assert!(!app.login("jane").await.cold_start, "the publish has left a warm worker");
    let server = server.crash_and_restart().await;
    let app = server.app(&app.id);
    let cold = app.login("jane").await;
    let timings = cold.timings.expect("timings");
    let nanos = |span: Option<prost_types::Duration>| {
        span.map_or(0, |span| span.seconds * 1_000_000_000 + i64::from(span.nanos))
    };
    assert!(cold.cold_start);
    assert!(nanos(timings.init) >= 100_000_000 && nanos(timings.queue) >= 100_000_000, "{timings:?}");
    let warm = app.login("jane").await;
    assert!(!warm.cold_start);
    assert_eq!(nanos(warm.timings.expect("timings").init), 0);
    assert!(
        app.invocation(&cold.invocation_id).await.cold_start && !app.invocation(&warm.invocation_id).await.cold_start
    );
    server.stop().await;
}

#[tokio::test]
async fn as_many_may_wait_as_allowed_and_no_more() {
    let server = TestServer::with(&["waiting_max=2"]).await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").limits(one_worker).on(&server).await;
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    let waiting = hold(&app, 2);
    wait_until("two wait", async || app.pool().await.waiting == 2).await;
    let refused = app.invoke(LOGIN, r#"{"username":"jane"}"#).await.expect_err("too many");
    assert_eq!(refused.message(), "too many invocations wait for this app's workers");
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "AT_CAPACITY".to_owned()));
    assert!(refused.get_error_details().retry_info().and_then(|info| info.retry_delay).is_some());
    gate.open();
    for answer in running.join_all().await.into_iter().chain(waiting.join_all().await) {
        answer.json();
    }
    server.stop().await;
}

/// A call with a deadline.
async fn hurried(server: &TestServer, app: &TestApp, millis: u64) -> Result<proto::InvokeResponse, tonic::Status> {
    let mut request = tonic::Request::new(app.call(LOGIN, r#"{"username":"jane"}"#));
    request.set_timeout(Duration::from_millis(millis));
    server.invocations().invoke(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_wait_ends_at_the_callers_deadline_or_at_wait_max() {
    let server = TestServer::with(&["wait_max=300ms"]).await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").limits(one_worker).on(&server).await;
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    let refused = app.invoke(LOGIN, r#"{"username":"jane"}"#).await.expect_err("no worker in time");
    assert_eq!(refused.message(), "no worker was free in time");
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "AT_CAPACITY".to_owned()));
    // An answer that leaves 15 ms before the deadline may be late on a busy machine, now and then.
    wait_until("one with a deadline is told why", async || {
        let refused = hurried(&server, &app, 100).await.expect_err("no worker in time");
        refused.get_error_details().retry_info().is_some()
            && reason(&refused) == (Code::ResourceExhausted, "AT_CAPACITY".to_owned())
    })
    .await;
    wait_until("nobody waits any more", async || app.pool().await.waiting == 0).await;
    gate.open();
    running.join_all().await;
    server.stop().await;
}

#[tokio::test]
async fn overload_is_decided_by_the_functions_policy_where_it_has_one() {
    let server = TestServer::with(&["wait_max=100ms"]).await;
    let gate = Gate::new(&server);
    for (action, verdict) in
        [(proto::FailureAction::Allow, proto::Verdict::Allow), (proto::FailureAction::Deny, proto::Verdict::Deny)]
    {
        let policy = proto::FailurePolicy { on_overload: action.into(), ..Default::default() };
        let app = gate.function(action.as_str_name().rsplit('_').next().expect("a name").to_lowercase().as_str());
        let app = app.policy(policy).limits(one_worker).on(&server).await;
        let running = hold(&app, 1);
        until_busy(&app, 1).await;
        let answer = app.login("jane").await;
        assert_eq!((answer.failure().kind(), answer.failure().retryable), (ErrorKind::Overloaded, true));
        assert_eq!((answer.verdict(), answer.decided_by()), (verdict, proto::DecidedBy::Policy));
        assert_eq!(app.invocation(&answer.invocation_id).await.status(), InvocationStatus::Failed);
        gate.open();
        running.join_all().await;
        gate.close();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_caller_with_a_deadline_gets_the_overload_verdict_before_it() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let policy = proto::FailurePolicy {
        on_overload: proto::FailureAction::Allow.into(),
        default_json: br#"{"queued":true}"#.to_vec().into(),
        ..Default::default()
    };
    let app = gate.function("demo").policy(policy).limits(one_worker).on(&server).await;
    let running = hold(&app, 1);
    until_busy(&app, 1).await;
    wait_until("it is allowed in time", async || {
        let Ok(answer) = hurried(&server, &app, 300).await else { return false };
        assert_eq!((answer.verdict(), answer.decided_by()), (proto::Verdict::Allow, proto::DecidedBy::Policy));
        assert_eq!(answer.json(), json!({ "queued": true }));
        true
    })
    .await;
    gate.open();
    running.join_all().await;
    server.stop().await;
}

#[tokio::test]
async fn an_idle_worker_retires_and_a_busy_one_never_does() {
    let server = TestServer::with(&["idle_ttl=500ms"]).await;
    let gate = Gate::new(&server);
    let busy = gate.function("busy").on(&server).await;
    let idle = gate.function("idle").on(&server).await;
    let running = hold(&busy, 1);
    until_busy(&busy, 1).await;
    let pids = busy.pool().await.worker_pids;
    idle.login("jane").await;
    wait_until("the idle one retires", async || idle.pool().await.worker_pids.is_empty()).await;
    // It was idle later than the busy one began.
    let held = busy.pool().await;
    assert_eq!((held.workers_busy, held.worker_pids), (1, pids));
    gate.open();
    running.join_all().await[0].json();
    wait_until("it retires after its call", async || busy.pool().await.worker_pids.is_empty()).await;
    server.stop().await;
}

#[tokio::test]
async fn workers_min_stay_although_they_are_idle() {
    let server = TestServer::with(&["idle_ttl=200ms"]).await;
    let gate = Gate::new(&server);
    let kept = gate.function("kept").limits(|limits| limits.workers_min = 1).on(&server).await;
    let running = hold(&kept, 2);
    until_busy(&kept, 2).await;
    gate.open();
    running.join_all().await;
    wait_until("one retires", async || kept.pool().await.worker_pids.len() == 1).await;
    // Another app's worker lives and retires meanwhile: time enough for the last one to go as well.
    let other = server.deploy_function("other", LOGIN, WHICH).await;
    other.login("jane").await;
    wait_until("the other one retires", async || other.pool().await.worker_pids.is_empty()).await;
    let left = kept.pool().await;
    assert_eq!((left.workers_idle, left.worker_pids.len()), (1, 1));
    server.stop().await;
}

#[tokio::test]
async fn a_worker_is_replaced_behind_the_callers_backs() {
    let old = ("worker_age_max=300ms", WHICH);
    let used_up = ("worker_jobs_max=3", WHICH);
    let grown = (
        "worker_memory_percent_max=30",
        "const kept = [], worker = Math.random();
        export const handleEvent = () => { if (kept.length < 8) kept.push(Buffer.alloc(10 << 20, 1)); return worker; }",
    );
    for (setting, source) in [old, used_up, grown] {
        let server = TestServer::with(&[setting]).await;
        let app = Publish::login("demo", source).timeout(Duration::from_secs(60)).on(&server).await;
        let mut seen: Vec<Value> = Vec::new();
        wait_until("a third worker serves", async || {
            let answer = app.login("jane").await;
            assert!(!answer.cold_start, "{setting}: nobody waits for the replacement");
            if !seen.contains(&answer.json()) {
                seen.push(answer.json());
            }
            seen.len() >= 3
        })
        .await;
        assert!(app.history().await.iter().all(|row| row.status() == InvocationStatus::Succeeded), "{setting}");
        server.stop().await;
    }
}

#[tokio::test]
async fn the_memory_budget_bounds_all_apps_and_idle_workers_give_way() {
    // Room for two workers.
    let server = TestServer::with(&[&format!("memory_budget_bytes={}", 600 << 20), "wait_max=20s"]).await;
    let gate = Gate::new(&server);
    let first = gate.function("first").on(&server).await;
    let running = hold(&first, 2);
    until_busy(&first, 2).await;
    let third = {
        let first = first.clone();
        tokio::spawn(async move { first.login("jane").await })
    };
    wait_until("it waits for memory", async || first.pool().await.waiting == 1).await;
    assert_eq!(first.pool().await.worker_pids.len(), 2);
    gate.open();
    running.join_all().await;
    third.await.expect("joins").json();
    // Both are idle now: one gives way to another app, for its publish and for its calls.
    let second = gate.function("second").on(&server).await;
    second.login("jane").await.json();
    let (first, second) = (first.pool().await.worker_pids, second.pool().await.worker_pids);
    assert!(!second.is_empty() && first.len() + second.len() <= 2, "{first:?} {second:?}");
    server.stop().await;
}

#[tokio::test]
async fn an_initialization_that_fails_at_run_time_is_told_and_recovers() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    gate.open();
    let init = "require('fs').readFileSync(process.env.GATE)";
    Publish::login("demo", WHICH).initialization(init).variable("GATE", &gate.path()).on(&server).await;
    let server = server.crash_and_restart().await; // Which closes the gate.
    let app = server.app("demo");
    let answer = app.login("jane").await;
    let error = answer.failure();
    assert_eq!((error.kind(), error.code.as_str()), (ErrorKind::InitFailed, "ENOENT"), "{error:?}");
    assert!(error.stack.contains("init.ts:1:"), "{}", error.stack);
    assert_eq!(app.invocation(&answer.invocation_id).await.status(), InvocationStatus::Failed);
    assert!(app.pool().await.workers_failed_total >= 1);
    gate.open();
    wait_until("it recovers", async || matches!(app.login("jane").await.outcome, Some(Outcome::Result(_)))).await;
    server.stop().await;
}

#[tokio::test]
async fn deleting_an_app_ends_its_workers_and_what_they_run() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let other = gate.function("other").on(&server).await;
    let (running, others) = (hold(&app, 1), hold(&other, 1));
    until_busy(&app, 1).await;
    until_busy(&other, 1).await;
    let pids = app.pool().await.worker_pids;
    server.apps().delete_app(proto::DeleteAppRequest { app_id: app.id.clone() }).await.expect("deletes");
    let answer = running.join_all().await.remove(0);
    assert_eq!((answer.failure().kind(), answer.failure().retryable), (ErrorKind::Collateral, true));
    let gone = app.invoke(LOGIN, r#"{"username":"jane"}"#).await.expect_err("gone");
    assert_eq!(reason(&gone), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    wait_until("its workers are gone", async || server.worker_processes().iter().all(|pid| !pids.contains(pid))).await;
    gate.open();
    others.join_all().await.remove(0).json();
    server.stop().await;
}

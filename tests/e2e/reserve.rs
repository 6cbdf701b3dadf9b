//! Workers that wait in reserve: whose they become, what they show then, and to whom they yield.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use chatfn::proto;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, is_spare, name_of, processes_of, wait_until};
use crate::publish_request::Publish;

const WORKER_BYTES: u64 = 256 << 20;

/// Of those that wait: Node as it was started for the reserve, with nothing of an app's to see.
fn spares(server: &TestServer) -> Vec<u32> {
    let waits = |pid: &u32| name_of(*pid) == "node" && is_spare(*pid);
    processes_of(server.data()).into_iter().filter(waits).collect()
}

async fn until_full(server: &TestServer, count: usize) {
    wait_until("the reserve is full", async || spares(server).len() == count).await;
}

async fn from_reserve(app: &TestApp) -> u64 {
    app.pool().await.workers_from_reserve_total
}

/// Looks around.
const LOOKS: &str = "
import { readFileSync, writeFileSync } from 'fs';
import helper from '../lib/helper';
const refused = (path: string) => { try { writeFileSync(path, 'x'); return null; } catch (err) { return err.code; } };
const early = [process.cwd(), process.env.SECRET, process.env.TZ, new Date(0).getHours()];
export const handleEvent = (event: { username: string }, context: any) => {
    if (event.username === 'fail') helper.fail();
    return {
        early, cwd: process.cwd(), here: __filename, helper: helper.answer, data: readFileSync('data/text.txt', 'utf8'),
        env: context.env.SECRET, init: context.initialization,
        refused: [refused('new.txt'), refused('data/text.txt'), refused('/app/lib/helper.ts'), refused('/x')],
        tmp: refused('/tmp/mine'),
    };
};";
const HELPER: &str = "export default { answer: 42, fail() { throw new TypeError('as asked'); } };";

fn looking(app: &str) -> Publish {
    Publish::login(app, LOOKS)
        .file("lib/helper.ts", HELPER)
        .file("data/text.txt", "text")
        .initialization("export default () => process.env.SECRET + '!'")
        .variable("SECRET", "s3")
        .variable("TZ", "Asia/Tokyo")
}

/// An assigned worker cannot be told from one that was started for its app.
async fn looks_like_a_fresh_one(settings: &[&str]) {
    let server = TestServer::with(settings).await;
    let app = looking("demo").on(&server).await;
    let server = server.crash_and_restart().await;
    let app = server.app(&app.id);
    until_full(&server, 2).await;
    let cold = app.login("jane").await;
    assert!(cold.cold_start, "it was not waiting for this app");
    let tokyo = json!(["/app", "s3", "Asia/Tokyo", 9]);
    let seen = json!({
        "early": tokyo, "cwd": "/app", "here": "/app/functions/UserAttemptedStartSession.mjs", "helper": 42, "data": "text",
        "env": "s3", "init": "s3!", "refused": ["EROFS", "EROFS", "EROFS", "EROFS"], "tmp": null,
    });
    let told = cold.json();
    for (key, value) in seen.as_object().expect("a map") {
        assert_eq!(&told[key], value, "{key}: {told}");
    }
    let failed = app.login("fail").await;
    let error = failed.failure();
    assert!(error.stack.contains("at Object.fail (lib/helper.ts:1:"), "{}", error.stack);
    assert!(!error.stack.contains("/app") && !error.stack.contains("shim"), "{}", error.stack);
    assert_eq!(from_reserve(&app).await, 1);
    assert_eq!(app.pool().await.workers_started_total, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_cold_start_takes_a_worker_in_reserve_which_looks_as_if_started_for_its_app() {
    looks_like_a_fresh_one(&[]).await;
}

#[tokio::test]
async fn also_where_the_service_has_but_a_user_namespace() {
    looks_like_a_fresh_one(&["isolation.mode=userns"]).await;
}

#[tokio::test]
async fn an_assigned_worker_has_its_apps_layer_and_limits() {
    let server = TestServer::start().await;
    let files = |publish: Publish| publish.file("package.json", r#"{ "dependencies": { "ms": "2.1.2" } }"#);
    let source = "import ms from 'ms';
        export const handleEvent = () => {
            const fs = require('fs');
            try { fs.writeFileSync(require.resolve('ms'), ''); } catch (err) { return [ms('2 days'), err.code, require.resolve('ms')]; }
        };";
    let app = files(Publish::login("demo", source)).on(&server).await;
    let server = server.crash_and_restart().await;
    let app = server.app(&app.id);
    until_full(&server, 2).await;
    assert_eq!(app.login("jane").await.json(), json!([172_800_000, "EROFS", "/layer/node_modules/ms/index.js"]));
    assert_eq!(from_reserve(&app).await, 1);
    server.stop().await;
}

/// What a worker keeps of whoever it worked for.
const REMEMBERS: &str = "const seen = []; export const handleEvent = (event, context) => {
    (globalThis.apps ??= []).push(context.app.id); seen.push(1);
    return { apps: globalThis.apps, environment: process.env.OWN, calls: seen.length }; };";

#[tokio::test]
async fn no_worker_ever_serves_two_apps() {
    let server = TestServer::with(&["idle_ttl=500ms"]).await;
    let mut apps = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        apps.push(Publish::login(name, REMEMBERS).variable("OWN", name).on(&server).await);
    }
    let mut pids: BTreeSet<u32> = BTreeSet::new();
    for round in 0..2 {
        until_full(&server, 2).await;
        let mut calls = JoinSet::new();
        for app in apps.clone() {
            calls.spawn(async move {
                let answer = app.login("jane").await.json();
                assert!(answer["apps"].as_array().expect("apps").iter().all(|seen| *seen == json!(app.id)), "{answer}");
                assert_eq!(answer["environment"], app.id);
                app.pool().await.worker_pids
            });
        }
        let all = calls.join_all().await.concat();
        let now: BTreeSet<u32> = all.iter().copied().collect();
        assert_eq!(now.len(), all.len(), "no two apps have the same");
        if round == 0 {
            pids = now;
            for app in &apps {
                wait_until("it retires", async || app.pool().await.worker_pids.is_empty()).await;
            }
        } else {
            assert!(pids.is_disjoint(&now), "{pids:?} {now:?}");
        }
    }
    let mut taken = 0;
    for app in &apps {
        taken += from_reserve(app).await;
    }
    assert!(taken >= 2, "{taken}: in the second round two were there");
    server.stop().await;
}

#[tokio::test]
async fn a_spare_that_dies_is_replaced() {
    let mut server = TestServer::start().await;
    server.expect_log("a worker in reserve has ended");
    until_full(&server, 2).await;
    let before = spares(&server);
    kill(Pid::from_raw(before[0].cast_signed()), Signal::SIGKILL).expect("kill");
    wait_until("another one takes its place", async || {
        let now = spares(&server);
        now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
    })
    .await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    app.login("jane").await.json();
    assert_eq!(from_reserve(&app).await, 1);
    server.stop().await;
}

/// What the caller gets who is given a spare that stands still, whatever happens to it `meanwhile`.
async fn caller_of_a_spare_that_stands_still(meanwhile: impl AsyncFn(&TestServer, Pid)) {
    let mut server = TestServer::with(&["reserve_workers=1", "idle_ttl=1s"]).await;
    server.expect_log("a worker in reserve was of no use");
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    let before = from_reserve(&app).await;
    wait_until("it retires", async || app.pool().await.worker_pids.is_empty()).await;
    until_full(&server, 1).await;
    let spare = Pid::from_raw(spares(&server)[0].cast_signed());
    kill(spare, Signal::SIGSTOP).expect("stop");
    let caller = app.clone();
    let call = tokio::spawn(async move { caller.login("jane").await });
    wait_until("it is taken", async || !is_spare(spare.as_raw().cast_unsigned())).await;
    meanwhile(&server, spare).await;
    assert_eq!(call.await.expect("an answer").json(), 1);
    assert_eq!(from_reserve(&app).await, before, "this one started afresh");
    assert_eq!(app.pool().await.workers_failed_total, 0, "it is not the app's fault");
    server.stop().await;
}

#[tokio::test]
async fn a_spare_that_hangs_costs_its_caller_a_second_and_its_app_nothing() {
    caller_of_a_spare_that_stands_still(async |_, _| {}).await;
}

#[tokio::test]
async fn a_spare_that_dies_before_it_took_its_app_is_not_the_apps_fault() {
    caller_of_a_spare_that_stands_still(async |_, spare| kill(spare, Signal::SIGKILL).expect("kill")).await;
}

#[tokio::test]
async fn other_limits_get_a_spare_of_their_own_once_they_were_asked_for() {
    let server = TestServer::with(&["idle_ttl=2s"]).await;
    let large = |limits: &mut proto::Limits| limits.memory_bytes = 300 << 20;
    let app =
        Publish::login("large", "export const handleEvent = () => process.execArgv").limits(large).on(&server).await;
    assert_eq!(from_reserve(&app).await, 0, "nobody knew of its limits");
    until_full(&server, 3).await;
    let second = Publish::login("second", "export const handleEvent = () => process.execArgv").limits(large);
    let second = second.on(&server).await;
    assert_eq!(second.login("jane").await.json(), json!(["--max-old-space-size=204"]));
    assert_eq!(from_reserve(&second).await, 1);
    until_full(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn an_app_with_subprocesses_never_gets_one() {
    let server = TestServer::start().await;
    until_full(&server, 2).await;
    let app = Publish::login("demo", "export const handleEvent = () => 1")
        .limits(|limits| limits.subprocesses = true)
        .on(&server)
        .await;
    app.login("jane").await.json();
    assert_eq!((from_reserve(&app).await, spares(&server).len()), (0, 2));
    server.stop().await;
}

#[tokio::test]
async fn an_app_with_a_locale_of_its_own_gets_workers_that_start_in_it() {
    let server = TestServer::start().await;
    until_full(&server, 2).await;
    let source = "export const handleEvent = () => [(1234.5).toLocaleString(), process.env.LANG]";
    let app = Publish::login("demo", source).variable("LANG", "de_DE.UTF-8").on(&server).await;
    assert_eq!(app.login("jane").await.json(), json!(["1.234,5", "de_DE.UTF-8"]));
    assert_eq!((from_reserve(&app).await, spares(&server).len()), (0, 2));
    server.stop().await;
}

#[tokio::test]
async fn spares_never_cost_a_caller_memory() {
    // Room for two workers of the default limits, and not for a large one beside one of them.
    let budget = format!("memory_budget_bytes={}", 2 * WORKER_BYTES + (1 << 20));
    let server = TestServer::with(&[&budget, "wait_max=20s"]).await;
    until_full(&server, 2).await;
    let large = |limits: &mut proto::Limits| limits.memory_bytes = 2 * WORKER_BYTES;
    let app = Publish::login("large", "export const handleEvent = () => 1").limits(large).on(&server).await;
    assert!(spares(&server).is_empty());
    assert_eq!(app.login("jane").await.json(), 1);
    // What two callers have is theirs: no spare comes between.
    let small = server.deploy_function("small", LOGIN, "export const handleEvent = () => 1").await;
    assert_eq!(small.login("jane").await.json(), 1);
    server.stop().await;
}

#[tokio::test]
async fn where_there_is_no_memory_there_is_no_spare() {
    let budget = format!("memory_budget_bytes={}", WORKER_BYTES - 1);
    let server = TestServer::with(&[&budget]).await;
    let small = |limits: &mut proto::Limits| limits.memory_bytes = 200 << 20;
    let app = Publish::login("demo", "export const handleEvent = () => 1").limits(small).on(&server).await;
    assert_eq!(app.login("jane").await.json(), 1);
    assert!(spares(&server).is_empty());
    assert_eq!(from_reserve(&app).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn spares_make_room_for_workers_that_are_to_be_kept_warm() {
    let budget = format!("memory_budget_bytes={}", 4 * WORKER_BYTES + (1 << 20));
    let server = TestServer::with(&[&budget]).await;
    until_full(&server, 2).await;
    let app = Publish::login("demo", "export const handleEvent = () => 1")
        .limits(|limits| (limits.memory_bytes, limits.workers_min) = (2 * WORKER_BYTES, 2))
        .on(&server)
        .await;
    wait_until("it has both", async || app.pool().await.workers_idle == 2).await;
    assert!(spares(&server).is_empty());
    server.stop().await;
}

#[tokio::test]
async fn without_a_sandbox_or_a_reserve_workers_start_afresh() {
    for (settings, says) in [(["insecure_no_sandbox=true"], true), (["reserve_workers=0"], false)] {
        let mut server = TestServer::with(&settings).await;
        server.expect_log("isolation: ");
        let app = looking("demo").on(&server).await;
        let told = app.login("jane").await.json();
        assert_eq!((&told["early"][1], &told["env"], &told["early"][0]), (&json!("s3"), &json!("s3"), &told["cwd"]));
        assert_eq!(from_reserve(&app).await, 0);
        assert!(spares(&server).is_empty());
        assert_eq!(server.log().iter().any(|line| line.contains(" INFO ") && line.contains("reserve: off")), says);
        server.stop().await;
    }
}

#[tokio::test]
async fn a_broker_that_may_not_enter_a_workers_root_says_so_and_keeps_no_reserve() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped, because only root has capabilities to give up");
        return;
    }
    let data = Arc::new(tempfile::tempdir().expect("temp dir"));
    let mut command = without_chroot();
    command.arg("--data-dir").arg(data.path().join("data"));
    let started = TestServer::reached(command, data, Vec::new(), async |endpoint| endpoint.connect().await).await;
    let server = started.expect("it starts");
    let app = looking("demo").on(&server).await;
    assert_eq!(app.login("jane").await.json()["cwd"], "/app");
    assert_eq!(from_reserve(&app).await, 0);
    let log = server.log();
    assert!(log.iter().any(|line| line.contains("reserve: off") && line.contains("not permitted")), "{log:#?}");
    server.stop().await;
}

#[allow(clippy::disallowed_methods, reason = "tests start the service as users do")]
fn without_chroot() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot", env!("CARGO_BIN_EXE_chatfn")]);
    command.args(["serve", "--listen=127.0.0.1:0", "--set", "default_dependencies={}"]);
    command
}

#[tokio::test]
async fn the_reserve_ends_with_the_service_also_while_it_fills() {
    let server = TestServer::with(&["reserve_workers=20"]).await;
    wait_until("it fills", async || !spares(&server).is_empty()).await;
    server.stop().await; // Which looks for processes that are left over.
}

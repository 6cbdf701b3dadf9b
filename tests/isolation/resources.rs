//! Memory, processors, processes and descriptors: whoever takes too much is told so by name or ended, and nobody else notices.

use std::time::{Duration, Instant};

use chatfn::proto;
use serde_json::{Value, json};

use crate::harness::{TestApp, alive, wait_until};
use crate::mode::Mode;
use crate::tenant::{Tenant, attack, attempt, publish};

in_every_mode! {
    memory_is_limited
    loops_end_at_their_timeout_and_disturb_nobody
    processes_and_threads_are_limited
}

/// Of every function here that does not come to an end by itself.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Tells an answer from a hang, on a shared machine, be it an emulated one.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// The attacker, with a deadline, and somebody else.
async fn with_neighbour(
    mode: Mode,
    timeout: Option<Duration>,
    limits: impl FnOnce(&mut proto::Limits),
) -> Option<(Tenant, TestApp)> {
    let server = mode.start(&[]).await?;
    let attacker = publish("attacker", limits);
    let app = match timeout {
        Some(timeout) => attacker.timeout(timeout).on(&server).await,
        None => attacker.on(&server).await,
    };
    let neighbour = publish("neighbour", |_| {}).on(&server).await;
    assert_eq!(attempt(&neighbour, "use_timers", &json!({})).await, "ok");
    Some((Tenant { server, app, mode }, neighbour))
}

async fn memory_is_limited(mode: Mode) {
    let small = |limits: &mut proto::Limits| {
        limits.memory_bytes = 192 << 20;
        limits.tmp_bytes = 128 << 20;
    };
    let Some((tenant, neighbour)) = with_neighbour(mode, None, small).await else { return };
    let before = neighbour.pool().await.worker_pids;
    // First, in a worker that has nothing yet. Temporary files are memory too, where they are no files on a disk: together with Buffers
    // they are more than the limit.
    let both = json!({ "tmp_bytes": 120 << 20, "buffers_bytes": 90 << 20 });
    let outcome = tenant.attempt("files_and_buffers", both).await;
    match mode {
        Mode::Full => {
            assert!(outcome.starts_with("OutOfMemory: the kernel ended the worker at its memory limit"), "{outcome}")
        }
        // Without cgroups each limit holds for itself: a worker can have both.
        Mode::Userns | Mode::Landlock => assert_eq!(outcome, "ok"),
    }
    // RLIMIT_DATA: an error that can be caught, and the worker lives.
    tenant
        .suffers([
            attack("buffers", json!({}), "RangeError"),
            attack("shared_buffers", json!({}), "RangeError"),
            attack("wasm", json!({}), "RangeError"),
        ])
        .await;
    for name in ["heap"] {
        let outcome = tenant.attempt(name, json!({})).await;
        assert!(
            outcome.starts_with("OutOfMemory: the worker ran out of memory: its limit is 192 MiB"),
            "{name}: {outcome}"
        );
    }
    assert_eq!(tenant.attempt("use_much_memory", json!({})).await, "ok");
    assert_eq!(neighbour.pool().await.worker_pids, before);
    tenant.server.stop().await;
}

/// Ends at its timeout, by name; meanwhile the neighbour is served.
async fn times_out(tenant: &Tenant, neighbour: &TestApp, name: &str, args: Value) {
    let asked = Instant::now();
    let attack = tokio::spawn({
        let app = tenant.app.clone();
        let name = name.to_owned();
        async move { attempt(&app, &name, &args).await }
    });
    wait_until("it runs", async || tenant.app.pool().await.workers_busy == 1).await;
    let served = Instant::now();
    assert_eq!(attempt(neighbour, "use_timers", &json!({})).await, "ok");
    assert!(served.elapsed() < ANSWERED_WITHIN, "{name}: {:?}", served.elapsed());
    let outcome = attack.await.expect("joins");
    assert!(outcome.starts_with("TimedOut: "), "{name}: {outcome}");
    assert!(asked.elapsed() < TIMEOUT + ANSWERED_WITHIN, "{name}: {:?}", asked.elapsed());
    assert_eq!(tenant.attempt("use_timers", json!({})).await, "ok", "after {name}");
}

async fn loops_end_at_their_timeout_and_disturb_nobody(mode: Mode) {
    let slow = |limits: &mut proto::Limits| limits.cpu_millis = 100;
    let Some((tenant, neighbour)) = with_neighbour(mode, Some(TIMEOUT), slow).await else { return };
    tenant.attempt("use_timers", json!({})).await;
    let pids = tenant.app.pool().await.worker_pids;
    for name in ["spin", "spin_in_microtasks"] {
        times_out(&tenant, &neighbour, name, json!({})).await;
    }
    wait_until("the first worker is gone", async || alive(&pids).is_empty()).await;
    tenant.server.stop().await;
}

async fn processes_and_threads_are_limited(mode: Mode) {
    let many = |limits: &mut proto::Limits| limits.subprocesses = true;
    let Some((tenant, neighbour)) = with_neighbour(mode, Some(TIMEOUT), many).await else { return };
    // Few enough for a machine on which nothing holds them.
    let outcome = tenant.attempt("many_processes", json!({ "count": 100 })).await;
    let outcome: Value = serde_json::from_str(&outcome).unwrap_or_else(|_| panic!("{outcome}"));
    let number = outcome["number"].as_u64().expect("a number");
    assert_eq!(number < 64, mode == Mode::Full, "{outcome}");
    let pids = tenant.server.worker_processes();
    assert!(pids.len() as u64 > number, "{pids:?}");
    // All of them end with their worker.
    times_out(&tenant, &neighbour, "never", json!({})).await;
    wait_until("all are gone", async || tenant.server.worker_processes().len() <= 4).await;
    let outcome = tenant.attempt("many_threads", json!({ "count": 100 })).await;
    // At a limit that no thread expects, so how Node ends is chance: it mostly says that it is out of memory, and sometimes just ends.
    let named = ["OutOfMemory: ", "Crashed: the worker was ended by signal ", "TimedOut: ", "ERR_WORKER_"];
    assert!(named.iter().any(|name| outcome.starts_with(name)), "{outcome}");
    assert_eq!(tenant.attempt("use_threads", json!({})).await, "ok");
    assert_eq!(attempt(&neighbour, "use_timers", &json!({})).await, "ok");
    let outcome = tenant.attempt("many_descriptors", json!({})).await;
    assert_eq!(outcome, "EMFILE");
    tenant.server.stop().await;
}

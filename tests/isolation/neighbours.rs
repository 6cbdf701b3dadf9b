//! Two tenants at the same time on one service.

use serde_json::{Value, json};

use crate::mode::Mode;
use crate::tenant::{Tenant, attack, attempt, by_mode, publish};

in_every_mode! {
    one_tenant_gets_at_nothing_of_anothers_worker
}

/// A worker's processes, as the host numbers them: where there is an init, it is the one that the service knows.
fn processes(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().expect("a pid")).chain([pid]).collect()
}

/// A path in a worker's temporary directory, as everybody else on the host would name it.
fn as_the_host_sees_it(pids: &[u32], mode: Mode, path: &str) -> String {
    if mode.has_root() { format!("/proc/{}/root{path}", pids[0]) } else { path.to_owned() }
}

async fn one_tenant_gets_at_nothing_of_anothers_worker(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let victim = publish("victim", |_| {}).on(&tenant.server).await;
    let had: Value = serde_json::from_str(&attempt(&victim, "sit", &json!({})).await).expect("JSON");
    let pids = processes(victim.pool().await.worker_pids[0]);
    assert_eq!(pids.len(), if mode.has_root() { 2 } else { 1 }, "{pids:?}");
    let secret = had["tmp"].as_str().expect("a path");
    let outside = as_the_host_sees_it(&pids, mode, secret);
    assert!(std::fs::read_to_string(&outside).is_ok_and(|text| text == "secret"), "the host itself reads {outside}");
    let at = |path: &str| json!({ "path": path });
    tenant
        .suffers([
            by_mode("read", at(secret), "ENOENT", "EACCES"),
            by_mode("read", at(&outside), "ENOENT", "EACCES"),
            by_mode("write", at(secret), "ok", "EACCES"), // Its own /tmp; see below.
            by_mode("remove", at(&outside), "ENOENT", "EACCES"),
            by_mode("look_into", json!({ "pids": pids }), "ENOENT", "EACCES"),
            attack("signal", json!({ "pids": pids }), "EPERM"),
            attack("signal_by_descriptor", json!({ "pids": pids }), "ENOSYS"),
            attack("limit", json!({ "pids": pids }), "ENOSYS"),
            attack("call", json!({ "call": "pidfd_open", "values": [pids[0], 0] }), "ENOSYS"),
            attack(
                "call",
                json!({ "call": "ptrace", "values": [16, pids[0], 0, 0] }),
                "Crashed: the worker was ended by signal 31 (SIGSYS)",
            ),
            attack(
                "call",
                json!({ "call": "process_vm_readv", "values": [pids[0], [16], 1, [16], 1, 0] }),
                "Crashed: the worker was ended by signal 31 (SIGSYS)",
            ),
        ])
        .await;
    assert_eq!(std::fs::read_to_string(&outside).expect("it is there"), "secret");
    // Sockets: the neighbour may have none but in its own network, which is nobody else's.
    let port = had["port"].as_u64();
    assert_eq!(port.is_some(), mode.has_root(), "{had}");
    assert_eq!(had["socket"], "EACCES");
    assert_eq!(had["abstract"], if mode.has_root() { "\0chatfn-neighbour" } else { "EACCES" });
    tenant.suffers([by_mode("connect", at("\0chatfn-neighbour"), "ECONNREFUSED", "EACCES")]).await;
    if let Some(port) = port {
        assert_eq!(attempt(&victim, "connect", &json!({ "host": "127.0.0.1", "port": port })).await, "connected");
        tenant.suffers([attack("connect", json!({ "host": "127.0.0.1", "port": port }), "ECONNREFUSED")]).await;
    }
    // In a user of its own each, where there is one to be had.
    let users = [tenant.attempt("user", json!({})).await, attempt(&victim, "user", &json!({})).await];
    assert_eq!(users[0] != users[1], mode == Mode::Full, "{users:?}");
    // The victim never noticed: it still is the process that it was.
    assert_eq!(processes(victim.pool().await.worker_pids[0]), pids);
    assert_eq!(attempt(&victim, "use_timers", &json!({})).await, "ok");
    tenant.server.stop().await;
}

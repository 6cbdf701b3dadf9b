//! Other processes: seeing them, signalling them, becoming one, starting some; and what of the service's a process is born with.

use serde_json::{Value, json};

use crate::mode::Mode;
use crate::tenant::{Tenant, attack, by_mode};

in_every_mode! {
    no_other_process_is_seen_or_signalled
    nothing_of_the_services_is_inherited
    no_process_is_started_and_none_becomes_another_program
    one_that_may_start_processes_is_confined_with_all_of_them
}

/// The service and its broker.
fn services(tenant: &Tenant) -> Value {
    let service = tenant.server.pid();
    let children = std::fs::read_to_string(format!("/proc/{service}/task/{service}/children")).expect("children");
    let pids: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().expect("a pid")).chain([service]).collect();
    assert_eq!(pids.len(), 2, "{pids:?}");
    json!({ "pids": pids })
}

async fn no_other_process_is_seen_or_signalled(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let services = services(&tenant);
    tenant
        .suffers([
            // Process 1 is its init.
            by_mode("list_processes", json!({}), "1,2", "EACCES"),
            by_mode("list_proc", json!({}), "self,thread-self", "EACCES"),
            by_mode("look_into", services.clone(), "ENOENT", "EACCES"),
            by_mode("look_into", json!({ "pids": [1] }), "EACCES cmdline status task", "EACCES"),
            attack("look_into_parent", json!({}), "EACCES"),
            by_mode("kernel_files", json!({}), "ENOENT", "EACCES ENOENT"),
            // Without a network namespace, /proc/self tells of everybody's connections; without a mount namespace, of all mounts.
            by_mode("hosts_mounts", json!({}), "its own", "the host’s"),
            by_mode("hosts_connections", json!({}), "none", "the host’s"),
            attack("raise_oom_score", json!({}), "EACCES"),
            attack("signal_parent", json!({}), "EPERM"),
            attack("signal_all", json!({}), "EPERM"),
            attack("signal_group", json!({}), "EPERM"),
            attack("signal", services.clone(), "EPERM"),
            attack("signal", json!({ "pids": [1] }), "EPERM"),
            attack("signal_by_descriptor", services.clone(), "ENOSYS"),
            attack("limit", services, "ENOSYS"),
        ])
        .await;
    tenant.server.stop().await;
}

async fn nothing_of_the_services_is_inherited(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    // The first two are both 0: /dev/null, which is none of its own root's.
    let kinds = |null: &str| format!("{null},anon_inode:[eventfd],anon_inode:[eventpoll],pipe,proc");
    let (rooted, landlock) = (kinds("/dev/null,/null"), kinds("/dev/null"));
    tenant
        .suffers([
            attack("environment", json!({}), "HOME,LANG,NODE_ENV,PATH,TMPDIR,TZ"),
            attack("command_line", json!({}), r#"[["node"],["--max-old-space-size"]]"#),
            by_mode("descriptors", json!({}), &rooted, &landlock),
            // Inheritable, permitted, effective and ambient capabilities; no_new_privs; filtered; no groups.
            attack("privileges", json!({}), "0,0,0,0,1,2,"),
            attack("become_root", json!({}), "ENOSYS"),
            attack("become_root_by_calls", json!({}), "ENOSYS"),
        ])
        .await;
    if mode.has_root() {
        tenant.suffers([attack("bounding_set", json!({}), "0")]).await;
    }
    tenant.server.stop().await;
}

async fn no_process_is_started_and_none_becomes_another_program(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    // Of the machine, of the app, and what it wrote itself; as the kernel finds them without a descriptor.
    let programs = json!({ "paths": ["/bin/sh", "/usr/bin/env", "/usr/bin/id", "/app/lib/raw.node", "/tmp/program"] });
    tenant
        .suffers([
            attack("spawn", json!({}), "EACCES"),
            attack("spawn_sync", json!({}), "EACCES"),
            attack("fork_node", json!({}), "EACCES"),
            attack("cluster", json!({}), "EACCES"),
            attack("fork", json!({}), "EACCES"),
            attack("fork_into_namespace", json!({}), "ENOSYS"),
            attack("thread_into_namespace", json!({}), "ENOSYS"),
            attack("clone3", json!({}), "ENOSYS"),
            attack("execve", json!({}), "ENOSYS"),
            attack("put_a_file_where_node_was", json!({}), "EBADF EINVAL"),
            attack("raise_limits", json!({}), "EPERM"),
            attack("exec_by_path", programs, "EACCES ENOENT"),
        ])
        .await;
    // What is left: Node can become Node again, as confined as before. That ends the worker.
    let node = tenant.attempt("exec_node", json!({})).await;
    assert!(node.starts_with("Crashed: "), "{node}");
    assert_eq!(tenant.attempt("use_timers", json!({})).await, "ok");
    tenant.server.stop().await;
}

async fn one_that_may_start_processes_is_confined_with_all_of_them(mode: Mode) {
    let Some(tenant) = Tenant::with(mode, |limits| limits.subprocesses = true).await else { return };
    let services = services(&tenant);
    let killed = "Crashed: the worker was ended by signal 31 (SIGSYS)";
    // 159: the shell's word for SIGSYS.
    let shell = |script: &str| json!({ "script": script });
    tenant
        .suffers([
            attack("shell", shell("echo hello | tr a-z A-Z"), "HELLO"),
            by_mode(
                "shell",
                shell("cat /etc/shadow 2>&1"),
                "cat: /etc/shadow: No such file or directory",
                "cat: /etc/shadow: Permission denied",
            ),
            attack("shell", shell("mount -t tmpfs x /tmp 2>/dev/null || echo $?"), "159"),
            attack("shell", shell("unshare -U true 2>/dev/null || echo $?"), "159"),
            attack("shell", shell("cd $TMPDIR && cp /usr/bin/id . && chmod 4755 id && ./id -u | grep -c '^0$'"), "0"),
            by_mode("look_into", services.clone(), "ENOENT", "EACCES"),
            by_mode("signal", services.clone(), "EPERM ESRCH", "EPERM"),
            attack("limit", services, "ENOSYS"),
            attack("fork_into_namespace", json!({}), "ENOSYS"),
            attack("clone3", json!({}), "ENOSYS"),
            attack("privileges", json!({}), "0,0,0,0,1,2,"),
            attack("call", json!({ "call": "ptrace", "values": [0, 0, 0, 0] }), killed),
            attack("call", json!({ "call": "unshare", "values": [0x1000_0000] }), killed),
        ])
        .await;
    tenant.server.stop().await;
}

//! System calls that nobody's functions need, each made by native code that the tenant brings along.

use serde_json::{Value, json};

use crate::mode::Mode;
use crate::tenant::{Tenant, attack};

in_every_mode! {
    calls_that_only_an_attacker_makes_end_the_worker_and_nothing_else
    calls_that_are_not_needed_answer_an_error
}

/// Filtered by number alone.
const DEADLY: [&str; 43] = [
    "ptrace",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_enter",
    "io_uring_register",
    "mount",
    "umount2",
    "unshare",
    "setns",
    "keyctl",
    "add_key",
    "request_key",
    "open_by_handle_at",
    "name_to_handle_at",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "reboot",
    "swapon",
    "swapoff",
    "chroot",
    "pivot_root",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsmount",
    "mount_setattr",
    "process_vm_readv",
    "process_vm_writev",
    "personality",
    "syslog",
    "quotactl",
    "acct",
    "settimeofday",
    "clock_settime",
    "adjtimex",
    "vhangup",
    // Of x86_64 alone; see below.
    "modify_ldt",
    "iopl",
    "ioperm",
];

async fn calls_that_only_an_attacker_makes_end_the_worker_and_nothing_else(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let killed = "Crashed: the worker was ended by signal 31 (SIGSYS)";
    let count = if cfg!(target_arch = "x86_64") { DEADLY.len() } else { DEADLY.len() - 3 };
    let one = |call: &&'static str| attack("call", json!({ "call": call, "values": [0, 0, 0, 0, 0, 0] }), killed);
    tenant.suffers_at_once(4, DEADLY[..count].iter().map(one)).await;
    if cfg!(target_arch = "x86_64") {
        // SIGSEGV: a kernel that runs no 32-bit programs at all.
        let outcome = tenant.attempt("call32", json!({})).await;
        assert!(
            [killed, "Crashed: the worker was ended by signal 11 (SIGSEGV)"].contains(&outcome.as_str()),
            "{outcome}"
        );
    }
    assert_eq!(tenant.attempt("use_timers", json!({})).await, "ok");
    tenant.server.stop().await;
}

/// A call by name; numbers as they are, and `[n]` for a pointer to n zeroes.
fn call(name: &str, values: Value) -> Value {
    json!({ "call": name, "values": values })
}

async fn calls_that_are_not_needed_answer_an_error(mode: Mode) {
    const FAMILIES: [(i32, i32, i32); 16] = [
        (2, 3, 1),    // Raw, over IP.
        (10, 3, 58),  // Over IPv6.
        (2, 2, 1),    // Ping.
        (17, 3, 768), // Packets.
        (40, 1, 0),   // vsock: to the machine's host.
        (38, 5, 0),   // The kernel's ciphers.
        (16, 3, 12),  // Netfilter by netlink.
        (16, 3, 9),   // Audit.
        (16, 3, 15),  // Devices' events.
        (16, 3, 16),  // Generic netlink.
        (2, 1, 132),  // SCTP.
        (2, 1, 262),  // MPTCP.
        (1, 5, 0),    // Unix, in packets.
        (31, 3, 0),   // Bluetooth.
        (44, 3, 0),   // XDP.
        (43, 1, 0),   // SMC.
    ];
    let Some(tenant) = Tenant::start(mode).await else { return };
    let sockets = FAMILIES.map(|(family, kind, protocol)| call("socket", json!([family, kind, protocol])));
    let calls = [
        call("clone3", json!([[88], 88])),
        call("io_uring_setup", json!([1, [128]])),
        call("ioctl", json!([0, 0x5412, [1]])), // TIOCSTI
        call("ioctl", json!([0, 0x541c, [1]])), // TIOCLINUX
        call("mknodat", json!([-100, [1], 0x2000, 0])),
        call("fanotify_init", json!([0, 0])),
        call("vmsplice", json!([1, 0, 0, 0])),
        call("splice", json!([0, 0, 1, 0, 0, 0])),
        call("tee", json!([0, 1, 0, 0])),
        call("sched_setscheduler", json!([0, 1, [4]])),
        call("sched_setaffinity", json!([0, 8, [8]])),
        call("ioprio_set", json!([1, 0, 0])),
        call("setpriority", json!([1, 0, -20])),
        call("pidfd_open", json!([1, 0])),
        call("pidfd_getfd", json!([0, 0, 0])),
        call("process_madvise", json!([0, 0, 0, 0, 0])),
        call("kcmp", json!([1, 2, 0, 0, 0])),
        call("migrate_pages", json!([0, 0, 0, 0])),
        call("move_pages", json!([0, 0, 0, 0, 0, 0])),
        call("seccomp", json!([1, 0, [8]])),
        call("landlock_create_ruleset", json!([0, 0, 1])),
        call("memfd_create", json!([[1], 0])),
        call("shmget", json!([0, 4096, 0o1600])),
        call("semget", json!([0, 1, 0o1600])),
        call("msgget", json!([0, 0o1600])),
        call("mq_open", json!([[1], 0])),
        call("setsid", json!([])),
        call("sethostname", json!([[1], 1])),
        call("prctl", json!([1, 0, 0, 0, 0])),           // PR_SET_PDEATHSIG
        call("prctl", json!([4, 0, 0, 0, 0])),           // PR_SET_DUMPABLE
        call("prctl", json!([22, 2, 0, 0, 0])),          // PR_SET_SECCOMP
        call("prctl", json!([35, 1, 0, 0, 0])),          // PR_SET_MM
        call("prctl", json!([8, 1, 0, 0, 0])),           // PR_SET_KEEPCAPS
        call("prctl", json!([0x59616d61, -1, 0, 0, 0])), // PR_SET_PTRACER
        call("mmap", json!([0, 4096, 3, 0x21, -1, 0])),  // Shared and of no file.
        call("setsockopt", json!([0, 6, 31, [4], 4])),   // TCP_ULP
    ];
    let refused = calls.into_iter().chain(sockets).map(|call| attack("call", call, "ENOSYS"));
    tenant.suffers(refused).await;
    if cfg!(target_arch = "x86_64") {
        tenant.suffers([attack("x32", json!({}), "ENOSYS")]).await;
    }
    tenant.server.stop().await;
}

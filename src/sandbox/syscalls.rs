//! System call numbers by what becomes of the call; [`seccomp`](super::seccomp) turns them into filters.
//!
//! The lists come from traces of Node 20, 22 and 24 over fs, net, http, dns, zlib, crypto, workers and WASM, of npm and of `/bin/sh`,
//! plus what their C libraries may fall back to. A call that stands nowhere here answers ENOSYS, which is what an older kernel would
//! say: libraries have a fallback for that. So a call that is missing costs an optimisation far more often than a feature.
//!
//! The names are libc's constants, so each architecture gets its own numbers; `X86_64` holds the calls that newer ones never had.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the sandbox knows the system calls of x86_64 and aarch64 only");

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// libc 0.2.191 lacks it for aarch64; 452 on every architecture (include/uapi/asm-generic/unistd.h).
const SYS_FCHMODAT2: i64 = 452;

/// Allowed whatever the arguments, in every child.
///
/// What is absent by choice: `memfd_create` (memory that RLIMIT_DATA does not count), System V IPC and message queues (shared with
/// other tenants where there is no IPC namespace), `pidfd_*`, `sched_set*` and `ioprio_set` (reach other processes of the same uid),
/// `splice`, `tee` and `vmsplice` (only there for speed, with a history of holes), `clone3` (its flags are in memory, where a filter
/// cannot look: at ENOSYS the C library falls back to `clone`), `io_uring_setup` (libuv of Node 22 and 24 tries it at every start, so it
/// must be refused, not killed), `landlock_*` and `seccomp`.
const ALLOWED_EVERYWHERE: &[i64] = numbers![
    // Files.
    SYS_openat SYS_close SYS_close_range SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev
    SYS_preadv2 SYS_pwritev2 SYS_lseek SYS_dup SYS_dup3 SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat
    SYS_faccessat2 SYS_readlinkat SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask SYS_mkdirat SYS_unlinkat SYS_linkat
    SYS_symlinkat SYS_renameat2 SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_fsync SYS_fdatasync
    SYS_flock SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat SYS_copy_file_range SYS_sendfile SYS_getxattr
    SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_inotify_init1 SYS_inotify_add_watch
    SYS_inotify_rm_watch
    // Waiting.
    SYS_pipe2 SYS_eventfd2 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6 SYS_futex
    SYS_futex_waitv SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_clock_getres SYS_gettimeofday SYS_times
    SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create
    SYS_timerfd_settime SYS_timerfd_gettime SYS_setitimer SYS_getitimer SYS_restart_syscall SYS_wait4 SYS_waitid
    // Sockets, once `socket` has made one; what they may reach is decided elsewhere.
    SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername SYS_getsockopt SYS_shutdown SYS_recvfrom
    SYS_recvmsg SYS_recvmmsg
    // Memory; `mmap` looks at its flags.
    SYS_brk SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_msync SYS_mincore SYS_mlock SYS_mlock2 SYS_munlock SYS_pkey_alloc
    SYS_pkey_free SYS_pkey_mprotect SYS_membarrier
    // Threads and signals; whom a signal may reach is a filter of its own.
    SYS_exit SYS_exit_group SYS_gettid SYS_set_tid_address SYS_set_robust_list SYS_rseq SYS_getcpu SYS_sched_yield
    SYS_sched_getaffinity SYS_sched_getparam SYS_sched_getscheduler SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_sigaltstack
    SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo
    // Who and where am I.
    SYS_getpid SYS_getppid SYS_getpgid SYS_getsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
    SYS_getgroups SYS_capget SYS_getpriority SYS_getrusage SYS_sysinfo SYS_uname SYS_getrandom
];

/// The forms that aarch64 never had. Node's own binary is built against old headers and still uses many of them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = numbers![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents SYS_mkdir SYS_rmdir SYS_unlink SYS_link SYS_symlink
    SYS_rename SYS_renameat SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_dup2 SYS_pipe SYS_eventfd
    SYS_inotify_init SYS_epoll_create SYS_epoll_wait SYS_poll SYS_select SYS_time SYS_alarm SYS_pause SYS_getpgrp SYS_getrlimit
    SYS_setrlimit SYS_arch_prctl
];

/// `renameat`, which libc 0.2.191 lacks and glibc's `rename` uses; 38 (include/uapi/asm-generic/unistd.h).
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[i64] = &[38];

/// Allowed whatever the arguments, in every child.
pub(super) const ALLOWED: [&[i64]; 3] = [ALLOWED_EVERYWHERE, ALLOWED_HERE, &[SYS_FCHMODAT2]];

/// Allowed in addition where the child may have children. The `set*id` calls give nothing to a process without capabilities under
/// no_new_privs, but shells insist that dropping what they do not have succeeds.
pub(super) const ALLOWED_WITH_SUBPROCESSES: &[i64] = numbers![
    SYS_execve SYS_execveat SYS_setsid SYS_setpgid SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid
    SYS_setgroups
];

/// Make a process, always. `clone` does so by its flags.
#[cfg(target_arch = "x86_64")]
pub(super) const FORKS: &[i64] = numbers![SYS_fork SYS_vfork];
#[cfg(target_arch = "aarch64")]
pub(super) const FORKS: &[i64] = &[];

/// Signal the process, or thread, that the first argument names.
pub(super) const SIGNALS: &[i64] = numbers![SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo];

/// Change what a file is besides its content.
#[cfg(target_arch = "x86_64")]
const ATTRIBUTES_HERE: &[i64] = numbers![SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat];
#[cfg(target_arch = "aarch64")]
const ATTRIBUTES_HERE: &[i64] = &[];

/// Change what a file is besides its content.
pub(super) const ATTRIBUTES: [&[i64]; 3] =
    [numbers![SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat], ATTRIBUTES_HERE, &[SYS_FCHMODAT2]];

/// End the process: nothing that Node, npm or a shell runs has a reason to try these, so whoever does is an attacker, and one who
/// must start over at each try learns little. The service sees SIGSYS.
const KILLED_EVERYWHERE: &[i64] = numbers![
    // Other processes' memory, and the parts of the kernel that most holes were found in.
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_io_uring_enter
    SYS_io_uring_register SYS_keyctl SYS_add_key SYS_request_key
    // The view of the file system, and ways around it.
    SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_setns SYS_unshare SYS_open_tree SYS_move_mount SYS_fsopen SYS_fsconfig
    SYS_fsmount SYS_fspick SYS_mount_setattr SYS_open_by_handle_at SYS_name_to_handle_at SYS_quotactl SYS_quotactl_fd
    // The machine.
    SYS_kexec_load SYS_kexec_file_load SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot SYS_swapon SYS_swapoff SYS_acct
    SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime SYS_lookup_dcookie SYS_nfsservctl SYS_personality SYS_syslog
    SYS_vhangup
];

#[cfg(target_arch = "x86_64")]
const KILLED_HERE: &[i64] = numbers![SYS_modify_ldt SYS_iopl SYS_ioperm];
#[cfg(target_arch = "aarch64")]
const KILLED_HERE: &[i64] = &[];

pub(super) const KILLED: [&[i64]; 2] = [KILLED_EVERYWHERE, KILLED_HERE];

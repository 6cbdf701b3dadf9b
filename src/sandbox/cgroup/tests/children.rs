//! What the tests put into groups, and how they look at it.
//!
//! Children are forked, not executed, and make only system calls: the test process has other threads.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid};

use crate::sandbox::cgroup::{Entry, Group};

/// `linux/sched.h`. libc's constant of this name is an `int`, which it does not fit into.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A fork that runs no handlers of the C library. 0 in the child.
fn raw_fork(into: Option<&OwnedFd>) -> i64 {
    let mut args = CloneArgs { exit_signal: u64::try_from(libc::SIGCHLD).unwrap(), ..CloneArgs::default() };
    if let Some(directory) = into {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(directory)).unwrap();
    }
    // SAFETY: without CLONE_VM the child has its own memory; it makes only system calls.
    unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) }
}

/// Starts a child in the group as the broker would. It does `deed` and exits with what that returns. It has entered on return.
pub(super) fn start(group: &Group, deed: fn() -> i32) -> Pid {
    let (mut entered, ours) = io::pipe().unwrap();
    let pid = start_by(&group.entry(true).unwrap(), deed);
    drop(ours);
    // It closes its copy once it is in every hierarchy: one that it is not in yet could be removed under it.
    entered.read_to_end(&mut Vec::new()).unwrap();
    pid
}

pub(super) fn start_by(entry: &Entry, deed: fn() -> i32) -> Pid {
    let pid = raw_fork(match entry {
        Entry::IntoCgroup(directory) => Some(directory),
        Entry::Procs(_) => None,
    });
    assert!(pid >= 0, "clone3: {}", io::Error::last_os_error());
    if pid == 0 {
        let entered = entry.enter_self();
        // SAFETY: nothing here uses them any more. Other tests wait for the end of their pipes.
        unsafe { libc::close_range(3, u32::MAX, 0) };
        let code = if entered.is_ok() { deed() } else { 99 };
        // SAFETY: ends the process without handlers.
        unsafe { libc::_exit(code) }
    }
    Pid::from_raw(i32::try_from(pid).unwrap())
}

pub(super) fn spin() -> i32 {
    loop {
        std::hint::spin_loop();
    }
}

pub(super) fn sleep_forever() -> i32 {
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Touches that much memory. 1: it was refused.
pub(super) fn grow<const MEGABYTES: usize>() -> i32 {
    let bytes = MEGABYTES << 20;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return 1;
    }
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: within what was mapped.
        unsafe { start.cast::<u8>().add(offset).write_volatile(1) };
    }
    0
}

/// How many children could be had. They stay.
pub(super) fn fork_until_refused() -> i32 {
    for count in 0..90 {
        match raw_fork(None) {
            0 => {
                sleep_forever();
            }
            pid if pid < 0 => return count,
            _ => {}
        }
    }
    90
}

/// Never ends by itself, and uses up pids: each process goes when it has three children, of which each tries to have as many.
pub(super) fn storm() -> i32 {
    let mut children = 0;
    while children < 3 {
        match raw_fork(None) {
            0 => children = 0,
            pid if pid > 0 => children += 1,
            _ => {}
        }
    }
    0
}

/// The same where no pids limit bounds it: RLIMIT_NPROC does, which counts for users other than root.
pub(super) fn storm_of_another_user() -> i32 {
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // Its own: zombies of an earlier storm count until init gets to them.
    // SAFETY: getpid cannot fail.
    let uid = 1_000_000 + i64::from(unsafe { libc::getpid() });
    // SAFETY: plain system calls with live arguments; raw, as the C library's would tell threads that do not exist here.
    let failed = unsafe {
        libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) != 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0
    };
    if failed { 98 } else { storm() }
}

pub(super) fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

pub(super) fn members_of(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

/// In a forked child with the C library's help: what it does allocates. Returns what it wrote.
pub(super) fn in_child(then_die: bool, work: impl FnOnce() -> String) -> String {
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: glibc's fork leaves its allocator usable in the child, and no lock of ours is needed there.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(ours);
            let _ = theirs.write_all(work().as_bytes());
            drop(theirs);
            if then_die {
                let _ = kill(getpid(), Signal::SIGKILL);
            }
            // SAFETY: ends the process without the test harness's handlers.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut text = String::new();
            ours.read_to_string(&mut text).unwrap();
            waitpid(child, None).unwrap();
            text
        }
    }
}

/// proc(5): utime and stime, in hundredths of a second.
pub(super) fn cpu_ticks(pid: Pid) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = &stat[stat.rfind(')').unwrap() + 1..];
    after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u32>().unwrap()).sum()
}

//! Runs a closure in a forked child, for tests of what cannot be taken back.

use std::ffi::{CString, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// What a child exits with when the test itself is at fault.
const BROKEN: i32 = 255;

/// Starts a child that exits with what `run` returns.
pub fn start(run: impl FnOnce() -> i32) -> Pid {
    // SAFETY: the test process has threads, so the child must not need a lock that one of them held. glibc's fork keeps the allocator
    // usable; the closures print only when they have failed anyway.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(BROKEN);
            // SAFETY: leaves without running the parent's destructors or test harness.
            unsafe { libc::_exit(code) }
        }
    }
}

pub fn in_child(run: impl FnOnce() -> i32) -> WaitStatus {
    waitpid(start(run), None).unwrap()
}

/// The exit code that says how a call went: its errno, or 0.
pub fn errno_of(result: c_long) -> i32 {
    if result >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(BROKEN) }
}

pub fn io_errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |err| err.raw_os_error().unwrap_or(BROKEN))
}

pub fn exited(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        other => panic!("not an exit: {other:?}"),
    }
}

pub fn set_no_new_privs() {
    nix::sys::prctl::set_no_new_privs().unwrap();
}

pub fn c_string(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// The descriptor again, at a number of at least `min`, close-on-exec.
pub fn at_least(descriptor: impl AsFd, min: i32) -> OwnedFd {
    // SAFETY: plain fcntl on an open descriptor.
    let number = unsafe { libc::fcntl(descriptor.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, min) };
    assert!(number >= min, "{}", io::Error::last_os_error());
    // SAFETY: just made, and owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(number) }
}

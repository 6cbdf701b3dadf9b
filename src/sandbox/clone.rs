//! A copy of the calling process, in namespaces of its own. Only for a process with one thread: no lock can be held across it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// What makes a child a world of its own: mounts, processes, network, System V objects, host name.
pub(super) const NAMESPACES: u64 =
    (libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

/// From linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3(2).
#[repr(C)]
#[derive(Default)]
struct Arguments {
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

/// Which of the two this is.
pub(super) enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Container runtimes answer ENOSYS, as their filters cannot look into its structure (isolation.md 0).
pub(super) fn has_clone3() -> bool {
    // SAFETY: without a structure it does nothing but fail.
    unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<Arguments>(), 0) };
    Errno::last() != Errno::ENOSYS
}

/// `cgroup`: the group to be born in, on cgroup v2 and with clone3.
///
/// # Errors
/// As clone3(2): EPERM without the privilege that the namespaces take.
pub(super) fn clone(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut arguments = Arguments {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..Arguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no memory is shared with the child, which goes on with a copy of this one's only thread; the structure is of the
    // size that is told, and `pidfd` lives until the call returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: Pid::from_raw(pid), pidfd })
        }
        _ if Errno::last() == Errno::ENOSYS && cgroup.is_none() => clone_by_flags(namespaces),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The older call, whose flags such a filter can check.
fn clone_by_flags(namespaces: u64) -> io::Result<Cloned> {
    let flags = namespaces | libc::SIGCHLD as u64;
    // SAFETY: as above; without a stack of its own the child goes on with a copy of ours.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => {
            // It cannot be another process's: we have not waited for it.
            // SAFETY: plain numbers.
            let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the call above made it for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).map_err(io::Error::other)?) };
            Ok(Cloned::Parent { pid: Pid::from_raw(pid), pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

//! Each attack as a plain system call in a forked child, then real programs.

mod attacks;
mod listener;
mod programs;

use std::ffi::c_long;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::wait::WaitStatus;

use super::{Connect, Filters, Policy};
use crate::sandbox::testing::{errno_of, exited, in_child, set_no_new_privs};

const WORKER: Policy = Policy { subprocesses: false, connect: Connect::Kernel, shares_root: false };
const WORKER_WITH_EGRESS: Policy = Policy { subprocesses: false, connect: Connect::Supervisor, shares_root: false };
const INSTALL: Policy = Policy { subprocesses: true, connect: Connect::Kernel, shares_root: false };
const INSTALL_WITH_EGRESS: Policy = Policy { subprocesses: true, connect: Connect::Supervisor, shares_root: false };
const EVERY: [Policy; 4] = [WORKER, WORKER_WITH_EGRESS, INSTALL, INSTALL_WITH_EGRESS];

/// A system call under the policy's filters.
fn call(policy: Policy, run: impl FnOnce() -> c_long) -> WaitStatus {
    let filters = Filters::build(policy).unwrap();
    in_child(|| {
        set_no_new_privs();
        let _listener = filters.install().unwrap();
        errno_of(run())
    })
}

/// Its errno, or 0.
fn errno(policy: Policy, run: impl FnOnce() -> c_long) -> i32 {
    exited(call(policy, run))
}

/// `syscall(number, arguments…)`, with zeros for what is left out.
macro_rules! raw {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        // SAFETY: the filters refuse the call, or it is given arguments that are valid or that the kernel rejects.
        || unsafe { libc::syscall($number $(, $argument)*, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize) }
    };
}
use raw;

fn was_killed(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _))
}

/// As the child does with its listener, over a pair of connected sockets.
fn send_descriptor(socket: BorrowedFd, descriptor: BorrowedFd) {
    let descriptors = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let data = [std::io::IoSlice::new(b"x")];
    sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), None).unwrap();
}

fn receive_descriptor(socket: impl AsFd) -> OwnedFd {
    let mut byte = [0];
    let mut data = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message =
        recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let Some(ControlMessageOwned::ScmRights(descriptors)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor came");
    };
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(descriptors[0]) }
}

//! Descriptors that travel through a socket beside bytes (unix(7), SCM_RIGHTS). What the bytes say is the callers' business.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The kernel's SCM_MAX_FD. With room for fewer, nix gives up without closing those that came.
pub(super) const DESCRIPTORS_MAX: usize = 253;

/// Returns how many of the bytes went out; the descriptors went with the first. They stay the caller's, too.
pub(super) fn send(socket: impl AsFd, parts: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let socket = socket.as_fd().as_raw_fd();
    until_done(|| Ok(sendmsg::<()>(socket, parts, control, MsgFlags::MSG_NOSIGNAL, None)?))
}

/// How many bytes came (0: the other end is closed), and what came with them, close-on-exec.
pub(super) fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    until_done(|| receive_once(&socket, into))
}

/// The kernel resumes no call on a socket with a timeout (signal(7)): to be stopped and continued, as by a container runtime that pauses
/// everything, is enough to end it.
fn until_done<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn receive_once(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([i32; DESCRIPTORS_MAX]);
    let mut parts = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
            descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
    use nix::sys::time::TimeVal;

    use super::super::testing::{exited, in_child, io_errno};
    use super::*;

    static OTHER_END: AtomicI32 = AtomicI32::new(-1);

    extern "C" fn answer(_: libc::c_int) {
        // SAFETY: a live descriptor, and one byte; a signal handler may do this.
        unsafe { libc::write(OTHER_END.load(Ordering::Relaxed), c"x".as_ptr().cast(), 1) };
    }

    /// As when it is stopped and continued, but for what the signal does.
    #[test]
    fn an_interrupted_wait_goes_on() {
        let status = in_child(|| {
            let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
            let (ours, theirs) = pair.expect("pair");
            OTHER_END.store(theirs.as_raw_fd(), Ordering::Relaxed);
            setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::new(5, 0)).expect("a timeout");
            let action = SigAction::new(SigHandler::Handler(answer), SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: see the handler; this process has one thread.
            unsafe { sigaction(Signal::SIGALRM, &action) }.expect("a handler");
            let timer = libc::itimerval {
                it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
                it_value: libc::timeval { tv_sec: 0, tv_usec: 50_000 },
            };
            // SAFETY: a live structure, and nothing to be written.
            unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
            io_errno(receive(&ours, &mut [0; 8]))
        });
        assert_eq!(exited(status), 0);
    }
}

//! Connects that the broker decides on.

use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use libc::{seccomp_notif, seccomp_notif_resp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;

use super::*;
use crate::sandbox::testing::{io_errno, start};

/// The next question, or `None` once nobody is left to ask.
pub fn receive(listener: &OwnedFd) -> Option<seccomp_notif> {
    loop {
        let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut wait, PollTimeout::from(10_000_u16)).unwrap();
        if !wait[0].revents().unwrap().contains(PollFlags::POLLIN) {
            return None;
        }
        // SAFETY: integers only, for which zeros are valid, and zeros are what the kernel insists on.
        let mut question: seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one `seccomp_notif` to where we have one.
        if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question) } == 0 {
            return Some(question);
        }
        // ENOENT: whoever asked is gone.
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT));
    }
}

pub fn answer(listener: &OwnedFd, id: u64, error: i32, flags: u32) {
    let mut answer = seccomp_notif_resp { id, val: 0, error: -error, flags };
    // SAFETY: the kernel reads one `seccomp_notif_resp`.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    assert_eq!(sent, 0, "{}", io::Error::last_os_error());
}

#[test]
fn the_broker_refuses_one_connect_and_lets_the_next_through() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let filters = Filters::build(WORKER_WITH_EGRESS).unwrap();
    let child = start(|| {
        set_no_new_privs();
        let listener = filters.install().unwrap().unwrap();
        send_descriptor(theirs.as_fd(), listener.as_fd());
        drop(listener);
        let refused = io_errno(TcpStream::connect(address));
        let allowed = io_errno(TcpStream::connect_timeout(&address, Duration::from_secs(5)));
        if (refused, allowed) == (libc::EACCES, 0) { 0 } else { 1 }
    });
    let listener = receive_descriptor(&ours);

    let question = receive(&listener).unwrap();
    assert_eq!(i64::from(question.data.nr), libc::SYS_connect);
    assert_eq!(question.pid, child.as_raw().cast_unsigned());
    assert_eq!(destination(&question), address);
    answer(&listener, question.id, libc::EACCES, 0);

    let question = receive(&listener).unwrap();
    answer(&listener, question.id, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    assert_eq!(exited(waitpid(child, None).unwrap()), 0);
    assert!(receive(&listener).is_none());
}

#[test]
fn without_a_broker_connects_fail() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let filters = Filters::build(WORKER_WITH_EGRESS).unwrap();
    let status = in_child(|| {
        set_no_new_privs();
        drop(filters.install().unwrap());
        io_errno(TcpStream::connect(address))
    });
    assert_eq!(exited(status), libc::ENOSYS);
}

/// Reads the address out of the child. Another thread of it may change it right after: so a real supervisor makes the connection
/// itself, with the address that it read.
fn destination(question: &seccomp_notif) -> SocketAddr {
    let mut bytes = [0_u8; 16];
    let memory = std::fs::File::open(format!("/proc/{}/mem", question.pid)).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, question.data.args[1]).unwrap();
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    SocketAddr::from(([bytes[4], bytes[5], bytes[6], bytes[7]], port))
}

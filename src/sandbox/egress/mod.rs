//! Egress: the network of workers that have none.
//!
//! Each worker lives in a network namespace of its own with nothing in it but `lo`. Its connect(2) is sent here by seccomp
//! ([`filter`]); the *supervisor*, a process in the host's namespace, decides on a copy of the address ([`policy`]), connects a
//! socket itself, and puts that in place of the worker's (SECCOMP_IOCTL_NOTIF_ADDFD). No bridge, no veth, no nftables, and nothing
//! to clean up. Without the supervisor a worker has no network: the kernel says ENOSYS.
//!
//! # Why a worker cannot use what it is given for more
//!
//! A handed-over socket lives in the *host's* namespace. Any call that gives it another address would be made there, past every
//! rule. Hence:
//!
//! - connect, bind and listen of a worker never run in the kernel (never SECCOMP_USER_NOTIF_FLAG_CONTINUE). For CONTINUE the kernel
//!   reads both address *and* descriptor number again, and another thread can have put a handed-over socket under that number
//!   meanwhile: `connect(own, 127.0.0.1)` would become `connect(handed over, 10.0.0.1)`. What is the worker's own business
//!   (loopback, abstract unix sockets, netlink) is done by us, on the file that we checked: [`call`].
//! - listen is among them because `shutdown` of a connecting TCP socket makes it unconnected again (`inet_shutdown`); bind, because
//!   it would take the host's ports; MSG_FASTOPEN is refused because it is a connect.
//! - only TCP is handed over. A UDP socket, connected or not, sends to any address it is told to. Names are asked of a forwarder
//!   that stands in the worker's own namespace: [`resolver`].
//!
//! # Limits, known and accepted
//!
//! Unix sockets in the file system cannot be connected or bound (EACCES). `setsockopt` before connect is carried over for the common
//! options only; `epoll_ctl` and `dup` before connect stay with the old socket (libuv does neither). A blocking connect cannot be
//! interrupted by a signal. Memory of handed-over sockets is charged to the supervisor's cgroup.
//!
//! Start reading at [`start`], then [`supervisor`], [`worker`], [`call`].

mod address;
mod call;
mod caller;
mod control;
pub mod filter;
mod host;
mod limit;
mod notify;
pub mod policy;
mod question;
pub mod resolver;
mod resolver_stream;
mod route;
mod socket;
mod supervisor;
mod worker;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::{ForkResult, Pid, fork, getpid};

pub use address::{Cidr, InvalidCidr};
pub use control::Descriptors;
pub use policy::Policy;

use control::Request;

/// The supervisor only ever takes a message and starts a thread.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// The broker's handle. Dropping it ends the supervisor, and every worker's network.
pub struct Supervisor {
    socket: OwnedFd,
    pid: Pid,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the egress supervisor is gone")]
    Gone,
    #[error("tell the egress supervisor: {0}")]
    Tell(#[source] io::Error),
}

/// Forks the supervisor off the calling process, which must have one thread only, and stand in the host's network namespace.
/// It is a child like any other: whoever reaps and ends the broker's children must know [`Supervisor::pid`].
///
/// # Errors
/// The kernel lacks seccomp notifications, or the process could not be made.
pub fn start() -> io::Result<Supervisor> {
    start_with("/etc/resolv.conf".into())
}

/// As [`start`], with the host's resolvers read from elsewhere.
///
/// # Errors
/// As [`start`].
pub fn start_with(resolv_conf: PathBuf) -> io::Result<Supervisor> {
    notify::check_kernel()?;
    let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let timeout = TimeVal::new(SEND_TIMEOUT.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    let broker = getpid();
    // SAFETY: one thread, as demanded above: no lock can be held by a thread that the child lacks.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Supervisor { socket, pid: child }),
        ForkResult::Child => {
            let served = supervisor::serve(&theirs, broker, resolv_conf);
            let status = i32::from(served.is_err());
            // SAFETY: ends the process without running what the broker registered for its own exit.
            unsafe { libc::_exit(status) }
        }
    }
}

impl Supervisor {
    /// Serves a worker's calls from now on; such as wait already are answered. It ends by itself with the worker's last process.
    ///
    /// # Errors
    /// The worker has no network then, as its listener is closed.
    pub fn add(&self, worker: u64, policy: &Policy, descriptors: Descriptors) -> Result<(), Error> {
        let request = Request::Add { worker, policy: policy.clone() };
        self.tell(&request, Some(&descriptors)) // They close here: see `Descriptors`.
    }

    /// Takes a worker's network away. Connections that stand stay with it.
    ///
    /// # Errors
    /// The supervisor is gone, thus the network too.
    pub fn remove(&self, worker: u64) -> Result<(), Error> {
        self.tell(&Request::Remove { worker }, None)
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::empty())]; // POLLHUP comes unasked.
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn tell(&self, request: &Request, descriptors: Option<&Descriptors>) -> Result<(), Error> {
        control::send(self.socket.as_fd(), request, descriptors).map_err(|err| match err.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone,
            _ => Error::Tell(err),
        })
    }
}

/// Readable (hung up) when the supervisor has ended.
impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

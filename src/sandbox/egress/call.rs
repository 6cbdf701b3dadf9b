//! Answers one system call of a worker: connect, bind or listen.
//!
//! Everything is decided on copies, and done by us on files that we hold. [`Target`] says which kind of socket it is.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::caller::Caller;
use super::host::Host;
use super::limit::Bucket;
use super::notify::{Listener, Notification};
use super::policy::{HostAddresses, Policy, Protocol, Verdict, decide};
use super::route::{Route, route};
use super::socket::{Socket, TcpState, decode, encode, family};

/// A blocking connect without SO_SNDTIMEO. The kernel's own patience (tcp_syn_retries) is two minutes.
const BLOCKING_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a call needs to be answered.
pub(super) struct Context<'a> {
    pub host: &'a Host,
    pub policy: &'a Policy,
    pub listener: &'a Listener,
    pub connects: &'a mut Bucket,
    /// Whether one more blocking connect may be under way.
    pub may_wait: bool,
}

pub(super) enum Outcome {
    Answer(Result<(), Errno>),
    Wait(BlockingConnect),
    /// The caller was killed meanwhile.
    Gone,
}

/// The call's socket and copies of its other arguments, taken before anything was decided.
struct Target {
    number: RawFd,
    socket: Socket,
    domain: i32,
    /// It lives in the host's namespace, so it is one that we handed over. Otherwise it is the worker's own: it cannot make other
    /// namespaces, and one started in the host's by mistake gets nothing done here.
    handed_over: bool,
    address: Vec<u8>,
}

impl Context<'_> {
    pub(super) fn answer(&mut self, notification: &Notification) -> Outcome {
        let target = match self.look(notification) {
            Ok(Some(target)) => target,
            Ok(None) => return Outcome::Gone,
            Err(err) => return Outcome::Answer(Err(err)),
        };
        match notification.call {
            libc::SYS_connect => self.connect(notification.id, &target).unwrap_or_else(|err| Outcome::Answer(Err(err))),
            libc::SYS_bind => Outcome::Answer(target.bind()),
            libc::SYS_listen => Outcome::Answer(target.listen(notification.arguments[1] as i32)),
            _ => Outcome::Answer(Err(Errno::ENOSYS)),
        }
    }

    /// Takes what the call is about out of the caller. `None`: it is gone, and what we saw may be another's.
    fn look(&self, notification: &Notification) -> Result<Option<Target>, Errno> {
        let [number, pointer, length, ..] = notification.arguments;
        let number = number as i32; // As the kernel does: `int fd`.
        let looked = Caller::open(notification.thread).and_then(|caller| {
            let socket = Socket(caller.descriptor(number)?);
            let has_address = notification.call != libc::SYS_listen;
            let address = if has_address { caller.address(pointer, length)? } else { Vec::new() };
            Ok((socket, address))
        });
        if !self.listener.is_waiting(notification.id) {
            return Ok(None);
        }
        let (socket, address) = looked.map_err(|err| match err {
            Errno::EBADF | Errno::EFAULT | Errno::EINVAL => err,
            _ => Errno::EACCES, // We may not look into it (EPERM), or ran out of descriptors: nothing it can act on.
        })?;
        let domain = socket.int(libc::SOL_SOCKET, libc::SO_DOMAIN)?; // ENOTSOCK, for what is none.
        let handed_over = socket.namespace()? == self.host.namespace;
        Ok(Some(Target { number, socket, domain, handed_over, address }))
    }

    fn connect(&mut self, id: u64, target: &Target) -> Result<Outcome, Errno> {
        if target.handed_over {
            target.check_reconnect()?;
        }
        if !matches!(target.domain, libc::AF_INET | libc::AF_INET6) || family(&target.address) == Some(libc::AF_UNSPEC)
        {
            return target.connect_own().map(|()| Outcome::Answer(Ok(())));
        }
        let address = target.internet_address()?;
        let protocol = target.protocol()?;
        let host = self.host.addresses().map_err(|_| Errno::ENETUNREACH)?;
        match decide(self.policy, &host, address, protocol) {
            Verdict::Own => target.connect_own().map(|()| Outcome::Answer(Ok(()))),
            Verdict::RouteOnly => target.route_only(address).map(|()| Outcome::Answer(Ok(()))),
            Verdict::Connect => self.connect_away(id, target, address, &host),
            Verdict::Refused(refusal) => Err(refusal.errno()),
        }
    }

    /// Connects a socket of the host's and puts it in place of the worker's.
    fn connect_away(
        &mut self,
        id: u64,
        target: &Target,
        address: SocketAddr,
        host: &HostAddresses,
    ) -> Result<Outcome, Errno> {
        target.check_unused()?;
        let nonblocking = target.socket.is_nonblocking()?;
        if !self.connects.take(Instant::now()) || (!nonblocking && !self.may_wait) {
            return Err(Errno::EAGAIN); // What connect(2) says when the host has no port left.
        }
        let local = route(address.ip().to_canonical())? == Route::Local;
        // One that is in the list was allowed in so many words.
        if local && !host.0.contains(&address.ip().to_canonical()) {
            return Err(Errno::EHOSTUNREACH);
        }
        let socket = Socket::new(target.domain, libc::SOCK_STREAM)?;
        socket.copy_options_from(&target.socket);
        if let Some(source) = self.policy.source() {
            socket.bind_source(target.domain, source)?;
        }
        let connected = socket.connect(&encode(target.domain, address).ok_or(Errno::EAFNOSUPPORT)?);
        match connected {
            Err(Errno::EINPROGRESS) if !nonblocking => {
                let timeout = target.socket.connect_timeout().unwrap_or(BLOCKING_CONNECT_TIMEOUT);
                let deadline = Instant::now() + timeout.min(BLOCKING_CONNECT_TIMEOUT);
                return Ok(Outcome::Wait(BlockingConnect { id, number: target.number, socket, deadline }));
            }
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(err) => return Err(err),
        }
        if !nonblocking {
            socket.make_blocking()?;
        }
        Ok(match self.listener.replace(id, socket.as_fd(), target.number) {
            Ok(()) => Outcome::Answer(connected),
            Err(Errno::EBADF) => Outcome::Answer(Err(Errno::EBADF)),
            Err(_) => Outcome::Gone,
        })
    }
}

impl Target {
    /// The worker's own business, in its own empty namespace: done as asked, by us, on the socket that we checked.
    fn connect_own(&self) -> Result<(), Errno> {
        self.check_own_address()?;
        self.socket.connect(&self.address)
    }

    fn bind(&self) -> Result<(), Errno> {
        self.check_own_address()?;
        self.socket.bind(&self.address)
    }

    fn listen(&self, backlog: i32) -> Result<(), Errno> {
        if self.handed_over {
            return Err(Errno::EINVAL); // As for any connected socket; this one would listen on the host.
        }
        self.socket.listen(backlog)
    }

    fn check_own_address(&self) -> Result<(), Errno> {
        if self.handed_over {
            return Err(Errno::EINVAL);
        }
        match self.domain {
            libc::AF_INET | libc::AF_INET6 | libc::AF_NETLINK => Ok(()),
            // A name that starts with a zero is abstract: it belongs to the socket's network namespace. A path would be looked up
            // in *our* file system with our rights; and to let the caller look it up itself, its memory would be read again.
            libc::AF_UNIX if self.address.get(2).is_none_or(|first| *first == 0) => Ok(()),
            libc::AF_UNIX => Err(Errno::EACCES),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    fn internet_address(&self) -> Result<SocketAddr, Errno> {
        let address = match family(&self.address) {
            Some(libc::AF_INET | libc::AF_INET6) => decode(&self.address).ok_or(Errno::EINVAL)?,
            Some(_) => return Err(Errno::EAFNOSUPPORT),
            None => return Err(Errno::EINVAL),
        };
        if encode(self.domain, address).is_none() || (self.domain == libc::AF_INET6) != address.is_ipv6() {
            return Err(Errno::EAFNOSUPPORT);
        }
        Ok(address)
    }

    fn protocol(&self) -> Result<Protocol, Errno> {
        let kind = self.socket.int(libc::SOL_SOCKET, libc::SO_TYPE)?;
        match (kind, self.socket.int(libc::SOL_SOCKET, libc::SO_PROTOCOL)?) {
            // Multipath TCP gets plain TCP: its sockets fall back to that with most peers anyway.
            (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => Ok(Protocol::Tcp),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Ok(Protocol::Udp),
            _ => Err(Errno::EACCES),
        }
    }

    /// A socket that listens, or has a peer in its own namespace, keeps it.
    fn check_unused(&self) -> Result<(), Errno> {
        let listens = self.socket.int(libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0;
        let unused = !listens && self.socket.tcp_state()? != TcpState::Connected;
        if unused { Ok(()) } else { Err(Errno::EISCONN) }
    }

    /// Connecting again what we handed over says how the first time went, as in the kernel. After its end, a new one replaces it.
    /// Disconnecting (AF_UNSPEC) is not offered: it would leave a bare socket of the host's in the worker's hands.
    fn check_reconnect(&self) -> Result<(), Errno> {
        if family(&self.address) == Some(libc::AF_UNSPEC) {
            return Err(Errno::EINVAL);
        }
        match self.socket.tcp_state()? {
            TcpState::Connected => Err(Errno::EISCONN),
            TcpState::Connecting => Err(Errno::EALREADY),
            TcpState::Closed => self.socket.take_error(),
        }
    }

    fn route_only(&self, address: SocketAddr) -> Result<(), Errno> {
        if route(address.ip().to_canonical())? == Route::Local {
            return Err(Errno::EHOSTUNREACH);
        }
        // It may have had a peer on its loopback, which would get what is now meant for elsewhere.
        let unspecified = [(libc::AF_UNSPEC as u16).to_ne_bytes(), [0; 2]].concat();
        let _ = self.socket.connect(&[unspecified, vec![0; 12]].concat());
        Ok(())
    }
}

/// A caller that sleeps in connect until its connection stands.
pub(super) struct BlockingConnect {
    id: u64,
    number: RawFd,
    socket: Socket,
    pub(super) deadline: Instant,
}

impl BlockingConnect {
    /// Writable: it has settled, either way.
    pub(super) fn settled(self, listener: &Listener) {
        let connected = self.socket.take_error().and_then(|()| self.socket.make_blocking());
        let connected = connected.and_then(|()| listener.replace(self.id, self.socket.as_fd(), self.number));
        listener.answer(self.id, connected);
    }

    pub(super) fn timed_out(self, listener: &Listener) {
        listener.answer(self.id, Err(Errno::ETIMEDOUT));
    }
}

impl AsFd for BlockingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! Sockets as the supervisor sees them: what a worker's socket is, and making its replacement.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// `struct tcp_info` begins with the state.
const TCP_STATE_SYN_SENT: u8 = 2;
const TCP_STATE_SYN_RECEIVED: u8 = 3;
const TCP_STATE_CLOSE: u8 = 7;
/// `SIN6_LEN_RFC2133`: what the kernel demands of an IPv6 address; the scope may be missing.
const IN6_BYTES_MIN: usize = 24;

/// Options that programs set before they connect and expect to hold afterwards: (level, name).
const OPTIONS_KEPT: [(i32, i32); 6] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TcpState {
    /// Never connected, refused, reset, or ended.
    Closed,
    Connecting,
    Connected,
}

/// Any socket, ours or a worker's.
pub(super) struct Socket(pub OwnedFd);

impl Socket {
    pub(super) fn new(domain: i32, kind: i32) -> Result<Self, Errno> {
        // SAFETY: plain integers.
        let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn int(&self, level: i32, name: i32) -> Result<i32, Errno> {
        let mut value = [0u8; 4];
        self.get(level, name, &mut value)?;
        Ok(i32::from_ne_bytes(value))
    }

    /// Names the network namespace that the socket lives in, for as long as the machine runs (Linux 5.14).
    pub(super) fn namespace(&self) -> Result<u64, Errno> {
        let mut value = [0u8; 8];
        self.get(libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    pub(super) fn tcp_state(&self) -> Result<TcpState, Errno> {
        let mut state = [0u8; 1];
        self.get(libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
        Ok(match state[0] {
            TCP_STATE_CLOSE => TcpState::Closed,
            TCP_STATE_SYN_SENT | TCP_STATE_SYN_RECEIVED => TcpState::Connecting,
            _ => TcpState::Connected,
        })
    }

    /// Takes the error that waits on the socket.
    pub(super) fn take_error(&self) -> Result<(), Errno> {
        match self.int(libc::SOL_SOCKET, libc::SO_ERROR)? {
            0 => Ok(()),
            error => Err(Errno::from_raw(error)),
        }
    }

    pub(super) fn is_nonblocking(&self) -> Result<bool, Errno> {
        Ok(OFlag::from_bits_retain(fcntl(&self.0, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK))
    }

    pub(super) fn make_blocking(&self) -> Result<(), Errno> {
        fcntl(&self.0, FcntlArg::F_SETFL(OFlag::empty())).map(drop)
    }

    /// How long a blocking connect may take: SO_SNDTIMEO, as in the kernel.
    pub(super) fn connect_timeout(&self) -> Option<Duration> {
        let mut value = [0u8; 16];
        self.get(libc::SOL_SOCKET, libc::SO_SNDTIMEO, &mut value).ok()?;
        let (seconds, micros) = value.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).unwrap_or(0);
        let timeout = Duration::from_secs(number(seconds)).saturating_add(Duration::from_micros(number(micros)));
        (!timeout.is_zero()).then_some(timeout)
    }

    pub(super) fn copy_options_from(&self, other: &Self) {
        for (level, name) in OPTIONS_KEPT {
            if let (Ok(wanted), Ok(present)) = (other.int(level, name), self.int(level, name))
                && wanted != present
            {
                self.set(level, name, &wanted.to_ne_bytes());
            }
        }
        for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let mut value = [0u8; 16];
            if other.get(libc::SOL_SOCKET, name, &mut value).is_ok() && value != [0; 16] {
                self.set(libc::SOL_SOCKET, name, &value);
            }
        }
    }

    /// Binds to an address and a port that is chosen at connect, so that one source can have many connections.
    pub(super) fn bind_source(&self, domain: i32, source: IpAddr) -> Result<(), Errno> {
        self.set(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32.to_ne_bytes());
        self.bind(&encode(domain, SocketAddr::new(source, 0)).ok_or(Errno::EADDRNOTAVAIL)?)
    }

    pub(super) fn bind(&self, address: &[u8]) -> Result<(), Errno> {
        // SAFETY: pointer and length belong together.
        Errno::result(unsafe { libc::bind(self.0.as_raw_fd(), address.as_ptr().cast(), length(address)) }).map(drop)
    }

    pub(super) fn connect(&self, address: &[u8]) -> Result<(), Errno> {
        // SAFETY: pointer and length belong together.
        Errno::result(unsafe { libc::connect(self.0.as_raw_fd(), address.as_ptr().cast(), length(address)) }).map(drop)
    }

    pub(super) fn listen(&self, backlog: i32) -> Result<(), Errno> {
        // SAFETY: plain integers.
        Errno::result(unsafe { libc::listen(self.0.as_raw_fd(), backlog) }).map(drop)
    }

    fn get(&self, level: i32, name: i32, value: &mut [u8]) -> Result<(), Errno> {
        let mut size = length(value);
        // SAFETY: the kernel writes at most `size` bytes.
        let got =
            unsafe { libc::getsockopt(self.0.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut size) };
        Errno::result(got).map(drop)
    }

    /// Best effort: an option that cannot be set is a nuisance to the program, not a reason to leave it without a connection.
    fn set(&self, level: i32, name: i32, value: &[u8]) {
        // SAFETY: pointer and length belong together.
        unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, value.as_ptr().cast(), length(value)) };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn length(bytes: &[u8]) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes.len()).unwrap_or(0)
}

pub(super) fn family(address: &[u8]) -> Option<i32> {
    Some(i32::from(u16::from_ne_bytes([*address.first()?, *address.get(1)?])))
}

/// Reads a `sockaddr_in` or `sockaddr_in6`. Scope and flow label are dropped: no address that is let through needs them.
pub(super) fn decode(address: &[u8]) -> Option<SocketAddr> {
    let port = || Some(u16::from_be_bytes([*address.get(2)?, *address.get(3)?]));
    match family(address)? {
        libc::AF_INET if address.len() >= size_of::<libc::sockaddr_in>() => {
            let octets: [u8; 4] = address.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv4Addr::from(octets).into(), port()?))
        }
        libc::AF_INET6 if address.len() >= IN6_BYTES_MIN => {
            let octets: [u8; 16] = address.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(octets).into(), port()?))
        }
        _ => None,
    }
}

/// The other way round, as a socket of this domain wants it. `None` if the domain cannot say it.
pub(super) fn encode(domain: i32, address: SocketAddr) -> Option<Vec<u8>> {
    let family = u16::try_from(domain).ok()?.to_ne_bytes();
    let port = address.port().to_be_bytes();
    match (domain, address.ip()) {
        (libc::AF_INET, IpAddr::V4(v4)) => Some([&family, &port, &v4.octets()[..], &[0; 8]].concat()),
        (libc::AF_INET6, IpAddr::V4(v4)) => Some(encode_v6(family, port, v4.to_ipv6_mapped())),
        (libc::AF_INET6, IpAddr::V6(v6)) => Some(encode_v6(family, port, v6)),
        _ => None,
    }
}

fn encode_v6(family: [u8; 2], port: [u8; 2], address: Ipv6Addr) -> Vec<u8> {
    let (flow, scope) = ([0; 4], [0; 4]);
    [&family, &port, &flow[..], &address.octets(), &scope].concat()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sockets_state_and_options_are_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        client.set_nodelay(true).expect("nodelay");
        client.set_write_timeout(Some(Duration::from_millis(1500))).expect("timeout");
        let client = Socket(client.into());
        let copy = Socket::new(libc::AF_INET, libc::SOCK_STREAM).expect("socket");
        assert_eq!(client.tcp_state(), Ok(TcpState::Connected));
        assert_eq!(copy.tcp_state(), Ok(TcpState::Closed));
        assert_eq!((client.is_nonblocking(), copy.is_nonblocking()), (Ok(false), Ok(true)));
        copy.copy_options_from(&client);
        assert_eq!(copy.int(libc::IPPROTO_TCP, libc::TCP_NODELAY), Ok(1));
        assert_eq!(copy.connect_timeout(), Some(Duration::from_millis(1500)));
        copy.make_blocking().expect("fcntl");
        assert_eq!(copy.is_nonblocking(), Ok(false));
        assert_eq!(copy.namespace(), client.namespace());
    }

    proptest! {
        #[test]
        fn addresses_survive_their_encoding(v4: [u8; 4], v6: [u8; 16], port: u16) {
            let v4 = SocketAddr::new(Ipv4Addr::from(v4).into(), port);
            let v6 = SocketAddr::new(Ipv6Addr::from(v6).into(), port);
            prop_assert_eq!(decode(&encode(libc::AF_INET, v4).expect("v4")), Some(v4));
            prop_assert_eq!(decode(&encode(libc::AF_INET6, v6).expect("v6")), Some(v6));
            let mapped = decode(&encode(libc::AF_INET6, v4).expect("mapped")).expect("mapped");
            prop_assert_eq!(mapped.ip().to_canonical(), v4.ip());
            prop_assert_eq!(encode(libc::AF_INET, v6), None);
        }

        #[test]
        fn any_bytes_are_an_address_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = (family(&bytes), decode(&bytes));
        }
    }
}

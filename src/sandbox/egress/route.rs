//! One question to the kernel's routing (rtnetlink(7), RTM_GETROUTE). Sends nothing to anywhere.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::socket::Socket;

const HEADER_BYTES: usize = size_of::<libc::nlmsghdr>();
/// `struct rtmsg`: family, three lengths and services, table, protocol, scope, type, flags.
const ROUTE_BYTES: usize = 12;
const TYPE_AT: usize = HEADER_BYTES + 7;

/// Where packets to it would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Away,
    /// To this host itself, or to everybody near it (broadcast).
    Local,
}

/// Finds local addresses that no interface lists (AnyIP routes), and such as came up since the list was read.
///
/// # Errors
/// There is no route; the errno is the one that connect gives.
pub(super) fn route(target: IpAddr) -> Result<Route, Errno> {
    let socket = Socket::new(libc::AF_NETLINK, libc::SOCK_RAW)?;
    // Sent to the kernel, which answers before `send` returns: the socket need not wait.
    send(socket.0.as_raw_fd(), &request(target), MsgFlags::empty())?;
    let mut reply = [0; 1024];
    let length = recv(socket.0.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    read(&reply[..length])
}

fn request(target: IpAddr) -> Vec<u8> {
    let (family, octets) = match target {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    };
    let bits = octets.len() as u8 * 8;
    let attribute = [4 + octets.len() as u16, libc::RTA_DST].map(u16::to_ne_bytes).concat();
    let route = [family, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let length = (HEADER_BYTES + ROUTE_BYTES + attribute.len() + octets.len()) as u32;
    let kind = [libc::RTM_GETROUTE, libc::NLM_F_REQUEST as u16].map(u16::to_ne_bytes).concat();
    let (sequence, port) = ([0; 4], [0; 4]);
    [&length.to_ne_bytes()[..], &kind, &sequence, &port, &route, &attribute, &octets].concat()
}

fn read(reply: &[u8]) -> Result<Route, Errno> {
    let kind = reply.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind.map(i32::from) == Some(libc::NLMSG_ERROR) {
        let error = reply.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|error| error.try_into().ok());
        return Err(error.map_or(Errno::ENETUNREACH, |error| Errno::from_raw(-i32::from_ne_bytes(error))));
    }
    match reply.get(TYPE_AT).filter(|_| kind == Some(libc::RTM_NEWROUTE)) {
        Some(&libc::RTN_UNICAST) => Ok(Route::Away),
        Some(&(libc::RTN_LOCAL | libc::RTN_BROADCAST | libc::RTN_ANYCAST | libc::RTN_MULTICAST)) => Ok(Route::Local),
        Some(&libc::RTN_PROHIBIT) => Err(Errno::EACCES),
        _ => Err(Errno::ENETUNREACH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_broadcast_too() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "255.255.255.255"] {
            assert_eq!(route(address.parse().expect(address)), Ok(Route::Local), "{address}");
        }
    }

    #[test]
    fn a_short_reply_is_no_route() {
        for length in 0..32 {
            assert!(read(&vec![0; length]).is_err());
        }
    }
}

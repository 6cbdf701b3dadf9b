//! What the broker tells the supervisor: one JSON message per packet, with the descriptors that go along.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use super::resolver::Sockets;
use crate::sandbox::rights;

/// Some thousand rules. A socket's default send buffer takes it.
const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// The listener, and the resolver's two.
const DESCRIPTORS_MAX: usize = 3;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Add { worker: u64, policy: Policy },
    Remove { worker: u64 },
}

/// What the supervisor holds for a worker. Nobody else may keep the listener: while any copy of it is open, calls wait for an answer.
pub struct Descriptors {
    /// Of the worker's seccomp filter.
    pub listener: OwnedFd,
    /// From [`super::resolver::bind`]. Without, the worker can look no names up.
    pub resolver: Option<Sockets>,
}

pub(super) fn send(socket: BorrowedFd<'_>, request: &Request, descriptors: Option<&Descriptors>) -> io::Result<()> {
    let body = serde_json::to_vec(request)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "egress policy too large"));
    }
    let mut sent = Vec::new();
    if let Some(Descriptors { listener, resolver }) = descriptors {
        sent.push(listener.as_fd());
        sent.extend(resolver.iter().flat_map(|sockets| [sockets.udp.as_fd(), sockets.tcp.as_fd()]));
    }
    rights::send(socket, &[IoSlice::new(&body)], &sent)?;
    Ok(())
}

/// `None` when the broker closed its end.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut body = vec![0; MESSAGE_BYTES_MAX];
    let (received, descriptors) = rights::receive(socket, &mut body)?;
    if received == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&body[..received])?, descriptors)))
}

impl Descriptors {
    /// In the order of [`send`]. `None`: not what it sends.
    pub(in crate::sandbox) fn from_received(mut descriptors: Vec<OwnedFd>) -> Option<Self> {
        let resolver = match descriptors.len() {
            1 => None,
            DESCRIPTORS_MAX => {
                let tcp = descriptors.pop()?;
                Some(Sockets { udp: descriptors.pop()?, tcp })
            }
            _ => return None,
        };
        Some(Self { listener: descriptors.pop()?, resolver })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::super::policy::{Egress, Rule};
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("pair")
    }

    #[test]
    fn a_large_policy_arrives_with_its_descriptors() {
        let (ours, theirs) = pair();
        let rule = Rule { network: "10.0.0.0/8".parse().expect("cidr"), ports: vec![5432] };
        let policy = Policy::new(Egress::Public { allow: vec![rule; 2000] });
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("open"));
        let sockets = Some(Sockets { udp: null(), tcp: null() });
        let descriptors = Descriptors { listener: null(), resolver: sockets };
        send(ours.as_fd(), &Request::Add { worker: 7, policy: policy.clone() }, Some(&descriptors)).expect("send");
        let (request, received) = receive(theirs.as_fd()).expect("receive").expect("open");
        assert!(matches!(request, Request::Add { worker: 7, policy: received } if received == policy));
        assert!(Descriptors::from_received(received).expect("three").resolver.is_some());
        send(ours.as_fd(), &Request::Remove { worker: 7 }, None).expect("send");
        assert!(matches!(receive(theirs.as_fd()), Ok(Some((Request::Remove { worker: 7 }, none))) if none.is_empty()));
        drop(ours);
        assert!(receive(theirs.as_fd()).expect("closed").is_none());
    }

    #[test]
    fn a_policy_beyond_the_limit_is_refused_where_it_is_sent() {
        let (ours, _theirs) = pair();
        let policy = Policy { names_refused: vec!["x".repeat(MESSAGE_BYTES_MAX)], ..Policy::new(Egress::None) };
        assert!(send(ours.as_fd(), &Request::Add { worker: 7, policy }, None).is_err());
    }
}

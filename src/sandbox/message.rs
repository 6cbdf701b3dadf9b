//! What the service and the broker say to each other: a length (u32, little endian), then JSON; descriptors travel with the length.

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::rights;
use super::settings::Settings;
use super::spec::{Exit, Limits, Mount, Network, Spec};
use crate::model::Report;

/// Environment, arguments and paths fit many times over.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// 1, 2, 3 and 4 of a worker.
const DESCRIPTORS_MAX: usize = 4;

/// Names a child for as long as the service runs; pids are reused, these are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ChildId(pub u64);

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first one, once.
    SetUp(Box<Settings>),
    Spawn {
        id: ChildId,
        spec: Box<Spec>,
    },
    /// Gives a running child more to see, and its limits.
    Attach {
        id: ChildId,
        mounts: Vec<Mount>,
        limits: Limits,
        network: Network,
    },
    Kill {
        id: ChildId,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The answer to [`Request::SetUp`].
    Ready(Report),
    NotReady {
        reason: String,
    },
    /// Comes with the child's listening socket, if it has one.
    Started {
        id: ChildId,
        pid: u32,
        costs: Costs,
    },
    NotStarted {
        id: ChildId,
        reason: String,
    },
    Attached {
        id: ChildId,
        problem: Option<String>,
    },
    /// Said once nothing of the child's tree is left.
    Exited {
        id: ChildId,
        exit: Exit,
    },
}

/// Sends what comes in until the queue or the socket closes.
pub(super) fn send_all(socket: &UnixStream, queue: &mpsc::Receiver<(Request, Vec<OwnedFd>)>) {
    while let Ok((request, descriptors)) = queue.recv() {
        if let Err(err) = send(socket, &request, &descriptors) {
            // That it is gone, the receiving side tells, if it went by itself: what comes too late at the end of a service is no error.
            if !matches!(err.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                tracing::error!(%err, "failed to send to the sandbox broker");
            }
            return;
        }
        // The descriptors close here: from now on only the child holds its ends.
    }
    // No handle is left: tell the broker, although the receiving thread keeps its clone of the socket.
    let _ = socket.shutdown(std::net::Shutdown::Write);
}

pub(super) fn send_request(socket: &UnixStream, request: &Request) -> io::Result<()> {
    send(socket, request, &[])
}

pub(super) fn send_reply(socket: &UnixStream, reply: &Reply, descriptors: &[OwnedFd]) -> io::Result<()> {
    send(socket, reply, descriptors)
}

/// `None` when the service closed its end.
pub(super) fn receive_request(socket: &UnixStream) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    receive(socket)
}

/// `None` when the broker closed its end.
pub(super) fn receive_reply(socket: &UnixStream) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
    receive(socket)
}

fn send<T: Serialize>(mut socket: &UnixStream, message: &T, descriptors: &[OwnedFd]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = rights::send(socket, &[IoSlice::new(&length)], &descriptors)?;
    socket.write_all(&length[sent..])?;
    socket.write_all(&body)
}

fn receive<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0u8; 4];
    let (received, descriptors) = rights::receive(socket, &mut length)?;
    if received == 0 {
        return Ok(None);
    }
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    socket.read_exact(&mut length[received..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, descriptors)))
}

//! One question over TCP (RFC 7766): read it, put it to the host's resolver over TCP, pass the answer, close.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;

use super::question::{Rcode, reply};
use super::resolver::Rules;
use super::socket::{Socket, encode};

/// Questions are short; only answers need TCP.
const QUESTION_BYTES_MAX: usize = 1024;
const LENGTH_BYTES: usize = 2;

pub(super) struct Exchange {
    client: TcpStream,
    stage: Stage,
    pub(super) deadline: Instant,
}

enum Stage {
    Question(Vec<u8>),
    /// The question, framed; how much of it is sent.
    Ask {
        upstream: TcpStream,
        question: Vec<u8>,
        sent: usize,
    },
    Answer {
        upstream: TcpStream,
        answer: Vec<u8>,
    },
    Reply {
        reply: Vec<u8>,
        sent: usize,
    },
    Done,
}

impl Exchange {
    pub(super) fn new(client: TcpStream, deadline: Instant) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        Ok(Self { client, stage: Stage::Question(Vec::new()), deadline })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    pub(super) fn source(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.stage {
            Stage::Question(_) | Stage::Done => (self.client.as_fd(), PollFlags::POLLIN),
            Stage::Ask { upstream, .. } => (upstream.as_fd(), PollFlags::POLLOUT),
            Stage::Answer { upstream, .. } => (upstream.as_fd(), PollFlags::POLLIN),
            Stage::Reply { .. } => (self.client.as_fd(), PollFlags::POLLOUT),
        }
    }

    /// Does what can be done without waiting; any failure ends it, and the client sees the connection close.
    pub(super) fn advance(&mut self, rules: &Rules) {
        let stage = std::mem::replace(&mut self.stage, Stage::Done);
        self.stage = self.step(stage, rules).unwrap_or(Stage::Done);
    }

    fn step(&mut self, stage: Stage, rules: &Rules) -> io::Result<Stage> {
        match stage {
            Stage::Question(mut read) => match read_message(&mut self.client, &mut read, QUESTION_BYTES_MAX)? {
                true => Ok(Self::put(&read, rules)),
                false => Ok(Stage::Question(read)),
            },
            Stage::Ask { mut upstream, question, mut sent } => match write_some(&mut upstream, &question, &mut sent)? {
                true => Ok(Stage::Answer { upstream, answer: Vec::new() }),
                false => Ok(Stage::Ask { upstream, question, sent }),
            },
            Stage::Answer { mut upstream, mut answer } => {
                match read_message(&mut upstream, &mut answer, usize::from(u16::MAX))? {
                    true => Ok(Stage::Reply { reply: answer, sent: 0 }),
                    false => Ok(Stage::Answer { upstream, answer }),
                }
            }
            Stage::Reply { reply, mut sent } => match write_some(&mut self.client, &reply, &mut sent)? {
                true => Ok(Stage::Done),
                false => Ok(Stage::Reply { reply, sent }),
            },
            Stage::Done => Ok(Stage::Done),
        }
    }

    /// Where a complete question goes.
    fn put(framed: &[u8], rules: &Rules) -> Stage {
        let message = &framed[LENGTH_BYTES..];
        let reply = match rules.judge(message) {
            Ok(question) => match rules.upstream(0).and_then(connect) {
                Ok(upstream) => return Stage::Ask { upstream, question: framed.to_vec(), sent: 0 },
                Err(_) => reply(message, Some(&question), Rcode::ServFail),
            },
            Err(refusal) => refusal,
        };
        reply.map_or(Stage::Done, |reply| Stage::Reply { reply: frame(&reply), sent: 0 })
    }
}

fn connect(upstream: SocketAddr) -> io::Result<TcpStream> {
    let domain = if upstream.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = Socket::new(domain, libc::SOCK_STREAM)?;
    match socket.connect(&encode(domain, upstream).ok_or(Errno::EAFNOSUPPORT)?) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(socket.0)),
        Err(err) => Err(err.into()),
    }
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&length, message].concat()
}

/// Reads until `buffer` holds one message with its length before it. Says whether it does.
fn read_message(from: &mut TcpStream, buffer: &mut Vec<u8>, bytes_max: usize) -> io::Result<bool> {
    loop {
        let wanted = match buffer.first_chunk::<LENGTH_BYTES>() {
            Some(length) => LENGTH_BYTES + usize::from(u16::from_be_bytes(*length)),
            None => LENGTH_BYTES,
        };
        if wanted > LENGTH_BYTES + bytes_max {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if buffer.len() >= LENGTH_BYTES && buffer.len() >= wanted {
            return Ok(true);
        }
        let mut chunk = [0; 4096];
        let room = chunk.len().min(wanted - buffer.len());
        match from.read(&mut chunk[..room]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => buffer.extend_from_slice(&chunk[..length]),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(err) => return Err(err),
        }
    }
}

/// Writes what fits. Says whether all is sent.
fn write_some(to: &mut TcpStream, bytes: &[u8], sent: &mut usize) -> io::Result<bool> {
    while *sent < bytes.len() {
        match to.write(&bytes[*sent..]) {
            Ok(length) => *sent += length,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(err) => return Err(err),
        }
    }
    Ok(true)
}

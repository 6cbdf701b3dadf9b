//! A worker's name server: a forwarder that refuses the cluster's own names.
//!
//! It stands on [`ADDRESS`] *inside the worker's namespace*, on sockets that the launcher binds there and hands to the supervisor.
//! The worker's side of a question is thus an ordinary loopback socket of its own. Handing out UDP sockets of the host's instead
//! would be a hole: `sendto` on a connected UDP socket still takes any address. And as replies do come from the address that was
//! asked, c-ares (which checks) is content.
//!
//! Questions and answers pass unchanged, and nothing is kept between them: a forged answer fools only the worker that asked.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::host::Host;
use super::question::{Question, Rcode, is_reply_to, reply};
use super::resolver_stream::Exchange;

/// What the worker's /etc/resolv.conf names: `nameserver 127.0.0.53`.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), 53);

/// glibc gives up after 5 s, c-ares after 2 s; both ask again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Then the host's next resolver is asked, and at once where one cannot be reached.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);
const ATTEMPTS_MAX: usize = 3;
/// EDNS allows 64 KiB, and any cut is a broken answer.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Connections of a worker under way; further ones wait in the listener's queue.
const STREAMS_MAX: usize = 8;

/// The sockets that [`bind`] makes, on their way to the supervisor.
pub struct Sockets {
    pub(super) udp: OwnedFd,
    pub(super) tcp: OwnedFd,
}

impl Sockets {
    /// UDP, then TCP: to pass them on.
    pub fn into_fds(self) -> [OwnedFd; 2] {
        [self.udp, self.tcp]
    }

    pub fn from_fds([udp, tcp]: [OwnedFd; 2]) -> Self {
        Self { udp, tcp }
    }
}

/// For the launcher: call it in the worker's new namespace, once `lo` is up and while the port is still permitted (below 1024), before
/// the filter is installed. The descriptors are close-on-exec.
///
/// # Errors
/// `lo` is down, or the capability is gone.
pub fn bind() -> io::Result<Sockets> {
    Ok(Sockets { udp: UdpSocket::bind(ADDRESS)?.into(), tcp: TcpListener::bind(ADDRESS)?.into() })
}

pub(super) struct Resolver {
    udp: UdpSocket,
    tcp: TcpListener,
    questions: Vec<Asked>,
    streams: Vec<Exchange>,
    rules: Rules,
}

/// What questions are judged by, and where they go.
pub(super) struct Rules {
    pub names_refused: Vec<String>,
    pub questions_max: usize,
    pub host: Arc<Host>,
}

/// A question that went upstream, on a socket (and a port that nobody can guess) of its own.
struct Asked {
    message: Vec<u8>,
    client: SocketAddr,
    upstream: UdpSocket,
    attempt: usize,
    attempt_ends: Instant,
    /// It was answered, or cannot be.
    done: bool,
}

/// What can become ready.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Udp,
    Accept,
    Answer(usize),
    Stream(usize),
}

impl Resolver {
    pub(super) fn new(sockets: Sockets, rules: Rules) -> io::Result<Self> {
        let (udp, tcp) = (UdpSocket::from(sockets.udp), TcpListener::from(sockets.tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp, questions: Vec::new(), streams: Vec::new(), rules })
    }

    /// What to poll for; new work only if `take_new`.
    pub(super) fn sources(&self, take_new: bool) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        if take_new {
            sources.push((Source::Udp, self.udp.as_fd(), PollFlags::POLLIN));
            if self.streams.len() < STREAMS_MAX {
                sources.push((Source::Accept, self.tcp.as_fd(), PollFlags::POLLIN));
            }
        }
        let answers = self.questions.iter().enumerate();
        sources.extend(answers.map(|(at, asked)| (Source::Answer(at), asked.upstream.as_fd(), PollFlags::POLLIN)));
        for (at, stream) in self.streams.iter().enumerate() {
            let (fd, events) = stream.source();
            sources.push((Source::Stream(at), fd, events));
        }
        sources
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let streams = self.streams.iter().map(|stream| stream.deadline);
        self.questions.iter().map(|asked| asked.attempt_ends).chain(streams).min()
    }

    pub(super) fn handle(&mut self, ready: Source) {
        match ready {
            Source::Udp => drop(self.take_question()),
            Source::Accept => {
                if let Ok((client, _)) = self.tcp.accept() {
                    self.streams.extend(Exchange::new(client, Instant::now() + ANSWER_TIMEOUT));
                }
            }
            Source::Answer(at) => {
                if let Some(asked) = self.questions.get_mut(at) {
                    asked.pass_answer(&self.udp);
                }
            }
            Source::Stream(at) => {
                if let Some(stream) = self.streams.get_mut(at) {
                    stream.advance(&self.rules);
                }
            }
        }
    }

    /// Forgets what is done, and goes on with what is overdue. Call it after all sources of a round: their numbers end here.
    pub(super) fn sweep(&mut self, now: Instant) {
        for asked in self.questions.iter_mut().filter(|asked| !asked.done && asked.attempt_ends <= now) {
            asked.attempt_next(&self.rules, &self.udp);
        }
        self.questions.retain(|asked| !asked.done);
        self.streams.retain(|stream| stream.deadline > now && !stream.is_done());
    }

    fn take_question(&mut self) -> io::Result<()> {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let (length, client) = self.udp.recv_from(&mut buffer)?;
        let message = &buffer[..length];
        let question = match self.rules.judge(message) {
            Ok(question) => question,
            Err(refusal) => return refusal.map_or(Ok(()), |refusal| self.udp.send_to(&refusal, client).map(drop)),
        };
        let full = self.questions.len() >= self.rules.questions_max;
        let asked =
            if full { Err(io::ErrorKind::ResourceBusy.into()) } else { Asked::new(message, client, &self.rules) };
        match asked {
            Ok(asked) => self.questions.push(asked),
            Err(_) => {
                let failure = reply(message, Some(&question), Rcode::ServFail).unwrap_or_default();
                self.udp.send_to(&failure, client)?;
            }
        }
        Ok(())
    }
}

impl Rules {
    /// The question if it may go upstream; else the reply, if there is one to give.
    pub(super) fn judge(&self, message: &[u8]) -> Result<Question, Option<Vec<u8>>> {
        let question = Question::parse(message).ok_or_else(|| reply(message, None, Rcode::NotImp))?;
        let names = self.host.names().map_err(|_| reply(message, Some(&question), Rcode::ServFail))?;
        let refusal = question.refusal(&self.names_refused).or_else(|| question.refusal(&names.cluster_domains));
        match refusal {
            None => Ok(question),
            Some(rcode) => Err(reply(message, Some(&question), rcode)),
        }
    }

    pub(super) fn upstream(&self, attempt: usize) -> io::Result<SocketAddr> {
        let resolvers = self.host.names()?.resolvers;
        let at = attempt.checked_rem(resolvers.len());
        at.map(|at| resolvers[at]).ok_or_else(|| io::Error::other("the host has no resolver"))
    }
}

impl Asked {
    fn new(message: &[u8], client: SocketAddr, rules: &Rules) -> io::Result<Self> {
        let upstream = ask(message, rules.upstream(0)?)?;
        let attempt_ends = Instant::now() + ATTEMPT_TIMEOUT;
        Ok(Self { message: message.to_vec(), client, upstream, attempt: 0, attempt_ends, done: false })
    }

    fn pass_answer(&mut self, client: &UdpSocket) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        match self.upstream.recv(&mut buffer) {
            Ok(length) if is_reply_to(&buffer[..length], [self.message[0], self.message[1]]) => {
                let _ = client.send_to(&buffer[..length], self.client);
                self.done = true;
            }
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.attempt_ends = Instant::now(), // Nobody listens there.
        }
    }

    fn attempt_next(&mut self, rules: &Rules, client: &UdpSocket) {
        self.attempt += 1;
        self.attempt_ends = Instant::now() + ATTEMPT_TIMEOUT;
        let next =
            if self.attempt < ATTEMPTS_MAX { rules.upstream(self.attempt) } else { Err(io::Error::other("all asked")) };
        match next.and_then(|upstream| ask(&self.message, upstream)) {
            Ok(upstream) => self.upstream = upstream,
            Err(_) => {
                let failure = reply(&self.message, Question::parse(&self.message).as_ref(), Rcode::ServFail);
                let _ = client.send_to(&failure.unwrap_or_default(), self.client);
                self.done = true;
            }
        }
    }
}

fn ask(message: &[u8], upstream: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(upstream)?;
    socket.send(message)?;
    Ok(socket)
}

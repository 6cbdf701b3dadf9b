//! The broker process: starts children on request, reaps them, and ends everything when the service goes away.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, setsid};

use super::launch::{DESCRIPTOR_MIN, launch};
use super::message::{ChildId, Reply, Request, receive_request, send_reply};
use super::{Exit, ExitStatus, tree};

/// How long a process that left its worker can live until it is noticed, if nothing else happens.
const SWEEP_INTERVAL_MS: u16 = 1000;

/// The broker's whole life: serves the socket that stands on descriptor 0 until it closes.
///
/// # Errors
/// Only while it sets itself up, or when the socket fails.
pub fn serve() -> io::Result<()> {
    setsid()?; // A Ctrl-C at the service's terminal is for the service: it decides how its workers end.
    prctl::set_child_subreaper(true)?;
    prctl::set_name(c"chatfn-broker")?;
    let socket = take_socket()?;
    let mut chld = SigSet::empty();
    chld.add(Signal::SIGCHLD);
    chld.thread_block()?;
    let signals = SignalFd::with_flags(&chld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut broker = Broker { socket, children: BTreeMap::new() };
    let ended = broker.run(&signals);
    broker.end_all();
    ended
}

/// Moves the socket out of the way of what children get, and fills the low numbers so that nothing else lands there.
fn take_socket() -> io::Result<UnixStream> {
    let raw = fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_MIN))?;
    // SAFETY: `fcntl` has just made this descriptor for us.
    let socket = UnixStream::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) });
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    // SAFETY: dup2 onto our own stdin, whose socket was moved just now.
    unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 0) };
    std::mem::forget(null); // One of the low numbers; it stays for the broker's life.
    loop {
        let filler = fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(0))?;
        if filler >= DESCRIPTOR_MIN - 1 {
            return Ok(socket);
        }
    }
}

struct Broker {
    socket: UnixStream,
    /// Started, not yet reaped.
    children: BTreeMap<Pid, ChildId>,
}

impl Broker {
    fn run(&mut self, signals: &SignalFd) -> io::Result<()> {
        loop {
            let (readable, signalled) = self.wait(signals)?;
            if signalled {
                while let Ok(Some(_)) = signals.read_signal() {}
            }
            // Also without a signal: a timeout means it is time to look for orphans.
            if !readable || signalled {
                self.reap()?;
            }
            if readable {
                let Some((request, descriptors)) = receive_request(&self.socket)? else {
                    return Ok(());
                };
                self.handle(request, descriptors)?;
            }
        }
    }

    fn wait(&self, signals: &SignalFd) -> io::Result<(bool, bool)> {
        let mut polled =
            [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = if self.children.is_empty() { PollTimeout::NONE } else { SWEEP_INTERVAL_MS.into() };
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
        let any = |index: usize| polled[index].any().unwrap_or(false);
        Ok((any(0), any(1)))
    }

    fn handle(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Spawn { id, spec } => {
                let reply = match launch(&spec, descriptors) {
                    Ok(pid) => {
                        self.children.insert(Pid::from_raw(pid.cast_signed()), id);
                        Reply::Started { id, pid }
                    }
                    Err(err) => Reply::NotStarted { id, reason: err.to_string() },
                };
                send_reply(&self.socket, &reply)
            }
            Request::Kill { id } => {
                // Not found: it ended by itself meanwhile. Its pid is ours until we reap it, so it cannot be another's.
                if let Some((pid, _)) = self.children.iter().find(|(_, child)| **child == id) {
                    let _ = kill(*pid, Signal::SIGKILL);
                }
                Ok(())
            }
        }
    }

    /// Reaps what ended, then what it left behind, then reports.
    fn reap(&mut self) -> io::Result<()> {
        let mut ended = Vec::new();
        while let Some((pid, exit)) = wait_any() {
            if let Some(id) = self.children.remove(&pid) {
                ended.push((id, exit));
            }
        }
        let known: BTreeSet<Pid> = self.children.keys().copied().collect();
        tree::end_orphans(getpid(), &known);
        for (id, exit) in ended {
            send_reply(&self.socket, &Reply::Exited { id, exit })?;
        }
        Ok(())
    }

    fn end_all(&mut self) {
        // None is known any more: each is an orphan now.
        self.children.clear();
        tree::end_orphans(getpid(), &BTreeSet::new());
    }
}

/// The next child that ended, with what it used. `waitpid` does not tell the latter.
fn wait_any() -> Option<(Pid, Exit)> {
    let mut status = 0;
    // SAFETY: `rusage` is plain data for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    if pid <= 0 {
        return None;
    }
    let status = if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    };
    let cpu_time = duration(usage.ru_utime) + duration(usage.ru_stime);
    let peak_memory_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Some((Pid::from_raw(pid), Exit { status, cpu_time, peak_memory_bytes }))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_usec).unwrap_or(0).saturating_mul(1000),
    )
}

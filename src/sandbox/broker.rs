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
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, setsid};

use super::attach::attach;
use super::child::{DESCRIPTOR_MIN, PROGRAM};
use super::launch::{Launcher, Running, group_limits};
use super::message::{ChildId, Reply, Request, receive_request, send_reply};
use super::plan::{Become, Stdio};
use super::set_up;
use super::spec::{Exit, ExitStatus, Limits, Mount, Network, Spec};
use super::tree;

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
    allow_descriptor(PROGRAM)?;
    let Some((Request::SetUp(settings), _)) = receive_request(&socket)? else {
        return Err(io::Error::other("the first request must be the settings"));
    };
    let launcher = match set_up::set_up(*settings) {
        Ok((launcher, report)) => {
            send_reply(&socket, &Reply::Ready(report), &[])?;
            launcher
        }
        Err(reason) => return send_reply(&socket, &Reply::NotReady { reason }, &[]),
    };
    // It holds what tenants' code must not see, and can do what the service cannot. Not before: setting up a user namespace takes files
    // of /proc that are root's for a process that nobody may look into.
    prctl::set_dumpable(false)?;
    let mut chld = SigSet::empty();
    chld.add(Signal::SIGCHLD);
    chld.thread_block()?;
    let signals = SignalFd::with_flags(&chld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut broker = Broker { socket, launcher, children: BTreeMap::new() };
    let ended = broker.run(&signals);
    broker.end_all();
    match ended {
        // The service went away while it was being told something.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe || err.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        ended => ended,
    }
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

/// Node's file takes a number above every limit of a child's.
fn allow_descriptor(number: i32) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = u64::try_from(number).unwrap_or(0) + 1;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < wanted {
        return Err(io::Error::other(format!("the limit on open files is {hard}; the sandbox needs {wanted}")));
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard)?)
}

struct Broker {
    socket: UnixStream,
    launcher: Launcher,
    /// Started, not yet reaped.
    children: BTreeMap<Pid, Running>,
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
            Request::SetUp(_) => Err(io::Error::other("the settings come once")),
            Request::Spawn { id, spec } => self.spawn(id, &spec, descriptors),
            Request::Attach { id, mounts, limits, network } => {
                let problem = self.attach(id, &mounts, &limits, &network).err().map(|err| err.to_string());
                send_reply(&self.socket, &Reply::Attached { id, problem }, &[])
            }
            Request::Kill { id } => {
                // Not found: it ended by itself meanwhile.
                if let Some(running) = self.children.values_mut().find(|running| running.id == id) {
                    self.launcher.kill(running);
                }
                Ok(())
            }
        }
    }

    fn spawn(&mut self, id: ChildId, spec: &Spec, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        // Its end was not seen yet; or it was, and no other one could be started.
        if self.launcher.lacks_supervisor() {
            self.supervisor_ended();
        }
        let launched = stdio(spec, descriptors).and_then(|stdio| self.launcher.launch(id, spec, stdio, Become::Node));
        match launched {
            Ok(mut running) => {
                let pid = running.pid.as_raw().cast_unsigned();
                let costs = std::mem::take(&mut running.costs);
                let listener: Vec<OwnedFd> = running.listener.take().into_iter().collect();
                self.children.insert(running.pid, running);
                send_reply(&self.socket, &Reply::Started { id, pid, costs }, &listener)
            }
            Err(err) => send_reply(&self.socket, &Reply::NotStarted { id, reason: err.to_string() }, &[]),
        }
    }

    fn attach(&mut self, id: ChildId, mounts: &[Mount], limits: &Limits, network: &Network) -> io::Result<()> {
        self.launcher.check_mounts(mounts)?;
        let running = self.children.values_mut().find(|running| running.id == id);
        let running = running.ok_or_else(|| io::Error::other("it has ended"))?;
        if let Some(group) = &mut running.group {
            group.set_limits(&group_limits(limits))?;
        }
        let namespace = running.mounts.take().ok_or_else(|| io::Error::other("it has all that it can be given"))?;
        attach(&namespace, mounts)?;
        self.launcher.let_out(running, network)
    }

    /// Reaps what ended, then what it left behind, then reports.
    fn reap(&mut self) -> io::Result<()> {
        let mut ended = Vec::new();
        while let Some((pid, exit)) = wait_any() {
            if let Some(running) = self.children.remove(&pid) {
                ended.push((running, exit));
            } else if self.launcher.helpers() == Some(pid) {
                self.supervisor_ended();
            }
        }
        // In a process namespace of its own nothing outlives the first process.
        if !self.launcher.mode.has_root() {
            let known: BTreeSet<Pid> = self.children.keys().copied().chain(self.launcher.helpers()).collect();
            tree::end_orphans(getpid(), &known);
        }
        for (running, exit) in ended {
            let id = running.id;
            let exit = self.launcher.bury(running, exit);
            send_reply(&self.socket, &Reply::Exited { id, exit }, &[])?;
        }
        self.launcher.tidy();
        Ok(())
    }

    /// Its workers have no network any more, and cannot get one back: others take their place. If there is no other supervisor to be had
    /// now, the next child that starts asks for one again.
    fn supervisor_ended(&mut self) {
        eprintln!("chatfn-broker: the egress supervisor has ended; another one starts, with new workers");
        if let Err(err) = self.launcher.start_supervisor() {
            eprintln!("chatfn-broker: start the egress supervisor: {err}");
        }
        for running in self.children.values_mut().filter(|running| running.let_out) {
            running.withdrawn = true;
            self.launcher.kill(running);
        }
    }

    fn end_all(&mut self) {
        for running in self.children.values_mut() {
            self.launcher.kill(running);
        }
        // None is known any more: each is an orphan now.
        tree::end_orphans(getpid(), &BTreeSet::new());
        for (_, running) in std::mem::take(&mut self.children) {
            self.launcher.bury(running, Exit::UNKNOWN);
        }
        self.launcher.close();
    }
}

/// Descriptors come in the order 1, 2 and, with a protocol, 3, 4.
fn stdio(spec: &Spec, descriptors: Vec<OwnedFd>) -> io::Result<Stdio> {
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let (stdout, stderr) = (next()?, next()?);
    let protocol = if spec.protocol { Some((next()?, next()?)) } else { None };
    Ok(Stdio { stdout, stderr, protocol })
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
    let status = ExitStatus::from_wait(status);
    let cpu_time = duration(usage.ru_utime) + duration(usage.ru_stime);
    let peak_memory_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Some((Pid::from_raw(pid), Exit { status, cpu_time, peak_memory_bytes, memory_limit_hit: false }))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_usec).unwrap_or(0).saturating_mul(1000),
    )
}

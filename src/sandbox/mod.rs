//! Confinement: limits in, a confined child out. The only place that spawns processes, and the only one with `unsafe`.
//!
//! A small [`broker`] process does the forking. It is single-threaded (PDEATHSIG fires when the spawning *thread* ends), stays small
//! however large the service grows (fork costs follow the memory of the forking process), and is the subreaper of everything below
//! it: when the service goes away, by whatever means, the broker sees its socket close and ends every descendant.
//!
//! Knows no apps, no pools and no protocol: it hands out pipes. Start reading at [`Sandbox::start`], then [`launch`].
//!
//! What confines a child is in layers, a file each, put on in the order that [`child`] explains: [`clone`] (namespaces), [`root`],
//! [`privileges`] (user, capabilities, rlimits), [`landlock`], [`seccomp`], [`cgroup`], [`egress`]. Which of them work on a machine
//! is tried at the start, by a child that attempts what is forbidden ([`probe`]); [`Report`] says so.

#![allow(unsafe_code, reason = "fork, exec and wait need it; every block says why it is sound")]

mod attach;
mod broker;
mod cgroup;
mod child;
mod clone;
pub mod costs;
pub mod egress;
mod landlock;
mod launch;
mod leftovers;
mod message;
mod mounts;
mod plan;
mod privileges;
mod probe;
mod rights;
mod root;
mod seccomp;
mod set_up;
mod settings;
mod spec;
mod status;
mod syscalls;
#[cfg(test)]
mod testing;
mod tree;
mod users;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, pipe2};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use costs::Costs;
use message::{ChildId, Reply, Request};

use crate::model::Report;

pub use broker::serve as serve_broker;
pub use child::REGISTRY_PORT;
pub use leftovers::open_up;
pub use settings::{Identity, Settings};
pub use spec::{Exit, ExitStatus, Limits, Mount, Network, Profile, Spec};

/// Requests on their way to the broker; it takes each within a few milliseconds.
const REQUESTS_QUEUED_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start Node in its sandbox: {0}")]
    Start(String),
    #[error("show a running child more: {0}")]
    Attach(String),
    #[error("the sandbox broker is gone")]
    BrokerGone,
    #[error("make pipes for a child: {0}")]
    Pipes(#[source] io::Error),
}

/// A handle to the broker. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
}

struct Shared {
    report: Report,
    requests: mpsc::SyncSender<(Request, Vec<OwnedFd>)>,
    waiting: Mutex<Waiting>,
    gone: CancellationToken,
    socket: UnixStream,
    broker_pid: u32,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    gone: bool,
    closing: bool,
    starts: HashMap<ChildId, oneshot::Sender<Result<Started, String>>>,
    attaches: HashMap<ChildId, oneshot::Sender<Option<String>>>,
    exits: HashMap<ChildId, oneshot::Sender<Exit>>,
}

struct Started {
    pid: u32,
    costs: Costs,
    listener: Option<OwnedFd>,
}

impl Sandbox {
    /// Starts the broker by running this program's `sandbox-broker` command, and has it find out what works here. Then gives up what
    /// only the broker needs: on return this process is whom the settings say, and it can gain no privilege.
    ///
    /// Call it before any other thread exists: the broker is to inherit nothing but what it needs, and a thread that is there would keep
    /// its privileges.
    ///
    /// # Errors
    /// The process could not be started, or no mode that was asked for works; the reasons are the kernel's.
    pub fn start(settings: Settings) -> io::Result<Self> {
        // What a broker that died leaves behind comes to us then: see `broker_gone`.
        prctl::set_child_subreaper(true)?;
        let (ours, theirs) = UnixStream::pair()?;
        #[expect(clippy::disallowed_methods, reason = "the sandbox is where processes start")]
        let broker = Command::new("/proc/self/exe")
            .arg("sandbox-broker")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .env_clear()
            .current_dir("/")
            .spawn()?;
        let identity = settings.service.clone();
        message::send_request(&ours, &Request::SetUp(Box::new(settings)))?;
        let report = match message::receive_reply(&ours)? {
            Some((Reply::Ready(report), _)) => report,
            Some((Reply::NotReady { reason }, _)) => return Err(io::Error::other(reason)),
            _ => return Err(io::Error::other("the sandbox broker ended while it set itself up")),
        };
        privileges::lock_down(identity.as_ref())?;
        let (requests, queue) = mpsc::sync_channel(REQUESTS_QUEUED_MAX);
        let shared = Arc::new(Shared {
            report,
            requests,
            waiting: Mutex::default(),
            gone: CancellationToken::new(),
            socket: ours.try_clone()?,
            broker_pid: broker.id(),
        });
        let sender = ours.try_clone()?;
        thread::Builder::new().name("sandbox-send".into()).spawn(move || message::send_all(&sender, &queue))?;
        let receiver = Arc::downgrade(&shared);
        thread::Builder::new().name("sandbox-receive".into()).spawn(move || {
            while let Ok(Some((reply, descriptors))) = message::receive_reply(&ours) {
                let Some(shared) = receiver.upgrade() else { return };
                shared.deliver(reply, descriptors);
            }
            if let Some(shared) = receiver.upgrade() {
                shared.broker_gone();
            }
        })?;
        Ok(Self { shared })
    }

    pub fn broker_pid(&self) -> u32 {
        self.shared.broker_pid
    }

    /// What confines children here.
    pub fn report(&self) -> &Report {
        &self.shared.report
    }

    /// Where a child sees what is mounted.
    pub fn seen(&self, mount: &Mount) -> PathBuf {
        if self.report().mode.has_root() { mount.target.clone() } else { mount.source.clone() }
    }

    /// Where a child sees Node.
    pub fn node_seen<'a>(&self, node: &'a Path) -> &'a Path {
        if self.report().mode.has_root() { Path::new(root::NODE) } else { node }
    }

    /// Ends the broker and whatever it still runs; on return all of it is gone.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the broker to its end.
    pub async fn close(&self) {
        self.shared.waiting().closing = true;
        // Fails if the broker has closed its end: then it is gone already, or will be.
        let _ = self.shared.socket.shutdown(Shutdown::Write);
        self.gone().await;
    }

    /// Resolves when the broker has died.
    pub async fn gone(&self) {
        self.shared.gone.cancelled().await;
    }

    /// Starts a child and returns once it runs (or could not be executed).
    ///
    /// # Errors
    /// The program cannot be executed, or the broker is gone.
    ///
    /// # Cancel safety
    /// Dropping the future after the request went out ends the child: its exit has nobody to go to, and its pipes are closed.
    pub async fn spawn(&self, spec: Spec) -> Result<Child, Error> {
        let (pipes, theirs) = Pipes::new(spec.protocol).map_err(Error::Pipes)?;
        let (started, start) = oneshot::channel();
        let (exited, exit) = oneshot::channel();
        let id = self.shared.register(started, exited)?;
        let mut child = Child {
            id,
            pid: 0,
            costs: Costs::default(),
            pipes: Some(pipes),
            listener: None,
            exit,
            shared: Arc::clone(&self.shared),
            ended: None,
        };
        self.shared.request(Request::Spawn { id, spec: Box::new(spec) }, theirs)?;
        match start.await {
            Ok(Ok(started)) => {
                tracing::debug!(pid = started.pid, costs = %started.costs, "a child has started");
                child.pid = started.pid;
                child.costs = started.costs;
                child.listener = started.listener;
            }
            Ok(Err(reason)) => {
                child.ended = Some(Exit::UNKNOWN);
                return Err(Error::Start(reason));
            }
            Err(_) => return Err(Error::BrokerGone),
        }
        Ok(child)
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(
        &self,
        started: oneshot::Sender<Result<Started, String>>,
        exited: oneshot::Sender<Exit>,
    ) -> Result<ChildId, Error> {
        let mut waiting = self.waiting();
        if waiting.gone {
            return Err(Error::BrokerGone);
        }
        waiting.next_id += 1;
        let id = ChildId(waiting.next_id);
        waiting.starts.insert(id, started);
        waiting.exits.insert(id, exited);
        Ok(id)
    }

    fn request(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<(), Error> {
        // Blocks only if the broker is stuck with a full socket and 256 requests before this one.
        self.requests.send((request, descriptors)).map_err(|_| Error::BrokerGone)
    }

    fn deliver(&self, reply: Reply, descriptors: Vec<OwnedFd>) {
        let mut waiting = self.waiting();
        match reply {
            Reply::Ready(_) | Reply::NotReady { .. } => {} // Said once, before this.
            Reply::Started { id, pid, costs } => {
                if let Some(started) = waiting.starts.remove(&id) {
                    let _ = started.send(Ok(Started { pid, costs, listener: descriptors.into_iter().next() }));
                }
            }
            Reply::Attached { id, problem } => {
                if let Some(attached) = waiting.attaches.remove(&id) {
                    let _ = attached.send(problem);
                }
            }
            Reply::NotStarted { id, reason } => {
                waiting.exits.remove(&id);
                if let Some(started) = waiting.starts.remove(&id) {
                    let _ = started.send(Err(reason));
                }
            }
            Reply::Exited { id, exit } => {
                waiting.attaches.remove(&id);
                if let Some(exited) = waiting.exits.remove(&id) {
                    let _ = exited.send(exit);
                }
            }
        }
    }

    fn broker_gone(&self) {
        let closing = {
            let mut waiting = self.waiting();
            waiting.gone = true;
            waiting.closing
        };
        if closing {
            // It has let go of its socket, the last thing that it does but one.
            let _ = waitpid(Pid::from_raw(self.broker_pid.cast_signed()), None);
        } else {
            tracing::error!("the sandbox broker is gone: no worker can be started any more; restart the service");
        }
        // Its children die with it, but theirs do not. All of them are ours now, and nobody else's: only the broker starts any.
        tree::end_orphans(getpid(), &BTreeSet::new());
        let mut waiting = self.waiting();
        waiting.starts.clear();
        waiting.attaches.clear();
        waiting.exits.clear();
        drop(waiting);
        self.gone.cancel();
    }
}

/// The service's ends of a child's pipes.
pub struct Pipes {
    /// To descriptor 3 and from descriptor 4, where the spec asked for them.
    pub protocol: Option<(pipe::Sender, pipe::Receiver)>,
    pub stdout: pipe::Receiver,
    pub stderr: pipe::Receiver,
}

impl Pipes {
    /// Ours, and the child's ends in the order in which it has them: 1, 2, 3, 4.
    fn new(protocol: bool) -> io::Result<(Self, Vec<OwnedFd>)> {
        let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let mut theirs = vec![child_stdout, child_stderr];
        let mut pipes = Self {
            protocol: None,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        };
        if protocol {
            let (child_read, write) = pipe2(OFlag::O_CLOEXEC)?;
            let (read, child_write) = pipe2(OFlag::O_CLOEXEC)?;
            pipes.protocol = Some((pipe::Sender::from_owned_fd(write)?, pipe::Receiver::from_owned_fd(read)?));
            theirs.extend([child_read, child_write]);
        }
        Ok((pipes, theirs))
    }
}

/// A running child and all of its descendants. Dropping it kills them; [`Child::wait`] says when they are gone.
pub struct Child {
    id: ChildId,
    pid: u32,
    costs: Costs,
    pipes: Option<Pipes>,
    listener: Option<OwnedFd>,
    exit: oneshot::Receiver<Exit>,
    shared: Arc<Shared>,
    /// How, once it is known.
    ended: Option<Exit>,
}

impl Child {
    /// For display and accounting. Never signal it: the broker alone does.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the steps of its start took.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// The pipes, once.
    pub fn take_pipes(&mut self) -> Option<Pipes> {
        self.pipes.take()
    }

    /// The listening socket in the child's network namespace, once; see [`Network::Registry`].
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// Shows a running child more directories, gives it the limits it is to have from now on, and lets it reach what `network` says.
    /// Once, for a child in a root of its own that was started with [`Network::Nothing`]: it cannot lose what it has.
    ///
    /// # Errors
    /// A directory could not be attached; end the child then, it may have been given a part.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the child with or without.
    pub async fn attach(&self, mounts: Vec<Mount>, limits: Limits, network: Network) -> Result<(), Error> {
        let (attached, attach) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            // Whoever waited was told so; nobody would tell us.
            if waiting.gone {
                return Err(Error::BrokerGone);
            }
            waiting.attaches.insert(self.id, attached);
        }
        self.shared.request(Request::Attach { id: self.id, mounts, limits, network }, Vec::new())?;
        match attach.await {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(Error::Attach(problem)),
            Err(_) => Err(Error::Attach("it ended".to_owned())),
        }
    }

    /// SIGKILLs the child and every descendant. Returns at once; `wait` for the end.
    pub fn kill(&self) {
        if self.ended.is_none() {
            let _ = self.shared.request(Request::Kill { id: self.id }, Vec::new());
        }
    }

    /// The end of the child. On return neither it nor any descendant is alive.
    ///
    /// # Cancel safety
    /// May be dropped and called again; after the end it returns the same at once.
    pub async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.ended {
            return exit;
        }
        let exit = (&mut self.exit).await.unwrap_or(Exit::UNKNOWN);
        self.ended = Some(exit);
        exit
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::Mode;

    #[test]
    fn who_asks_after_the_brokers_end_does_not_wait_for_its_answer() {
        let report = Report { mode: Mode::Full, layers: vec![], refused: vec![], landlock_abi: 0, no_attach: None };
        let (requests, _queue) = mpsc::sync_channel(REQUESTS_QUEUED_MAX);
        let (socket, _) = UnixStream::pair().expect("pair");
        let (waiting, gone) = (Mutex::new(Waiting { gone: true, ..Waiting::default() }), CancellationToken::new());
        let shared = Arc::new(Shared { report, requests, waiting, gone, socket, broker_pid: 0 });
        let (_exited, exit) = oneshot::channel();
        let child = Child {
            id: ChildId(1),
            pid: 0,
            costs: Costs::default(),
            pipes: None,
            listener: None,
            exit,
            shared,
            ended: None,
        };
        let limits = Limits {
            memory_bytes: 0,
            data_bytes: 0,
            cpu_millis: 0,
            pids: 0,
            tmp_bytes: 0,
            open_files: 0,
            file_bytes: 0,
            cpu_time: None,
        };
        let attached = child.attach(Vec::new(), limits, Network::Nothing).now_or_never();
        assert!(matches!(attached, Some(Err(Error::BrokerGone))), "{attached:?}");
    }
}

//! Confinement: limits in, a confined child out. The only place that spawns processes, and the only one with `unsafe`.
//!
//! A small [`broker`] process does the forking. It is single-threaded (PDEATHSIG fires when the spawning *thread* ends), stays small
//! however large the service grows (fork costs follow the memory of the forking process), and is the subreaper of everything below
//! it: when the service goes away, by whatever means, the broker sees its socket close and ends every descendant.
//!
//! Knows no apps, no pools and no protocol: it hands out pipes. Start reading at [`Sandbox::start`], then [`launch`].
//!
//! What confines a child today is a session of its own, rlimits, a cleared environment and descriptors, no_new_privs and the tree
//! kill. Namespaces, uids, Landlock, seccomp and cgroups come with the isolation issue; [`ISOLATION_NOTICE`] says so at start-up.

#![allow(unsafe_code, reason = "fork, exec and wait need it; every block says why it is sound")]

mod broker;
#[allow(dead_code, reason = "the launcher uses it once children are confined")]
mod cgroup;
#[allow(dead_code, reason = "the launcher uses it once children are confined")]
pub mod egress;
#[allow(dead_code, reason = "the launcher uses it once children are confined")]
mod landlock;
mod launch;
mod message;
#[allow(dead_code, reason = "the launcher uses it once children are confined")]
mod seccomp;
#[allow(dead_code, reason = "the launcher uses it once children are confined")]
mod syscalls;
#[cfg(test)]
mod testing;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::unistd::{getpid, pipe2};
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use message::{ChildId, Reply, Request};

pub use broker::serve as serve_broker;

/// What the service says about its confinement until the isolation issue fills this module.
pub const ISOLATION_NOTICE: &str = "isolation: process tree + rlimits + cleared environment only; tenants' code can read what this user can read, \
     and cpu_millis, pids_max, tmp_bytes, subprocesses and egress are recorded but not enforced: run trusted code";

/// The limits that [`ISOLATION_NOTICE`] speaks of, by their names in the contract.
pub const LIMITS_NOT_ENFORCED: [&str; 5] = ["cpu_millis", "pids_max", "tmp_bytes", "subprocesses", "egress"];

/// Requests on their way to the broker; it takes each within a few milliseconds.
const REQUESTS_QUEUED_MAX: usize = 256;

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// All of it: nothing is inherited.
    pub environment: BTreeMap<String, String>,
    pub directory: PathBuf,
    pub limits: ResourceLimits,
    /// Whether descriptors 3 (read) and 4 (write) are pipes to the service.
    pub protocol: bool,
}

/// rlimits of the child and of each of its descendants. Hard and soft alike.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// RLIMIT_DATA. Never RLIMIT_AS: V8 reserves far more address space than it uses.
    pub data_bytes: Option<u64>,
    pub open_files: u64,
    /// Of one file.
    pub file_bytes: Option<u64>,
    /// CPU time since the start, all threads together: not for pooled workers.
    pub cpu: Option<Duration>,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub status: ExitStatus,
    pub cpu_time: Duration,
    pub peak_memory_bytes: u64,
}

impl Exit {
    const UNKNOWN: Self = Self { status: ExitStatus::Unknown, cpu_time: Duration::ZERO, peak_memory_bytes: 0 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// The broker is gone, and with it the knowledge.
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start {program}: {reason}")]
    Start { program: String, reason: String },
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
    requests: mpsc::SyncSender<(Request, Vec<OwnedFd>)>,
    waiting: Mutex<Waiting>,
    gone: CancellationToken,
    broker_pid: u32,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    gone: bool,
    starts: HashMap<ChildId, oneshot::Sender<Result<u32, String>>>,
    exits: HashMap<ChildId, oneshot::Sender<Exit>>,
}

impl Sandbox {
    /// Starts the broker by running this program's `sandbox-broker` command. Call it before any other thread exists, so that the
    /// broker inherits nothing but what it needs.
    ///
    /// # Errors
    /// The process could not be started.
    pub fn start() -> io::Result<Self> {
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
        let (requests, queue) = mpsc::sync_channel(REQUESTS_QUEUED_MAX);
        let shared = Arc::new(Shared {
            requests,
            waiting: Mutex::default(),
            gone: CancellationToken::new(),
            broker_pid: broker.id(),
        });
        let sender = ours.try_clone()?;
        thread::Builder::new().name("sandbox-send".into()).spawn(move || message::send_all(&sender, &queue))?;
        let receiver = Arc::downgrade(&shared);
        thread::Builder::new().name("sandbox-receive".into()).spawn(move || {
            while let Ok(Some(reply)) = message::receive_reply(&ours) {
                let Some(shared) = receiver.upgrade() else { return };
                shared.deliver(reply);
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
        let program = spec.program.display().to_string();
        let (pipes, theirs) = Pipes::new(spec.protocol).map_err(Error::Pipes)?;
        let (started, start) = oneshot::channel();
        let (exited, exit) = oneshot::channel();
        let id = self.shared.register(started, exited)?;
        let mut child = Child { id, pid: 0, pipes: Some(pipes), exit, shared: Arc::clone(&self.shared), ended: None };
        self.shared.request(Request::Spawn { id, spec: Box::new(spec) }, theirs)?;
        match start.await {
            Ok(Ok(pid)) => child.pid = pid,
            Ok(Err(reason)) => {
                child.ended = Some(Exit::UNKNOWN);
                return Err(Error::Start { program, reason });
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
        started: oneshot::Sender<Result<u32, String>>,
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

    fn deliver(&self, reply: Reply) {
        let mut waiting = self.waiting();
        match reply {
            Reply::Started { id, pid } => {
                if let Some(started) = waiting.starts.remove(&id) {
                    let _ = started.send(Ok(pid));
                }
            }
            Reply::NotStarted { id, reason } => {
                waiting.exits.remove(&id);
                if let Some(started) = waiting.starts.remove(&id) {
                    let _ = started.send(Err(reason));
                }
            }
            Reply::Exited { id, exit } => {
                if let Some(exited) = waiting.exits.remove(&id) {
                    let _ = exited.send(exit);
                }
            }
        }
    }

    fn broker_gone(&self) {
        tracing::error!("the sandbox broker is gone: no worker can be started any more; restart the service");
        // Its children die with it, but theirs do not. All of them are ours now, and nobody else's: only the broker starts any.
        self.waiting().gone = true;
        tree::end_orphans(getpid(), &BTreeSet::new());
        let mut waiting = self.waiting();
        waiting.starts.clear();
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
    /// Ours, and the child's ends in the order of [`launch`]: 1, 2, 3, 4.
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
    pipes: Option<Pipes>,
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

    /// The pipes, once.
    pub fn take_pipes(&mut self) -> Option<Pipes> {
        self.pipes.take()
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

//! What to run and what it may use: plain data that travels to the broker, and how a child ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::egress;

/// What to run. The program is always Node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub profile: Profile,
    /// What stands behind `node` on the command line.
    pub args: Vec<String>,
    /// All of it: nothing is inherited.
    pub environment: BTreeMap<String, String>,
    /// What it sees of the data directory and of npm.
    pub mounts: Vec<Mount>,
    /// As the child sees it.
    pub directory: PathBuf,
    /// Where it may write temporary files if it has no root of its own; with one, that is a tmpfs at `/tmp`.
    pub scratch: Option<PathBuf>,
    pub limits: Limits,
    pub network: Network,
    /// Whether descriptors 3 (read) and 4 (write) are pipes to the service.
    pub protocol: bool,
}

/// What kind of code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Profile {
    /// A tenant's functions.
    Worker,
    /// A tenant's functions that may start programs of the host's (`limits.subprocesses`), which they find read-only.
    WorkerWithSubprocesses,
    /// npm: starts processes, and finds a shell.
    Install,
}

impl Profile {
    pub fn subprocesses(self) -> bool {
        !matches!(self, Self::Worker)
    }
}

/// What a child can reach. Without a network namespace of its own, Landlock's port rules are all that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Network {
    /// Nothing but itself. For now: such a child can be given more, see [`super::Child::attach`].
    Nothing,
    /// What the policy lets it, each connection being made for it.
    Egress(egress::Policy),
    /// A listener of the service's on this port of the loopback interface; see [`super::Child::take_listener`].
    Registry { port: u16 },
}

/// A directory that a child sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    /// Where, in a root of its own: one of [`Mount::TARGETS`]. Without one it sees `source` where it is.
    pub target: PathBuf,
    pub writable: bool,
}

impl Mount {
    /// The mount points of every root, made once; a root is read-only afterwards.
    pub const TARGETS: [&'static str; 6] = ["/app", "/layer", "/shim", "/npm", "/work", "/home"];

    pub fn read_only(source: &Path, target: &str) -> Self {
        Self { source: source.to_owned(), target: target.into(), writable: false }
    }

    pub fn writable(source: &Path, target: &str) -> Self {
        Self { writable: true, ..Self::read_only(source, target) }
    }
}

/// What a child and all of its descendants may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of the whole tree, temporary files included: the cgroup's limit.
    pub memory_bytes: u64,
    /// RLIMIT_DATA of each process. Never RLIMIT_AS: V8 reserves far more address space than it uses (isolation.md 1.4).
    pub data_bytes: u64,
    /// Thousandths of a CPU; 0: no limit.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Of `/tmp`, counted into the memory.
    pub tmp_bytes: u64,
    pub open_files: u64,
    /// Of one file.
    pub file_bytes: u64,
    /// CPU time since the start, all threads together: not for pooled workers.
    pub cpu_time: Option<Duration>,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub status: ExitStatus,
    pub cpu_time: Duration,
    pub peak_memory_bytes: u64,
    /// The kernel ended a process of it because its cgroup was out of memory.
    pub memory_limit_hit: bool,
}

impl Exit {
    pub(super) const UNKNOWN: Self =
        Self { status: ExitStatus::Unknown, cpu_time: Duration::ZERO, peak_memory_bytes: 0, memory_limit_hit: false };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// The broker had to end it, for no fault of its own: without the egress supervisor it had no network any more.
    Withdrawn,
    /// The broker is gone, and with it the knowledge.
    Unknown,
}

impl ExitStatus {
    /// As wait(2) tells it.
    pub(super) fn from_wait(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Code(libc::WEXITSTATUS(status))
        }
    }
}

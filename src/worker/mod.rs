//! One worker: a Node process that was initialized with one version, and the task that owns it.
//!
//! [`Worker::spawn`] spawns the process, [`Worker::assign`] makes one of a [`Spare`]; [`Starting::ready`] resolves once its initialization script ran and every function loaded. From then on the
//! [`driver`] task alone talks to it, signals it and waits for it; a [`Worker`] is a handle to that task. Knows no pool: when an
//! invocation is truly over the driver calls the job's `on_free`, and when the process is gone it resolves [`Worker::ended`].

mod codec;
mod death;
mod driver;
mod logs;
mod paths;
mod protocol;
mod spare;
mod starts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::config::Egress;
use crate::model::{
    AppId, FailureKind, FunctionFailure, FunctionModule, InvocationId, Limits, LogLine, Module, Outcome, RawJson, Sdk,
    TraceContext, TriggerType, VersionNumber,
};
use crate::sandbox::{self, Child, Mount, Network, Pipes, Profile, Sandbox, Spec};

pub use codec::{FrameCodec, FrameError};
pub use logs::LogLimits;
pub use paths::{Lookup, Paths, Renamed};
pub use protocol::Usage;
pub use spare::{Class, Spare};
pub use starts::{PoolStarts, StartPermit, Starts};

/// More would only wait inside Node; the pool never leases more than `limits.concurrency`.
const COMMANDS_QUEUED_MAX: usize = 128;
/// For a driver to answer after a job's timeout, on a busy machine.
const DRIVER_GRACE: Duration = Duration::from_secs(5);
/// For a spare, which has nothing else to do than to take its app: a caller who waits for one that hangs must have the time left to get
/// a fresh worker.
const SPARE_PATIENCE: Duration = Duration::from_secs(1);
/// Node needs 24 at least (isolation.md 1.4).
const OPEN_FILES: u64 = 256;
/// What a worker needs besides its JavaScript heap: code, stacks, semi-spaces, Buffers (isolation.md 1.5).
const NOT_HEAP_BYTES: u64 = 96 << 20;

/// Where a worker with a root of its own sees its things.
const APP: &str = "/app";
const LAYER: &str = "/layer";
const SHIM: &str = "/shim";

/// How this service runs workers.
#[derive(Clone)]
pub struct Config {
    pub sandbox: Sandbox,
    /// The Node binary.
    pub node: PathBuf,
    /// The shim's directory, with `main.js`.
    pub shim: PathBuf,
    /// Holds a temporary directory for each worker that has no `/tmp` of its own.
    pub scratch: PathBuf,
    /// From spawn until the shim is ready. Node hangs for ever if it cannot start a thread.
    pub ready_timeout: Duration,
    /// Who may start afresh at the moment.
    pub starts: Starts,
    /// For the initialization script and the loading of all functions.
    pub init_timeout: Duration,
    pub result_bytes_max: usize,
    pub log_limits: LogLimits,
    pub egress: Egress,
    /// What functions find in their context.
    pub sdk: Sdk,
    /// Lines that find it full are lost: a log never holds up an answer.
    pub logs: mpsc::Sender<LogLine>,
}

impl Config {
    /// How the texts of this program's workers are to be rewritten.
    pub fn paths(&self, program: &Program, renamed: BTreeMap<String, Renamed>) -> Paths {
        let directories: Vec<_> = program.mounts().iter().map(|mount| self.sandbox.seen(mount)).collect();
        let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
        Paths::new(&directories, &self.sandbox.seen(&Mount::read_only(&self.shim, SHIM)), renamed)
    }

    /// Where a worker of this program sees the version's files.
    fn directory(&self, program: &Program) -> PathBuf {
        self.sandbox.seen(&program.mounts()[0])
    }
}

/// What a worker is to run: one version.
#[derive(Debug)]
pub struct Program {
    pub app: AppId,
    pub version: VersionNumber,
    /// Holds the emitted sources and a link to the layer's `node_modules`.
    pub directory: PathBuf,
    /// The installed dependencies.
    pub layer: Option<PathBuf>,
    /// Publishing refused names that steer Node or its loader.
    pub environment: BTreeMap<String, String>,
    pub init: Option<Module>,
    pub functions: Vec<FunctionModule>,
    pub limits: Limits,
    pub paths: Paths,
}

/// Called once, when the worker has truly finished with an invocation: not before a late one settled. `None`: the worker is gone or
/// going.
pub type OnFree = Box<dyn FnOnce(Option<Usage>) + Send>;

/// One invocation for a worker.
pub struct Job {
    pub trigger_type: TriggerType,
    pub invocation: InvocationId,
    pub attempt: u32,
    /// Functions that led to the event, one by another's doing.
    pub hops: u32,
    /// What the function goes on with.
    pub trace: TraceContext,
    pub event: RawJson,
    /// From now until the caller is answered.
    pub timeout: Duration,
    pub on_free: OnFree,
}

/// What a driver begins with.
struct Boot {
    /// For Node until it is ready, and then until it takes `initialize`.
    patience: Duration,
    /// `None`: it started before it was anybody's.
    permit: Option<StartPermit>,
}

/// How a job ended. Comes at its timeout at the latest.
#[derive(Debug)]
pub struct Reply {
    pub outcome: Outcome,
    pub usage: Usage,
    pub run: Duration,
}

/// Why a worker did not come up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The tenant's code failed to initialize or load.
    #[error("{0}")]
    Init(FunctionFailure),
    /// The machine or the service failed.
    #[error("start a worker: {0}")]
    Broken(String),
    /// Nobody wanted it any more.
    #[error("the worker was stopped before it was ready")]
    Stopped,
}

impl Reply {
    fn timed_out(after: Duration) -> Self {
        let message = format!("the handler did not answer within {} ms", after.as_millis());
        let failure = FunctionFailure::new(FailureKind::TimedOut, "TimedOut", message);
        Self { outcome: Outcome::Failed(failure), usage: Usage::default(), run: after }
    }
}

/// A handle to a running worker. Cheap to clone; when all handles are gone the worker finishes what it runs and ends.
#[derive(Debug, Clone)]
pub struct Worker {
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<bool>,
    pid: u32,
}

/// A worker that is initializing.
pub struct Starting(oneshot::Receiver<Result<Duration, StartError>>);

impl Starting {
    /// Resolves once the worker can take jobs, with the time that took since the spawn.
    ///
    /// # Errors
    /// The tenant's code failed or took too long; the process is being ended.
    pub async fn ready(self) -> Result<Duration, StartError> {
        self.0.await.map_err(|_| StartError::Broken("its task ended".to_owned()))?
    }
}

enum Command {
    Invoke(Box<Job>, oneshot::Sender<Reply>),
    Stop,
    Kill,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invoke(..) => "Invoke",
            Self::Stop => "Stop",
            Self::Kill => "Kill",
        })
    }
}

impl Worker {
    /// Spawns a process, which keeps the permit until Node is ready. Wait for [`Starting::ready`] before running jobs.
    ///
    /// # Errors
    /// The process could not be run.
    ///
    /// # Cancel safety
    /// Dropping the future, or both of what it returns, ends the process.
    pub async fn spawn(
        config: Arc<Config>,
        program: Arc<Program>,
        permit: StartPermit,
    ) -> Result<(Self, Starting), StartError> {
        let broken = |what: &str, err: &dyn std::fmt::Display| StartError::Broken(format!("{what}: {err}"));
        let scratch = match config.sandbox.report().mode.has_root() {
            true => None,
            false => {
                let made = tempfile::Builder::new().prefix("worker-").tempdir_in(&config.scratch);
                Some(made.map_err(|err| broken("make a temporary directory", &err))?)
            }
        };
        let spec = spec(&config, &program.limits, Some(&program), scratch.as_ref().map(TempDir::path));
        let mut child = config.sandbox.spawn(spec).await.map_err(|err: sandbox::Error| broken("spawn", &err))?;
        let pipes = child.take_pipes().ok_or_else(|| broken("spawn", &"the child has no pipes"))?;
        let boot = Boot { patience: config.ready_timeout, permit: Some(permit) };
        Self::drive(config, program, (child, pipes), scratch, boot)
    }

    /// Makes a spare the program's worker, for good. As [`Worker::spawn`] otherwise.
    ///
    /// # Errors
    /// The program's files could not be attached. Nothing is left of the spare.
    ///
    /// # Cancel safety
    /// Dropping the future, or both of what it returns, ends the process.
    pub async fn assign(
        config: Arc<Config>,
        program: Arc<Program>,
        spare: Spare,
    ) -> Result<(Self, Starting), StartError> {
        let Spec { mounts, limits, network, .. } = spec(&config, &program.limits, Some(&program), None);
        // The shim it has.
        let own = mounts.into_iter().filter(|mount| mount.target != Path::new(SHIM)).collect();
        if let Err(err) = spare.child.attach(own, limits, network).await {
            spare.end().await;
            return Err(StartError::Broken(err.to_string()));
        }
        let boot = Boot { patience: SPARE_PATIENCE, permit: None };
        Self::drive(config, program, (spare.child, spare.pipes), None, boot)
    }

    fn drive(
        config: Arc<Config>,
        program: Arc<Program>,
        (child, pipes): (Child, Pipes),
        scratch: Option<TempDir>,
        boot: Boot,
    ) -> Result<(Self, Starting), StartError> {
        let pid = child.pid();
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (ended_sender, ended) = watch::channel(false);
        let (started, start) = oneshot::channel();
        let driver = driver::Driver::new(config, program, (child, pipes), scratch, receiver, started, boot)
            .ok_or_else(|| StartError::Broken("the child has no pipes".to_owned()))?;
        tokio::spawn(async move {
            driver.run().await;
            ended_sender.send_replace(true);
        });
        Ok((Self { commands, ended, pid }, Starting(start)))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Runs a job. `None` if the worker is gone and the job was never begun: it is safe to run it elsewhere.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the job running until its timeout.
    pub async fn run(&self, job: Job) -> Option<Reply> {
        let (reply, answer) = oneshot::channel();
        let limit = job.timeout;
        let answer = async {
            self.commands.send(Command::Invoke(Box::new(job), reply)).await.ok()?;
            answer.await.ok()
        };
        // The driver answers at the timeout. Should it ever hang, its callers must not hang with it.
        timeout(limit + DRIVER_GRACE, answer).await.unwrap_or_else(|_| {
            tracing::error!(pid = self.pid, "a worker's driver did not answer in time");
            self.kill();
            Some(Reply::timed_out(limit))
        })
    }

    /// Lets it finish what it runs, then ends it.
    pub fn stop(&self) {
        let _ = self.commands.try_send(Command::Stop);
    }

    /// Ends it now; what it runs is answered COLLATERAL.
    pub fn kill(&self) {
        let _ = self.commands.try_send(Command::Kill);
    }

    /// Resolves when the process and all its descendants are gone.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        let _ = ended.wait_for(|ended| *ended).await; // An error means that its task is gone, and the process with it.
    }
}

/// What a worker is started with. Without a program: one in reserve.
fn spec(config: &Config, limits: &Limits, program: Option<&Program>, scratch: Option<&Path>) -> Spec {
    let shim = Mount::read_only(&config.shim, SHIM);
    let heap_mib = limits.memory_bytes.saturating_sub(NOT_HEAP_BYTES).max(64 << 20) >> 20;
    let main = config.sandbox.seen(&shim).join("main.js");
    let mut args = vec![format!("--max-old-space-size={heap_mib}"), main.display().to_string()];
    args.extend(program.is_none().then(|| "reserve".to_owned()));
    Spec {
        profile: if limits.subprocesses { Profile::WorkerWithSubprocesses } else { Profile::Worker },
        args,
        environment: environment(config, program, scratch),
        // The mount point, where nothing is mounted yet.
        directory: program.map_or_else(|| APP.into(), |program| config.directory(program)),
        mounts: program.map(Program::mounts).into_iter().flatten().chain([shim]).collect(),
        scratch: scratch.map(Path::to_owned),
        limits: sandbox::Limits {
            memory_bytes: limits.memory_bytes,
            data_bytes: limits.memory_bytes,
            cpu_millis: limits.cpu_millis,
            pids: limits.pids_max,
            tmp_bytes: limits.tmp_bytes,
            open_files: OPEN_FILES,
            file_bytes: limits.tmp_bytes,
            cpu_time: None,
        },
        network: program
            .map_or(Network::Nothing, |program| Network::Egress(config.egress.policy(&program.app, &limits.egress))),
        protocol: true,
    }
}

impl Program {
    /// Of the spares that can become this program's. `None`: its workers are always started for it alone.
    pub fn class(&self) -> Option<Class> {
        Class::of(&self.limits).filter(|_| !self.environment.keys().any(|name| is_read_at_start(name)))
    }

    /// The version's directory first.
    fn mounts(&self) -> Vec<Mount> {
        let layer = self.layer.iter().map(|layer| Mount::read_only(layer, LAYER));
        [Mount::read_only(&self.directory, APP)].into_iter().chain(layer).collect()
    }
}

/// Whether Node looks at this variable before it runs any code, and never again: its locale, by which dates and numbers are written.
fn is_read_at_start(name: &str) -> bool {
    name == "LANG" || name.starts_with("LC_")
}

/// What every worker has. The app's own comes with `initialize`, but for what would come too late.
fn environment(config: &Config, program: Option<&Program>, scratch: Option<&Path>) -> BTreeMap<String, String> {
    let node_directory = config.sandbox.node_seen(&config.node).parent().unwrap_or(Path::new("/usr/bin")).display();
    let scratch = scratch.unwrap_or(Path::new("/tmp")).display().to_string();
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), format!("{node_directory}:/usr/local/bin:/usr/bin:/bin")),
        ("HOME".to_owned(), scratch.clone()),
        ("TMPDIR".to_owned(), scratch),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("TZ".to_owned(), "UTC".to_owned()),
        ("NODE_ENV".to_owned(), "production".to_owned()),
    ]);
    let own = program.iter().flat_map(|program| &program.environment).filter(|(name, _)| is_read_at_start(name));
    environment.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    environment
}

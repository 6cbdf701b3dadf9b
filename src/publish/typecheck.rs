//! Checks a project's types with the real `tsc`, in a sandbox, before a version is verified.
//!
//! The compiler and Node's types are the service's own choice, pinned by the lockfile beside this file, and installed once, the first
//! time somebody asks: [`tool`]. What it is shown is a copy of the sources with a `tsconfig.json` of ours: [`sources`]. It runs as
//! confined as a worker, without any network: the sources and the packages they import are hostile input to it.

mod report;
mod sources;
mod tool;
mod tsconfig;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use super::layer::Installer;
use super::npm::InstallError;
use super::progress::Progress;
use super::project::Project;
use crate::artifacts::Artifacts;
use crate::sandbox::{Exit, ExitStatus, Limits, Mount, Network, Profile, Spec};

pub use report::{Report, TypeDiagnostic};

const PHASE: &str = "typecheck";
/// Of the compiler's heap. A project with the types of large packages takes about 300 MiB.
const HEAP_MIB: u64 = 1024;
const MEMORY_BYTES: u64 = (HEAP_MIB + 512) << 20;
/// Node's own.
const PIDS_MAX: u32 = 64;
const OPEN_FILES: u64 = 999;
/// Of what it prints, kept to explain a failure.
const TAIL_BYTES_MAX: usize = 4 << 10;
/// Compilers at a time: each may take all of the above.
const CHECKS_MAX: usize = 2;

/// Whether a publish checks types, and what errors mean for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TypeCheck {
    #[default]
    Off,
    /// They are told; the publish goes on. So it does where the check cannot be made.
    Warn,
    /// They fail the publish. So does a check that cannot be made.
    Error,
}

/// Why there is no clean check.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Types(Report),
    #[error("the types could not be checked: TypeScript could not be installed: {0}")]
    Tool(InstallError),
    #[error(
        "the types could not be checked within {0:?} (typecheck_timeout): simplify them, or publish with typecheck off"
    )]
    TimedOut(Duration),
    #[error(
        "checking the types needs more than {HEAP_MIB} MiB of memory: simplify them, or publish with typecheck off"
    )]
    OutOfMemory,
    #[error("the types could not be checked: tsc failed: {0}")]
    Failed(String),
    /// The machine or the sandbox, not the tenant's code.
    #[error("the types could not be checked: {0}")]
    Broken(String),
}

impl Error {
    /// What clients and the audit log know it by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Types(_) => "TYPE_ERRORS",
            Self::Tool(err @ (InstallError::DiskFull(_) | InstallError::RegistryAway { .. })) => err.reason(),
            // Whatever kept it from being installed, it is nothing of the caller's.
            Self::Tool(_) => "TYPE_CHECKER_UNAVAILABLE",
            Self::TimedOut(_) => "TYPE_CHECK_TIMED_OUT",
            Self::OutOfMemory => "TYPE_CHECK_OUT_OF_MEMORY",
            Self::Failed(_) => "TYPE_CHECK_FAILED",
            Self::Broken(_) => "INTERNAL",
        }
    }
}

/// The compiler, and its turns.
pub struct Checker {
    timeout: Duration,
    /// Whoever holds it installs; the others find the result.
    installing: Mutex<()>,
    turns: Semaphore,
}

/// What a check is of.
pub(super) struct Subject<'a> {
    pub project: &'a Project,
    /// The content of `chat-functions.d.ts`.
    pub declarations: &'a str,
    /// Holds `node_modules`.
    pub layer: Option<PathBuf>,
}

impl Checker {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, installing: Mutex::new(()), turns: Semaphore::new(CHECKS_MAX) }
    }

    /// # Errors
    /// With [`TypeCheck::Error`]: whatever keeps the check from being clean.
    ///
    /// # Cancel safety
    /// Dropping the future ends npm or the compiler.
    pub(super) async fn check(
        &self,
        wanted: TypeCheck,
        subject: Subject<'_>,
        installer: &Installer,
        artifacts: &Artifacts,
        progress: &Progress,
    ) -> Result<(), Error> {
        if wanted == TypeCheck::Off {
            return Ok(());
        }
        match self.check_now(subject, installer, artifacts, progress).await {
            Ok(report) if report.diagnostics.is_empty() => {
                progress.say(PHASE, "no type errors");
                Ok(())
            }
            Ok(report) => {
                progress.diagnose(PHASE, &report);
                if wanted == TypeCheck::Error { Err(Error::Types(report)) } else { Ok(()) }
            }
            Err(err) if wanted == TypeCheck::Warn => {
                progress.say(PHASE, &err.to_string());
                Ok(())
            }
            Err(err) => Err(err),
        }
    }

    async fn check_now(
        &self,
        subject: Subject<'_>,
        installer: &Installer,
        artifacts: &Artifacts,
        progress: &Progress,
    ) -> Result<Report, Error> {
        let broken = |err: &dyn std::fmt::Display| Error::Broken(err.to_string());
        let tool = {
            let _turn = self.installing.lock().await;
            tool::installed(installer, artifacts, progress).await?
        };
        let _turn = self.turns.acquire().await.map_err(|err| broken(&err))?;
        progress.say(PHASE, &format!("checking types with TypeScript {}", tool::version()));
        let sandbox = &installer.npm.sandbox;
        let staged = artifacts.stage("typecheck-").map_err(|err| broken(&err))?;
        let app = Mount::read_only(staged.path(), "/app");
        let tool = Mount::read_only(&tool, "/npm");
        let layer = subject.layer.as_deref().map(|layer| Mount::read_only(layer, "/layer"));
        let seen = sources::Seen {
            types: sandbox.seen(&tool).join(tool::TYPES),
            layer: layer.as_ref().map(|layer| sandbox.seen(layer)),
        };
        let (staged_at, files) = (staged.path().to_owned(), subject.project.files.clone());
        let declarations = subject.declarations.to_owned();
        let written =
            tokio::task::spawn_blocking(move || sources::write(&staged_at, &files, &declarations, &seen)).await;
        if let Some(problem) = written.map_err(|err| broken(&err))?.map_err(|err| broken(&err))? {
            progress.say(PHASE, &problem);
        }
        let compiler = sandbox.seen(&tool).join("node_modules/typescript/lib/tsc.js");
        let spec =
            spec(sandbox.seen(&app), &compiler, [Some(app), Some(tool), layer].into_iter().flatten(), self.timeout);
        let mut child = sandbox.spawn(spec).await.map_err(|err| broken(&err))?;
        let pipes = child.take_pipes().ok_or_else(|| broken(&"no pipes"))?;
        let mut report = report::Reader::new(&subject.project.files);
        let mut tail = Tail::default();
        let ran = timeout(self.timeout, async {
            tokio::join!(read(pipes.stdout, |bytes| report.take(bytes)), read(pipes.stderr, |bytes| tail.take(bytes)));
            child.wait().await
        });
        let exit = ran.await;
        // Dead and waited for before anybody removes its directory.
        child.kill();
        child.wait().await;
        self.judge(exit.ok(), report, &tail)
    }

    fn judge(&self, exit: Option<Exit>, report: report::Reader<'_>, tail: &Tail) -> Result<Report, Error> {
        let Some(exit) = exit else { return Err(Error::TimedOut(self.timeout)) };
        let said = tail.text();
        if exit.memory_limit_hit || said.contains("heap out of memory") {
            return Err(Error::OutOfMemory);
        }
        let (report, unexplained) = report.finish();
        match exit.status {
            ExitStatus::Code(0) => Ok(Report::default()),
            // Errors in the sources of packages are not the tenant's to mend.
            ExitStatus::Code(1 | 2) if !report.diagnostics.is_empty() || report.elsewhere > 0 => Ok(report),
            ExitStatus::Signal(signal) if signal == nix::libc::SIGXCPU => Err(Error::TimedOut(self.timeout)),
            ExitStatus::Code(_) | ExitStatus::Signal(_) => {
                Err(Error::Failed(if said.trim().is_empty() { unexplained } else { said }))
            }
            ExitStatus::Withdrawn | ExitStatus::Unknown => Err(Error::Broken("the sandbox broker is gone".to_owned())),
        }
    }
}

fn spec(directory: PathBuf, compiler: &Path, mounts: impl Iterator<Item = Mount>, timeout: Duration) -> Spec {
    let project = directory.join(sources::TSCONFIG);
    let heap = format!("--max-old-space-size={HEAP_MIB}");
    let args = [&heap, &*compiler.to_string_lossy(), "-p", &*project.to_string_lossy(), "--pretty", "false"];
    Spec {
        // It starts nothing, and has nowhere to write.
        profile: Profile::Worker,
        args: args.map(str::to_owned).into(),
        environment: BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]),
        mounts: mounts.collect(),
        directory,
        scratch: None,
        limits: Limits {
            memory_bytes: MEMORY_BYTES,
            data_bytes: MEMORY_BYTES,
            cpu_millis: 0,
            pids: PIDS_MAX,
            tmp_bytes: 1 << 20,
            open_files: OPEN_FILES,
            file_bytes: 1 << 20,
            cpu_time: Some((timeout * 2).max(Duration::from_secs(1))),
        },
        network: Network::Nothing,
        protocol: false,
    }
}

/// To its end, however much it is: the child must not wait for us.
async fn read(mut pipe: pipe::Receiver, mut take: impl FnMut(&[u8])) {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    while let Ok(1..) = pipe.read_buf(&mut buffer).await {
        take(&buffer);
        buffer.clear();
    }
}

/// The last of what was printed.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn take(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(TAIL_BYTES_MAX));
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a run that ended so, having printed this.
    fn judged(status: Option<ExitStatus>, memory_limit_hit: bool, stdout: &str, stderr: &str) -> Result<Report, Error> {
        let exit = |status| Exit { status, cpu_time: Duration::ZERO, peak_memory_bytes: 0, memory_limit_hit };
        let files = BTreeMap::from([("a.ts".to_owned(), bytes::Bytes::from_static(b"x"))]);
        let mut report = report::Reader::new(&files);
        report.take(stdout.as_bytes());
        let mut tail = Tail::default();
        tail.take(stderr.as_bytes());
        Checker::new(Duration::from_secs(1)).judge(status.map(exit), report, &tail)
    }

    #[test]
    fn every_end_of_the_compiler_has_its_meaning() {
        let (error, elsewhere) = ("a.ts(1,1): error TS1: no\n", "../layer/b.ts(1,1): error TS1: no\n");
        let code = |code| Some(ExitStatus::Code(code));
        assert_eq!(judged(code(0), false, "", "").expect("clean"), Report::default());
        assert_eq!(judged(code(2), false, error, "").expect("a report").diagnostics.len(), 1);
        assert!(judged(code(2), false, elsewhere, "").expect("a report").diagnostics.is_empty());
        assert!(matches!(judged(None, false, error, ""), Err(Error::TimedOut(_))));
        assert!(
            matches!(judged(code(1), false, "", "TypeError: x"), Err(Error::Failed(said)) if said == "TypeError: x")
        );
        assert!(matches!(judged(code(1), false, "help\n", ""), Err(Error::Failed(said)) if said == "help\n"));
        let aborted = Some(ExitStatus::Signal(nix::libc::SIGABRT));
        let out_of_memory = "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory";
        assert!(matches!(judged(aborted, false, "", out_of_memory), Err(Error::OutOfMemory)));
        assert!(matches!(judged(Some(ExitStatus::Signal(9)), true, "", ""), Err(Error::OutOfMemory)));
        assert!(matches!(judged(Some(ExitStatus::Withdrawn), false, "", ""), Err(Error::Broken(_))));
    }

    #[test]
    fn of_what_is_printed_the_end_is_kept() {
        let mut tail = Tail::default();
        tail.take(&[b'x'; TAIL_BYTES_MAX]);
        tail.take(b"the end");
        assert!(tail.text().ends_with("the end") && tail.0.len() == TAIL_BYTES_MAX);
    }
}

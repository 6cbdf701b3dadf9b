//! Real `npm`, in a sandbox, with the operator's registry settings and nothing of the tenant's.

mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::artifacts::measure;
use crate::sandbox::{Child, ExitStatus, Limits, Mount, Network, Profile, REGISTRY_PORT, Sandbox, Spec, open_up};

use output::{Output, fill};

use super::progress::Progress;
use super::registry::{self, Proxy, Report};

/// Node's own rule for workers does not fit: npm holds whole packuments in Buffers.
const MEMORY_BYTES: u64 = 4 << 30;
/// Threads included; install scripts may build in parallel.
const PIDS_MAX: u32 = 256;
/// Packages are unpacked beside where they go, on disk; this is what scripts get.
const TMP_BYTES: u64 = 256 << 20;
/// npm opens many files at a time (isolation.md 1.4).
const OPEN_FILES: u64 = 999;
/// How often a growing tree is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);

/// Runs npm.
pub struct Npm {
    pub sandbox: Sandbox,
    pub node: PathBuf,
    /// `npm-cli.js`.
    pub cli: PathBuf,
    /// Its only way to packages.
    pub proxy: Proxy,
    pub limits: InstallLimits,
}

#[derive(Debug, Clone)]
pub struct InstallLimits {
    pub timeout: Duration,
    pub bytes_max: u64,
    pub files_max: u64,
}

/// Why nothing was installed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InstallError {
    /// What was asked for cannot be installed.
    #[error("npm could not install the dependencies ({code}): {reason}")]
    Failed { code: String, reason: String },
    #[error("the npm registry cannot be reached ({code}): {reason}")]
    RegistryAway { code: String, reason: String },
    #[error("npm did not finish within {0:?}")]
    TimedOut(Duration),
    #[error("the installed dependencies are too large: {0}")]
    TooLarge(String),
    #[error("the disk is full: {0}")]
    DiskFull(String),
    #[error("run npm: {0}")]
    Broken(String),
}

impl InstallError {
    /// What clients and the audit log know it by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Failed { .. } => "INSTALL_FAILED",
            Self::RegistryAway { .. } => "REGISTRY_UNAVAILABLE",
            Self::TimedOut(_) => "INSTALL_TIMED_OUT",
            Self::TooLarge(_) => "INSTALL_TOO_LARGE",
            Self::DiskFull(_) => "DISK_FULL",
            Self::Broken(_) => "INTERNAL",
        }
    }
}

impl Npm {
    /// `npm ci`: exactly the `package-lock.json` in `directory`, which was made for the `package.json` there. If npm finds that it was
    /// not, as [`Npm::install`].
    ///
    /// # Errors
    /// See [`InstallError`]. The directory is then in no particular state.
    ///
    /// # Cancel safety
    /// Of this and the two below: dropping the future ends npm.
    pub async fn install_exactly(&self, directory: &Path, progress: &Progress) -> Result<(), InstallError> {
        match self.run(directory, &install_arguments("ci"), true, progress).await {
            Err(InstallError::Failed { code, .. }) if code == "EUSAGE" => {
                progress.say("install", "the lockfile does not match package.json: resolving again");
                self.install(directory, progress).await
            }
            result => result,
        }
    }

    /// `npm install`: what the lockfile pins where it fits, else newly resolved. On return the lockfile is there.
    ///
    /// # Errors
    /// As above.
    pub async fn install(&self, directory: &Path, progress: &Progress) -> Result<(), InstallError> {
        self.run(directory, &install_arguments("install"), true, progress).await
    }

    /// Runs the install scripts of these packages; those of others never run.
    ///
    /// # Errors
    /// As above.
    pub async fn run_scripts(
        &self,
        directory: &Path,
        allowed: &BTreeSet<String>,
        progress: &Progress,
    ) -> Result<(), InstallError> {
        if allowed.is_empty() {
            return Ok(());
        }
        progress.say("install", &format!("running install scripts of {allowed:?}"));
        self.run(directory, &script_arguments(allowed), false, progress).await
    }

    async fn run(
        &self,
        directory: &Path,
        arguments: &[String],
        network: bool,
        progress: &Progress,
    ) -> Result<(), InstallError> {
        let home = tempfile::Builder::new()
            .prefix("npm-home-")
            .tempdir_in(directory.parent().unwrap_or(directory))
            .map_err(|err| match err.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => InstallError::DiskFull(err.kind().to_string()),
                _ => InstallError::Broken(err.to_string()),
            })?;
        let registry = self.open_registry(network).await?;
        let registries = self.proxy.registries();
        // What a lockfile names is fetched through the proxy, and told by its own name again when npm is done.
        let lockfile = directory.join("package-lock.json");
        if let Some(registry) = &registry {
            rewrite(&lockfile, |text| registries.localize_lockfile(text, registry.port))?;
        }
        let spec = self.spec(directory, home.path(), arguments, registry.as_ref());
        let broken = |err: &dyn std::fmt::Display| InstallError::Broken(err.to_string());
        let mut child = self.sandbox.spawn(spec).await.map_err(|err| broken(&err))?;
        let serving = match registry {
            Some(registry) => Some(self.serve_registry(registry, &mut child).map_err(|err| broken(&err))?),
            None => None,
        };
        let pipes = child.take_pipes().ok_or_else(|| broken(&"no pipes"))?;
        let mut output = Output::new(progress, directory, &self.cli);
        let watched = self.watch(&mut child, pipes.stdout, pipes.stderr, directory, &mut output).await;
        // Dead and waited for before anybody removes its directory.
        child.kill();
        child.wait().await;
        self.take_back(directory, home.path()).await?;
        let report = match serving {
            Some(serving) => serving.finish().await,
            None => Report::default(),
        };
        let exit = watched?;
        self.check_size(directory).await?;
        match exit {
            ExitStatus::Code(0) if network => rewrite(&lockfile, |text| registries.restore_lockfile(text)),
            ExitStatus::Code(0) => Ok(()),
            ExitStatus::Code(_) => Err(match output.explain() {
                InstallError::Failed { code, .. } if code == "EFBIG" => self.too_large("one file alone is larger"),
                InstallError::Failed { code, reason } if code == "E413" => InstallError::TooLarge(reason),
                // npm only sees that an answer broke off; the proxy knows why.
                InstallError::RegistryAway { code, reason } if !report.problems.is_empty() => {
                    InstallError::RegistryAway { code, reason: format!("{reason}\n{}", report.problems.join("\n")) }
                }
                explained => explained,
            }),
            // The kernel's limit on a single file: sooner than the next measurement.
            ExitStatus::Signal(signal) if signal == nix::libc::SIGXFSZ => {
                Err(self.too_large("one file alone is larger"))
            }
            ExitStatus::Signal(signal) => Err(InstallError::Broken(format!("npm was ended by signal {signal}"))),
            ExitStatus::Withdrawn | ExitStatus::Unknown => {
                Err(InstallError::Broken("the sandbox broker is gone".to_owned()))
            }
        }
    }

    /// `None` where npm needs no registry.
    async fn open_registry(&self, wanted: bool) -> Result<Option<Registry>, InstallError> {
        if !wanted {
            return Ok(None);
        }
        // In a network namespace of its own npm's sandbox makes the listener. Else it stands in the service's own, and Landlock's
        // port rules are what keeps everybody but npm from it.
        if self.sandbox.report().mode.has_root() {
            return Ok(Some(Registry { port: REGISTRY_PORT, listener: None }));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(|err| InstallError::Broken(err.to_string()))?;
        let port = listener.local_addr().map_err(|err| InstallError::Broken(err.to_string()))?.port();
        Ok(Some(Registry { port, listener: Some(listener) }))
    }

    fn serve_registry(&self, registry: Registry, child: &mut Child) -> io::Result<Serving> {
        let listener = match registry.listener {
            Some(listener) => listener,
            None => {
                let made = child.take_listener().ok_or_else(|| io::Error::other("the sandbox made no listener"))?;
                let made = std::net::TcpListener::from(made);
                made.set_nonblocking(true)?;
                TcpListener::from_std(made)?
            }
        };
        let (proxy, stop) = (self.proxy.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { proxy.serve(listener, stopped).await });
        Ok(Serving { stop: stop.drop_guard(), task })
    }

    fn spec(&self, directory: &Path, home: &Path, arguments: &[String], registry: Option<&Registry>) -> Spec {
        let (work, home) = (Mount::writable(directory, "/work"), Mount::writable(home, "/home"));
        let npm = Mount::read_only(npm_directory(&self.cli), "/npm");
        let cli = self.sandbox.seen(&npm).join("bin/npm-cli.js");
        let side = self.proxy.registries().npm_side(registry.map_or(0, |registry| registry.port));
        let mut args = vec![cli.display().to_string()];
        args.extend_from_slice(arguments);
        if registry.is_some() {
            args.extend(side.arguments);
        }
        let mut environment = self.environment(&self.sandbox.seen(&home));
        environment.extend(side.environment);
        Spec {
            profile: Profile::Install,
            args,
            environment,
            directory: self.sandbox.seen(&work),
            scratch: Some(home.source.clone()),
            mounts: vec![work, home, npm],
            limits: Limits {
                memory_bytes: MEMORY_BYTES,
                data_bytes: MEMORY_BYTES,
                cpu_millis: 0,
                pids: PIDS_MAX,
                tmp_bytes: TMP_BYTES,
                open_files: OPEN_FILES,
                file_bytes: self.limits.bytes_max,
                cpu_time: Some(self.limits.timeout * 2),
            },
            network: registry.map_or(Network::Nothing, |registry| Network::Registry { port: registry.port }),
            protocol: false,
        }
    }

    async fn watch(
        &self,
        child: &mut Child,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
        directory: &Path,
        output: &mut Output<'_>,
    ) -> Result<ExitStatus, InstallError> {
        let deadline = Instant::now() + self.limits.timeout;
        let mut measuring = interval(MEASURE_INTERVAL);
        measuring.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut streams = [Some((stdout, BytesMut::new())), Some((stderr, BytesMut::new()))];
        let mut exited = None;
        loop {
            let [out, err] = &mut streams;
            tokio::select! {
                open = fill(out) => output.take_lines(out, open),
                open = fill(err) => output.take_lines(err, open),
                exit = child.wait(), if exited.is_none() => exited = Some(exit.status),
                () = sleep_until(deadline) => return Err(InstallError::TimedOut(self.limits.timeout)),
                _ = measuring.tick() => self.check_size(directory).await?,
            }
            if let (Some(status), [None, None]) = (exited, &streams) {
                return Ok(status);
            }
        }
    }

    /// Scripts can close directories, to hide what is in them or to have them stay.
    async fn take_back(&self, directory: &Path, home: &Path) -> Result<(), InstallError> {
        let directories = [directory.to_owned(), home.to_owned()];
        let open = move || directories.iter().try_for_each(|directory| open_up(directory));
        let opened = tokio::task::spawn_blocking(open).await.unwrap_or_else(|err| Err(io::Error::other(err)));
        opened.map_err(|err| InstallError::Broken(err.to_string()))
    }

    async fn check_size(&self, directory: &Path) -> Result<(), InstallError> {
        let tree = directory.to_owned();
        let measured = tokio::task::spawn_blocking(move || measure(&tree)).await;
        let (bytes, files) = measured.map_err(|err| InstallError::Broken(err.to_string()))?;
        let InstallLimits { bytes_max, files_max, .. } = self.limits;
        if bytes > bytes_max {
            return Err(self.too_large(&format!("{bytes} bytes")));
        }
        if files > files_max {
            return Err(InstallError::TooLarge(format!("{files} files; the limit is {files_max} (install_files_max)")));
        }
        Ok(())
    }

    fn too_large(&self, what: &str) -> InstallError {
        InstallError::TooLarge(format!("{what}; the limit is {} bytes (install_bytes_max)", self.limits.bytes_max))
    }

    /// Nothing of the service's: what the operator configured for npm is the proxy's business.
    fn environment(&self, home: &Path) -> BTreeMap<String, String> {
        let node_directory = self.sandbox.node_seen(&self.node).parent().unwrap_or(Path::new("/usr/bin")).display();
        let home = home.display();
        let tmp = if self.sandbox.report().mode.has_root() { "/tmp".to_owned() } else { home.to_string() };
        BTreeMap::from([
            ("PATH".to_owned(), format!("{node_directory}:/usr/local/bin:/usr/bin:/bin")),
            ("HOME".to_owned(), home.to_string()),
            ("TMPDIR".to_owned(), tmp),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            // Of this run alone: a cache that apps shared would let one replace another's packages (isolation.md 6).
            ("npm_config_cache".to_owned(), format!("{home}/cache")),
        ])
    }
}

/// Where npm will find its registry.
struct Registry {
    port: u16,
    /// `None`: the sandbox makes it.
    listener: Option<TcpListener>,
}

/// The proxy, for one run of npm.
struct Serving {
    stop: DropGuard,
    task: JoinHandle<Report>,
}

impl Serving {
    async fn finish(self) -> Report {
        drop(self.stop);
        self.task.await.unwrap_or_default()
    }
}

fn rewrite(file: &Path, change: impl FnOnce(&[u8]) -> Result<Vec<u8>, registry::Error>) -> Result<(), InstallError> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(InstallError::Broken(err.to_string())),
    };
    let failed = |reason: String| InstallError::Failed { code: "ELOCKFILE".to_owned(), reason };
    let text = change(&text).map_err(|err| failed(err.to_string()))?;
    std::fs::write(file, text).map_err(|err| match err.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => InstallError::DiskFull(err.to_string()),
        _ => InstallError::Broken(err.to_string()),
    })
}

fn install_arguments(command: &str) -> Vec<String> {
    let flags = [
        "--ignore-scripts",
        "--omit=dev",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--no-progress",
        "--loglevel=http",
        "--color=false",
        "--logs-max=0",
        // Nothing but packages of a registry: the rest would run git, or read what is not the tenant's to read.
        "--git=/bin/false",
        "--allow-git=none",
        "--allow-file=none",
        "--allow-directory=none",
        "--allow-remote=none",
    ];
    std::iter::once(command).chain(flags).map(str::to_owned).collect()
}

/// Newer npm wants an approval besides, which `package.json` gives: as a flag it refuses it.
fn script_arguments(allowed: &BTreeSet<String>) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["rebuild", "--foreground-scripts", "--no-progress", "--color=false", "--logs-max=0", "--no-update-notifier"]
            .map(str::to_owned)
            .into();
    arguments.push("--ignore-scripts=false".to_owned());
    arguments.extend(allowed.iter().cloned());
    arguments
}

/// npm's own files: what stands around `bin/npm-cli.js`.
fn npm_directory(cli: &Path) -> &Path {
    cli.ancestors().nth(2).unwrap_or(cli)
}

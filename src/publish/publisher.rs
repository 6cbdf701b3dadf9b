//! One publish, from request to active version: validate → transpile → install → verify → store → activate.
//!
//! A publish runs in a task of its own: a caller that hangs up does not stop it. Until the store's transaction at the end nothing
//! refers to what was built, so a crash at any moment leaves the version before it serving; start-up removes the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::{self, Artifacts, Manifest};
use crate::model::{AppId, Catalogue, FunctionFailure, FunctionModule, Module, Version, VersionNumber, VersionState};
use crate::pool;
use crate::sandbox::LIMITS_NOT_ENFORCED;
use crate::serving::{self, Serving};
use crate::store::{self, BeginError, DeleteVersion, NewVersion, Store};
use crate::worker::StartError;

use super::layer::{self, Installed, Installer};
use super::npm::InstallError;
use super::progress::{Progress, Step};
use super::{Built, InvalidSpec, Project, ProjectSpec, SourceLimits, transpile};

/// At a time.
const TRANSPILES_MAX: usize = 2;
/// A delete waits so long for what still runs on the version; then it is refused.
const DELETE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Settings {
    /// Publishes that may wait for their turn.
    pub waiting_max: usize,
    /// Publishes that install at a time.
    pub builds_max: usize,
    /// For the candidate's first worker.
    pub verify_timeout: Duration,
    pub source_limits: SourceLimits,
    /// The budget of all workers together: more than it could never be started.
    pub memory_bytes_max: u64,
}

/// What is to be published.
#[derive(Debug)]
pub struct Request {
    pub app: AppId,
    pub spec: ProjectSpec,
    pub activate: bool,
    /// Refuse unless this is the newest READY version (0: none).
    pub base: Option<VersionNumber>,
    pub idempotency_key: Option<String>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] InvalidSpec),
    #[error("another version was published since: the newest is {newest}")]
    BaseMoved { newest: VersionNumber },
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The candidate does not load.
    #[error("verification failed: {0}")]
    Verify(FunctionFailure),
    #[error("no worker was free to verify the version: {0}")]
    AtCapacity(String),
    /// The machine or the sandbox failed, not the tenant's code.
    #[error("no worker could be started to verify the version: {0}")]
    NoWorker(String),
    #[error("version {0} is active")]
    Active(VersionNumber),
    #[error("version {0} is being built")]
    Building(VersionNumber),
    #[error(
        "version {0} still runs invocations that began before another was activated: delete it when they have ended"
    )]
    StillRunning(VersionNumber),
    #[error("{events} queued events still need version {number}")]
    NeededByEvents { number: VersionNumber, events: u64 },
    #[error(transparent)]
    Version(#[from] serving::Error),
    #[error("too many publishes wait already")]
    TooMany,
    #[error("the service is shutting down")]
    Draining,
    #[error("the disk is full: {0}")]
    DiskFull(String),
    #[error("write the store: {0}")]
    Store(#[from] store::Error),
    #[error("{0}")]
    Artifact(String),
    #[error("a publish's task failed")]
    Internal,
}

impl From<artifacts::Error> for Error {
    fn from(err: artifacts::Error) -> Self {
        if err.is_disk_full() { Self::DiskFull(err.to_string()) } else { Self::Artifact(err.to_string()) }
    }
}

impl From<BeginError> for Error {
    fn from(err: BeginError) -> Self {
        match err {
            BeginError::BaseMoved { newest } => Self::BaseMoved { newest },
            BeginError::NotBuilding(number) => Self::Artifact(format!("version {number} is not being built any more")),
            BeginError::Store(err) => Self::Store(err),
        }
    }
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    artifacts: Artifacts,
    serving: Serving,
    catalogue: Arc<Catalogue>,
    installer: Installer,
    settings: Settings,
    /// One change at a time for each app.
    apps: Mutex<HashMap<AppId, Arc<tokio::sync::Mutex<()>>>>,
    builds: Semaphore,
    /// A hostile source can cost the transpiler seconds and hundreds of MiB (see `prescan.rs`).
    transpiles: Semaphore,
    waiting: AtomicUsize,
    running: TaskTracker,
    stop: CancellationToken,
}

impl Publisher {
    pub fn new(
        store: Store,
        artifacts: Artifacts,
        serving: Serving,
        catalogue: Arc<Catalogue>,
        installer: Installer,
        settings: Settings,
    ) -> Self {
        let builds = Semaphore::new(settings.builds_max);
        let shared = Shared {
            store,
            artifacts,
            serving,
            catalogue,
            installer,
            settings,
            apps: Mutex::default(),
            builds,
            transpiles: Semaphore::new(TRANSPILES_MAX),
            waiting: AtomicUsize::new(0),
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins a publish. The steps end when it does.
    pub fn publish(&self, request: Request) -> (mpsc::Receiver<Step>, tokio::task::JoinHandle<Result<Version, Error>>) {
        let (progress, steps) = Progress::new();
        let this = self.clone();
        let task = self.shared.running.spawn(async move {
            let result = this.run(request, &progress).await;
            if let Err(err) = &result {
                tracing::debug!(%err, "publish failed");
            }
            result
        });
        (steps, task)
    }

    /// Resolves when no publish runs.
    pub async fn idle(&self) {
        self.shared.running.close();
        self.shared.running.wait().await;
    }

    /// Stops what runs: their versions become FAILED.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    async fn run(&self, request: Request, progress: &Progress) -> Result<Version, Error> {
        let shared = &self.shared;
        progress.say("validate", &format!("checking the request for app {}", request.app));
        let _waiting = self.wait_in_line()?;
        let (project, built) = self.compile(request.spec, progress).await?;
        let lock = self.app_lock(&request.app);
        let _turn = match lock.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                progress.say("validate", "waiting for another publish of this app");
                lock.lock().await
            }
        };
        let key = request.idempotency_key.clone();
        if let Some(key) = &key
            && let Some(version) = shared.store.version_by_publish_key(&request.app, key).await?
        {
            progress
                .say("activate", &format!("version {} was published with this idempotency_key before", version.number));
            return Ok(version);
        }
        let mut version = draft(&request.app, &project, shared.installer.node_version());
        let deps_digest = shared.installer.request_digest(&project);
        version.number = shared
            .store
            .begin_version(NewVersion {
                version: version.clone(),
                environment: project.environment.clone(),
                deps_digest: deps_digest.clone(),
                publish_key: key,
                base: request.base,
            })
            .await?;
        let build =
            self.build(&project, &built, version.clone(), &deps_digest, request.activate, request.base, progress);
        // A panic must not leave the version BUILDING: nobody could delete it before the next start.
        let build = AssertUnwindSafe(build).catch_unwind();
        let result = tokio::select! {
            result = build => result.unwrap_or(Err(Error::Internal)),
            () = shared.stop.cancelled() => Err(Error::Draining),
        };
        if let Err(err) = &result {
            self.clean_up(&request.app, version.number, err).await;
        }
        result
    }

    /// Counts a publish that has not ended; too many at a time are refused.
    fn wait_in_line(&self) -> Result<impl Drop + use<>, Error> {
        struct Place(Arc<Shared>);
        impl Drop for Place {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let place = Place(Arc::clone(&self.shared));
        let before = self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        if before >= self.shared.settings.waiting_max { Err(Error::TooMany) } else { Ok(place) }
    }

    fn app_lock(&self, app: &AppId) -> Arc<tokio::sync::Mutex<()>> {
        let mut apps = self.shared.apps.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are forgotten: the map stays as small as what happens now.
        apps.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(apps.entry(app.clone()).or_default())
    }

    async fn compile(&self, spec: ProjectSpec, progress: &Progress) -> Result<(Project, Built), Error> {
        let _turn = self.shared.transpiles.acquire().await.map_err(|_| Error::Draining)?;
        let shared = Arc::clone(&self.shared);
        let progress = progress.clone();
        let compiled = tokio::task::spawn_blocking(move || {
            let registries = shared.installer.registries();
            let project = Project::check(spec, &shared.catalogue, &shared.settings.source_limits, &registries)?;
            let memory_bytes = project.limits.memory_bytes;
            if memory_bytes > shared.settings.memory_bytes_max {
                let what = "limits.memory_bytes (against the service's memory_budget_bytes)".to_owned();
                let limit = shared.settings.memory_bytes_max;
                return Err(InvalidSpec::TooLarge { what, actual: memory_bytes, limit }.into());
            }
            for warning in &project.warnings {
                progress.say("validate", warning);
            }
            warn_of_limits(&project, &progress);
            progress.say("transpile", &format!("transpiling {} files", project.files.len()));
            let built = transpile(&project)?;
            Ok((project, built))
        });
        compiled.await.map_err(|_| Error::Internal)?
    }

    #[allow(clippy::too_many_arguments, reason = "one publish's own facts; a struct would only name them again")]
    async fn build(
        &self,
        project: &Project,
        built: &Built,
        mut version: Version,
        deps_digest: &str,
        activate: bool,
        base: Option<VersionNumber>,
        progress: &Progress,
    ) -> Result<Version, Error> {
        let shared = &self.shared;
        let installed = self.install(project, &version.app, deps_digest, progress).await?;
        let manifest = manifest(&shared.catalogue, project, built, installed.as_ref(), shared.installer.node_version());
        if let Some(installed) = installed {
            version.layer = installed.key;
            version.layer_size_bytes = installed.size_bytes;
            version.dependencies = installed.dependencies;
        }
        progress.say("verify", "loading the version in a worker");
        let stored = {
            let (artifacts, app, manifest) = (shared.artifacts.clone(), version.app.clone(), manifest.clone());
            let files = built.files.clone();
            let store = tokio::task::spawn_blocking(move || artifacts.store(&app, &manifest, &files));
            store.await.map_err(|_| Error::Internal)??
        };
        version.digest = stored.digest;
        version.size_bytes = stored.size_bytes;
        version.state = VersionState::Ready;
        let served = shared.serving.prepare(version.clone(), project.environment.clone(), &manifest);
        // The worker that proves the version is the one that serves its first invocation.
        if let Err(err) = self.verify(&served.pool).await {
            served.pool.kill().await;
            return Err(err);
        }
        progress.say("store", &format!("storing version {}", version.number));
        if let Err(err) = shared.store.finish_version(&version, activate, base).await {
            served.pool.kill().await;
            return Err(err.into());
        }
        if activate {
            progress.say("activate", &format!("version {} is active", version.number));
            shared.serving.promote(&served).await;
        } else {
            served.pool.retire().await;
        }
        Ok(version)
    }

    async fn install(
        &self,
        project: &Project,
        app: &AppId,
        deps_digest: &str,
        progress: &Progress,
    ) -> Result<Option<Installed>, Error> {
        let shared = &self.shared;
        let wanted = shared.installer.dependencies(project);
        if wanted.is_empty() {
            progress.say("install", "no dependencies");
            return Ok(None);
        }
        if let Some(before) = shared.store.layer_for(app, deps_digest).await?
            && let Some(layer) = shared.artifacts.layer(app, &before.layer)
        {
            progress.say("install", &format!("reusing the dependencies of version {}", before.number));
            return Ok(Some(layer));
        }
        let _turn = match shared.builds.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                progress.say("install", "waiting for other installs to finish");
                shared.builds.acquire().await.map_err(|_| Error::Draining)?
            }
        };
        progress.say("install", &format!("installing {} dependencies with npm", wanted.len()));
        Ok(Some(layer::install(&shared.installer, &shared.artifacts, app, project, progress).await?))
    }

    async fn verify(&self, pool: &pool::Pool) -> Result<(), Error> {
        match pool.warm(Instant::now() + self.shared.settings.verify_timeout).await {
            Ok(()) => Ok(()),
            Err(pool::Error::NotStarted(StartError::Init(failure))) => Err(Error::Verify(failure)),
            Err(pool::Error::NotStarted(err)) => Err(Error::NoWorker(err.to_string())),
            Err(err) => Err(Error::AtCapacity(err.to_string())),
        }
    }

    async fn clean_up(&self, app: &AppId, number: VersionNumber, err: &Error) {
        if let Err(err) = self.shared.store.fail_version(app, number, &err.to_string()).await {
            tracing::error!(%app, version = %number, %err, "failed to mark a version as failed; the next start does");
        }
        self.sweep(app).await;
    }

    /// Removes files that no version needs any more.
    async fn sweep(&self, app: &AppId) {
        let (digests, layers) = match in_use(&self.shared.store, app).await {
            Ok(in_use) => in_use,
            Err(err) => return tracing::error!(%app, %err, "failed to read which files are in use"),
        };
        let (artifacts, owner) = (self.shared.artifacts.clone(), app.clone());
        let swept = tokio::task::spawn_blocking(move || artifacts.sweep(&owner, &digests, &layers)).await;
        if let Ok(Err(err)) = swept {
            tracing::error!(%app, %err, "failed to remove files that are not in use");
        }
    }

    /// What a crash left: versions that were being built, and files that no version refers to. Call it once, before serving.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn recover(&self) -> Result<(), store::Error> {
        let abandoned = self.shared.store.abandon_builds().await?;
        if abandoned > 0 {
            tracing::warn!(abandoned, "versions were being built when the service stopped; they are FAILED now");
        }
        for app in self.shared.artifacts.apps() {
            self.sweep(&app).await;
        }
        Ok(())
    }

    /// Makes a READY version the active one; a worker of it is initialized before traffic moves.
    ///
    /// # Errors
    /// It does not exist, is not READY, or no longer initializes: then the version before it goes on serving.
    ///
    /// # Cancel safety
    /// Of this and the two below: a caller that hangs up does not stop what has begun. Store, routes and files change together.
    pub async fn activate(&self, app: &AppId, number: VersionNumber) -> Result<Version, Error> {
        let (this, app) = (self.clone(), app.clone());
        self.detached(async move { this.activate_now(&app, number).await }).await
    }

    /// # Errors
    /// It does not exist, is active, or is still needed.
    pub async fn delete_version(&self, app: &AppId, number: VersionNumber) -> Result<(), Error> {
        let (this, app) = (self.clone(), app.clone());
        self.detached(async move { this.delete_version_now(&app, number).await }).await
    }

    /// # Errors
    /// There is no such app.
    pub async fn delete_app(&self, app: &AppId) -> Result<(), Error> {
        let (this, app) = (self.clone(), app.clone());
        self.detached(async move { this.delete_app_now(&app).await }).await
    }

    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.running.spawn(work).await.map_err(|_| Error::Internal)?
    }

    async fn activate_now(&self, app: &AppId, number: VersionNumber) -> Result<Version, Error> {
        let lock = self.app_lock(app);
        let _turn = lock.lock().await;
        let served = self.shared.serving.version(app, number).await?;
        self.verify(&served.pool).await?;
        if !self.shared.store.activate_version(app, number).await? {
            return Err(serving::Error::NotReady { app: app.clone(), number }.into());
        }
        self.shared.serving.promote(&served).await;
        Ok(served.version.clone())
    }

    async fn delete_version_now(&self, app: &AppId, number: VersionNumber) -> Result<(), Error> {
        self.check_unused(app, number).await?;
        if !self.shared.serving.release(app, number, DELETE_PATIENCE).await {
            return Err(Error::StillRunning(number));
        }
        let lock = self.app_lock(app);
        let _turn = lock.lock().await;
        match self.shared.store.delete_version(app, number).await? {
            DeleteVersion::Deleted => {}
            DeleteVersion::NotFound => {
                return Err(serving::Error::UnknownVersion { app: app.clone(), number }.into());
            }
            DeleteVersion::Active => return Err(Error::Active(number)),
            DeleteVersion::Building => return Err(Error::Building(number)),
            DeleteVersion::NeededByEvents(events) => return Err(Error::NeededByEvents { number, events }),
        }
        self.shared.serving.forget(app, number).await;
        self.sweep(app).await;
        Ok(())
    }

    /// Before anything is retired for it. The store decides in the end.
    async fn check_unused(&self, app: &AppId, number: VersionNumber) -> Result<(), Error> {
        let unknown = serving::Error::UnknownVersion { app: app.clone(), number };
        let version = self.shared.store.version(app, number).await?.ok_or(unknown)?;
        if version.state == VersionState::Building {
            return Err(Error::Building(number));
        }
        let active = self.shared.store.app(app).await?.and_then(|app| app.active);
        if active == Some(number) { Err(Error::Active(number)) } else { Ok(()) }
    }

    async fn delete_app_now(&self, app: &AppId) -> Result<(), Error> {
        let lock = self.app_lock(app);
        let _turn = lock.lock().await;
        if !self.shared.store.delete_app(app).await? {
            return Err(serving::Error::UnknownApp(app.to_string()).into());
        }
        self.shared.serving.forget_app(app).await;
        self.sweep(app).await;
        Ok(())
    }
}

async fn in_use(store: &Store, app: &AppId) -> Result<(BTreeSet<String>, BTreeSet<String>), store::Error> {
    Ok((store.digests_in_use(app).await?, store.layers_in_use(app).await?))
}

fn warn_of_limits(project: &Project, progress: &Progress) {
    let (limits, default) = (&project.limits, crate::model::Limits::default());
    let set = [
        limits.cpu_millis != default.cpu_millis,
        limits.pids_max != default.pids_max,
        limits.tmp_bytes != default.tmp_bytes,
        limits.subprocesses != default.subprocesses,
        limits.egress != default.egress,
    ];
    for (name, _) in LIMITS_NOT_ENFORCED.iter().zip(set).filter(|(_, set)| *set) {
        progress.say(
            "validate",
            &format!("warning: limits.{name} is recorded, but this service's sandbox does not enforce it"),
        );
    }
}

/// In whole milliseconds, as the store keeps it: the same version is always told with the same time.
fn now_as_stored() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn draft(app: &AppId, project: &Project, node_version: &str) -> Version {
    Version {
        app: app.clone(),
        number: VersionNumber(0),
        state: VersionState::Building,
        digest: String::new(),
        functions: project.functions.clone(),
        dependencies: BTreeMap::new(),
        environment_names: project.environment.keys().cloned().collect(),
        limits: project.limits.clone(),
        node_version: node_version.to_owned(),
        layer: String::new(),
        layer_size_bytes: 0,
        size_bytes: 0,
        has_initialization_script: project.init.is_some(),
        created_at: now_as_stored(),
        failure: String::new(),
    }
}

fn manifest(
    catalogue: &Catalogue,
    project: &Project,
    built: &Built,
    layer: Option<&Installed>,
    node_version: &str,
) -> Manifest {
    let module = |source: &str| {
        let unit = built.units.iter().find(|unit| unit.source == source);
        unit.map(|unit| Module { file: unit.emitted.clone(), kind: unit.kind.as_str().to_owned() })
    };
    let functions = project.functions.iter().filter_map(|function| {
        Some(FunctionModule {
            trigger_type: function.trigger_type.to_string(),
            blocking: catalogue.find(function.trigger_type.as_str()).is_some_and(|trigger| trigger.blocking),
            name: function.name.clone(),
            module: module(&function.entry)?,
        })
    });
    let renamed = built.units.iter().filter(|unit| unit.source != unit.emitted || unit.map.is_some());
    let settings = (&project.functions, &project.limits);
    Manifest {
        files: built
            .files
            .iter()
            .map(|(path, content)| (path.clone(), blake3::hash(content).to_hex().to_string()))
            .collect(),
        units: renamed
            .map(|unit| artifacts::Unit {
                source: unit.source.clone(),
                emitted: unit.emitted.clone(),
                map: unit.map.clone(),
            })
            .collect(),
        init: project.init.as_deref().and_then(module),
        functions: functions.collect(),
        settings: serde_json::to_string(&settings).expect("plain data serializes"),
        layer: layer.map(|layer| layer.key.clone()),
        node_version: node_version.to_owned(),
    }
}

//! One publish, from request to active version: validate → transpile → install → verify → store → activate.
//!
//! A publish runs in a task of its own: a caller that hangs up does not stop it. Until the store's transaction at the end nothing
//! refers to what was built, so a crash at any moment leaves the version before it serving; start-up removes the rest.

mod changes;
mod draft;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::{self, Artifacts};
use crate::model::{AppId, Catalogue, FunctionFailure, Version, VersionNumber, VersionState};
use crate::pool;
use crate::serving::{self, Served, Serving};
use crate::store::{self, BeginError, NewVersion, PublishKey, Store};
use crate::worker::StartError;

use super::layer::{self, Installed, Installer};
use super::npm::InstallError;
use super::progress::{Progress, Step};
use super::turns::{Build, Ticket, Turns};
use super::{Built, InvalidSpec, Project, ProjectSpec, SourceLimits, transpile};
use draft::{draft, manifest};

/// At a time.
const TRANSPILES_MAX: usize = 2;

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
    /// Only one app is served.
    pub single_tenant: bool,
}

/// What is to be published.
#[derive(Debug)]
pub struct Request {
    pub app: AppId,
    pub spec: ProjectSpec,
    pub activate: bool,
    /// Refuse unless this is the newest READY version (0: none).
    pub base: Option<VersionNumber>,
    pub key: Option<PublishKey>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] InvalidSpec),
    #[error("another version was published since: the newest is {newest}")]
    BaseMoved { newest: VersionNumber },
    #[error(
        "this idempotency_key was used for another request, which became version {0}: use a new key for new content"
    )]
    KeyReused(VersionNumber),
    #[error(
        "app {other} is served here, and nothing keeps a second one from it (isolation.single_tenant; see `chatfn doctor`)"
    )]
    SingleTenant { other: AppId },
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
    /// Its pool retired meanwhile.
    #[error("the version was unloaded while it was being verified: try again")]
    Closed,
    #[error("the app was deleted while version {0} was being built")]
    AppDeleted(VersionNumber),
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
    turns: Turns,
    builds: Semaphore,
    /// A hostile source can cost the transpiler seconds and hundreds of MiB (see `prescan.rs`).
    transpiles: Semaphore,
    waiting: AtomicUsize,
    running: TaskTracker,
    stop: CancellationToken,
}

/// How a build is to end.
#[derive(Clone, Copy)]
struct Plan<'a> {
    build: &'a Build,
    /// `None`: it is not to serve.
    ticket: Option<Ticket>,
    base: Option<VersionNumber>,
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
            turns: Turns::default(),
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
        let state = shared.turns.of(&request.app);
        let _key = match &request.key {
            Some(key) => Some(state.key(&key.key).await),
            None => None,
        };
        if let Some(key) = &request.key
            && let Some(version) = self.published_before(&request.app, key, progress).await?
        {
            return if request.activate { self.activate_again(&version, progress).await } else { Ok(version) };
        }
        self.check_only_app(&request.app).await?;
        let (project, built) = self.compile(request.spec, progress).await?;
        let mut version = draft(&request.app, &project, shared.installer.node_version());
        let (build, ticket) = {
            let _turn = state.turn().await;
            version.number = shared
                .store
                .begin_version(NewVersion {
                    version: version.clone(),
                    environment: project.environment.clone(),
                    deps_digest: shared.installer.request_digest(&project),
                    publish_key: request.key,
                    base: request.base,
                })
                .await?;
            (state.begin_build(), request.activate.then(|| state.ticket()))
        };
        let stopped = build.stop();
        let plan = Plan { build: &build, ticket, base: request.base };
        let building = self.build(&project, &built, version.clone(), plan, progress);
        // A panic must not leave the version BUILDING: nobody could delete it before the next start.
        let building = AssertUnwindSafe(building).catch_unwind();
        let result = tokio::select! {
            result = building => match result.unwrap_or(Err(Error::Internal)) {
                // Its worker was stopped, as everything is: which of the two is seen first is chance.
                Err(Error::Closed) if shared.stop.is_cancelled() => Err(Error::Draining),
                result => result,
            },
            () = shared.stop.cancelled() => Err(Error::Draining),
            () = stopped.cancelled() => Err(Error::AppDeleted(version.number)),
        };
        if let Err(err) = &result {
            self.clean_up(&request.app, version.number, &build, err).await;
        }
        result
    }

    async fn published_before(
        &self,
        app: &AppId,
        key: &PublishKey,
        progress: &Progress,
    ) -> Result<Option<Version>, Error> {
        let Some((version, digest)) = self.shared.store.version_by_publish_key(app, &key.key).await? else {
            return Ok(None);
        };
        if digest != key.digest {
            return Err(Error::KeyReused(version.number));
        }
        let message = format!("version {} was published with this idempotency_key before", version.number);
        progress.say("validate", &message);
        Ok(Some(version))
    }

    /// A repeat asks for the same end as the first: this version serves.
    async fn activate_again(&self, version: &Version, progress: &Progress) -> Result<Version, Error> {
        let number = version.number;
        if self.shared.store.app(&version.app).await?.and_then(|app| app.active) == Some(number) {
            progress.say("activate", &format!("version {number} is active already"));
            return Ok(version.clone());
        }
        progress.say("verify", &format!("loading version {number} in a worker"));
        let version = self.activate_now(&version.app, number).await?;
        progress.say("activate", &format!("version {number} is active"));
        Ok(version)
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

    /// Where workers of two apps could reach each other, only one app is taken. (Two that come first together may both be: their
    /// operator said that there is one.)
    ///
    /// # Errors
    /// There is another.
    pub async fn check_only_app(&self, app: &AppId) -> Result<(), Error> {
        if !self.shared.settings.single_tenant {
            return Ok(());
        }
        let apps = self.shared.store.list_apps(None, 2).await?;
        apps.into_iter()
            .find(|other| other.id != *app)
            .map_or(Ok(()), |other| Err(Error::SingleTenant { other: other.id }))
    }

    async fn compile(&self, spec: ProjectSpec, progress: &Progress) -> Result<(Project, Built), Error> {
        let _turn = self.shared.transpiles.acquire().await.map_err(|_| Error::Draining)?;
        let shared = Arc::clone(&self.shared);
        let progress = progress.clone();
        let compiled = tokio::task::spawn_blocking(move || {
            let registries = shared.installer.registries();
            let project = Project::check(spec, &shared.catalogue, &shared.settings.source_limits, registries)?;
            let memory_bytes = project.limits.memory_bytes;
            if memory_bytes > shared.settings.memory_bytes_max {
                let what = "limits.memory_bytes (against the service's memory_budget_bytes)".to_owned();
                let limit = shared.settings.memory_bytes_max;
                return Err(InvalidSpec::TooLarge { what, actual: memory_bytes, limit }.into());
            }
            for warning in &project.warnings {
                progress.say("validate", warning);
            }
            progress.say("transpile", &format!("transpiling {} files", project.files.len()));
            let built = transpile(&project)?;
            Ok((project, built))
        });
        compiled.await.map_err(|_| Error::Internal)?
    }

    async fn build(
        &self,
        project: &Project,
        built: &Built,
        mut version: Version,
        plan: Plan<'_>,
        progress: &Progress,
    ) -> Result<Version, Error> {
        let shared = &self.shared;
        let installed = self.install(project, &version.app, plan.build, progress).await?;
        let manifest = manifest(&shared.catalogue, project, built, installed.as_ref(), shared.installer.node_version());
        if let Some(installed) = installed {
            version.layer = installed.key;
            version.layer_size_bytes = installed.size_bytes;
            version.dependencies = installed.dependencies;
        }
        progress.say("verify", "loading the version in a worker");
        plan.build.pin_digest(&manifest.digest()).await;
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
        let finished = match self.verify(&served.pool).await {
            Ok(()) => self.finish(&served, plan, progress).await,
            Err(err) => Err(err),
        };
        match finished {
            Ok(()) => Ok(version),
            Err(err) => {
                served.pool.kill().await;
                Err(err)
            }
        }
    }

    /// Makes a verified version READY and, if it is to serve, moves traffic to it.
    async fn finish(&self, served: &Arc<Served>, plan: Plan<'_>, progress: &Progress) -> Result<(), Error> {
        let (shared, version) = (&self.shared, &served.version);
        let state = shared.turns.of(&version.app);
        let _turn = state.turn().await;
        progress.say("store", &format!("storing version {}", version.number));
        let ticket = plan.ticket.filter(|ticket| state.may_activate(*ticket));
        shared.store.finish_version(version, ticket.is_some(), plan.base).await?;
        if let Some(ticket) = ticket {
            progress.say("activate", &format!("version {} is active", version.number));
            shared.serving.promote(served).await;
            state.activated(ticket);
            return Ok(());
        }
        if plan.ticket.is_some() {
            let message = "another version was activated since this publish began: that one goes on serving";
            progress.say("activate", &format!("version {} is READY; {message}", version.number));
        }
        served.pool.retire().await;
        Ok(())
    }

    async fn install(
        &self,
        project: &Project,
        app: &AppId,
        build: &Build,
        progress: &Progress,
    ) -> Result<Option<Installed>, Error> {
        let shared = &self.shared;
        let wanted = shared.installer.names(project);
        if wanted.is_empty() {
            progress.say("install", "no dependencies");
            return Ok(None);
        }
        if let Some(before) = shared.store.layer_for(app, &shared.installer.request_digest(project)).await? {
            build.pin_layer(&before.layer).await;
            if let Some(layer) = shared.artifacts.layer(app, &before.layer) {
                progress.say("install", &format!("reusing the dependencies of version {}", before.number));
                return Ok(Some(layer));
            }
        }
        let _turn = match shared.builds.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                progress.say("install", "waiting for other installs to finish");
                shared.builds.acquire().await.map_err(|_| Error::Draining)?
            }
        };
        progress.say("install", &format!("installing {} dependencies with npm", wanted.len()));
        Ok(Some(layer::install(&shared.installer, &shared.artifacts, app, project, build, progress).await?))
    }

    async fn verify(&self, pool: &pool::Pool) -> Result<(), Error> {
        match pool.warm(Instant::now() + self.shared.settings.verify_timeout).await {
            Ok(()) => Ok(()),
            Err(pool::Error::NotStarted(StartError::Init(failure))) => Err(Error::Verify(failure)),
            Err(pool::Error::NotStarted(err)) => Err(Error::NoWorker(err.to_string())),
            Err(pool::Error::Retired) => Err(Error::Closed),
            Err(err @ (pool::Error::QueueFull | pool::Error::TimedOut)) => Err(Error::AtCapacity(err.to_string())),
        }
    }
}

//! One publish, from request to active version: validate → transpile → install → verify → store → activate.
//!
//! A publish runs in a task of its own: a caller that hangs up does not stop it. Until the store's transaction at the end nothing
//! refers to what was built, so a crash at any moment leaves the version before it serving; start-up removes the rest.

mod build;
mod draft;
mod error;
mod lifecycle;
mod rehearsal;
mod replay;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::Blobs;
use crate::metrics::{Running, series};
use crate::model::{Actor, AppId, Catalogue, Sdk, Version, VersionNumber, VersionState};
use crate::serving::{self, Serving};
use crate::store::{NewVersion, PublishKey, Store};
use crate::traces::{self, Kind, Span};

use super::changes::Changes;
use super::layer::Installer;
use super::progress::{Progress, Step};
use super::refusals::Refusals;
use super::turns::{App, Build, Ticket, Turns};
use super::typecheck::{Checker, TypeCheck};
use super::{ProjectSpec, SourceLimits};
use draft::draft;

pub use error::Error;
pub use rehearsal::{Draft, Rehearsed};
pub use replay::{ReplayRequest, ReplaySummary, Verification};

/// At a time.
const TRANSPILES_MAX: usize = 2;
/// So often changes are made again because another version was published meanwhile.
const CHANGE_TRIES_MAX: u32 = 5;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Publishes that may wait for their turn.
    pub waiting_max: usize,
    /// Publishes that install at a time.
    pub builds_max: usize,
    /// For the candidate's first worker, and those of drafts and replays.
    pub verify_timeout: Duration,
    /// For one run of the TypeScript compiler.
    pub typecheck_timeout: Duration,
    pub source_limits: SourceLimits,
    /// The budget of all workers together: more than it could never be started.
    pub memory_bytes_max: u64,
    /// Only one app is served.
    pub single_tenant: bool,
    /// What functions find in their context, which types are checked against.
    pub sdk: Sdk,
    /// Something keeps workers with `limits.egress` none from the network.
    pub confines_egress: bool,
}

/// What is to be published.
#[derive(Debug)]
pub struct Request {
    pub app: AppId,
    pub content: Content,
    pub activate: bool,
    /// Refuse unless this is the newest READY version (0: none).
    pub base: Option<VersionNumber>,
    pub key: Option<PublishKey>,
    pub typecheck: TypeCheck,
    pub verification: Option<Verification>,
    pub actor: Actor,
}

#[derive(Debug)]
pub enum Content {
    Spec(ProjectSpec),
    /// With the active version's variables where it names none of its own.
    SpecKeepingEnvironment(ProjectSpec),
    /// Of a version that there is. What comes out need not have a function.
    Changes(Changes),
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    blobs: Blobs,
    serving: Serving,
    catalogue: Arc<Catalogue>,
    installer: Installer,
    settings: Settings,
    turns: Turns,
    builds: Semaphore,
    /// A hostile source can cost the transpiler seconds and hundreds of MiB (see `prescan.rs`).
    transpiles: Semaphore,
    checker: Checker,
    refusals: Refusals,
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
    /// What must be active still when it ends; `None`: whatever is.
    started_from: Option<Option<VersionNumber>>,
    typecheck: TypeCheck,
    verification: Option<Verification>,
    actor: &'a Actor,
}

/// Why a publish ended without a version.
#[derive(Debug)]
struct Failed {
    error: Error,
    /// There was a version already, and the audit log has it.
    recorded: bool,
}

/// What is asked of a publish beside its content.
#[derive(Clone)]
struct Wishes {
    activate: bool,
    /// Where its activation stands among others, if that was settled before its build.
    ticket: Option<Ticket>,
    /// What must be active still when it ends; `None`: whatever is.
    started_from: Option<Option<VersionNumber>>,
    base: Option<VersionNumber>,
    key: Option<PublishKey>,
    typecheck: TypeCheck,
    verification: Option<Verification>,
    actor: Actor,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(err: E) -> Self {
        Self { error: err.into(), recorded: false }
    }
}

impl Publisher {
    pub fn new(
        store: Store,
        blobs: Blobs,
        serving: Serving,
        catalogue: Arc<Catalogue>,
        installer: Installer,
        settings: Settings,
    ) -> Self {
        let builds = Semaphore::new(settings.builds_max);
        let checker = Checker::new(settings.typecheck_timeout);
        let shared = Shared {
            store,
            blobs,
            serving,
            catalogue,
            installer,
            settings,
            turns: Turns::default(),
            builds,
            transpiles: Semaphore::new(TRANSPILES_MAX),
            checker,
            refusals: Refusals::default(),
            waiting: AtomicUsize::new(0),
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins a publish. The steps end when it does.
    pub fn publish(&self, request: Request) -> (mpsc::Receiver<Step>, tokio::task::JoinHandle<Result<Version, Error>>) {
        let mut span = Span::within(&traces::current(), Kind::Internal, "publish");
        span.record(|span| {
            span.set("chatfn.app.id", request.app.as_str()).set("chatfn.activate", request.activate);
        });
        let (progress, steps) = Progress::new(span.context().clone());
        let this = self.clone();
        let task = self.shared.running.spawn(async move {
            let began = Instant::now();
            let (app, actor) = (request.app.clone(), request.actor.clone());
            let result = match Box::pin(this.run(request, &progress)).await {
                Ok(version) => Ok(version),
                Err(failed) => Err(this.recorded(&app, failed, &actor).await),
            };
            progress.end();
            if let Err(err) = &result {
                tracing::debug!(%err, "publish failed");
            }
            let outcome = result.as_ref().map_or_else(Error::outcome, |_| "published");
            series().published(outcome, began.elapsed());
            span.record(|span| {
                match &result {
                    Ok(version) => span.set("chatfn.version", version.number.0),
                    Err(_) => span.failed(outcome),
                };
            });
            result
        });
        (steps, task)
    }

    /// What every app can use without asking for it, by name.
    pub fn default_dependencies(&self) -> &BTreeMap<String, String> {
        &self.shared.installer.default_dependencies
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

    /// Sees to it that the audit log has a failed publish.
    async fn recorded(&self, app: &AppId, Failed { error, recorded }: Failed, actor: &Actor) -> Error {
        // What was not even taken on is no publish, and there would be no end of it.
        let refused = matches!(error, Error::TooMany | Error::Draining | Error::Store(_));
        let left_out = if recorded || refused { None } else { self.shared.refusals.count(app, Instant::now()) };
        if let Some(left_out) = left_out {
            let written = self.shared.store.record_refused_publish(app, error.reason(), left_out, actor).await;
            if let Err(err) = written {
                tracing::error!(%app, %err, "failed to write the audit log's entry of a failed publish");
            }
        }
        error
    }

    async fn run(&self, request: Request, progress: &Progress) -> Result<Version, Failed> {
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
            if request.activate {
                return Ok(self.activate_again(&version, &request.actor, progress).await?);
            }
            return Ok(version);
        }
        self.check_only_app(&request.app).await?;
        let Request { app, content, activate, base, key, typecheck, verification, actor } = request;
        let wishes = Wishes { activate, ticket: None, started_from: None, base, key, typecheck, verification, actor };
        match content {
            Content::Spec(spec) => self.publish_spec(&app, &state, spec, true, wishes, progress).await,
            content => Box::pin(self.publish_on_top(&app, &state, &content, wishes, progress)).await,
        }
    }

    /// On top of what there is when its turn comes. What another publish adds meanwhile is not lost either: then it is made again, on
    /// top of that.
    async fn publish_on_top(
        &self,
        app: &AppId,
        state: &Arc<App>,
        content: &Content,
        wishes: Wishes,
        progress: &Progress,
    ) -> Result<Version, Failed> {
        // One that is deleted while this waits does not come back.
        let existed = self.shared.store.app(app).await?.is_some();
        let _one_by_one = state.change().await;
        let from_active = !matches!(content, Content::Changes(Changes { version: Some(_), .. }));
        for _ in 0..CHANGE_TRIES_MAX {
            // Before the look at what serves: an activation that comes after it is not undone.
            let ticket = wishes.activate.then(|| state.ticket());
            let newest = self.shared.store.newest_version(app).await?;
            let now = self.shared.store.app(app).await?;
            if existed && now.is_none() {
                return Err(serving::Error::UnknownApp(app.to_string()).into());
            }
            let started_from = from_active.then_some(now.and_then(|app| app.active));
            let (spec, functions_required) = self.on_top(app, content, newest).await?;
            let wishes = Wishes { base: wishes.base.or(Some(newest)), ticket, started_from, ..wishes.clone() };
            let asked = wishes.base != Some(newest);
            match self.publish_spec(app, state, spec, functions_required, wishes, progress).await {
                Err(Failed { error: Error::ActiveMoved, .. }) => {
                    progress.say("validate", "another version was activated meanwhile: once more, on top of that");
                }
                Err(Failed { error: Error::BaseMoved { newest }, .. }) if !asked => {
                    let message = format!("version {newest} was published meanwhile: once more, on top of that");
                    progress.say("validate", &message);
                }
                ended => return ended,
            }
        }
        Err(Error::ChangesOvertaken { tries: CHANGE_TRIES_MAX }.into())
    }

    /// What is to be published on top of what there is, and whether it needs a function.
    async fn on_top(
        &self,
        app: &AppId,
        content: &Content,
        newest: VersionNumber,
    ) -> Result<(ProjectSpec, bool), Error> {
        match content {
            Content::Spec(spec) => Ok((spec.clone(), true)),
            Content::SpecKeepingEnvironment(spec) => {
                let mut spec = spec.clone();
                if let Some(active) = self.shared.store.app(app).await?.and_then(|app| app.active) {
                    for (name, value) in self.shared.store.environment(app, active).await? {
                        spec.environment.entry(name).or_insert(value);
                    }
                }
                Ok((spec, true))
            }
            Content::Changes(changes) => Ok((self.changed(app, changes.clone(), newest).await?.1, false)),
        }
    }

    /// What changes make of the version they start from, and which one that is.
    async fn changed(
        &self,
        app: &AppId,
        changes: Changes,
        newest: VersionNumber,
    ) -> Result<(Option<VersionNumber>, ProjectSpec), Error> {
        let active = self.shared.store.app(app).await?.and_then(|app| app.active);
        let start = changes.version.or(active).or((newest.0 > 0).then_some(newest));
        let mut spec = ProjectSpec::default();
        if let Some(number) = start {
            // First: it is empty for a version that is gone, and the sources are not there then.
            let environment = self.shared.store.environment(app, number).await?;
            spec = ProjectSpec { environment, ..self.spec(app, number).await? };
        }
        Ok((start, changes.apply(spec, &self.shared.catalogue)?))
    }

    /// What a version was published from, its environment left out.
    ///
    /// # Errors
    /// There is no such version, or that was not kept.
    pub async fn spec(&self, app: &AppId, number: VersionNumber) -> Result<ProjectSpec, Error> {
        let unknown = || serving::Error::UnknownVersion { app: app.clone(), number };
        let version = self.shared.store.version(app, number).await?.ok_or_else(unknown)?;
        if version.state != VersionState::Ready {
            return Err(Error::NoSources(number));
        }
        let _held = self.shared.blobs.get_artifact(app, &version.digest).await?;
        let (artifacts, app) = (self.shared.blobs.artifacts().clone(), app.clone());
        let read = tokio::task::spawn_blocking(move || artifacts.spec(&app, &version.digest));
        let text = read.await.map_err(|_| Error::Internal)??.ok_or(Error::NoSources(number))?;
        serde_json::from_slice(&text).map_err(|err| Error::Artifact(format!("read a version's sources: {err}")))
    }

    async fn publish_spec(
        &self,
        app: &AppId,
        state: &Arc<App>,
        spec: ProjectSpec,
        functions_required: bool,
        wishes: Wishes,
        progress: &Progress,
    ) -> Result<Version, Failed> {
        let shared = &self.shared;
        let (project, built) = self.compile(spec, functions_required, progress).await?;
        let mut version = draft(app, &project, shared.installer.node_version());
        let (build, ticket) = {
            let _turn = state.turn().await;
            let new = NewVersion {
                version: version.clone(),
                environment: project.environment.clone(),
                deps_digest: shared.installer.request_digest(&project),
                publish_key: wishes.key,
                base: wishes.base,
            };
            version.number = shared.store.begin_version(new, &wishes.actor).await?;
            let ticket = wishes.ticket.or_else(|| wishes.activate.then(|| state.ticket()));
            (state.begin_build(), ticket)
        };
        let number = version.number;
        let Wishes { base, typecheck, verification, started_from, actor, .. } = wishes;
        let plan = Plan { build: &build, ticket, base, typecheck, verification, started_from, actor: &actor };
        let building = self.build(&project, &built, version, plan, progress);
        let result = self.until_stopped(&build, number, building).await;
        match result {
            Ok(version) => Ok(version),
            Err(error) => {
                self.clean_up(app, number, &build, &error, &actor).await;
                Err(Failed { error, recorded: true })
            }
        }
    }

    /// A build's work, unless the service stops or the app is deleted meanwhile.
    async fn until_stopped<T>(
        &self,
        build: &Build,
        number: VersionNumber,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let stop = &self.shared.stop;
        let deleted = build.stop();
        // A panic must not leave the version BUILDING: nobody could delete it before the next start.
        let work = AssertUnwindSafe(work).catch_unwind();
        tokio::select! {
            result = work => match result.unwrap_or(Err(Error::Internal)) {
                // Its worker was stopped, as everything is: which of the two is seen first is chance.
                Err(Error::Closed) if stop.is_cancelled() => Err(Error::Draining),
                result => result,
            },
            () = stop.cancelled() => Err(Error::Draining),
            () = deleted.cancelled() => Err(Error::AppDeleted(number)),
        }
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
    async fn activate_again(&self, version: &Version, actor: &Actor, progress: &Progress) -> Result<Version, Error> {
        let number = version.number;
        if self.shared.store.app(&version.app).await?.and_then(|app| app.active) == Some(number) {
            progress.say("activate", &format!("version {number} is active already"));
            return Ok(version.clone());
        }
        progress.say("verify", &format!("loading version {number} in a worker"));
        let version = self.activate_now(&version.app, number, actor).await?;
        progress.say("activate", &format!("version {number} is active"));
        Ok(version)
    }

    /// Counts a publish that has not ended; too many at a time are refused.
    fn wait_in_line(&self) -> Result<impl Drop + use<>, Error> {
        struct Place(Arc<Shared>, #[allow(dead_code, reason = "counted until it drops")] Running);
        impl Drop for Place {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let place = Place(Arc::clone(&self.shared), Running::new(&series().publishes_running));
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
}

//! Which version serves each app, and the pool that runs it.

mod follow;
mod routes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::{self, Blobs, BlobsError, Held, Manifest};
use crate::metrics;
use crate::model::{AppId, FilesName, LogLine, Version, VersionNumber, VersionState};
use crate::pool::{self, Figures, MemoryBudget, Pool, Reserve, ReserveSettings};
use crate::store::{self, Activation, ActiveVersion, Store};
use crate::worker::{self, Lookup, Paths, Program, Renamed};

use routes::{Live, Routes};

/// What still runs of a version that is gone from the store gets so long to end by itself.
const FORGET_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("there is no app {0:?}: publish a version to create it")]
    UnknownApp(String),
    #[error("app {app} has no version {number}")]
    UnknownVersion { app: AppId, number: VersionNumber },
    #[error("version {number} of app {app} is not READY")]
    NotReady { app: AppId, number: VersionNumber },
    #[error("read the store: {0}")]
    Store(#[from] store::Error),
    #[error("load an artifact: {0}")]
    Artifact(Arc<artifacts::Error>),
    #[error(transparent)]
    Blobs(#[from] BlobsError),
}

impl Error {
    /// What clients and the audit log know it by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownApp(_) => "APP_NOT_FOUND",
            Self::UnknownVersion { .. } => "VERSION_NOT_FOUND",
            Self::NotReady { .. } => "VERSION_NOT_READY",
            Self::Store(err) => err.reason(),
            Self::Artifact(_) => "INTERNAL",
            Self::Blobs(err) => err.reason(),
        }
    }
}

/// A version with its pool.
#[derive(Debug)]
pub struct Served {
    pub version: Version,
    pub pool: Pool,
    /// Its app's, kept here so that no invocation looks them up.
    pub metrics: Arc<metrics::App>,
    used: Mutex<Instant>,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Serving {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    blobs: Blobs,
    workers: Arc<worker::Config>,
    /// Of the Node that runs them.
    node_version: String,
    settings: pool::Settings,
    budget: MemoryBudget,
    reserve: Reserve,
    routes: Mutex<Routes>,
    /// One load at a time: a burst on a cold app makes one pool. Held also while something is forgotten, so that a load that read
    /// the store before a deletion cannot bring it back.
    loading: tokio::sync::Mutex<()>,
    supervisors: TaskTracker,
    /// Ends every pool, those that retire and those yet to come included.
    kill: CancellationToken,
}

impl Serving {
    /// Reads which versions are active. Their pools start with the first invocation; the reserve starts now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(
        store: Store,
        blobs: Blobs,
        workers: Arc<worker::Config>,
        node_version: String,
        settings: pool::Settings,
        budget: MemoryBudget,
        reserve: &ReserveSettings,
    ) -> Result<Self, Error> {
        let active = store.active_versions().await?.into_iter().collect();
        let routes = Mutex::new(Routes { active, ..Routes::default() });
        let (loading, supervisors) = (tokio::sync::Mutex::new(()), TaskTracker::new());
        let kill = CancellationToken::new();
        let (reserve, keeper) = Reserve::start(Arc::clone(&workers), reserve, &budget, kill.clone());
        let keeper = tokio::spawn(keeper);
        supervisors.spawn(async move {
            if let Err(err) = keeper.await {
                tracing::error!(%err, "the reserve's keeper panicked");
            }
        });
        let shared = Shared {
            store,
            blobs,
            workers,
            node_version,
            settings,
            budget,
            reserve,
            routes,
            loading,
            supervisors,
            kill,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that serves the app; `None` where none is active.
    ///
    /// # Errors
    /// `UnknownApp`, or the version cannot be loaded.
    pub async fn active(&self, app: &AppId) -> Result<Option<Arc<Served>>, Error> {
        let number = {
            let routes = self.routes();
            match routes.active.get(app) {
                Some(ActiveVersion { number, .. }) => match routes.loaded.get(&(app.clone(), *number)) {
                    Some(served) => return Ok(Some(served.touched())),
                    None => Some(*number),
                },
                None => None,
            }
        };
        match number {
            Some(number) => self.load(app, number).await.map(Some),
            None => self.activated_elsewhere(app).await,
        }
    }

    /// Loads the active versions that keep workers warm, so that those start now and not with the first event.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn preload(&self) -> Result<(), Error> {
        let active: Vec<_> = self.routes().active.iter().map(|(app, active)| (app.clone(), active.number)).collect();
        for (app, number) in active {
            let version = self.shared.store.version(&app, number).await?;
            if version.is_some_and(|version| version.limits.workers_min > 0)
                && let Err(err) = self.load(&app, number).await
            {
                tracing::error!(%app, version = %number, %err, "failed to load an active version");
            }
        }
        Ok(())
    }

    /// A version by number, active or not.
    ///
    /// # Errors
    /// It does not exist, is not READY, or cannot be loaded.
    pub async fn version(&self, app: &AppId, number: VersionNumber) -> Result<Arc<Served>, Error> {
        if let Some(served) = self.routes().loaded.get(&(app.clone(), number)) {
            return Ok(served.touched());
        }
        self.load(app, number).await
    }

    async fn load(&self, app: &AppId, number: VersionNumber) -> Result<Arc<Served>, Error> {
        // Before the lock: what one app waits for, another must not.
        let _files = self.at_hand(app, number).await?;
        let _one_at_a_time = self.shared.loading.lock().await;
        let key = (app.clone(), number);
        if let Some(served) = self.routes().loaded.get(&key) {
            return Ok(served.touched());
        }
        let (version, environment, manifest) = self.read(app, number).await?;
        self.warn_of_another_node(&version);
        let served = self.prepare(version, environment, &manifest);
        self.routes().loaded.insert(key, Arc::clone(&served));
        Ok(served)
    }

    /// The Node build is a part of a version, but only one is installed here.
    fn warn_of_another_node(&self, version: &Version) {
        let Version { app, number, node_version: built_with, layer, .. } = version;
        let running = &self.shared.node_version;
        if built_with != running && self.routes().warned.insert((app.clone(), *number)) {
            let addons = if layer.is_empty() { "" } else { ", native addons of its dependencies may fail to load" };
            tracing::warn!(%app, version = %number, "built and verified with Node {built_with}, run with {running}{addons}: publish it again");
        }
    }

    /// A pool for a version that no route leads to yet.
    pub fn prepare(&self, version: Version, environment: BTreeMap<String, String>, manifest: &Manifest) -> Arc<Served> {
        self.start_pool(Arc::clone(&self.shared.workers), version, environment, manifest)
    }

    /// A pool for a version, or a draft of one, that no route will ever lead to. Its lines go to `logs`, not to the history.
    pub fn prepare_aside(
        &self,
        version: Version,
        environment: BTreeMap<String, String>,
        manifest: &Manifest,
        logs: mpsc::Sender<LogLine>,
    ) -> Arc<Served> {
        let workers = worker::Config { logs, ..(*self.shared.workers).clone() };
        self.start_pool(Arc::new(workers), version, environment, manifest)
    }

    /// What a READY version runs from, and its files at hand as long as the last of it is kept.
    ///
    /// # Errors
    /// It does not exist, is not READY, or cannot be loaded.
    pub async fn program(
        &self,
        app: &AppId,
        number: VersionNumber,
    ) -> Result<(Version, BTreeMap<String, String>, Manifest, Option<Held>), Error> {
        let held = self.at_hand(app, number).await?;
        let (version, environment, manifest) = self.read(app, number).await?;
        Ok((version, environment, manifest, held))
    }

    /// Fetches a version's files, if they are elsewhere.
    async fn at_hand(&self, app: &AppId, number: VersionNumber) -> Result<Option<Held>, Error> {
        if !self.shared.blobs.are_shared() {
            return Ok(None);
        }
        // Whatever is wrong with the version is told by whoever reads it.
        let version = self.shared.store.version(app, number).await?;
        match version.filter(|version| version.state == VersionState::Ready) {
            Some(version) => Ok(Some(self.shared.blobs.get(app, &version.digest).await?)),
            None => Ok(None),
        }
    }

    async fn read(
        &self,
        app: &AppId,
        number: VersionNumber,
    ) -> Result<(Version, BTreeMap<String, String>, Manifest), Error> {
        let Some(version) = self.shared.store.version(app, number).await? else {
            if self.shared.store.app(app).await?.is_none() {
                return Err(Error::UnknownApp(app.to_string()));
            }
            return Err(Error::UnknownVersion { app: app.clone(), number });
        };
        if version.state != VersionState::Ready {
            return Err(Error::NotReady { app: app.clone(), number });
        }
        let environment = self.shared.store.environment(app, number).await?;
        let manifest = self.shared.blobs.artifacts().manifest(app, &version.digest);
        Ok((version, environment, manifest.map_err(|err| Error::Artifact(Arc::new(err)))?))
    }

    /// Ends a pool now. On return no process of it is left.
    pub async fn end(&self, served: &Arc<Served>) {
        served.pool.kill().await;
        let ended = {
            let live = &self.routes().live;
            live.iter().find(|live| live.served.as_ptr() == Arc::as_ptr(served)).map(|live| live.ended.clone())
        };
        if let Some(ended) = ended {
            ended.cancelled().await;
        }
    }

    /// Ends the pools of a version that nobody holds any more, as those of a build that was given up: its files may go when this
    /// returns.
    pub async fn end_dropped(&self, app: &AppId, number: VersionNumber) {
        let live: Vec<Live> = {
            let live = &self.routes().live;
            let dropped = |live: &&Live| live.app == *app && live.number == number && live.served.strong_count() == 0;
            live.iter().filter(dropped).cloned().collect()
        };
        live.iter().for_each(|live| live.kill.cancel());
        all_ended(&live).await;
    }

    fn start_pool(
        &self,
        workers: Arc<worker::Config>,
        version: Version,
        environment: BTreeMap<String, String>,
        manifest: &Manifest,
    ) -> Arc<Served> {
        let shared = &self.shared;
        let artifacts = shared.blobs.artifacts();
        let layer_name = manifest.layer.as_ref().map(|key| FilesName::layer(&version.app, key));
        let held = artifacts.hold([FilesName::artifact(&version.app, &version.digest)].into_iter().chain(layer_name));
        let directory = artifacts.tree(&version.app, &version.digest);
        let layer = manifest.layer.as_ref().map(|key| artifacts.layer_directory(&version.app, key));
        let mut program = Program {
            app: version.app.clone(),
            version: version.number,
            directory,
            layer,
            environment,
            init: manifest.init.clone(),
            functions: manifest.functions.clone(),
            limits: version.limits.clone(),
            paths: Paths::default(),
        };
        program.paths = workers.paths(&program, renamed(manifest));
        let kill = {
            let mut routes = self.routes();
            routes.kill.entry(version.app.clone()).or_insert_with(|| shared.kill.child_token()).child_token()
        };
        let (settings, budget) = (&shared.settings, shared.budget.clone());
        let reserve = shared.reserve.clone();
        let (pool, supervisor) = Pool::start(workers, Arc::new(program), settings, budget, reserve, kill.clone());
        let (app, number) = (version.app.clone(), version.number);
        let metrics = metrics::app(&app);
        let served = Arc::new(Served { version, pool, metrics, used: Mutex::new(Instant::now()) });
        let ended = CancellationToken::new();
        {
            let live = &mut self.routes().live;
            live.retain(|live| !live.ended.is_cancelled());
            live.push(Live { app, number, served: Arc::downgrade(&served), kill, ended: ended.clone() });
        }
        shared.supervisors.spawn(async move {
            let _ended = ended.drop_guard();
            let _files = held; // Dropped before it is told that the pool has ended.
            if let Err(err) = supervisor.await {
                tracing::error!(%err, "a pool's supervisor panicked");
            }
        });
        served
    }

    /// Moves the app's traffic to this version, unless it was moved on since by a later activation. The one before finishes what it
    /// runs.
    pub async fn promote(&self, served: &Arc<Served>, activation: Activation) {
        let active = ActiveVersion { number: served.version.number, activation };
        self.route(&served.version.app, active, Some(served)).await;
    }

    /// As [`Serving::promote`]; without a pool the next call loads one.
    async fn route(&self, app: &AppId, active: ActiveVersion, served: Option<&Arc<Served>>) {
        let before = {
            let mut routes = self.routes();
            let loaded = served.map(|served| ((app.clone(), active.number), Arc::clone(served)));
            routes.loaded.extend(loaded);
            let before = routes.activate(app, active);
            before.and_then(|before| routes.loaded.remove(&(app.clone(), before)))
        };
        if let Some(before) = before {
            before.pool.retire().await;
        }
    }

    /// Whether nothing of a version that is not active runs any more, after at most `patience`. Its pools take nothing new.
    pub async fn release(&self, app: &AppId, number: VersionNumber, patience: Duration) -> bool {
        let live = self.retire_all(app, number).await;
        timeout(patience, all_ended(&live)).await.is_ok()
    }

    /// Ends the pools of a version that is gone from the store. On return no process of it is left.
    pub async fn forget(&self, app: &AppId, number: VersionNumber) {
        let live = self.retire_all(app, number).await;
        // What was called in between may finish.
        if timeout(FORGET_PATIENCE, all_ended(&live)).await.is_err() {
            live.iter().for_each(|live| live.kill.cancel());
            all_ended(&live).await;
        }
    }

    async fn retire_all(&self, app: &AppId, number: VersionNumber) -> Vec<Live> {
        let live: Vec<Live> = {
            let _no_load = self.shared.loading.lock().await;
            let mut routes = self.routes();
            routes.loaded.remove(&(app.clone(), number));
            routes.live.iter().filter(|live| live.app == *app && live.number == number).cloned().collect()
        };
        for served in live.iter().filter_map(|live| live.served.upgrade()) {
            served.pool.retire().await;
        }
        live
    }

    /// Ends all pools of an app that is gone from the store, also those that retire. On return no process of it is left.
    pub async fn forget_app(&self, app: &AppId) {
        let live: Vec<Live> = {
            let _no_load = self.shared.loading.lock().await;
            let mut routes = self.routes();
            routes.active.remove(app);
            routes.loaded.retain(|(of, _), _| of != app);
            if let Some(kill) = routes.kill.remove(app) {
                kill.cancel();
            }
            routes.live.iter().filter(|live| live.app == *app).cloned().collect()
        };
        all_ended(&live).await;
    }

    /// Forgets a pool that closed, so that the next call loads the version again.
    pub fn discard(&self, served: &Arc<Served>) {
        let key = (served.version.app.clone(), served.version.number);
        let mut routes = self.routes();
        if routes.loaded.get(&key).is_some_and(|loaded| Arc::ptr_eq(loaded, served)) {
            routes.loaded.remove(&key);
        }
    }

    /// Of all loaded versions of the app together.
    pub async fn figures(&self, app: &AppId) -> Figures {
        let pools: Vec<Pool> = {
            let routes = self.routes();
            let of_app = routes.loaded.iter().filter(|((of, _), _)| of == app);
            of_app.map(|(_, served)| served.pool.clone()).collect()
        };
        let mut sum = Figures::default();
        for pool in pools {
            let figures = pool.figures().await;
            sum.counts.starting += figures.counts.starting;
            sum.counts.idle += figures.counts.idle;
            sum.counts.busy += figures.counts.busy;
            sum.counts.retiring += figures.counts.retiring;
            sum.counts.waiting += figures.counts.waiting;
            sum.started_total += figures.started_total;
            sum.from_reserve_total += figures.from_reserve_total;
            sum.failed_total += figures.failed_total;
            sum.pids.extend(figures.pids);
        }
        sum
    }

    /// Tells the metrics what the machine's memory is promised to.
    pub fn measure(&self) {
        let (series, budget) = (metrics::series(), &self.shared.budget);
        series.memory_budget.set(budget.limit() as f64);
        series.memory_reserved.set(budget.used() as f64);
        series.reserve_workers.set(self.shared.reserve.waiting() as f64);
    }

    /// Unloads versions that are not active and were not used for `idle`: pinned ones, and targets of late retries.
    pub async fn unload_idle(&self, idle: Duration) {
        let unused: Vec<_> = {
            let mut routes = self.routes();
            let Routes { active, loaded, .. } = &mut *routes;
            let unused = loaded.extract_if(|(app, number), served| {
                active.get(app).map(|active| active.number) != Some(*number) && served.used().elapsed() > idle
            });
            unused.map(|(_, served)| served).collect()
        };
        for served in unused {
            served.pool.retire().await;
        }
    }

    /// Ends every worker, for good. On return no child of any pool is alive, and none of the reserve's.
    pub async fn stop(&self) {
        self.shared.kill.cancel();
        self.shared.supervisors.close();
        self.shared.supervisors.wait().await;
    }
}

impl Served {
    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touched(self: &Arc<Self>) -> Arc<Self> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Arc::clone(self)
    }
}

async fn all_ended(live: &[Live]) {
    for live in live {
        live.ended.cancelled().await;
    }
}

fn renamed(manifest: &Manifest) -> BTreeMap<String, Renamed> {
    let renamed = manifest.units.iter().map(|unit| {
        let lookup = unit.lookup().map(|lookup| -> Lookup { Arc::new(lookup) });
        (unit.emitted.clone(), Renamed { source: unit.source.clone(), lookup })
    });
    renamed.collect()
}

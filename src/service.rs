//! A whole service: opens what is durable, starts the tasks, serves, and takes everything down again in order.

mod front;
mod maintenance;
mod settings;

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::Flock;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Auth, Failures, Measures, MessageLimits, Oidc, RateDefaults, Rates, Services};
use crate::artifacts::{Artifacts, Blobs, Remote};
use crate::config::Config;
use crate::dispatch::{self, Dispatcher};
use crate::drain::Drain;
use crate::history::History;
use crate::host::{self, Host};
use crate::invoke::Invoker;
use crate::metrics;
use crate::model::{Catalogue, Mode, Report};
use crate::pool::MemoryBudget;
use crate::publish::{Installer, Npm, Publisher};
use crate::replicas;
use crate::sandbox::Sandbox;
use crate::secrets::Keyring;
use crate::serving::Serving;
use crate::store::Store;
use crate::tls::Reloader;
use crate::traces;

use front::Turns;
use maintenance::{keep_up, maintain};
pub use settings::database;
use settings::{
    blobs_settings, install_limits, invoke_settings, pool_settings, publish_settings, queue_limits, registry_proxy,
    reserve_settings, traces_settings, worker_config,
};

/// After the drain: for workers to end, connections to close and the history to be written, all together.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Of which so much is left to the history and the store, whatever the steps before them take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// After all of that, for the sandbox's broker, which has nothing left to end but itself.
const SANDBOX_TIMEOUT: Duration = Duration::from_secs(2);
/// For the last spans: a collector that is away must not hold us.
const TRACES_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that never ends (a stream that nobody reads, hyper#4170) must not hold us.
const CONNECTIONS_TIMEOUT: Duration = Duration::from_secs(2);
/// For what the tasks in the background are at just then: a database that is away must not hold us.
const TASKS_TIMEOUT: Duration = Duration::from_secs(1);

/// A running service.
pub struct Service {
    address: SocketAddr,
    scheme: &'static str,
    sandbox: Sandbox,
    drain: Drain,
    drain_delay: Duration,
    drain_timeout: Duration,
    invoker: Invoker,
    publisher: Publisher,
    serving: Serving,
    store: Store,
    rates: Rates,
    stop_dispatch: CancellationToken,
    turns: Turns,
    stop_history: CancellationToken,
    stop_replicas: CancellationToken,
    dispatcher: JoinHandle<()>,
    history: JoinHandle<()>,
    maintenance: JoinHandle<()>,
    replicas: JoinHandle<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    /// `None` where no such address is set.
    admin: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
    upkeep: JoinHandle<()>,
    traces: Option<traces::Sending>,
    _lock: Flock<File>,
}

impl Service {
    /// Starts everything; on return the port is bound and serves.
    ///
    /// # Errors
    /// Says what is missing or wrong, and what to do.
    pub async fn start(config: &Config, host: Host, sandbox: Sandbox) -> anyhow::Result<Self> {
        let catalogue = Arc::new(Catalogue::new(&config.trigger_types)?);
        let token = config.operator_token()?;
        let tls = Reloader::start(&config.tls)?;
        let keys = config.encryption_keys_file.as_deref().map(Keyring::open).transpose()?;
        host::check_isolation(config, sandbox.report())?;
        let trigger_types = catalogue.iter().map(|trigger| trigger.trigger_type.to_string()).collect();
        let exposition =
            metrics::install(config.metrics_apps_max, trigger_types).context("begin to count for the metrics")?;
        let traces = traces_settings(config).map(|settings| traces::start(&settings)).transpose()?;
        let Host { node, npm, data, lock, home, .. } = host;
        let artifacts = Artifacts::open(&data)?;
        let node_version = host::check_node(&sandbox).await?;
        let store = Store::open(database(config, &data)?, queue_limits(config)).await?;
        keys.into_iter().for_each(|keys| store.use_keys(keys));
        replicas::join(&store, config.replica_timeout).await?;
        let blobs = Blobs::new(artifacts.clone(), store.clone(), open_remote(config).await?, blobs_settings(config));
        exposition.tell_build(&node_version);
        let failures = Failures::new(config.auth_failures_per_minute, config.trusted_proxies.clone());
        let auth = Auth::open(store.clone(), token.as_deref(), failures, Oidc::of(&config.oidc)?).await?;
        let rates = Rates::new(
            store.clone(),
            RateDefaults {
                per_second: config.rate_per_app,
                burst: config.rate_burst_per_app,
                quota_per_day: config.quota_per_app,
            },
        );
        let stop_history = CancellationToken::new();
        let (history, history_task) = History::start(store.clone(), config.log_line_bytes_max, stop_history.clone());
        let workers =
            Arc::new(worker_config(config, &sandbox, node.clone(), host::shim_directory(&data), &artifacts, &history));
        let budget = MemoryBudget::new(config.memory_budget());
        let serving = Serving::open(
            store.clone(),
            blobs.clone(),
            workers,
            node_version.clone(),
            pool_settings(config),
            budget.clone(),
            &reserve_settings(config),
        )
        .await?;
        let (enqueued, figures) = (Arc::new(Notify::new()), dispatch::Figures::default());
        let invoker = Invoker::new(
            serving.clone(),
            store.clone(),
            history.clone(),
            Arc::clone(&catalogue),
            invoke_settings(config),
            Arc::clone(&enqueued),
        );
        let installer = Installer {
            npm: Npm {
                sandbox: sandbox.clone(),
                node,
                cli: npm,
                proxy: registry_proxy(config, home.as_deref())?,
                limits: install_limits(config),
            },
            node_version,
            default_dependencies: config.default_dependencies.clone(),
        };
        let publisher = Publisher::new(
            store.clone(),
            blobs.clone(),
            serving.clone(),
            Arc::clone(&catalogue),
            installer,
            publish_settings(config, sandbox.report()),
        );
        publisher.recover().await?;
        serving.preload().await?;
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let admin = match config.admin_listen {
            Some(address) => {
                Some(TcpListener::bind(address).await.with_context(|| format!("admin_listen on {address}"))?)
            }
            None => None,
        };
        announce(config, address, token.is_some() || config.oidc.issuer.is_some(), budget.limit(), sandbox.report());
        let drain = Drain::new().await;
        let measures = Measures::new(exposition.clone(), store.clone(), serving.clone(), drain.clone());
        let admin_routes = api::admin::routes(drain.clone(), store.clone(), measures.clone());
        let services = Services {
            auth: auth.clone(),
            rates: rates.clone(),
            invoker: invoker.clone(),
            publisher: publisher.clone(),
            serving: serving.clone(),
            store: store.clone(),
            history,
            delivery: figures.clone(),
            catalogue,
            isolation: sandbox.report().clone(),
            sdk: config.sdk.clone(),
            drain: drain.clone(),
            measures,
            limits: MessageLimits {
                event_bytes_max: config.event_bytes_max,
                result_bytes_max: config.result_bytes_max,
                publish_bytes_max: config.publish_bytes_max,
            },
            log_streams: Arc::new(Semaphore::new(api::LOG_STREAMS_MAX)),
            refuses: false,
        };
        let refusing = Services { refuses: true, ..services.clone() };
        let routes = (api::routes(services), api::routes(refusing));
        let turns = Turns::default();
        let stop_dispatch = CancellationToken::new();
        let admin = match admin {
            Some(listener) => {
                tracing::info!(address = %listener.local_addr()?, "the admin listener serves, without credentials");
                let (listener, stop) = (Arc::new(listener), turns.stop.clone());
                Some(tokio::spawn(async move { front::generation(&listener, admin_routes, None, stop).await }))
            }
            None => None,
        };
        let settings = dispatch::Settings {
            concurrency: config.dispatch_concurrency,
            concurrency_per_app: config.dispatch_concurrency_per_app,
            wait_max: config.wait_max,
        };
        let stop_replicas = CancellationToken::new();
        let (events, watched) = (Arc::clone(&enqueued), serving.clone());
        let dispatcher = Dispatcher::new(store.clone(), serving.clone(), invoker.clone(), settings, enqueued, figures);
        let watch = replicas::watch(
            store.clone(),
            watched,
            config.replica_timeout,
            events,
            {
                let auth = auth.clone();
                move || auth.forget_all()
            },
            stop_replicas.clone(),
        );
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self {
            address,
            scheme,
            sandbox,
            drain,
            drain_delay: config.drain_delay,
            drain_timeout: config.drain_timeout,
            invoker,
            publisher: publisher.clone(),
            serving: serving.clone(),
            store: store.clone(),
            dispatcher: tokio::spawn(dispatcher.run(stop_dispatch.clone())),
            history: history_task,
            maintenance: tokio::spawn(maintain(
                (store, serving),
                (publisher.clone(), blobs.clone()),
                (auth.clone(), rates.clone()),
                config.clone(),
                stop_dispatch.clone(),
            )),
            rates,
            replicas: tokio::spawn(watch),
            server: tokio::spawn(front::serve(
                listener,
                routes,
                tls.map(|tls| (tls, config.tls.handshake_timeout)),
                turns.clone(),
            )),
            admin,
            upkeep: tokio::spawn(keep_up(exposition)),
            traces,
            stop_dispatch,
            turns,
            stop_history,
            stop_replicas,
            _lock: lock,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Resolves, with the reason, if a task ends that must not: without the dispatcher events would be accepted and never run.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            ended = &mut self.server => match ended {
                Ok(Ok(())) => anyhow::anyhow!("the server ended"),
                Ok(Err(err)) => anyhow::Error::new(err).context("serve"),
                Err(err) => anyhow::Error::new(err).context("serve"),
            },
            ended = &mut self.dispatcher => anyhow::anyhow!("the dispatcher ended: {ended:?}"),
            ended = &mut self.history => anyhow::anyhow!("the history's writer ended: {ended:?}"),
            ended = &mut self.maintenance => anyhow::anyhow!("the maintenance ended: {ended:?}"),
            ended = &mut self.replicas => anyhow::anyhow!("the watch over the replicas ended: {ended:?}"),
            ended = &mut self.upkeep => anyhow::anyhow!("the metrics' upkeep ended: {ended:?}"),
            ended = of_admin(&mut self.admin) => anyhow::anyhow!("the admin listener ended: {ended:?}"),
        }
    }

    /// Resolves if no worker can be started any more. What runs elsewhere than in workers may still finish: shut down.
    pub fn broken(&self) -> impl Future<Output = ()> + use<> {
        let sandbox = self.sandbox.clone();
        async move { sandbox.gone().await }
    }

    /// Tells balancers that it leaves, and still serves for the drain delay; then refuses new work, finishes what runs within the drain
    /// timeout, and stops whatever is left within [`STOP_TIMEOUT`].
    ///
    /// On return no child is alive, the history is written and the store is closed – or the time was over, and the log says which
    /// step took it.
    pub async fn shut_down(self) {
        tracing::info!(delay = ?self.drain_delay, timeout = ?self.drain_timeout, "draining");
        self.drain.leave().await;
        // Others claim what is queued; what runs here may finish meanwhile.
        self.stop_dispatch.cancel();
        tokio::select! {
            () = sleep(self.drain_delay) => {}
            () = self.sandbox.gone() => {} // Nothing can be served any more.
        }
        let drained_by = Instant::now() + self.drain_timeout;
        self.drain.start().await;
        self.turns.hand_over.cancel();
        let mut dispatcher = self.dispatcher;
        let idle = async || {
            self.drain.calls_answered().await;
            self.invoker.idle().await;
            self.publisher.idle().await;
        };
        let drained = timeout_at(drained_by, async {
            let _ = (&mut dispatcher).await; // Its events count as running work.
            idle().await;
            // Who sent a call before being told to go cannot know better: that call is answered, too.
            let _ = timeout(CONNECTIONS_TIMEOUT, self.turns.handed_over.cancelled()).await;
            idle().await;
        });
        if drained.await.is_err() {
            tracing::warn!("the drain timeout is over: stopping what still runs");
        }
        let end = Instant::now() + STOP_TIMEOUT;
        let stopped_by = end - CLOSE_TIMEOUT;
        self.publisher.stop();
        step("stop workers", stopped_by, self.serving.stop()).await;
        step("finish publishes", stopped_by, self.publisher.idle()).await;
        step("finish invocations", stopped_by, self.invoker.idle()).await;
        step("finish events", stopped_by, async {
            if !dispatcher.is_finished() {
                let _ = dispatcher.await;
            }
        })
        .await;
        self.turns.stop.cancel();
        let connections_end = Instant::now() + CONNECTIONS_TIMEOUT;
        for server in [self.server].into_iter().chain(self.admin) {
            end_by(connections_end, server).await;
        }
        self.upkeep.abort();
        // Until here: whoever finishes its work is not given up.
        self.stop_replicas.cancel();
        let tasks_end = Instant::now() + TASKS_TIMEOUT;
        tokio::join!(end_by(tasks_end, self.maintenance), end_by(tasks_end, self.replicas));
        drop((self.invoker, self.publisher, self.serving));
        // Nothing is left that could record a span. Beside the rest: a collector that is away takes all its time.
        let sending = self.traces.map(|traces| tokio::spawn(traces.stop(TRACES_TIMEOUT)));
        self.stop_history.cancel();
        step("write the history", end - CLOSE_TIMEOUT / 2, async {
            let _ = self.history.await;
        })
        .await;
        step("close the store", end, async {
            if let Err(err) = self.rates.tell().await {
                tracing::warn!(%err, "what was counted for quotas last is lost");
            }
            if let Err(err) = self.store.sign_off().await {
                tracing::warn!(%err, "failed to tell the other replicas of the end: they notice it later");
            }
            self.store.close().await;
        })
        .await;
        if let Some(sending) = sending {
            let _ = sending.await;
        }
        step("end the sandbox", end + SANDBOX_TIMEOUT, self.sandbox.close()).await;
        tracing::info!("stopped");
    }
}

/// Waits for a task that was told to end; one that does not is aborted.
async fn end_by<T>(deadline: Instant, mut task: JoinHandle<T>) {
    if timeout_at(deadline, &mut task).await.is_err() {
        task.abort();
        let _ = task.await;
    }
}

async fn step(name: &str, deadline: Instant, work: impl Future<Output = ()>) {
    if timeout_at(deadline, work).await.is_err() {
        tracing::error!(step = name, "a step of the shutdown did not end in time");
    }
}

async fn open_remote(config: &Config) -> anyhow::Result<Option<Remote>> {
    let Some(location) = &config.artifacts else { return Ok(None) };
    let remote = Remote::open(location)?;
    remote.probe().await?;
    Ok(Some(remote))
}

/// Never, where there is none.
async fn of_admin<T>(admin: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match admin {
        Some(admin) => admin.await,
        None => std::future::pending().await,
    }
}

fn announce(config: &Config, address: SocketAddr, has_token: bool, memory_budget: u64, isolation: &Report) {
    tracing::info!(%address, data_dir = %config.data_dir.display(), memory_budget_mib = memory_budget >> 20, "chatfn serves");
    let summary = isolation.summary();
    if isolation.layers.iter().all(|layer| layer.active) {
        tracing::info!("isolation: {summary}");
    } else {
        tracing::warn!("isolation: {summary}; `chatfn doctor` says what that means and what to change");
    }
    if isolation.mode == Mode::None {
        tracing::warn!(
            "isolation: --insecure-no-sandbox: tenants' code can do all that this user can: run trusted code only"
        );
    }
    if config.reserve_workers > 0
        && let Some(reason) = &isolation.no_attach
    {
        let mode = isolation.mode;
        tracing::info!(
            "reserve: off, as a running worker cannot be given an app's files here (mode {mode}: {reason}): all start afresh"
        );
    }
    if config.encryption_keys_file.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!(
            "secrets: no encryption_keys_file is set, so apps' environment variables lie in the database as they are; \
             `chatfn keys generate` makes a key"
        );
    }
    if !has_token {
        tracing::warn!(
            "open: no operator_token_file is set, so everybody on this machine may publish and run code here"
        );
    }
}

//! A whole service: opens what is durable, starts the tasks, serves, and takes everything down again in order.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use rust_embed::RustEmbed;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::api::{self, MessageLimits, OperatorToken, Services};
use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::dispatch::{self, Dispatcher};
use crate::drain::Drain;
use crate::history::History;
use crate::invoke::{self, Invoker};
use crate::model::Catalogue;
use crate::pool::{self, MemoryBudget};
use crate::publish::{self, InstallLimits, Installer, Npm, Publisher, SourceLimits};
use crate::sandbox::{ISOLATION_NOTICE, ResourceLimits, Sandbox, Spec};
use crate::serving::Serving;
use crate::store::Store;
use crate::worker;

const NODE_MAJOR_MIN: u32 = 20;
/// After the drain: for workers to end, connections to close and the history to be written, all together.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Of which so much is left to the history and the store, whatever the steps before them take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// A connection that never ends (a stream that nobody reads, hyper#4170) must not hold us.
const CONNECTIONS_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 keepalive: a client that is half gone is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
/// Rows removed in one transaction, so that writers in between wait little.
const PURGE_BATCH: u32 = 1000;

/// What runs inside workers, carried in this program.
#[derive(RustEmbed)]
#[folder = "node-shim"]
#[include = "*.js"]
#[exclude = "test/*"]
struct Shim;

/// A running service.
pub struct Service {
    address: SocketAddr,
    sandbox: Sandbox,
    drain: Drain,
    drain_timeout: Duration,
    invoker: Invoker,
    publisher: Publisher,
    serving: Serving,
    store: Store,
    stop_dispatch: CancellationToken,
    stop_server: CancellationToken,
    stop_history: CancellationToken,
    dispatcher: JoinHandle<()>,
    history: JoinHandle<()>,
    maintenance: JoinHandle<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    _lock: Flock<File>,
}

impl Service {
    /// Starts everything; on return the port is bound and serves.
    ///
    /// # Errors
    /// Says what is missing or wrong, and what to do.
    pub async fn start(config: &Config, sandbox: Sandbox) -> anyhow::Result<Self> {
        let catalogue = Arc::new(Catalogue::new(&config.trigger_types)?);
        let token = config.operator_token()?;
        let (node, npm) = find_tools(config)?;
        let data = prepare_data_directory(&config.data_dir)?;
        let lock = lock(&data)?;
        let artifacts = Artifacts::open(&data)?;
        let shim = write_shim(&data)?;
        let node_version = check_node(&sandbox, &node).await?;
        let store = Store::open(&data.join("chatfn.db")).await?;
        store.abandon_invocations(SystemTime::now()).await?;
        store.release_claims().await?;
        let stop_history = CancellationToken::new();
        let (history, history_task) = History::start(store.clone(), config.log_line_bytes_max, stop_history.clone());
        let workers = Arc::new(worker_config(config, &sandbox, node.clone(), shim, &artifacts, &history));
        let budget = MemoryBudget::new(config.memory_budget());
        let serving = Serving::open(
            store.clone(),
            artifacts.clone(),
            workers,
            node_version.clone(),
            pool_settings(config),
            budget.clone(),
        )
        .await?;
        let enqueued = Arc::new(Notify::new());
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
                userconfig: userconfig(config),
                limits: install_limits(config),
            },
            node_version,
            default_dependencies: config.default_dependencies.clone(),
        };
        let publisher = Publisher::new(
            store.clone(),
            artifacts,
            serving.clone(),
            Arc::clone(&catalogue),
            installer,
            publish_settings(config),
        );
        publisher.recover().await?;
        serving.preload().await?;
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        announce(config, address, token.is_some(), budget.limit());
        let drain = Drain::new().await;
        let routes = api::routes(
            Services {
                invoker: invoker.clone(),
                publisher: publisher.clone(),
                serving: serving.clone(),
                store: store.clone(),
                history,
                catalogue,
                drain: drain.clone(),
                limits: MessageLimits {
                    event_bytes_max: config.event_bytes_max,
                    result_bytes_max: config.result_bytes_max,
                    publish_bytes_max: config.publish_bytes_max,
                },
            },
            token.as_deref().map(OperatorToken::new),
        );
        let stop_server = CancellationToken::new();
        let stop_dispatch = CancellationToken::new();
        let dispatcher = Dispatcher {
            store: store.clone(),
            serving: serving.clone(),
            invoker: invoker.clone(),
            settings: dispatch::Settings { concurrency: config.dispatch_concurrency, wait_max: config.wait_max },
            enqueued,
            complaints: dispatch::Complaints::default(),
        };
        Ok(Self {
            address,
            sandbox,
            drain,
            drain_timeout: config.drain_timeout,
            invoker,
            publisher,
            serving: serving.clone(),
            store: store.clone(),
            dispatcher: tokio::spawn(dispatcher.run(stop_dispatch.clone())),
            history: history_task,
            maintenance: tokio::spawn(maintain(store, serving, config.clone(), stop_dispatch.clone())),
            server: tokio::spawn(serve(listener, routes, stop_server.clone())),
            stop_dispatch,
            stop_server,
            stop_history,
            _lock: lock,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
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
        }
    }

    /// Resolves if no worker can be started any more. What runs elsewhere than in workers may still finish: shut down.
    pub fn broken(&self) -> impl Future<Output = ()> + use<> {
        let sandbox = self.sandbox.clone();
        async move { sandbox.gone().await }
    }

    /// Refuses new work, finishes what runs within the drain timeout, then stops whatever is left within [`STOP_TIMEOUT`].
    ///
    /// On return no child is alive, the history is written and the store is closed – or the time was over, and the log says which
    /// step took it.
    pub async fn shut_down(self) {
        let drained_by = Instant::now() + self.drain_timeout;
        tracing::info!(timeout = ?self.drain_timeout, "draining");
        self.drain.start().await;
        self.stop_dispatch.cancel();
        let mut dispatcher = self.dispatcher;
        let drained = timeout_at(drained_by, async {
            let _ = (&mut dispatcher).await; // Its events count as running work.
            self.invoker.idle().await;
            self.publisher.idle().await;
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
        self.stop_server.cancel();
        let mut server = self.server;
        if timeout(CONNECTIONS_TIMEOUT, &mut server).await.is_err() {
            server.abort();
            let _ = server.await;
        }
        self.maintenance.abort();
        let _ = self.maintenance.await;
        drop((self.invoker, self.publisher, self.serving));
        self.stop_history.cancel();
        step("write the history", end - CLOSE_TIMEOUT / 2, async {
            let _ = self.history.await;
        })
        .await;
        step("close the store", end, self.store.close()).await;
        tracing::info!("stopped");
    }
}

async fn step(name: &str, deadline: Instant, work: impl Future<Output = ()>) {
    if timeout_at(deadline, work).await.is_err() {
        tracing::error!(step = name, "a step of the shutdown did not end in time");
    }
}

async fn serve(
    listener: TcpListener,
    routes: tonic::service::Routes,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_pending_accept_reset_streams(Some(64))
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.cancelled_owned())
        .await
}

/// Keeps what grows in bounds.
async fn maintain(store: Store, serving: Serving, config: Config, stop: CancellationToken) {
    let mut ticks = interval(MAINTENANCE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        serving.unload_idle(config.idle_ttl).await;
        if let Err(err) = purge(&store, &config).await {
            tracing::error!(%err, "failed to purge old rows");
        }
    }
}

async fn purge(store: &Store, config: &Config) -> Result<(), crate::store::Error> {
    let now = SystemTime::now();
    let (retention, window) = (config.history_retention, config.idempotency_window);
    while store.purge_history(now, retention, PURGE_BATCH).await? > 0 {}
    while store.purge_events(now, retention, window, PURGE_BATCH).await? > 0 {}
    let before = now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
    while store.purge_replies(before, PURGE_BATCH).await? > 0 {}
    store.shrink().await
}

/// Node and npm's npm-cli.js.
///
/// # Errors
/// Says which is missing, and how to install or name it.
pub fn find_tools(config: &Config) -> anyhow::Result<(PathBuf, PathBuf)> {
    let find = |configured: &Option<PathBuf>, name: &str, install: &str| match configured {
        Some(path) if path.exists() => Ok(path.clone()),
        Some(path) => bail!("{name}: there is no {}", path.display()),
        None => which::which(name)
            .with_context(|| format!("{name} is not on PATH: {install}, or set `{name}` in the configuration")),
    };
    let node = find(
        &config.node,
        "node",
        "install Node.js 20 or newer (https://nodejs.org; Debian 13: apt-get install nodejs)",
    )?;
    let npm = find(&config.npm, "npm", "install npm (Debian: apt-get install npm)")?;
    // `npm` is a link to npm-cli.js; run with our Node it needs no shell and no other PATH.
    let cli = npm.canonicalize().with_context(|| format!("resolve {}", npm.display()))?;
    if cli.extension().is_none_or(|extension| extension != "js") {
        bail!("npm: {} is not npm-cli.js; set `npm` to the npm-cli.js of your installation", cli.display());
    }
    Ok((node.canonicalize().unwrap_or(node), cli))
}

fn prepare_data_directory(path: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make the data directory {}", path.display()))?;
    path.canonicalize().with_context(|| format!("resolve the data directory {}", path.display()))
}

/// Two services on one directory would take each other's claims and files.
fn lock(data: &Path) -> anyhow::Result<Flock<File>> {
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, err)| {
        anyhow::anyhow!("{} is in use by another chatfn ({err}): stop it, or use another data_dir", data.display())
    })
}

/// Written at each start: what runs in the workers is what this program was built with.
fn write_shim(data: &Path) -> anyhow::Result<PathBuf> {
    let directory = data.join("shim");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("replace {}", directory.display()))?;
    }
    std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    for name in Shim::iter() {
        let file = Shim::get(&name).context("an embedded file is there")?;
        let path = directory.join(name.as_ref());
        std::fs::write(&path, &file.data).with_context(|| format!("write {}", path.display()))?;
    }
    // CommonJS, whatever package.json stands above the data directory.
    std::fs::write(directory.join("package.json"), "{\"type\":\"commonjs\"}\n")
        .context("write the shim's package.json")?;
    Ok(directory.join("main.js"))
}

/// `node --version`, through the sandbox: proves at once that workers can be started at all.
async fn check_node(sandbox: &Sandbox, node: &Path) -> anyhow::Result<String> {
    use tokio::io::AsyncReadExt;
    let spec = Spec {
        program: node.to_owned(),
        args: vec!["--version".to_owned()],
        environment: Default::default(),
        directory: PathBuf::from("/"),
        limits: ResourceLimits {
            data_bytes: None,
            open_files: 256,
            file_bytes: None,
            cpu: Some(Duration::from_secs(10)),
        },
        protocol: false,
    };
    let mut child = sandbox.spawn(spec).await?;
    let mut pipes = child.take_pipes().context("the child has no pipes")?;
    let mut text = String::new();
    let read = timeout(Duration::from_secs(10), pipes.stdout.read_to_string(&mut text)).await;
    read.context("`node --version` did not end")?.context("read `node --version`")?;
    let version = text.trim().to_owned();
    let major =
        version.strip_prefix('v').and_then(|rest| rest.split('.').next()).and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= NODE_MAJOR_MIN => Ok(version),
        _ => bail!("{} is {version:?}: Node.js {NODE_MAJOR_MIN} or newer is needed", node.display()),
    }
}

fn userconfig(config: &Config) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".npmrc")).filter(|path| path.exists());
    config.npm_userconfig.clone().or(home)
}

fn announce(config: &Config, address: SocketAddr, has_token: bool, memory_budget: u64) {
    tracing::info!(%address, data_dir = %config.data_dir.display(), memory_budget_mib = memory_budget >> 20, "chatfn serves");
    tracing::warn!("{ISOLATION_NOTICE}");
    if !has_token {
        tracing::warn!(
            "open: no operator_token_file is set, so everybody on this machine may publish and run code here"
        );
    }
}

fn worker_config(
    config: &Config,
    sandbox: &Sandbox,
    node: PathBuf,
    shim: PathBuf,
    artifacts: &Artifacts,
    history: &History,
) -> worker::Config {
    worker::Config {
        sandbox: sandbox.clone(),
        node,
        shim,
        scratch: artifacts.tmp(),
        ready_timeout: config.ready_timeout,
        init_timeout: config.init_timeout,
        result_bytes_max: config.result_bytes_max,
        log_limits: worker::LogLimits {
            lines_max: config.log_lines_max,
            bytes_max: config.log_bytes_max,
            line_bytes_max: config.log_line_bytes_max,
        },
        logs: history.lines(),
    }
}

fn pool_settings(config: &Config) -> pool::Settings {
    pool::Settings {
        waiting_max: config.waiting_max,
        idle_ttl: config.idle_ttl,
        worker_age_max: config.worker_age_max,
        worker_jobs_max: config.worker_jobs_max,
        worker_memory_percent_max: config.worker_memory_percent_max,
    }
}

fn invoke_settings(config: &Config) -> invoke::Settings {
    invoke::Settings {
        event_bytes_max: config.event_bytes_max,
        wait_max: config.wait_max,
        idempotency_window: config.idempotency_window,
    }
}

fn install_limits(config: &Config) -> InstallLimits {
    InstallLimits {
        timeout: config.install_timeout,
        bytes_max: config.install_bytes_max,
        files_max: config.install_files_max,
    }
}

fn publish_settings(config: &Config) -> publish::Settings {
    publish::Settings {
        waiting_max: config.builds_waiting_max,
        builds_max: config.builds_max,
        verify_timeout: config.ready_timeout + config.init_timeout + config.wait_max,
        source_limits: SourceLimits::default(),
        memory_bytes_max: config.memory_budget(),
    }
}

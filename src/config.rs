//! One `Config`: flags over `CHATFN_*` variables over `chatfn.toml`, checked before anything starts.

pub mod artifacts;
mod check;
mod database_url;
mod environment;
mod memory;
mod oidc;
mod tls;
mod traces;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use artifacts::Location;
use environment::Environment;
pub use oidc::{Oidc, is_safe};
pub use tls::{ClientAuth, Tls};
pub use traces::Traces;

pub use database_url::DatabaseUrl;

use crate::model::{AppId, LayerName, Mode, Sdk, TriggerDeclaration};
use crate::sandbox::egress::policy::{self, Rule};
use crate::sandbox::egress::{Cidr, Policy};

/// Every setting, with its default. The README's table is made from these comments.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of gRPC and HTTP. Port 0: a free one.
    pub listen: SocketAddr,
    /// Address and port, in plain text and without credentials, of `/metrics`, `/healthz`, `/readyz` and gRPC's health checks: for a
    /// kubelet's probes and for Prometheus. Let nobody else reach it. Default: none.
    pub admin_listen: Option<SocketAddr>,
    /// Everything durable: database (unless `database_url` is set), artifacts, layers. One service at a time.
    pub data_dir: PathBuf,
    /// A PostgreSQL database (14 or newer) for many replicas: `postgres://user:password@host/database`. Better as the variable
    /// `CHATFN_DATABASE_URL` than as a flag, which other processes see. Default: SQLite, in the data directory.
    pub database_url: Option<DatabaseUrl>,
    /// Connections to PostgreSQL, of one replica. One more listens to the others.
    pub database_connections_max: u32,
    /// How long to wait for a connection to PostgreSQL: at the start, and for each statement.
    #[serde(with = "duration")]
    pub database_timeout: Duration,
    /// With PostgreSQL: a replica that was silent for so long is given up, and the others take over what it ran.
    #[serde(with = "duration")]
    pub replica_timeout: Duration,
    /// Whom the service becomes once its broker runs, if it is started as root: a name, a uid or uid:gid. The broker stays root. Files
    /// that the service reads (token, npm's configuration) must be readable for it. Default: it stays who it is.
    pub user: Option<String>,
    /// File with the operator's bearer token. Needed for any address but loopback.
    pub operator_token_file: Option<PathBuf>,
    /// File with the keys that secrets are encrypted with, a line `key-id:base64` each (`chatfn keys generate`): the first one encrypts,
    /// all open. Only the service may read it. Default: secrets lie in the database as they are.
    pub encryption_keys_file: Option<PathBuf>,
    /// TLS on the port: a table, see below.
    pub tls: Tls,
    /// Wrong tokens that one address may send in a minute before it is held off; 0: as many as it likes.
    pub auth_failures_per_minute: u32,
    /// Networks of proxies whose `X-Forwarded-For` is believed.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub trusted_proxies: Vec<Cidr>,
    /// Invocations of an app in a second; each replica counts for itself. Apps may have their own. Default: as many as come.
    pub rate_per_app: Option<u32>,
    /// At once, after a pause. Default: as many as in a second.
    pub rate_burst_per_app: Option<u32>,
    /// Invocations of an app in a day (UTC), over all replicas. Apps may have their own. Default: as many as come.
    pub quota_per_app: Option<u64>,
    /// Bearer tokens of an OpenID Connect issuer: a table, see below.
    pub oidc: Oidc,
    /// The Node binary (20 or newer). Default: `node` on PATH.
    pub node: Option<PathBuf>,
    /// The `npm` command. Default: `npm` on PATH.
    pub npm: Option<PathBuf>,
    /// npm's user configuration for installs (registry, proxy, cafile). Default: `.npmrc` in the service's home, if there is one.
    pub npm_userconfig: Option<PathBuf>,
    /// Dependencies that every app gets unless it names them itself. None, unless set, if the SDK is another than ChatKitty's.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub default_dependencies: BTreeMap<String, String>,
    /// Trigger types beyond the built-in ones.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub trigger_types: Vec<TriggerDeclaration>,

    /// Largest event.
    pub event_bytes_max: usize,
    /// Largest result of a function.
    pub result_bytes_max: usize,
    /// Largest PublishVersion request.
    pub publish_bytes_max: usize,
    /// How long an idempotency key is remembered.
    #[serde(with = "duration")]
    pub idempotency_window: Duration,

    /// Of all workers together. Default: three quarters of the machine's memory, or of the control group's if that is less.
    pub memory_budget_bytes: Option<u64>,
    /// Invocations that may wait for one app's workers.
    pub waiting_max: usize,
    /// How long an invocation waits for a worker if its caller has no earlier deadline.
    #[serde(with = "duration")]
    pub wait_max: Duration,
    /// From a worker's spawn until Node is ready.
    #[serde(with = "duration")]
    pub ready_timeout: Duration,
    /// For the initialization script and loading all functions.
    #[serde(with = "duration")]
    pub init_timeout: Duration,
    /// A worker idle for longer ends.
    #[serde(with = "duration")]
    pub idle_ttl: Duration,
    /// Workers that wait, started but for no app yet: a cold start takes one of them and a few milliseconds. 0: all start afresh.
    pub reserve_workers: usize,
    /// Of workers that start afresh: how many have Node start at a time; the others wait for their turn. Default: the processors that
    /// this process may use, 2 at least. A start is all CPU: many at once would all be too late.
    pub worker_starts_max: Option<usize>,
    /// A worker older is replaced.
    #[serde(with = "duration")]
    pub worker_age_max: Duration,
    /// A worker with so many invocations behind it is replaced.
    pub worker_jobs_max: u64,
    /// A worker that uses more of its memory limit is replaced.
    pub worker_memory_percent_max: u64,

    /// Log lines of one invocation.
    pub log_lines_max: usize,
    /// Log bytes of one invocation.
    pub log_bytes_max: usize,
    /// Longest log line.
    pub log_line_bytes_max: usize,
    /// How long invocations, logs and finished events are kept (these at least for the idempotency window). Apps may set their own.
    #[serde(with = "duration")]
    pub history_retention: Duration,

    /// Events that run at a time.
    pub dispatch_concurrency: usize,
    /// Of one app.
    pub dispatch_concurrency_per_app: usize,
    /// Events that may wait or run; more are refused.
    pub events_queued_max: u64,
    /// Of one app.
    pub events_queued_per_app_max: u64,
    /// How far ahead an event may be scheduled.
    #[serde(with = "duration")]
    pub schedule_max: Duration,
    /// How long dead letters are kept.
    #[serde(with = "duration")]
    pub dead_letter_retention: Duration,
    /// How long the audit log keeps who changed what: 400 days, unless it is set. See [docs/audit.md](docs/audit.md).
    #[serde(with = "duration")]
    pub audit_retention: Duration,
    /// How many functions may lead to an event, one by another's doing: what goes further is a loop, and does not run.
    pub hops_max: u32,

    /// Publishes that install at a time.
    pub builds_max: usize,
    /// Publishes under way at a time: those that install and those that wait for their turn. More are refused.
    pub builds_waiting_max: usize,
    /// For one `npm` run.
    #[serde(with = "duration")]
    pub install_timeout: Duration,
    /// Largest installed tree.
    pub install_bytes_max: u64,
    /// Most files of an installed tree.
    pub install_files_max: u64,
    /// For one run of the TypeScript compiler, which checks types where a publish asks for it.
    #[serde(with = "duration")]
    pub typecheck_timeout: Duration,

    /// Where all replicas find what versions run from: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `file:///DIRECTORY`; credentials
    /// come from the environment. Default: it stays in the data directory. See [docs/artifacts.md](docs/artifacts.md).
    pub artifacts: Option<Location>,
    /// With `artifacts`: how much of it the data directory keeps at hand. What runs or is being built stays in any case.
    pub artifacts_cache_bytes_max: u64,
    /// With `artifacts`: what no version uses stays there for so long, at least.
    #[serde(with = "duration")]
    pub artifacts_grace: Duration,

    /// On SIGTERM: for so long everything is still served, while health says NOT_SERVING already: until load balancers have heard it. Then
    /// clients are told to connect anew, which should lead them elsewhere, and the drain begins.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// On SIGTERM, after `drain_delay`: how long running invocations and publishes may take to finish. Ten seconds later the service has ended in any case.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,

    /// How tenants' code is confined: a table, see below.
    pub isolation: Isolation,
    /// What functions can reach over the network: a table, see below.
    pub egress: Egress,
    /// The platform's SDK, as functions find it in their context: a table, see below.
    pub sdk: Sdk,
    /// Runs tenants' code with limits only. Better as the flag `--insecure-no-sandbox`, which is seen.
    pub insecure_no_sandbox: bool,

    /// Traces, to an OpenTelemetry collector: a table, see below.
    pub traces: Traces,
    /// Apps with metrics of their own: the first so many that do something after a start. The others' are one, `other`.
    pub metrics_apps_max: usize,
    /// `text` or `json`, on stderr.
    pub log_format: LogFormat,
    /// As `RUST_LOG`: `info`, `chatfn=debug,warn`…
    pub log_level: String,
}

/// How tenants' code is confined.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Isolation {
    /// `full`, `userns` or `landlock`. Default: the best that works.
    pub mode: Option<Mode>,
    /// Layers without which the service refuses to start, by the names that `chatfn doctor` tells.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub require: Vec<LayerName>,
    /// Start although nothing keeps workers of different apps from each other: for one app alone.
    pub single_tenant: bool,
}

/// What functions can reach over the network, beyond what `limits.egress` says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Egress {
    /// Networks that nobody reaches although they are public: the cluster's, the nodes' and the services' ranges. Private ones are
    /// refused anyway.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub deny: Vec<Cidr>,
    /// What everybody with `public` reaches besides the web: `{network = "10.1.2.3", ports = [5432]}`.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub allow: Vec<Rule>,
    /// Domains that are not looked up, with all below them. Default: `cluster.local`, `internal` and `local`. The cluster's own domain is
    /// refused in any case.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub names_refused: Option<Vec<String>>,
    /// By app: all that it reaches with `dedicated`.
    #[serde(deserialize_with = "json_text::deserialize")]
    pub dedicated: BTreeMap<String, Dedicated>,
}

/// What one app reaches.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dedicated {
    #[serde(deserialize_with = "json_text::deserialize")]
    pub allow: Vec<Rule>,
    /// The address of this machine to connect from, for firewalls that know the app by it.
    pub source: Option<std::net::IpAddr>,
}

impl Egress {
    /// The rules of one app's workers. `egress`: as in `limits.egress`.
    pub fn policy(&self, app: &AppId, egress: &str) -> Policy {
        let kind = match egress {
            "public" => policy::Egress::Public { allow: self.allow.clone() },
            "dedicated" => {
                let rules = self.dedicated.get(app.as_str()).cloned().unwrap_or_default();
                policy::Egress::Dedicated { allow: rules.allow, source: rules.source }
            }
            _ => policy::Egress::None,
        };
        let mut policy = Policy::new(kind);
        policy.deny = self.deny.clone();
        if let Some(names) = &self.names_refused {
            policy.names_refused = names.clone();
        }
        policy
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            admin_listen: None,
            data_dir: PathBuf::from("chatfn-data"),
            database_url: None,
            database_connections_max: 10,
            database_timeout: Duration::from_secs(10),
            replica_timeout: Duration::from_secs(15),
            user: None,
            operator_token_file: None,
            encryption_keys_file: None,
            tls: Tls::default(),
            oidc: Oidc::default(),
            auth_failures_per_minute: 300,
            trusted_proxies: Vec::new(),
            rate_per_app: None,
            rate_burst_per_app: None,
            quota_per_app: None,
            node: None,
            npm: None,
            npm_userconfig: None,
            default_dependencies: BTreeMap::from([("chatkitty-platform-sdk".to_owned(), "2.4.0".to_owned())]),
            trigger_types: Vec::new(),
            event_bytes_max: 1 << 20,
            result_bytes_max: 6 << 20,
            publish_bytes_max: 32 << 20,
            idempotency_window: Duration::from_secs(24 * 3600),
            memory_budget_bytes: None,
            waiting_max: 1000,
            wait_max: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(5),
            init_timeout: Duration::from_secs(10),
            idle_ttl: Duration::from_secs(600),
            reserve_workers: 2,
            worker_starts_max: None,
            worker_age_max: Duration::from_secs(3600),
            worker_jobs_max: 100_000,
            worker_memory_percent_max: 80,
            log_lines_max: 1000,
            log_bytes_max: 256 << 10,
            log_line_bytes_max: 8 << 10,
            history_retention: Duration::from_secs(7 * 24 * 3600),
            dispatch_concurrency: 32,
            dispatch_concurrency_per_app: 16,
            events_queued_max: 1_000_000,
            events_queued_per_app_max: 100_000,
            schedule_max: Duration::from_secs(366 * 24 * 3600),
            dead_letter_retention: Duration::from_secs(14 * 24 * 3600),
            audit_retention: Duration::from_secs(400 * 24 * 3600),
            hops_max: 5,
            builds_max: 2,
            builds_waiting_max: 64,
            install_timeout: Duration::from_secs(300),
            typecheck_timeout: Duration::from_secs(60),
            install_bytes_max: 1 << 30,
            install_files_max: 200_000,
            artifacts: None,
            artifacts_cache_bytes_max: 10 << 30,
            artifacts_grace: Duration::from_secs(24 * 3600),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            isolation: Isolation::default(),
            egress: Egress::default(),
            sdk: Sdk::default(),
            insecure_no_sandbox: false,
            traces: Traces::default(),
            metrics_apps_max: 200,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: {0}")]
    Read(config::ConfigError),
    #[error("--set {0:?}: write it as KEY=VALUE")]
    Set(String),
    #[error("configuration: {name} is {value}: {problem}")]
    Value { name: &'static str, value: String, problem: String },
    #[error(
        "configuration: refusing to listen on {0} without credentials: anybody who reaches it could publish and run code. \
         Listen on 127.0.0.1, or set operator_token_file"
    )]
    Open(SocketAddr),
    #[error("configuration: read operator_token_file {}: {problem}", path.display())]
    Token { path: PathBuf, problem: String },
}

impl From<config::ConfigError> for Error {
    fn from(err: config::ConfigError) -> Self {
        Self::Read(err) // Its text is in ours: as a source, too, it would be said twice.
    }
}

impl Config {
    /// Merges `file` (or `chatfn.toml` in the working directory, if there is one), then `CHATFN_*`, then `overrides` (`KEY=VALUE`).
    ///
    /// # Errors
    /// Names the wrong key, value or file.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, Error> {
        let mut builder = config::Config::builder();
        builder = match file {
            Some(path) => builder.add_source(config::File::from(path)),
            None => builder.add_source(config::File::with_name("chatfn.toml").required(false)),
        };
        builder = builder.add_source(Environment::read(&Self::names())?);
        for (key, value) in overrides {
            builder = builder.set_override(key.as_str(), value.as_str())?;
        }
        let merged = builder.build()?;
        let dependencies_set = merged.get::<config::Value>("default_dependencies").is_ok();
        let mut config: Self = merged.try_deserialize()?;
        if !dependencies_set && !config.sdk.is_chatkitty() {
            config.default_dependencies.clear();
        }
        config.check()?;
        Ok(config)
    }

    /// `CHATFN_*` variables that are no setting: most likely misspelt, or meant for somebody else.
    ///
    /// # Errors
    /// A setting's variable is not UTF-8.
    pub fn unknown_variables() -> Result<Vec<String>, Error> {
        Ok(Environment::read(&Self::names())?.into_unknown())
    }

    /// Of all settings.
    fn names() -> Vec<String> {
        let defaults = serde_json::to_value(Self::default()).unwrap_or_default();
        defaults.as_object().map(|settings| settings.keys().cloned().collect()).unwrap_or_default()
    }

    /// The operator's token, if one is configured.
    ///
    /// # Errors
    /// The file cannot be read, or holds less than 16 characters.
    pub fn operator_token(&self) -> Result<Option<String>, Error> {
        let Some(path) = &self.operator_token_file else { return Ok(None) };
        let fail = |problem: String| Error::Token { path: path.clone(), problem };
        let text = std::fs::read_to_string(path).map_err(|err| fail(err.to_string()))?;
        let token = text.trim();
        if token.len() < 16 {
            return Err(fail("it must hold at least 16 characters, e.g. from `openssl rand -hex 32`".to_owned()));
        }
        Ok(Some(token.to_owned()))
    }

    /// `None`: the best that works.
    pub fn isolation_mode(&self) -> Option<Mode> {
        if self.insecure_no_sandbox { Some(Mode::None) } else { self.isolation.mode }
    }

    /// Three quarters of what this process may use, where nothing is configured.
    pub fn memory_budget(&self) -> u64 {
        self.memory_budget_bytes.unwrap_or_else(|| memory::available(Path::new("/")) / 4 * 3)
    }

    /// As many as there are processors for, where nothing is configured.
    pub fn worker_starts(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        self.worker_starts_max.unwrap_or_else(|| processors().max(2))
    }
}

/// `KEY=VALUE` of a `--set` flag.
///
/// # Errors
/// There is no `=`.
pub fn parse_override(text: &str) -> Result<(String, String), Error> {
    let (key, value) = text.split_once('=').ok_or_else(|| Error::Set(text.to_owned()))?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// Spans as people write them: `250ms`, `10s`, `5m`, `7days`.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|err| D::Error::custom(format!("{text:?} is not a span like 250ms, 10s or 5m: {err}")))
    }
}

/// Lists and maps: as such in the file, as JSON text in a variable or a flag.
mod json_text {
    use serde::de::{DeserializeOwned, Error};
    use serde::{Deserialize, Deserializer};
    use serde_json::Value;

    pub fn deserialize<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => serde_json::from_str(&text)
                .map_err(|err| D::Error::custom(format!("{text:?} is not the JSON that is needed here: {err}"))),
            value => serde_json::from_value(value).map_err(D::Error::custom),
        }
    }
}
#[cfg(test)]
mod tests;

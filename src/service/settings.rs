//! What each part takes of the configuration.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::artifacts::{Artifacts, BlobsSettings};
use crate::config::{self, Config};
use crate::history::History;
use crate::model::{LayerName, Report};
use crate::publish::{self, InstallLimits, Proxy, Registries, SourceLimits};
use crate::sandbox::Sandbox;
use crate::store::{Database, Postgres, QueueLimits, SQLITE_FILE};
use crate::{invoke, pool, traces, worker};

pub(super) fn worker_config(
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
        starts: worker::Starts::new(config.worker_starts()),
        init_timeout: config.init_timeout,
        result_bytes_max: config.result_bytes_max,
        log_limits: worker::LogLimits {
            lines_max: config.log_lines_max,
            bytes_max: config.log_bytes_max,
            line_bytes_max: config.log_line_bytes_max,
        },
        egress: config.egress.clone(),
        sdk: config.sdk.clone(),
        logs: history.lines(),
    }
}

pub(super) fn pool_settings(config: &Config) -> pool::Settings {
    pool::Settings {
        waiting_max: config.waiting_max,
        idle_ttl: config.idle_ttl,
        worker_age_max: config.worker_age_max,
        worker_jobs_max: config.worker_jobs_max,
        worker_memory_percent_max: config.worker_memory_percent_max,
    }
}

/// Where the store is.
///
/// # Errors
/// `database_url` is none.
pub fn database(config: &Config, data: &Path) -> anyhow::Result<Database> {
    let Some(url) = &config.database_url else { return Ok(Database::Sqlite(data.join(SQLITE_FILE))) };
    let settings = Postgres::new(url.reveal(), config.database_connections_max, config.database_timeout);
    Ok(Database::Postgres(
        settings.map(Box::new).map_err(|problem| anyhow::anyhow!("configuration: database_url: {problem}"))?,
    ))
}

pub(super) fn queue_limits(config: &Config) -> QueueLimits {
    QueueLimits { of_app: config.events_queued_per_app_max, in_all: config.events_queued_max }
}

pub(super) fn reserve_settings(config: &Config) -> pool::ReserveSettings {
    pool::ReserveSettings {
        workers: config.reserve_workers,
        idle_ttl: config.idle_ttl,
        worker_age_max: config.worker_age_max,
    }
}

pub(super) fn invoke_settings(config: &Config) -> invoke::Settings {
    invoke::Settings {
        event_bytes_max: config.event_bytes_max,
        wait_max: config.wait_max,
        idempotency_window: config.idempotency_window,
        schedule_max: config.schedule_max,
        hops_max: config.hops_max,
    }
}

pub(super) fn install_limits(config: &Config) -> InstallLimits {
    InstallLimits {
        timeout: config.install_timeout,
        bytes_max: config.install_bytes_max,
        files_max: config.install_files_max,
    }
}

pub(super) fn publish_settings(config: &Config, isolation: &Report) -> publish::Settings {
    publish::Settings {
        waiting_max: config.builds_waiting_max,
        builds_max: config.builds_max,
        typecheck_timeout: config.typecheck_timeout,
        verify_timeout: config.ready_timeout + config.init_timeout + config.wait_max,
        source_limits: SourceLimits::default(),
        memory_bytes_max: config.memory_budget(),
        single_tenant: !isolation.separates_tenants(),
        sdk: config.sdk.clone(),
        confines_egress: isolation.is_active(LayerName::Network),
    }
}

/// `None`: they are not sent.
pub(super) fn traces_settings(config: &Config) -> Option<traces::Settings> {
    let config::Traces { otlp_endpoint, sample_ratio, service_name } = config.traces.clone();
    Some(traces::Settings { endpoint: otlp_endpoint?, sample_ratio, service_name })
}

pub(super) fn blobs_settings(config: &Config) -> BlobsSettings {
    BlobsSettings { cache_bytes_max: config.artifacts_cache_bytes_max, grace: config.artifacts_grace }
}

/// Serves npm the operator's registries, as the operator's npm is configured.
pub(super) fn registry_proxy(config: &Config, home: Option<&Path>) -> anyhow::Result<Proxy> {
    let of_home = home.map(|home| home.join(".npmrc")).filter(|path| path.exists());
    let userconfig = config.npm_userconfig.clone().or(of_home);
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let registries = Registries::load(userconfig.as_deref(), environment).context("read npm's configuration")?;
    Proxy::new(registries, publish::RegistryLimits::default()).context("set up the registry proxy")
}

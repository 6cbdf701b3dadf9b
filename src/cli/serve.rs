//! `chatfn serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, parse_override};
use crate::host::Host;
use crate::sandbox::Sandbox;
use crate::secrets::Keyring;
use crate::service::{self, Service};
use crate::telemetry;

const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Flags win over CHATFN_* variables, which win over the configuration file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port of gRPC and HTTP; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Directory for everything durable [default: chatfn-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// PostgreSQL for many replicas, postgres://… (safer as the variable CHATFN_DATABASE_URL) [default: SQLite in the data directory]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// What versions run from, for all replicas: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///DIR [default: in the data directory]
    #[arg(long, value_name = "URL")]
    artifacts: Option<String>,
    /// Configuration file [default: chatfn.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any other setting of the configuration; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Run tenants' code with limits only, whatever this machine offers. For trusted code on a machine of your own
    #[arg(long)]
    insecure_no_sandbox: bool,
    /// Check the configuration, print it, and exit
    #[arg(long)]
    check_config: bool,
}

impl Args {
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut overrides = self.overrides.iter().map(|text| parse_override(text)).collect::<Result<Vec<_>, _>>()?;
        if let Some(listen) = self.listen {
            overrides.push(("listen".to_owned(), listen.to_string()));
        }
        if let Some(data_dir) = &self.data_dir {
            overrides.push(("data_dir".to_owned(), data_dir.display().to_string()));
        }
        if let Some(url) = &self.database_url {
            overrides.push(("database_url".to_owned(), url.clone()));
        }
        if let Some(artifacts) = &self.artifacts {
            overrides.push(("artifacts".to_owned(), artifacts.clone()));
        }
        if self.insecure_no_sandbox {
            overrides.push(("insecure_no_sandbox".to_owned(), "true".to_owned()));
        }
        Ok(Config::load(self.config.as_deref(), &overrides)?)
    }
}

/// Runs the service until SIGTERM or SIGINT, then drains. A second signal ends it at once. Without its broker it drains, too, and
/// fails, so that whoever supervises it starts it again.
///
/// # Errors
/// The configuration is wrong, something that is needed is missing, or the server failed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config()?;
    let unknown = Config::unknown_variables()?;
    if args.check_config {
        if !unknown.is_empty() {
            eprintln!("{}", ignored(&unknown));
        }
        telemetry::filter(&config.log_level)?;
        config.operator_token()?;
        config.encryption_keys_file.as_deref().map(Keyring::open).transpose()?;
        if let Some(loaded) = crate::tls::load(&config.tls)? {
            loaded.warning(SystemTime::now()).into_iter().for_each(|warning| eprintln!("{warning}"));
        }
        crate::model::Catalogue::new(&config.trigger_types)?;
        crate::host::find_tools(&config)?;
        service::database(&config, &config.data_dir)?;
        config.artifacts.as_ref().map(crate::artifacts::Remote::open).transpose()?;
        println!("{}", serde_json::to_string_pretty(&config)?);
        return Ok(());
    }
    telemetry::init(config.log_format, &config.log_level)?;
    if !unknown.is_empty() {
        tracing::warn!("{}", ignored(&unknown));
    }
    // Before the runtime: the broker must come from a process that has one thread.
    let host = Host::prepare(&config)?;
    let sandbox = Sandbox::start(host.sandbox_settings(&config)).context("start the sandbox broker")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(&config, host, sandbox));
    // Blocking work that goes on (a transpile, a sweep) must not hold the end up; what it leaves is removed at the next start.
    runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    result
}

fn ignored(variables: &[String]) -> String {
    let names = variables.join(", ");
    format!(
        "ignored, for no setting is called so: {names} (beside a Kubernetes Service of our name that is as it should be)"
    )
}

async fn serve(config: &Config, host: Host, sandbox: Sandbox) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut service = Service::start(config, host, sandbox).await?;
    // For whoever started it with port 0; the log goes to stderr.
    println!("chatfn listens on {}", service.url());
    let broken = service.broken();
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = broken => {
            Err(anyhow::anyhow!("the sandbox broker is gone, so no worker can be started: start the service again"))
        }
        err = service.failed() => return Err(err),
    };
    tokio::select! {
        () = service.shut_down() => result,
        _ = terminate.recv() => anyhow::bail!("a second signal: stopped without draining"),
        _ = interrupt.recv() => anyhow::bail!("a second signal: stopped without draining"),
    }
}

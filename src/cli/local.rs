//! What `run` and `dev` stand on: a service of the project's own in this process, its data in `DIR/.chatfn`.

mod environment;
pub mod show;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::client::plain;
use super::project;
use crate::config::{Config, parse_override};
use crate::host::Host;
use crate::model::{AppId, Catalogue};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;
use crate::proto::publish_version_response::Event;
use crate::proto::version_service_client::VersionServiceClient;
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::telemetry;

/// Hidden, so that no publish takes it.
const DATA: &str = ".chatfn";
const DRAIN_TIMEOUT: &str = "3s";
const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at whether a queued event has run. It is this process that runs it.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(20);
/// For a queued event to be tried. Its own timeout is shorter.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(300);
const MESSAGE_BYTES_MAX: usize = 128 << 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Configuration file of the service [default: chatfn.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting of the configuration, for example isolation.mode=landlock; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Run the functions with limits only: for your own code, where no sandbox works
    #[arg(long)]
    insecure_no_sandbox: bool,
}

/// A project and the service that runs it.
pub struct Local {
    pub directory: PathBuf,
    pub app: String,
    pub address: SocketAddr,
    pub config: Config,
    pub catalogue: Catalogue,
    channel: Channel,
}

impl Options {
    /// As `serve` would be configured, but for what a service on a developer's machine is not.
    fn load(&self, directory: &Path, listen: SocketAddr) -> anyhow::Result<Config> {
        let own = |key: &str, value: String| (key.to_owned(), value);
        let mut overrides = vec![own("log_level", "error".to_owned()), own("drain_timeout", DRAIN_TIMEOUT.to_owned())];
        for text in &self.overrides {
            overrides.push(parse_override(text)?);
        }
        overrides.push(own("listen", listen.to_string()));
        overrides.push(own("data_dir", directory.join(DATA).display().to_string()));
        if self.insecure_no_sandbox {
            overrides.push(own("insecure_no_sandbox", "true".to_owned()));
        }
        let mut config = Config::load(self.config.as_deref(), &overrides)?;
        if !config.listen.ip().is_loopback() {
            bail!(
                "--listen {}: `dev` and `run` take loopback addresses only, for they ask nobody for a token",
                config.listen
            );
        }
        config.operator_token_file = None; // It is on loopback, and so is whoever calls it.
        config.user = None;
        Ok(config)
    }

    /// Runs `work` against a service of the project's own, and takes the service down again. SIGINT and SIGTERM end it with the code
    /// `interrupted`; a second one at once.
    ///
    /// # Errors
    /// No service can run here, or the work failed.
    pub fn serve(
        &self,
        directory: &Path,
        listen: SocketAddr,
        interrupted: ExitCode,
        work: impl AsyncFnOnce(&Local) -> anyhow::Result<ExitCode>,
    ) -> anyhow::Result<ExitCode> {
        if !directory.is_dir() {
            bail!("{0} is no directory: `chatfn init {0}` makes a project of it", directory.display());
        }
        let directory = directory.canonicalize().with_context(|| format!("read {}", directory.display()))?;
        let config = self.load(&directory, listen)?;
        telemetry::init(config.log_format, &config.log_level)?;
        let host =
            Host::prepare(&config).map_err(|err| match err.to_string().contains("in use by another chatfn") {
                true => err.context(
                    "this project runs already (in `chatfn dev`, saving an event in events/ runs its function)",
                ),
                false => err,
            })?;
        let sandbox = Sandbox::start(host.sandbox_settings(&config)).context(
            "start the sandbox broker (`chatfn doctor` tells what works here; --set isolation.mode=landlock needs least, and \
             --insecure-no-sandbox is for your own code)",
        )?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(attend(directory, config, host, sandbox, interrupted, work));
        runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
        result
    }
}

async fn attend(
    directory: PathBuf,
    config: Config,
    host: Host,
    sandbox: Sandbox,
    interrupted: ExitCode,
    work: impl AsyncFnOnce(&Local) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut service = Service::start(&config, host, sandbox).await?;
    let address = service.address();
    let broken = service.broken();
    let works = async {
        let channel = Channel::from_shared(format!("http://{address}"))?.connect().await.context("connect")?;
        let catalogue = Catalogue::new(&config.trigger_types)?;
        let app = app_id(&directory);
        work(&Local { directory, app, address, config, catalogue, channel }).await
    };
    let result = tokio::select! {
        result = works => result,
        _ = interrupt.recv() => Ok(interrupted),
        _ = terminate.recv() => Ok(interrupted),
        () = broken => Err(anyhow::anyhow!("the sandbox broker is gone: start again")),
        err = service.failed() => return Err(err),
    };
    tokio::select! {
        () = service.shut_down() => result,
        _ = interrupt.recv() => bail!("a second signal: stopped at once"),
        _ = terminate.recv() => bail!("a second signal: stopped at once"),
    }
}

/// What an install says where there is none, and npm's single steps.
fn is_nothing(message: &str) -> bool {
    message.starts_with("reusing ") || message.starts_with("npm http ") || message == "no dependencies"
}

/// The directory's name, as far as an app can be called so.
pub fn app_id(directory: &Path) -> String {
    let absolute = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let name = absolute.file_name().unwrap_or_default().to_string_lossy();
    let word = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let name: String = name.chars().map(word).take(AppId::LEN_MAX).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "app".to_owned() } else { name.to_owned() }
}

impl Local {
    pub fn invocations(&self) -> InvocationServiceClient<Channel> {
        InvocationServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What a publish would take: the sources, and the environment of `.env`.
    ///
    /// # Errors
    /// The project cannot be read.
    pub fn read(&self) -> anyhow::Result<proto::VersionSpec> {
        let mut spec = project::read(&self.directory)?;
        spec.environment = environment::read(&self.directory)?;
        Ok(spec)
    }

    /// Publishes and activates, and removes versions that nobody will ask for.
    ///
    /// # Errors
    /// What is wrong with the project, with code frames.
    pub async fn publish(
        &self,
        spec: proto::VersionSpec,
        mut installing: impl FnMut(&str),
    ) -> anyhow::Result<proto::Version> {
        let request = proto::PublishVersionRequest { app_id: self.app.clone(), spec: Some(spec), ..Default::default() };
        let said = |status: Status| anyhow::anyhow!("{}", plain(status.message().trim_end()));
        let mut versions = VersionServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut steps = versions.publish_version(request).await.map_err(said)?.into_inner();
        while let Some(step) = steps.message().await.map_err(said)? {
            match step.event {
                // npm takes its time, and says what it does; all else is over before it could be read.
                Some(Event::Progress(step)) if step.phase == "install" && !is_nothing(&step.message) => {
                    installing(&plain(&step.message));
                }
                Some(Event::Progress(_)) => {}
                Some(Event::Version(version)) => return Ok(version),
                None => {}
            }
        }
        bail!("the publish ended without a version")
    }

    /// # Errors
    /// The types cannot be checked.
    pub async fn type_errors(&self, spec: proto::VersionSpec) -> Result<proto::CheckTypesResponse, Status> {
        let request = proto::CheckTypesRequest { app_id: self.app.clone(), spec: Some(spec) };
        let mut versions = VersionServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        versions.check_types(request).await.map(tonic::Response::into_inner)
    }

    /// Removes all versions but the newest `keep`: each save makes one. Best effort, for one may still be in use.
    pub async fn forget_versions(&self, newest: u64, keep: u64) {
        let mut versions = VersionServiceClient::new(self.channel.clone());
        let request = proto::ListVersionsRequest { app_id: self.app.clone(), ..Default::default() };
        let Ok(listed) = versions.list_versions(request).await else { return };
        for version in listed.into_inner().versions.iter().filter(|version| version.number + keep <= newest) {
            let request = proto::DeleteVersionRequest { app_id: self.app.clone(), version: version.number };
            let _ = versions.delete_version(request).await;
        }
    }

    /// # Errors
    /// The service refuses the event.
    pub async fn invoke(&self, trigger_type: &str, event: &str) -> Result<proto::InvokeResponse, Status> {
        let request = proto::InvokeRequest {
            app_id: self.app.clone(),
            trigger_type: trigger_type.to_owned(),
            event_json: Bytes::copy_from_slice(event.as_bytes()),
            ..Default::default()
        };
        let mut client = self.invocations().max_encoding_message_size(MESSAGE_BYTES_MAX);
        client.invoke(request).await.map(tonic::Response::into_inner)
    }

    /// Waits for a queued event's first attempt to end.
    ///
    /// # Errors
    /// It was not tried in time, or will not be.
    pub async fn attempt(&self, event_id: &str) -> anyhow::Result<proto::Invocation> {
        let deadline = Instant::now() + ATTEMPT_PATIENCE;
        while Instant::now() < deadline {
            let request = proto::ListInvocationsRequest {
                app_id: self.app.clone(),
                event_id: event_id.to_owned(),
                ..Default::default()
            };
            let listed = self.invocations().list_invocations(request).await?.into_inner().invocations;
            if let Some(attempt) = listed.into_iter().find(|attempt| attempt.finished_at.is_some()) {
                return self.invocation(&attempt.invocation_id).await;
            }
            tokio::time::sleep(ATTEMPT_INTERVAL).await;
        }
        bail!("event {event_id} was not tried within {ATTEMPT_PATIENCE:?}")
    }

    /// With its logs. Those are written a moment after the answer.
    ///
    /// # Errors
    /// It is not there.
    pub async fn invocation(&self, invocation_id: &str) -> anyhow::Result<proto::Invocation> {
        let deadline = Instant::now() + ATTEMPT_PATIENCE;
        loop {
            let request =
                proto::GetInvocationRequest { app_id: self.app.clone(), invocation_id: invocation_id.to_owned() };
            match self.invocations().get_invocation(request).await {
                Ok(got) => {
                    let invocation = got.into_inner().invocation.context("an invocation")?;
                    if invocation.finished_at.is_some() {
                        return Ok(invocation);
                    }
                }
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
            if Instant::now() > deadline {
                bail!("invocation {invocation_id} was not recorded within {ATTEMPT_PATIENCE:?}");
            }
            tokio::time::sleep(ATTEMPT_INTERVAL).await;
        }
    }
}

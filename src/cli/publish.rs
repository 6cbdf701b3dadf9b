//! `chatfn publish`: a directory becomes a version of an app.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::anyhow;
use tonic::Code;
use tonic::transport::Channel;

use super::client::{AppOption, Connection, MESSAGE_BYTES_MAX, block_on, plain, refused};
use super::environment::Environment;
use super::output::{note, say};
use super::progress::Progress;
use super::{json, project, versions};
use crate::proto;
use crate::proto::publish_version_response::Event;
use crate::proto::version_service_client::VersionServiceClient;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The project: the directory that holds functions/. What is hidden, node_modules/, events/ and README.md stay here
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    app: AppOption,
    #[command(flatten)]
    environment: Environment,
    /// Drop the active version's variables that are not given here; else they stay
    #[arg(long)]
    replace_env: bool,
    /// Only build and verify it; `chatfn activate` makes it serve
    #[arg(long)]
    no_activate: bool,
    /// Refuse if the newest version is not this one (0: if there is any)
    #[arg(long, value_name = "VERSION")]
    base_version: Option<u64>,
    /// Publish once, however often this runs: a repeat with the same key answers with the version of the first
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Check the types of all sources before: tell of type errors, or refuse for them
    #[arg(long, value_name = "HOW", default_value = "off")]
    typecheck: TypeCheck,
    /// A gate: run the newest so many recorded invocations against it before, without anything going out
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    replay_last: u32,
    /// Of those so many may come out otherwise, or it is refused
    #[arg(long, value_name = "N", default_value_t = 0, requires = "replay_last")]
    max_changed: u32,
    /// Print the version as one JSON object; progress goes to stderr as JSON, one object a line, unless that is a terminal
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TypeCheck {
    Off,
    Warn,
    Error,
}

impl From<TypeCheck> for proto::TypeCheck {
    fn from(how: TypeCheck) -> Self {
        match how {
            TypeCheck::Off => Self::Off,
            TypeCheck::Warn => Self::Warn,
            TypeCheck::Error => Self::Error,
        }
    }
}

/// # Errors
/// The project cannot be read, or the service cannot be reached, or it refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let app_id = args.app.name(&args.connection)?;
    let spec = proto::VersionSpec { environment: args.environment.read()?, ..project::read(&args.directory)? };
    let request = proto::PublishVersionRequest {
        app_id,
        spec: Some(spec),
        keep_environment: !args.replace_env,
        activate: args.no_activate.then_some(false),
        base_version: args.base_version,
        idempotency_key: args.idempotency_key.clone().unwrap_or_default(),
        typecheck: proto::TypeCheck::from(args.typecheck).into(),
        verification: (args.replay_last > 0).then_some(proto::Verification {
            replay_last: args.replay_last,
            max_changed: args.max_changed,
            allow_egress: false,
        }),
        ..Default::default()
    };
    block_on(async {
        let published = publish(args, request);
        tokio::select! {
            published = published => published,
            // The stream's end changes nothing for the service.
            _ = tokio::signal::ctrl_c() => {
                note("no longer watching; what was sent is published all the same: see `chatfn versions`");
                Ok(ExitCode::from(130))
            }
        }
    })
}

async fn publish(args: &Args, request: proto::PublishVersionRequest) -> anyhow::Result<ExitCode> {
    let channel = args.connection.open().await?;
    send(&args.connection, channel, request, args.json).await
}

/// Publishes, tells how it goes and what came of it.
///
/// # Errors
/// The service refuses, or the connection broke.
pub(super) async fn send(
    connection: &Connection,
    channel: Channel,
    request: proto::PublishVersionRequest,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let app = request.app_id.clone();
    let mut versions = VersionServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let progress = Progress::new(json);
    let steps = versions.publish_version(connection.request(request)?).await;
    let mut steps = steps.map_err(|status| refused(&status))?.into_inner();
    let version = loop {
        let step = steps.message().await.map_err(|status| match status.code() {
            Code::Unavailable | Code::Unknown if status.details().is_empty() => {
                refused(&status).context(format!("`chatfn versions {app}` tells whether it was published"))
            }
            _ => refused(&status),
        })?;
        match step.ok_or_else(|| anyhow!("the service sent no version: see `chatfn versions {app}`"))?.event {
            Some(Event::Progress(step)) => progress.step(&step),
            Some(Event::Version(version)) => break version,
            None => {}
        }
    };
    drop(progress);
    if json {
        say(&json::version(&version)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let seconds = started.elapsed().as_secs_f64();
    let state = if version.active { "active" } else { "ready, and not active" };
    say(&format!("Version {} of {} is {state}, after {seconds:.1} s.", version.number, plain(&version.app_id)))?;
    say(&versions::details(&version))?;
    if !version.active {
        say(&format!("To make it serve: chatfn activate {} {}", plain(&version.app_id), version.number))?;
    }
    Ok(ExitCode::SUCCESS)
}

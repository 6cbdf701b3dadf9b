//! `chatfn demo`: the whole way once – publish, invoke, outcomes, logs – against a real service in this process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tonic::transport::Channel;

use super::{project, show};
use crate::config::Config;
use crate::host::Host;
use crate::proto;
use crate::proto::app_service_client::AppServiceClient;
use crate::proto::invocation_service_client::InvocationServiceClient;
use crate::proto::invoke_response::Outcome;
use crate::proto::publish_version_response::Event;
use crate::proto::version_service_client::VersionServiceClient;
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::telemetry;

const APP: &str = "login";
/// For a queued event to run; the demo says so if it does not.
const EVENT_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project: sources, package.json, and a sample event for each trigger type in events/, named `TriggerType.json`
    #[arg(default_value = "examples/login")]
    project: PathBuf,
}

/// # Errors
/// Something on the way did not work.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let data = tempfile::tempdir().context("make a temporary data directory")?;
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        data_dir: data.path().to_owned(),
        log_level: "error".to_owned(),
        ..Config::default()
    };
    telemetry::init(config.log_format, &config.log_level)?;
    let host = Host::prepare(&config)?;
    let sandbox = Sandbox::start(host.sandbox_settings(&config)).context("start the sandbox broker")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let service = Service::start(&config, host, sandbox).await?;
        println!("A service runs at {} with its data in {}", service.address(), data.path().display());
        let shown = show(&args.project, &format!("http://{}", service.address())).await;
        service.shut_down().await;
        shown
    })
}

async fn show(directory: &Path, address: &str) -> anyhow::Result<()> {
    let channel = Channel::from_shared(address.to_owned())?.connect().await.context("connect to the service")?;
    publish(directory, channel.clone()).await?;
    for (trigger_type, event) in project::sample_events(directory)? {
        invoke(&trigger_type, &event, channel.clone()).await?;
    }
    let mut apps = AppServiceClient::new(channel);
    let request = proto::GetAppRequest { app_id: APP.to_owned() };
    let app = apps.get_app(request).await?.into_inner().app.context("an app")?;
    let pool = app.pool.unwrap_or_default();
    println!(
        "\nVersion {} is active; {} idle worker(s) wait for the next event.",
        app.active_version, pool.workers_idle
    );
    Ok(())
}

async fn publish(directory: &Path, channel: Channel) -> anyhow::Result<()> {
    println!("\n== Publishing {} as app {APP:?}", directory.display());
    let started = Instant::now();
    let mut versions = VersionServiceClient::new(channel);
    let request = proto::PublishVersionRequest {
        app_id: APP.to_owned(),
        spec: Some(project::read(directory)?),
        ..Default::default()
    };
    let mut steps = versions.publish_version(request).await?.into_inner();
    while let Some(step) = steps.message().await.context("publish")? {
        match step.event {
            Some(Event::Progress(step)) => println!("  {:>9}  {}", step.phase, step.message),
            Some(Event::Version(version)) => {
                println!(
                    "\nVersion {} is READY after {:.1} s: {} functions, {} direct dependencies ({} MiB), {}",
                    version.number,
                    started.elapsed().as_secs_f64(),
                    version.functions.len(),
                    version.dependencies.len(),
                    version.layer_size_bytes >> 20,
                    version.digest,
                );
            }
            None => {}
        }
    }
    Ok(())
}

async fn invoke(trigger_type: &str, event: &str, channel: Channel) -> anyhow::Result<()> {
    println!("\n== {trigger_type}");
    println!("{}", show::field("event", event.trim()));
    let mut client = InvocationServiceClient::new(channel);
    let request = proto::InvokeRequest {
        app_id: APP.to_owned(),
        trigger_type: trigger_type.to_owned(),
        event_json: Bytes::copy_from_slice(event.as_bytes()),
        ..Default::default()
    };
    let response = client.invoke(request).await.with_context(|| format!("invoke {trigger_type}"))?.into_inner();
    println!("{}", show::answer(&response));
    match response.outcome.context("an outcome")? {
        Outcome::Accepted(accepted) => {
            let attempt = finished_attempt(&accepted.event_id, &mut client).await?;
            println!("{}", show::record(&recorded(attempt, &mut client).await?));
            Ok(())
        }
        Outcome::Skipped(_) => Ok(()),
        Outcome::Error(_) => bail!("the function failed"),
        Outcome::Result(_) | Outcome::Denied(_) => {
            let invocation = recorded(response.invocation_id, &mut client).await?;
            println!("{}", show::logs_and_timings(&invocation));
            Ok(())
        }
    }
}

/// Follows a queued event to its first attempt's end.
async fn finished_attempt(event_id: &str, client: &mut InvocationServiceClient<Channel>) -> anyhow::Result<String> {
    let deadline = Instant::now() + EVENT_PATIENCE;
    while Instant::now() < deadline {
        let request = proto::ListInvocationsRequest {
            app_id: APP.to_owned(),
            event_id: event_id.to_owned(),
            ..Default::default()
        };
        let listed = client.list_invocations(request).await?.into_inner().invocations;
        if let Some(attempt) = listed.into_iter().find(|attempt| attempt.finished_at.is_some()) {
            return Ok(attempt.invocation_id);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("event {event_id} was not run within {EVENT_PATIENCE:?}")
}

async fn recorded(
    invocation_id: String,
    client: &mut InvocationServiceClient<Channel>,
) -> anyhow::Result<proto::Invocation> {
    let request = proto::GetInvocationRequest { app_id: APP.to_owned(), invocation_id };
    client.get_invocation(request).await?.into_inner().invocation.context("an invocation")
}

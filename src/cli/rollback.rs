//! `chatfn rollback`: back to a version that served before.

use std::process::ExitCode;

use anyhow::{Context, bail};
use tonic::transport::Channel;

use super::activate::activate;
use super::client::{Connection, block_on, plain, refused};
use super::versions;
use crate::proto;
use crate::proto::VersionState;
use crate::proto::app_service_client::AppServiceClient;
use crate::proto::version_service_client::VersionServiceClient;

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// One before the active version [default: the newest READY one of those]
    version: Option<u64>,
    /// Print the version as one JSON object
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or refuses; there is nothing to go back to.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let channel = args.connection.open().await?;
        let active = active_version(args, channel).await?;
        let mut client = versions::client(&args.connection).await?;
        let target = match args.version {
            Some(version) if version >= active => {
                bail!("version {version} is not before the active one, {active}: use `chatfn activate`")
            }
            Some(version) => version,
            None => ready_before(args, &mut client, active).await?,
        };
        activate(&args.connection, &mut client, &args.app, target, args.json).await
    })
}

async fn active_version(args: &Args, channel: Channel) -> anyhow::Result<u64> {
    let request = proto::GetAppRequest { app_id: args.app.clone() };
    let answer = AppServiceClient::new(channel).get_app(args.connection.request(request)?).await;
    let app = answer.map_err(|status| refused(&status))?.into_inner().app.context("an app")?;
    if app.active_version == 0 {
        bail!("{} has no active version to go back from: `chatfn activate` makes one serve", plain(&args.app));
    }
    Ok(app.active_version)
}

async fn ready_before(args: &Args, client: &mut VersionServiceClient<Channel>, active: u64) -> anyhow::Result<u64> {
    let mut page_token = String::new();
    loop {
        let (page, next) = versions::page(&args.connection, client, &args.app, u64::MAX, page_token).await?;
        let ready = |version: &&proto::Version| version.number < active && version.state() == VersionState::Ready;
        if let Some(version) = page.iter().find(ready) {
            return Ok(version.number);
        }
        if next.is_empty() {
            bail!("{} has no READY version before the active one, {active}", plain(&args.app));
        }
        page_token = next;
    }
}

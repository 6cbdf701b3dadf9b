//! `chatfn activate`: which version serves.

use std::process::ExitCode;

use anyhow::Context;
use tonic::transport::Channel;

use super::client::{Connection, block_on, plain, refused};
use super::output::say;
use super::{json, versions};
use crate::proto;
use crate::proto::version_service_client::VersionServiceClient;

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// One that is READY
    version: u64,
    /// Print the version as one JSON object
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = versions::client(&args.connection).await?;
        activate(&args.connection, &mut client, &args.app, args.version, args.json).await
    })
}

/// Makes it serve, and says so.
///
/// # Errors
/// The service cannot be reached, or refuses.
pub async fn activate(
    connection: &Connection,
    client: &mut VersionServiceClient<Channel>,
    app: &str,
    version: u64,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let request = proto::ActivateVersionRequest { app_id: app.to_owned(), version };
    let answer = client.activate_version(connection.request(request)?).await;
    let version = answer.map_err(|status| refused(&status))?.into_inner().version.context("a version")?;
    if json {
        say(&json::version(&version)?)?;
    } else if version.active {
        say(&format!("Version {} of {} is active.", version.number, plain(app)))?;
    } else {
        say(&format!("Version {} of {} was activated, and another one since.", version.number, plain(app)))?;
    }
    Ok(ExitCode::SUCCESS)
}

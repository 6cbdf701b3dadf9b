//! `chatfn env`: an app's environment variables. Values go in and never come out.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::client::{AppOption, Connection, block_on, plain, refused};
use super::environment::Variables;
use super::output::{Usage, say};
use super::{publish, versions};
use crate::proto;
use crate::proto::app_service_client::AppServiceClient;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set variables: publishes a new version with them that is otherwise as the active one.
    Set(Set),
    /// Remove variables: publishes a new version without them that is otherwise as the active one.
    Unset(Unset),
    /// List the names of the active version's variables. Values are not shown: nobody can read them back.
    List(List),
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    app: AppOption,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    variables: Variables,
}

#[derive(Debug, clap::Args)]
struct Unset {
    #[command(flatten)]
    common: Common,
    /// The variables
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    common: Common,
}

/// # Errors
/// The service cannot be reached, or refuses; there is no such variable.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        match &args.command {
            Command::Set(args) => set(args).await,
            Command::Unset(args) => unset(args).await,
            Command::List(args) => list(&args.common).await,
        }
    })
}

async fn set(args: &Set) -> anyhow::Result<ExitCode> {
    let environment = args.variables.read()?;
    if environment.is_empty() {
        return Err(Usage("which variables? Give NAME=VALUE, NAME, or --env-file FILE".to_owned()).into());
    }
    change(&args.common, proto::VersionChanges { environment, ..Default::default() }).await
}

async fn unset(args: &Unset) -> anyhow::Result<ExitCode> {
    // A name that is mistyped would stay set without a word.
    let known = names(&args.common).await?;
    if let Some(name) = args.names.iter().find(|name| !known.contains(name)) {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        anyhow::bail!("the active version has no variable {}; it has {}", plain(name), plain(&known));
    }
    let changes = proto::VersionChanges { environment_removed: args.names.clone(), ..Default::default() };
    change(&args.common, changes).await
}

async fn change(common: &Common, changes: proto::VersionChanges) -> anyhow::Result<ExitCode> {
    let app_id = common.app.name(&common.connection)?;
    let request = proto::PublishVersionRequest { app_id, changes: Some(changes), ..Default::default() };
    publish::send(&common.connection, common.connection.open().await?, request, common.json).await
}

async fn list(common: &Common) -> anyhow::Result<ExitCode> {
    let names = names(common).await?;
    if common.json {
        say(&json!({ "environment_names": names }).to_string())?;
    } else if names.is_empty() {
        say("no variables: `chatfn env set NAME=VALUE` adds one")?;
    } else {
        say(&plain(&names.join("\n")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Of the active version's variables.
async fn names(common: &Common) -> anyhow::Result<Vec<String>> {
    let app_id = common.app.name(&common.connection)?;
    let request = common.connection.request(proto::GetAppRequest { app_id: app_id.clone() })?;
    let answer = AppServiceClient::new(common.connection.open().await?).get_app(request).await;
    let app = answer.map_err(|status| refused(&status))?.into_inner().app.unwrap_or_default();
    if app.active_version == 0 {
        return Ok(Vec::new());
    }
    let request = proto::GetVersionRequest { app_id, version: app.active_version };
    let mut client = versions::client(&common.connection).await?;
    let answer = client.get_version(common.connection.request(request)?).await;
    let version = answer.map_err(|status| refused(&status))?.into_inner().version.unwrap_or_default();
    Ok(version.environment_names)
}

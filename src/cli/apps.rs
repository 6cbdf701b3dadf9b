//! `chatfn apps`: the tenants.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;
use tonic::transport::Channel;

use super::client::{Connection, block_on, plain, refused};
use super::json;
use super::output::{Usage, cell, moment, readable, say, table};
use crate::proto;
use crate::proto::app_service_client::AppServiceClient;

const PAGE_SIZE: u32 = 100;
const DESCRIPTION_CHARS_MAX: usize = 40;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the apps. So does `chatfn apps` alone.
    List(List),
    /// Show an app: its active version, workers, queue and settings.
    Get(Get),
    /// Change an app's settings: those that are given.
    Update(Update),
    /// Delete an app with its versions, queued events, history and files, for good.
    Delete(Delete),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, one object a line, instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Get {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Update {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// What it is for
    #[arg(long)]
    description: Option<String>,
    /// How long its invocations and logs are kept, for example 3days; 0s: as the service is configured
    #[arg(long, value_name = "SPAN", value_parser = humantime::parse_duration)]
    history_retention: Option<Duration>,
    /// Invocations a second that each replica takes; 0: as the service is configured. For operators
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<u32>,
    /// How many of them at once, after a pause; 0: as many as in a second. For operators
    #[arg(long, value_name = "COUNT")]
    rate_burst: Option<u32>,
    /// Invocations in a day (UTC), over all replicas; 0: as the service is configured. For operators
    #[arg(long, value_name = "COUNT")]
    quota_per_day: Option<u64>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Delete {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// Do not ask: delete it
    #[arg(long)]
    yes: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        match &args.command {
            None => list(&args.list).await,
            Some(Command::List(args)) => list(args).await,
            Some(Command::Get(args)) => get(args).await,
            Some(Command::Update(args)) => update(args).await,
            Some(Command::Delete(args)) => delete(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn client(connection: &Connection) -> anyhow::Result<AppServiceClient<Channel>> {
    Ok(AppServiceClient::new(connection.open().await?))
}

async fn list(args: &List) -> anyhow::Result<()> {
    let mut client = client(&args.connection).await?;
    let (mut page_token, mut rows) = (String::new(), Vec::new());
    loop {
        let request = proto::ListAppsRequest { page_size: PAGE_SIZE, page_token };
        let answer = client.list_apps(args.connection.request(request)?).await;
        let page = answer.map_err(|status| refused(&status))?.into_inner();
        for app in &page.apps {
            if args.json {
                say(&json::app(app)?)?;
            } else {
                rows.push(row(app));
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match (args.json, rows.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => say("There are no apps: chatfn publish DIR --app APP creates one."),
        (false, false) => say(&table(["APP", "ACTIVE", "WORKERS", "QUEUED", "DEAD", "CREATED", "DESCRIPTION"], &rows)),
    }
}

fn row(app: &proto::App) -> [String; 7] {
    let queue = app.queue.unwrap_or_default();
    let description = app.settings.as_ref().map(|settings| settings.description.as_str()).unwrap_or_default();
    [
        plain(&app.app_id),
        active(app),
        workers(app),
        (queue.queued + queue.running).to_string(),
        queue.dead.to_string(),
        moment(app.created_at).unwrap_or_default(),
        cell(description, DESCRIPTION_CHARS_MAX),
    ]
}

fn active(app: &proto::App) -> String {
    if app.active_version == 0 { "none".to_owned() } else { app.active_version.to_string() }
}

fn workers(app: &proto::App) -> String {
    let pool = app.pool.clone().unwrap_or_default();
    format!("{} idle, {} busy", pool.workers_idle, pool.workers_busy)
}

async fn get(args: &Get) -> anyhow::Result<()> {
    let request = proto::GetAppRequest { app_id: args.app.clone() };
    let answer = client(&args.connection).await?.get_app(args.connection.request(request)?).await;
    let app = answer.map_err(|status| refused(&status))?.into_inner().app.context("an app")?;
    shown(&app, args.json)
}

async fn update(args: &Update) -> anyhow::Result<()> {
    let request = proto::UpdateAppRequest {
        app_id: args.app.clone(),
        description: args.description.clone(),
        history_retention: args.history_retention.map(prost_types::Duration::try_from).transpose()?,
        rate_per_second: args.rate,
        rate_burst: args.rate_burst,
        quota_per_day: args.quota_per_day,
    };
    if request == (proto::UpdateAppRequest { app_id: args.app.clone(), ..Default::default() }) {
        let text =
            "nothing to change: give --description, --history-retention, --rate, --rate-burst or --quota-per-day";
        return Err(Usage(text.to_owned()).into());
    }
    let answer = client(&args.connection).await?.update_app(args.connection.request(request)?).await;
    let app = answer.map_err(|status| refused(&status))?.into_inner().app.context("an app")?;
    shown(&app, args.json)
}

fn shown(app: &proto::App, json: bool) -> anyhow::Result<()> {
    if json {
        return say(&json::app(app)?);
    }
    let queue = app.queue.unwrap_or_default();
    let settings = app.settings.clone().unwrap_or_default();
    say(&plain(&app.app_id))?;
    let field = |name: &str, text: &str| say(&format!("  {name:<12} {}", cell(text, usize::MAX)));
    field("active", &active(app))?;
    field("created", &moment(app.created_at).unwrap_or_default())?;
    field("workers", &workers(app))?;
    field("queue", &format!("{} queued, {} running, {} dead letters", queue.queued, queue.running, queue.dead))?;
    if settings.history_retention.is_some() {
        field("history kept", &readable(settings.history_retention))?;
    }
    if let Some(rate) = settings.rate_per_second {
        field("rate", &format!("{rate} a second"))?;
    }
    if let Some(burst) = settings.rate_burst {
        field("burst", &format!("{burst} at once"))?;
    }
    if let Some(quota) = app.quota {
        field("quota", &format!("{} of {} invocations today", quota.used, quota.limit))?;
    }
    if settings.description.is_empty() { Ok(()) } else { field("description", &settings.description) }
}

async fn delete(args: &Delete) -> anyhow::Result<()> {
    let app = plain(&args.app);
    if !args.yes {
        let all = "its versions, queued events and history go for good";
        return Err(Usage(format!("this deletes the app {app}, and {all}: add --yes if that is meant")).into());
    }
    let request = proto::DeleteAppRequest { app_id: args.app.clone() };
    let answer = client(&args.connection).await?.delete_app(args.connection.request(request)?).await;
    answer.map_err(|status| refused(&status))?;
    say(&if args.json {
        json!({ "app_id": args.app, "deleted": true }).to_string()
    } else {
        format!("{app} is deleted")
    })
}

//! `chatfn versions`: what was published.

use std::process::ExitCode;

use tonic::transport::Channel;

use super::client::{Connection, MESSAGE_BYTES_MAX, block_on, plain, refused};
use super::json;
use super::output::{bytes, cell, moment, readable, say, table};
use super::show::{entry, version_state};
use crate::model::Catalogue;
use crate::proto;
use crate::proto::version_service_client::VersionServiceClient;

const PAGE_SIZE: u32 = 100;
const DIGEST_CHARS: usize = "blake3:".len() + 12;
const CELL_CHARS_MAX: usize = 60;

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// Show this one in full instead
    version: Option<u64>,
    /// At most so many, the newest first; 0: all
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// Print JSON, one object a line, instead of a table
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = client(&args.connection).await?;
        match args.version {
            Some(version) => show_one(args, version, &mut client).await?,
            None => list(args, &mut client).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub async fn client(connection: &Connection) -> anyhow::Result<VersionServiceClient<Channel>> {
    Ok(VersionServiceClient::new(connection.open().await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// A page, the newest first, and the next one's token.
pub async fn page(
    connection: &Connection,
    client: &mut VersionServiceClient<Channel>,
    app: &str,
    left: u64,
    page_token: String,
) -> anyhow::Result<(Vec<proto::Version>, String)> {
    let page_size = u32::try_from(left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE));
    let request = proto::ListVersionsRequest { app_id: app.to_owned(), page_size, page_token };
    let answer = client.list_versions(connection.request(request)?).await;
    let page = answer.map_err(|status| refused(&status))?.into_inner();
    Ok((page.versions, page.next_page_token))
}

async fn show_one(args: &Args, number: u64, client: &mut VersionServiceClient<Channel>) -> anyhow::Result<()> {
    let version = get(&args.connection, client, &args.app, number).await?;
    if args.json {
        return say(&json::version(&version)?);
    }
    let active = if version.active { ", active" } else { "" };
    let created = moment(version.created_at).unwrap_or_default();
    say(&format!("Version {number} of {}: {}{active}, created {created}", plain(&args.app), version_state(&version)))?;
    say(&details(&version))
}

async fn get(
    connection: &Connection,
    client: &mut VersionServiceClient<Channel>,
    app: &str,
    version: u64,
) -> anyhow::Result<proto::Version> {
    let request = proto::GetVersionRequest { app_id: app.to_owned(), version };
    let answer = client.get_version(connection.request(request)?).await;
    Ok(answer.map_err(|status| refused(&status))?.into_inner().version.unwrap_or_default())
}

async fn list(args: &Args, client: &mut VersionServiceClient<Channel>) -> anyhow::Result<()> {
    let mut left = if args.limit == 0 { u64::MAX } else { args.limit };
    let (mut page_token, mut rows) = (String::new(), Vec::new());
    loop {
        let (versions, next) = page(&args.connection, client, &args.app, left, page_token).await?;
        for version in &versions {
            if args.json {
                say(&json::version(version)?)?;
            } else {
                rows.push(row(version));
            }
        }
        left = left.saturating_sub(versions.len() as u64);
        page_token = next;
        if left == 0 || page_token.is_empty() {
            break;
        }
    }
    if args.json {
        return Ok(());
    }
    if rows.is_empty() {
        return say(&format!("{} has no versions: chatfn publish DIR --app {0}", plain(&args.app)));
    }
    say(&table(["VERSION", "STATE", "CREATED", "FUNCTIONS", "DEPENDENCIES", "DIGEST"], &rows))?;
    if page_token.is_empty() { Ok(()) } else { say("There are more: --limit 0 shows all.") }
}

fn row(version: &proto::Version) -> [String; 6] {
    let state = version_state(version);
    let state = if version.active { format!("{state}, active") } else { state.to_owned() };
    let digest = if version.failure.is_empty() {
        version.digest.chars().take(DIGEST_CHARS).collect()
    } else {
        cell(&version.failure, CELL_CHARS_MAX)
    };
    [
        version.number.to_string(),
        state,
        moment(version.created_at).unwrap_or_default(),
        version.functions.len().to_string(),
        version.dependencies.len().to_string(),
        digest,
    ]
}

/// What a version is made of: its functions as a table, then the rest.
pub fn details(version: &proto::Version) -> String {
    let catalogue = Catalogue::new(&[]).ok();
    let kind = |trigger_type: &str| match catalogue.as_ref().and_then(|known| known.find(trigger_type)) {
        Some(trigger) if trigger.blocking => "blocking",
        Some(_) => "non-blocking",
        // Declared by the service's operator, and the answer does not tell.
        None => "–",
    };
    let functions = version.functions.iter().map(|function| {
        let disabled = if function.disabled { "disabled" } else { "" };
        let trigger = &function.trigger_type;
        let cells = [trigger, kind(trigger), &readable(function.timeout), entry(function), disabled];
        cells.map(|text| cell(text, CELL_CHARS_MAX))
    });
    let functions = table(["FUNCTION", "KIND", "TIMEOUT", "ENTRY", ""], &functions.collect::<Vec<_>>());
    let mut lines: Vec<_> = functions.lines().map(|line| format!("  {line}")).collect();
    let mut field = |name: &str, text: &str| {
        if !text.is_empty() {
            lines.push(format!("  {name:<13} {}", plain(text)));
        }
    };
    let dependencies = version.dependencies.iter().map(|(name, version)| format!("{name} {version}"));
    let dependencies = dependencies.collect::<Vec<_>>().join(", ");
    field("dependencies", if dependencies.is_empty() { "none" } else { &dependencies });
    if !version.layer.is_empty() {
        field("layer", &format!("{} ({})", version.layer, bytes(version.layer_size_bytes)));
    }
    field("environment", &version.environment_names.join(", "));
    field("digest", &version.digest);
    field("failure", &version.failure);
    lines.join("\n")
}

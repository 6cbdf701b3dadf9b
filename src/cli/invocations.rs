//! `chatfn invocations`: what ran, and how it ended.

use std::process::ExitCode;

use anyhow::Context;
use tonic::transport::Channel;

use super::client::{Connection, MESSAGE_BYTES_MAX, block_on, plain, refused};
use super::output::{cell, millis, moment, say, table};
use super::{json, show};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;

const PAGE_SIZE: u32 = 100;
const CELL_CHARS_MAX: usize = 60;

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// Show this one in full, with its logs, instead
    #[arg(conflicts_with_all = ["status", "trigger", "version", "limit"])]
    id: Option<String>,
    /// Only those that ended so
    #[arg(long)]
    status: Option<Status>,
    /// Only those of this trigger type
    #[arg(long, value_name = "TRIGGER")]
    trigger: Option<String>,
    /// Only those of this version
    #[arg(long)]
    version: Option<u64>,
    /// At most so many, the newest first; 0: all
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// Print JSON, one object a line, instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Status {
    Running,
    Succeeded,
    Failed,
}

impl From<Status> for proto::InvocationStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Running => Self::Running,
            Status::Succeeded => Self::Succeeded,
            Status::Failed => Self::Failed,
        }
    }
}

type Client = InvocationServiceClient<Channel>;

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let client = InvocationServiceClient::new(args.connection.open().await?);
        let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        match &args.id {
            Some(id) => show_one(args, id, &mut client).await?,
            None => list(args, &mut client).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn show_one(args: &Args, id: &str, client: &mut Client) -> anyhow::Result<()> {
    let request = proto::GetInvocationRequest { app_id: args.app.clone(), invocation_id: id.to_owned() };
    let answer = client.get_invocation(args.connection.request(request)?).await;
    let invocation = answer.map_err(|status| refused(&status))?.into_inner().invocation.context("an invocation")?;
    if args.json {
        return say(&json::invocation(&invocation)?);
    }
    let proto::Invocation { invocation_id, trigger_type, version, attempt, event_id, .. } = &invocation;
    let state = show::status(&invocation);
    say(&format!("{invocation_id}  {trigger_type}  version {version}  {state}"))?;
    let created = moment(invocation.created_at).unwrap_or_default();
    let ended = moment(invocation.finished_at).map(|at| format!(", ended {at}")).unwrap_or_default();
    say(&show::field("created", &format!("{created}{ended}")))?;
    if !event_id.is_empty() {
        say(&show::field("attempt", &format!("{attempt} at event {event_id}")))?;
    }
    say(&show::field("event", &String::from_utf8_lossy(&invocation.event_json)))?;
    match show::record(&invocation) {
        text if text.is_empty() => Ok(()),
        text => say(&text),
    }
}

async fn list(args: &Args, client: &mut Client) -> anyhow::Result<()> {
    let mut left = if args.limit == 0 { u64::MAX } else { args.limit };
    let (mut page_token, mut rows) = (String::new(), Vec::new());
    loop {
        let request = proto::ListInvocationsRequest {
            app_id: args.app.clone(),
            trigger_type: args.trigger.clone().unwrap_or_default(),
            status: args.status.map_or(0, |status| proto::InvocationStatus::from(status).into()),
            version: args.version.unwrap_or_default(),
            event_id: String::new(),
            page_size: u32::try_from(left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE)),
            page_token,
        };
        let answer = client.list_invocations(args.connection.request(request)?).await;
        let page = answer.map_err(|status| refused(&status))?.into_inner();
        for invocation in &page.invocations {
            if args.json {
                say(&json::invocation(invocation)?)?;
            } else {
                rows.push(row(invocation));
            }
        }
        left = left.saturating_sub(page.invocations.len() as u64);
        page_token = page.next_page_token;
        if left == 0 || page_token.is_empty() {
            break;
        }
    }
    if args.json {
        return Ok(());
    }
    if rows.is_empty() {
        return say(&format!("{} has no such invocations.", plain(&args.app)));
    }
    say(&table(["INVOCATION", "CREATED", "TRIGGER", "VERSION", "STATUS", "RUN", "ENDED WITH"], &rows))?;
    if page_token.is_empty() { Ok(()) } else { say("There are more: --limit 0 shows all.") }
}

fn row(invocation: &proto::Invocation) -> [String; 7] {
    let end = match (&invocation.error, &invocation.denied) {
        (Some(error), _) => format!("{} {}: {}", show::kind(error), error.name, error.message),
        (None, Some(denied)) => format!("denied: {}", denied.reason),
        (None, None) => String::from_utf8_lossy(&invocation.result_json).into_owned(),
    };
    let run = if invocation.finished_at.is_some() {
        millis(invocation.timings.and_then(|timings| timings.run))
    } else {
        String::new()
    };
    [
        invocation.invocation_id.clone(),
        moment(invocation.created_at).unwrap_or_default(),
        invocation.trigger_type.clone(),
        invocation.version.to_string(),
        show::status(invocation).to_owned(),
        run,
        cell(&end, CELL_CHARS_MAX),
    ]
}

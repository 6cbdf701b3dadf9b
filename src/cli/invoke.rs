//! `chatfn invoke`: an event, and what the function says to it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use tonic::transport::Channel;

use super::client::{Connection, MESSAGE_BYTES_MAX, block_on, refused};
use super::output::{millis, say};
use super::{json, show};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;
use crate::proto::invoke_response::Outcome;

/// A service takes 1 MiB unless its operator wants more.
const EVENT_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// The trigger type, such as UserSentMessage
    trigger: String,
    /// The event: a file, `-` for what comes from stdin, or JSON itself
    #[arg(long, default_value = "{}", value_name = "FILE|-|JSON")]
    event: String,
    /// Run once, however often this is typed: a repeat with the same key answers with the first one's outcome
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    /// Non-blocking triggers: events of one key run one after the other
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    ordering_key: String,
    /// Run this version instead of the active one
    #[arg(long)]
    version: Option<u64>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Exit code 1 also where the function failed; a denial is an answer.
///
/// # Errors
/// The event cannot be read, or the service cannot be reached, or it refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let request = proto::InvokeRequest {
        app_id: args.app.clone(),
        trigger_type: args.trigger.clone(),
        event_json: read_event(&args.event)?.into(),
        idempotency_key: args.idempotency_key.clone(),
        ordering_key: args.ordering_key.clone(),
        version: args.version,
        ..Default::default()
    };
    block_on(async {
        let mut client =
            InvocationServiceClient::new(args.connection.open().await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.invoke(args.connection.request(request)?).await;
        let answer = answer.map_err(|status| refused(&status))?.into_inner();
        if args.json {
            say(&json::answer(&answer)?)?;
        } else {
            print(args, &answer, &mut client).await?;
        }
        let failed = matches!(answer.outcome, Some(Outcome::Error(_)));
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

/// What `--event` means: `-`, JSON, or the name of a file.
///
/// # Errors
/// There is no such file, or it is too large.
pub fn read_event(event: &str) -> anyhow::Result<Vec<u8>> {
    if event.trim_start().starts_with(['{', '[']) {
        return Ok(event.as_bytes().to_vec());
    }
    let mut content = Vec::new();
    if event == "-" {
        io::stdin().take(EVENT_BYTES_MAX + 1).read_to_end(&mut content).context("read stdin")?;
    } else {
        let file =
            File::open(Path::new(event)).and_then(|file| file.take(EVENT_BYTES_MAX + 1).read_to_end(&mut content));
        file.with_context(|| format!("read the event from the file {event:?} (JSON itself begins with a brace)"))?;
    }
    if content.len() as u64 > EVENT_BYTES_MAX {
        bail!("the event is larger than {} MiB", EVENT_BYTES_MAX >> 20);
    }
    Ok(content)
}

async fn print(
    args: &Args,
    answer: &proto::InvokeResponse,
    client: &mut InvocationServiceClient<Channel>,
) -> anyhow::Result<()> {
    say(&show::answer(answer))?;
    if answer.invocation_id.is_empty() {
        return Ok(());
    }
    let request = proto::GetInvocationRequest { app_id: args.app.clone(), invocation_id: answer.invocation_id.clone() };
    // Whoever may invoke need not be allowed to read the history: then there are no logs to show.
    let recorded = client.get_invocation(args.connection.request(request)?).await;
    let logs = recorded.ok().and_then(|answer| answer.into_inner().invocation).map(|invocation| invocation.logs);
    for line in logs.unwrap_or_default() {
        say(&show::field("log", &line.text))?;
    }
    let timings = answer.timings.unwrap_or_default();
    let cold = if answer.cold_start { ", cold start" } else { "" };
    let took =
        format!("queue {} · init {} · run {}{cold}", millis(timings.queue), millis(timings.init), millis(timings.run));
    say(&show::field("timings", &took))?;
    say(&show::field("ran", &format!("version {} as invocation {}", answer.version, answer.invocation_id)))
}

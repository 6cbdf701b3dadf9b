//! `chatfn events`: what became of an event, and what becomes of dead letters.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tonic::transport::Channel;

use super::client::{AppOption, Connection, MESSAGE_BYTES_MAX, block_on, plain, refused};
use super::json::FunctionError;
use super::output::{json_line, moment, note, say};
use super::show;
use crate::proto;
use crate::proto::event_service_client::EventServiceClient;

const PAGE_SIZE: u32 = 100;
/// Of an event's JSON, in a list.
const EVENT_CHARS_MAX: usize = 200;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show an event with its state and attempts.
    Get(Get),
    /// List the events that used up their attempts, the oldest first, each with every attempt's error.
    DeadLetters(DeadLetters),
    /// Queue dead letters again, for the active version.
    ///
    /// Exit code 1 if one that was named is no dead letter (any more); the others are queued all the same.
    Redrive(Redrive),
    /// Delete dead letters, for good.
    ///
    /// Exit code 1 if one that was named is no dead letter (any more); the others are deleted all the same.
    Purge(Purge),
}

/// What all of them take.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    app: AppOption,
    /// Print JSON, one object a line, instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Get {
    #[command(flatten)]
    common: Common,
    /// The event
    event: String,
}

#[derive(Debug, clap::Args)]
struct DeadLetters {
    #[command(flatten)]
    common: Common,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 50)]
    limit: u64,
}

#[derive(Debug, clap::Args)]
struct Redrive {
    #[command(flatten)]
    common: Common,
    /// The events, or --all
    #[arg(value_name = "EVENT", required_unless_present = "all")]
    events: Vec<String>,
    /// All dead letters of the app
    #[arg(long, conflicts_with = "events")]
    all: bool,
}

#[derive(Debug, clap::Args)]
struct Purge {
    #[command(flatten)]
    common: Common,
    /// The events, or --all
    #[arg(value_name = "EVENT", required_unless_present = "all")]
    events: Vec<String>,
    /// All dead letters of the app; takes --yes
    #[arg(long, conflicts_with = "events", requires = "yes")]
    all: bool,
    /// Do not ask: delete all
    #[arg(long)]
    yes: bool,
}

type Client = EventServiceClient<Channel>;

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        match &args.command {
            Command::Get(args) => get(args).await,
            Command::DeadLetters(args) => list(args).await,
            Command::Redrive(args) => redrive(args).await,
            Command::Purge(args) => purge(args).await,
        }
    })
}

impl Common {
    fn app(&self) -> anyhow::Result<String> {
        self.app.name(&self.connection)
    }

    async fn client(&self) -> anyhow::Result<Client> {
        Ok(EventServiceClient::new(self.connection.open().await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

async fn get(args: &Get) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let request = proto::GetEventRequest { app_id: common.app()?, event_id: args.event.clone() };
    let answer = common.client().await?.get_event(common.connection.request(request)?).await;
    let event = answer.map_err(|status| refused(&status))?.into_inner().event.context("an event")?;
    say(&if common.json { as_json(&event)? } else { as_text(&event, true) })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(args: &DeadLetters) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let app = common.app()?;
    let mut client = common.client().await?;
    let mut left = if args.limit == 0 { u64::MAX } else { args.limit };
    let (mut page_token, mut seen) = (String::new(), false);
    loop {
        let page_size = u32::try_from(left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE));
        let request = proto::ListDeadLettersRequest { app_id: app.clone(), page_size, page_token };
        let answer = client.list_dead_letters(common.connection.request(request)?).await;
        let page = answer.map_err(|status| refused(&status))?.into_inner();
        for event in &page.events {
            say(&if common.json { as_json(event)? } else { as_text(event, false) })?;
        }
        seen |= !page.events.is_empty();
        left -= page.events.len() as u64;
        page_token = page.next_page_token;
        if left == 0 || page_token.is_empty() {
            break;
        }
    }
    if !common.json && !page_token.is_empty() {
        say("There are more: --limit 0 shows all.")?;
    } else if !common.json && !seen {
        say(&format!("{} has no dead letters.", plain(&app)))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn redrive(args: &Redrive) -> anyhow::Result<ExitCode> {
    let Redrive { common, events, all } = args;
    let request = proto::RedriveDeadLettersRequest { app_id: common.app()?, event_ids: events.clone(), all: *all };
    let answer = common.client().await?.redrive_dead_letters(common.connection.request(request)?).await;
    let answer = answer.map_err(|status| refused(&status))?.into_inner();
    report("queued again", common, events, &answer.event_ids, answer.count)
}

async fn purge(args: &Purge) -> anyhow::Result<ExitCode> {
    let Purge { common, events, all, .. } = args;
    let request = proto::PurgeDeadLettersRequest { app_id: common.app()?, event_ids: events.clone(), all: *all };
    let answer = common.client().await?.purge_dead_letters(common.connection.request(request)?).await;
    let answer = answer.map_err(|status| refused(&status))?.into_inner();
    report("deleted", common, events, &answer.event_ids, answer.count)
}

fn report(done: &str, common: &Common, named: &[String], moved: &[String], count: u64) -> anyhow::Result<ExitCode> {
    let left: Vec<_> = named.iter().filter(|id| !moved.iter().any(|moved| moved.eq_ignore_ascii_case(id))).collect();
    if common.json {
        say(&json!({ "count": count, "event_ids": moved, "no_dead_letters": left }).to_string())?;
    } else {
        say(&format!("{count} {} {done}", if count == 1 { "event" } else { "events" }))?;
    }
    for id in &left {
        note(&format!("{} is no dead letter of {}", plain(id), plain(&common.app()?)));
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As the protos have it, with times as RFC 3339 and the event as the JSON it is.
#[derive(Serialize)]
struct Shown<'a> {
    event_id: &'a str,
    app_id: &'a str,
    trigger_type: &'a str,
    state: &'a str,
    reason: &'a str,
    version: u64,
    ordering_key: &'a str,
    hops: u32,
    enqueued_at: Option<String>,
    deliver_at: Option<String>,
    next_attempt_at: Option<String>,
    finished_at: Option<String>,
    event: Option<&'a RawValue>,
    attempts: Vec<ShownAttempt<'a>>,
}

#[derive(Serialize)]
struct ShownAttempt<'a> {
    number: u32,
    invocation_id: &'a str,
    started_at: Option<String>,
    finished_at: Option<String>,
    error: Option<FunctionError<'a>>,
}

fn as_json(event: &proto::Event) -> anyhow::Result<String> {
    let attempts = event.attempts.iter().map(|attempt| ShownAttempt {
        number: attempt.number,
        invocation_id: &attempt.invocation_id,
        started_at: moment(attempt.started_at),
        finished_at: moment(attempt.finished_at),
        error: attempt.error.as_ref().map(FunctionError::from),
    });
    let shown = Shown {
        event_id: &event.event_id,
        app_id: &event.app_id,
        trigger_type: &event.trigger_type,
        state: state(event),
        reason: &event.reason,
        version: event.version,
        ordering_key: &event.ordering_key,
        hops: event.hops,
        enqueued_at: moment(event.enqueued_at),
        deliver_at: moment(event.deliver_at),
        next_attempt_at: moment(event.next_attempt_at),
        finished_at: moment(event.finished_at),
        event: serde_json::from_slice(&event.event_json).ok(),
        attempts: attempts.collect(),
    };
    json_line(&shown)
}

/// `whole`: with stacks, and the event at its full length.
fn as_text(event: &proto::Event, whole: bool) -> String {
    let reason = if event.reason.is_empty() { String::new() } else { format!(": {}", event.reason) };
    let proto::Event { event_id, trigger_type, version, .. } = event;
    let mut lines = vec![format!("{event_id}  {trigger_type}  version {version}  {}{reason}", state(event))];
    let mut line = |name: &str, value: &str| lines.push(format!("  {name:<9} {value}"));
    let ended = moment(event.finished_at).map(|at| format!(", ended {at}")).unwrap_or_default();
    line("queued", &format!("{}{ended}", moment(event.enqueued_at).unwrap_or_default()));
    if event.deliver_at != event.enqueued_at {
        line("due", &moment(event.deliver_at).unwrap_or_default());
    }
    if let Some(at) = moment(event.next_attempt_at).filter(|_| event.next_attempt_at != event.deliver_at) {
        line("next", &format!("attempt not before {at}"));
    }
    if !event.ordering_key.is_empty() {
        line("key", &plain(&event.ordering_key));
    }
    if event.hops > 0 {
        line("hops", &event.hops.to_string());
    }
    line("event", &shortened(&plain(&String::from_utf8_lossy(&event.event_json)), whole));
    lines.extend(event.attempts.iter().flat_map(|attempt| attempt_as_text(attempt, whole)));
    lines.join("\n")
}

fn attempt_as_text(attempt: &proto::EventAttempt, whole: bool) -> Vec<String> {
    let invocation = match attempt.invocation_id.as_str() {
        "" => String::new(),
        id => format!("  invocation {id}"),
    };
    let at = moment(attempt.started_at).unwrap_or_default();
    let head = |end: &str| format!("  attempt {:<2}{at}{invocation}: {end}", attempt.number);
    let Some(error) = &attempt.error else { return vec![head("succeeded")] };
    let text = format!("{}: {}", error.name, error.message);
    let text = plain(if whole && !error.stack.is_empty() { &error.stack } else { &text });
    [head(show::kind(error))].into_iter().chain(text.lines().map(|line| format!("    {line}"))).collect()
}

fn shortened(text: &str, whole: bool) -> String {
    match text.char_indices().nth(EVENT_CHARS_MAX) {
        Some((end, _)) if !whole => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

/// Without the prefix that protos need.
fn state(event: &proto::Event) -> &'static str {
    event.state().as_str_name().trim_start_matches("EVENT_STATE_")
}

//! `chatfn replay`: what would another version have done?

use std::process::ExitCode;

use anyhow::anyhow;
use serde::Serialize;

use super::client::{Connection, MESSAGE_BYTES_MAX, block_on, plain, refused};
use super::output::{DIFFERS, json_line, millis, say};
use super::show;
use super::trial::{Ended, ended};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;
use crate::proto::replay_invocations_response::Event;

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// The newest so many recorded invocations; at most 1000
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: u32,
    /// The version that is to run them [default: the active one]
    #[arg(long)]
    version: Option<u64>,
    /// Of this trigger type only
    #[arg(long, default_value = "", hide_default_value = true)]
    trigger: String,
    /// Let functions reach the network meanwhile: what they send is sent again
    #[arg(long)]
    allow_egress: bool,
    /// Print those that came out the same, too
    #[arg(long)]
    all: bool,
    /// Print JSON, one object a line: each invocation, then the summary
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Replayed<'a> {
    invocation_id: &'a str,
    trigger_type: &'a str,
    recorded_version: u64,
    before: Ended<'a>,
    after: Ended<'a>,
    differences: &'a [String],
}

#[derive(Serialize)]
struct Summary {
    version: u64,
    replayed: u32,
    changed: u32,
}

/// Exit code 3 if something came out otherwise.
///
/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let request = proto::ReplayInvocationsRequest {
        app_id: args.app.clone(),
        version: args.version.unwrap_or_default(),
        last: args.last,
        trigger_type: args.trigger.clone(),
        allow_egress: args.allow_egress,
    };
    block_on(async {
        let channel = args.connection.open().await?;
        let mut client = InvocationServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let stream = client.replay_invocations(args.connection.request(request)?).await;
        let mut stream = stream.map_err(|status| refused(&status))?.into_inner();
        loop {
            let message = stream.message().await.map_err(|status| refused(&status))?;
            match message.ok_or_else(|| anyhow!("the service ended the replay early: try again"))?.event {
                Some(Event::Replayed(replayed)) => print(args, &replayed)?,
                Some(Event::Summary(summary)) => return conclude(args, summary),
                None => {}
            }
        }
    })
}

fn print(args: &Args, replayed: &proto::Replayed) -> anyhow::Result<()> {
    let (before, after) = (replayed.before.clone().unwrap_or_default(), replayed.after.clone().unwrap_or_default());
    if args.json {
        return say(&json_line(&Replayed {
            invocation_id: &replayed.invocation_id,
            trigger_type: &replayed.trigger_type,
            recorded_version: replayed.recorded_version,
            before: Ended::from(&before),
            after: Ended::from(&after),
            differences: &replayed.differences,
        })?);
    }
    let same = replayed.differences.is_empty();
    if same && !args.all {
        return Ok(());
    }
    let what = if same { "the same".to_owned() } else { replayed.differences.join(", ") };
    let took = format!("{} → {}", millis(before.run), millis(after.run));
    say(&format!("{} {}  {}  ({took})", plain(&replayed.trigger_type), replayed.invocation_id, plain(&what)))?;
    if same {
        return Ok(());
    }
    say(&show::field(&format!("v{}", replayed.recorded_version), &ended(&before)))?;
    say(&show::field("now", &ended(&after)))
}

fn conclude(args: &Args, summary: proto::ReplaySummary) -> anyhow::Result<ExitCode> {
    let proto::ReplaySummary { version, replayed, changed } = summary;
    if args.json {
        say(&json_line(&Summary { version, replayed, changed })?)?;
    } else if replayed == 0 {
        say("nothing is recorded to replay")?;
    } else {
        say(&format!("version {version}: {changed} of {replayed} came out otherwise"))?;
    }
    Ok(if changed > 0 { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS })
}

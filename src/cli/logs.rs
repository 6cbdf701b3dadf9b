//! `chatfn logs`: what functions said, and with `-f` what they go on to say, across broken connections.

mod recent;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use self::recent::Recent;
use super::client::{Connection, MESSAGE_BYTES_MAX, block_on, refused};
use super::output::{Closed, nobody_reads, note, say};
use super::{json, show};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;

/// What the service gives at most; asked for after a broken connection.
const TAIL_LINES_MAX: u32 = 1000;
/// Between a lost connection and the next try; doubles with each one that fails.
const BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// In a row: about a minute in all.
const TRIES_MAX: u32 = 12;
/// How often to look whether somebody still reads, while there is nothing to print.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// Go on with lines to come, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only those of this trigger type
    #[arg(long, value_name = "TRIGGER", default_value = "", hide_default_value = true)]
    trigger: String,
    /// Only those of this level or a graver one
    #[arg(long)]
    level: Option<Level>,
    /// Only those of this invocation
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    invocation: String,
    /// Stored lines to begin with
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tail: u32,
    /// Only those of this version
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    version: u64,
    /// Print JSON, one object a line, instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl From<Level> for proto::LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
        }
    }
}

/// How a stream of lines ended.
enum End {
    /// There are no more.
    Complete,
    /// There may be more: the connection broke, or the service went away.
    Lost(String),
}

/// # Errors
/// The service cannot be reached (any more), or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut tail = Tail::open(args).await?;
        tokio::select! {
            ended = tail.run() => ended?,
            // How one ends what has no end.
            _ = tokio::signal::ctrl_c(), if args.follow => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

struct Tail<'a> {
    args: &'a Args,
    client: InvocationServiceClient<Channel>,
    recent: Recent,
    /// Since the last line or answer.
    failures: u32,
}

impl<'a> Tail<'a> {
    async fn open(args: &'a Args) -> anyhow::Result<Self> {
        let client = InvocationServiceClient::new(args.connection.open().await?);
        let client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { args, client, recent: Recent::default(), failures: 0 })
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let mut again = false;
        loop {
            let End::Lost(why) = self.stream(again).await? else { return Ok(()) };
            self.failures += 1;
            if self.failures > TRIES_MAX {
                bail!("{why}\nno luck after {TRIES_MAX} tries: check that the service runs");
            }
            if self.failures == 1 {
                note(&format!("{why}; trying again"));
            }
            again = true;
            let wait = BACKOFF.saturating_mul(1 << (self.failures - 1).min(16)).min(BACKOFF_MAX);
            tokio::select! {
                () = sleep(wait) => {}
                () = until_nobody_reads() => return Err(Closed.into()),
            }
        }
    }

    /// `again`: from the oldest line that the service gives, without those that were printed.
    async fn stream(&mut self, again: bool) -> anyhow::Result<End> {
        let args = self.args;
        let request = proto::TailLogsRequest {
            app_id: args.app.clone(),
            trigger_type: args.trigger.clone(),
            invocation_id: args.invocation.clone(),
            level: args.level.map_or(0, |level| proto::LogLevel::from(level).into()),
            version: args.version,
            tail_lines: if again { TAIL_LINES_MAX } else { args.tail },
            follow: args.follow,
        };
        let answer = self.client.tail_logs(args.connection.request(request)?).await;
        let mut lines = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return self.lost(&status),
        };
        if self.failures > 0 {
            note("connected again");
            self.failures = 0;
        }
        loop {
            let line = tokio::select! {
                line = next(&mut lines) => line,
                () = until_nobody_reads(), if args.follow => return Err(Closed.into()),
            };
            match line {
                Ok(Some(entry)) if again && self.recent.holds(&entry) => {}
                Ok(Some(entry)) => {
                    say(&if args.json { json::log(&entry)? } else { show::log(&entry) })?;
                    self.recent.add(&entry);
                }
                Ok(None) if args.follow => return Ok(End::Lost("the service ended the stream".to_owned())),
                Ok(None) => return Ok(End::Complete),
                Err(status) => return self.lost(&status),
            }
        }
    }

    fn lost(&self, status: &Status) -> anyhow::Result<End> {
        let away = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
        if self.args.follow && away { Ok(End::Lost(refused(status).to_string())) } else { Err(refused(status)) }
    }
}

/// # Cancel safety
/// Nothing is lost: the stream keeps what it has read of a message.
async fn next(lines: &mut Streaming<proto::TailLogsResponse>) -> Result<Option<proto::LogEntry>, Status> {
    while let Some(answer) = lines.message().await? {
        if let Some(entry) = answer.entry {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// A pipe whose reader is gone says so to those who write; there may be nothing to write for hours.
async fn until_nobody_reads() {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if nobody_reads() {
            return;
        }
    }
}

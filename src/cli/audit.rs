//! `chatfn audit`: who changed what.

use std::process::ExitCode;
use std::time::SystemTime;

use prost_types::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Connection, block_on, refused};
use super::output::{cell, json_line, moment, say, table};
use crate::proto;
use crate::proto::app_service_client::AppServiceClient;

const PAGE_SIZE: u32 = 100;
const CELL_CHARS_MAX: usize = 60;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// Only what concerns this app; without it everything, which is for operators
    #[arg(long)]
    app: Option<String>,
    /// Only this, for example version.publish, env.set or credential.revoke
    #[arg(long)]
    action: Option<String>,
    /// Only what this one did: a credential's client id, a token's subject
    #[arg(long, value_name = "ID")]
    actor: Option<String>,
    /// Only what those did: credential, operator_credential, operator_token, oidc, local, command or service
    #[arg(long, value_name = "KIND")]
    actor_kind: Option<String>,
    /// Only since then: how long ago, for example 7days, or a time as 2026-11-27T09:30:00Z
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<SystemTime>,
    /// Only before then
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<SystemTime>,
    /// At most so many, the newest first; 0: all
    #[arg(long, default_value_t = 50)]
    limit: u64,
    /// Print JSON, one object a line, instead of a table
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(list(args))?;
    Ok(ExitCode::SUCCESS)
}

fn when(text: &str) -> Result<SystemTime, String> {
    if let Ok(at) = humantime::parse_rfc3339_weak(text) {
        return Ok(at);
    }
    let span = humantime::parse_duration(text)
        .map_err(|_| "neither a span like 7days or 12h, nor a time like 2026-11-27T09:30:00Z".to_owned())?;
    let at = SystemTime::now().checked_sub(span).filter(|at| *at >= SystemTime::UNIX_EPOCH);
    at.ok_or_else(|| "that is before 1970: leave it out".to_owned())
}

async fn list(args: &Args) -> anyhow::Result<()> {
    let mut client = AppServiceClient::new(args.connection.open().await?);
    let mut left = if args.limit == 0 { u64::MAX } else { args.limit };
    let (mut page_token, mut rows) = (String::new(), Vec::new());
    loop {
        let request = proto::ListAuditEntriesRequest {
            app_id: args.app.clone().unwrap_or_default(),
            action: args.action.clone().unwrap_or_default(),
            actor_kind: args.actor_kind.clone().unwrap_or_default(),
            actor_id: args.actor.clone().unwrap_or_default(),
            from: args.since.map(Timestamp::from),
            until: args.until.map(Timestamp::from),
            page_size: u32::try_from(left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE)),
            page_token,
        };
        let answer = client.list_audit_entries(args.connection.request(request)?).await;
        let page = answer.map_err(|status| refused(&status))?.into_inner();
        for entry in &page.entries {
            if args.json {
                say(&json_line(&as_json(entry))?)?;
            } else {
                rows.push(row(entry));
            }
        }
        left = left.saturating_sub(page.entries.len() as u64);
        page_token = page.next_page_token;
        if left == 0 || page_token.is_empty() {
            break;
        }
    }
    if args.json {
        return Ok(());
    }
    if rows.is_empty() {
        return say("There are no such entries.");
    }
    say(&table(["AT", "APP", "ACTION", "TARGET", "BY", "OUTCOME"], &rows))?;
    if page_token.is_empty() { Ok(()) } else { say("There are more: --limit 0 shows all.") }
}

fn as_json(entry: &proto::AuditEntry) -> Value {
    let actor = entry.actor.clone().unwrap_or_default();
    let details: Option<&RawValue> = serde_json::from_slice(&entry.details_json).ok();
    json!({
        "entry_id": entry.entry_id,
        "at": moment(entry.at),
        "app_id": entry.app_id,
        "actor": { "kind": actor.kind, "id": actor.id, "issuer": actor.issuer },
        "action": entry.action,
        "target": entry.target,
        "details": details,
        "request_id": entry.request_id,
        "outcome": outcome(entry),
        "reason": entry.reason,
    })
}

fn row(entry: &proto::AuditEntry) -> [String; 6] {
    let actor = entry.actor.clone().unwrap_or_default();
    let by = if actor.id.is_empty() { actor.kind } else { format!("{} {}", actor.kind, actor.id) };
    let reason = if entry.reason.is_empty() { String::new() } else { format!(" {}", entry.reason) };
    [
        moment(entry.at).unwrap_or_default(),
        cell(&entry.app_id, CELL_CHARS_MAX),
        cell(&entry.action, CELL_CHARS_MAX),
        cell(&entry.target, CELL_CHARS_MAX),
        cell(&by, CELL_CHARS_MAX),
        format!("{}{reason}", outcome(entry)),
    ]
}

fn outcome(entry: &proto::AuditEntry) -> &'static str {
    match entry.outcome() {
        proto::AuditOutcome::Succeeded => "SUCCEEDED",
        proto::AuditOutcome::Failed => "FAILED",
        proto::AuditOutcome::Unspecified => "",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(when("2023-11-14T22:13:20Z"), Ok(noon));
        assert_eq!(when("2023-11-14 22:13:20"), Ok(noon));
        assert!(when("12h").is_ok_and(|at| at < SystemTime::now()));
        for wrong in ["", "yesterday", "99999999999999days"] {
            assert!(when(wrong).is_err(), "{wrong}");
        }
    }
}

//! Drafts and replays, as people and scripts read them.

use serde::Serialize;

use super::json::{Denied, FunctionError, Json, LogEntry, Skipped, Timings, json};
use super::output::{json_line, millis, span};
use super::show::{self, field};
use crate::proto;
use crate::proto::replay_outcome::Outcome as Replayed;
use crate::proto::test_function_response::Outcome;

/// What came of a draft.
pub fn tested(tested: &proto::TestFunctionResponse) -> String {
    let mut lines = Vec::new();
    if let Some(verdict) = verdict(tested.verdict) {
        lines.push(field("verdict", verdict));
    }
    match &tested.outcome {
        Some(Outcome::Result(result)) => lines.push(show::result(&result.json)),
        Some(Outcome::Denied(denied)) => lines.push(show::denied(denied)),
        Some(Outcome::Error(error)) => lines.push(show::error(error)),
        None => {}
    }
    lines.extend(tested.logs.iter().map(|line| field("log", &line.text)));
    let timings = tested.timings.unwrap_or_default();
    lines.push(field(
        "timings",
        &format!(
            "queue {} · init {} · run {} · cpu {} · peak memory {} MiB",
            millis(timings.queue),
            millis(timings.init),
            millis(timings.run),
            millis(tested.cpu_time),
            tested.peak_memory_bytes >> 20
        ),
    ));
    lines.push(field("ran", &format!("in the runtime of version {}; nothing was published", tested.version)));
    lines.join("\n")
}

#[derive(Serialize)]
struct Tested<'a> {
    version: u64,
    #[serde(flatten)]
    ended: Ended<'a>,
    timings: Option<Timings>,
    cpu_time: Option<String>,
    peak_memory_bytes: u64,
    logs: Vec<LogEntry<'a>>,
    warnings: &'a [String],
}

/// # Errors
/// Never, for what a service sends.
pub fn tested_json(tested: &proto::TestFunctionResponse) -> anyhow::Result<String> {
    let mut ended = Ended { verdict: verdict(tested.verdict), ..Ended::default() };
    match &tested.outcome {
        Some(Outcome::Result(result)) => ended.result = json(&result.json),
        Some(Outcome::Denied(denied)) => ended.denied = Some(denied.into()),
        Some(Outcome::Error(error)) => ended.error = Some(error.into()),
        None => {}
    }
    json_line(&Tested {
        version: tested.version,
        ended,
        timings: tested.timings.map(Timings::from),
        cpu_time: span(tested.cpu_time),
        peak_memory_bytes: tested.peak_memory_bytes,
        logs: tested.logs.iter().map(LogEntry::from).collect(),
        warnings: &tested.warnings,
    })
}

/// How a recorded or replayed invocation ended, in a line or two.
pub fn ended(ended: &proto::ReplayOutcome) -> String {
    let verdict = verdict(ended.verdict).map(|verdict| format!("{verdict} ")).unwrap_or_default();
    let what = match &ended.outcome {
        Some(Replayed::Result(result)) => String::from_utf8_lossy(&result.json).into_owned(),
        Some(Replayed::Denied(denied)) => format!("denied: {}", denied.reason),
        Some(Replayed::Error(error)) => format!("{} {}: {}", show::kind(error), error.name, error.message),
        Some(Replayed::Skipped(_)) => "no function".to_owned(),
        None => String::new(),
    };
    format!("{verdict}{what}")
}

/// One of the outcomes is there.
#[derive(Default, Serialize)]
pub struct Ended<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Json<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denied: Option<Denied<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FunctionError<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<Skipped<'a>>,
    verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
}

impl<'a> From<&'a proto::ReplayOutcome> for Ended<'a> {
    fn from(from: &'a proto::ReplayOutcome) -> Self {
        let mut ended = Ended { verdict: verdict(from.verdict), run: span(from.run), ..Ended::default() };
        match &from.outcome {
            Some(Replayed::Result(result)) => ended.result = json(&result.json),
            Some(Replayed::Denied(denied)) => ended.denied = Some(denied.into()),
            Some(Replayed::Error(error)) => ended.error = Some(error.into()),
            Some(Replayed::Skipped(skipped)) => ended.skipped = Some(Skipped { reason: &skipped.reason }),
            None => {}
        }
        ended
    }
}

/// `None` for non-blocking triggers.
fn verdict(verdict: i32) -> Option<&'static str> {
    match proto::Verdict::try_from(verdict) {
        Ok(proto::Verdict::Allow) => Some("ALLOW"),
        Ok(proto::Verdict::Deny) => Some("DENY"),
        Ok(proto::Verdict::Unspecified) | Err(_) => None,
    }
}

//! Outcomes, invocations and log lines as people read them.

use super::client::plain;
use super::output::{millis, moment};
use crate::proto;
use crate::proto::invoke_response::Outcome;

/// `name` and what it is about, in line with its neighbours; further lines stand below.
pub fn field(name: &str, text: &str) -> String {
    format!("  {name:<8} {}", plain(text).replace('\n', "\n           "))
}

/// How it ended, to its caller.
pub fn answer(answer: &proto::InvokeResponse) -> String {
    let mut lines = Vec::new();
    if answer.verdict != 0 {
        lines.push(field("verdict", &format!("{} ({})", verdict(answer), decided_by(answer))));
    }
    match &answer.outcome {
        Some(Outcome::Result(result)) => lines.push(self::result(&result.json)),
        Some(Outcome::Denied(denied)) => lines.push(self::denied(denied)),
        Some(Outcome::Error(error)) => lines.push(self::error(error)),
        Some(Outcome::Accepted(accepted)) if accepted.duplicate => {
            lines.push(field("accepted", &format!("before, as event {}", accepted.event_id)));
        }
        Some(Outcome::Accepted(accepted)) => {
            lines.push(field(
                "accepted",
                &format!("as event {}: it is durable, and runs on its own", accepted.event_id),
            ));
        }
        Some(Outcome::Skipped(skipped)) => lines.push(field("skipped", &skipped.reason)),
        None => {}
    }
    lines.join("\n")
}

/// How a recorded invocation ended, what it said meanwhile and what it took.
pub fn record(invocation: &proto::Invocation) -> String {
    let mut lines = Vec::new();
    match (&invocation.error, &invocation.denied) {
        (Some(error), _) => lines.push(self::error(error)),
        (None, Some(denied)) => lines.push(self::denied(denied)),
        (None, None) if invocation.finished_at.is_none() => {}
        (None, None) => lines.push(result(&invocation.result_json)),
    }
    lines.push(logs_and_timings(invocation));
    if !invocation.trace_id.is_empty() {
        lines.push(field("trace", &invocation.trace_id));
    }
    lines.retain(|text| !text.is_empty());
    lines.join("\n")
}

/// What it said, and what it took if it has ended.
pub fn logs_and_timings(invocation: &proto::Invocation) -> String {
    let mut lines: Vec<_> = invocation.logs.iter().map(|line| field("log", &line.text)).collect();
    if invocation.finished_at.is_some() {
        lines.push(timings(invocation));
    }
    lines.join("\n")
}

pub fn result(json: &[u8]) -> String {
    field("result", &String::from_utf8_lossy(json))
}

pub fn denied(denied: &proto::Denied) -> String {
    let code = if denied.code.is_empty() { String::new() } else { format!(" ({})", denied.code) };
    let data = String::from_utf8_lossy(&denied.data_json);
    let data = if data.is_empty() { String::new() } else { format!("\n{data}") };
    field("denied", &format!("{}{code}{data}", denied.reason))
}

/// With the stack, which begins with name and message.
pub fn error(error: &proto::FunctionError) -> String {
    let code = if error.code.is_empty() { String::new() } else { format!(", code {}", error.code) };
    let text = if error.stack.is_empty() { format!("{}: {}", error.name, error.message) } else { error.stack.clone() };
    field("error", &format!("{}{code}\n{text}", kind(error)))
}

fn timings(invocation: &proto::Invocation) -> String {
    let timings = invocation.timings.unwrap_or_default();
    let text = format!(
        "queue {} · init {} · run {} · cpu {} · peak memory {} MiB",
        millis(timings.queue),
        millis(timings.init),
        millis(timings.run),
        millis(invocation.cpu_time),
        invocation.peak_memory_bytes >> 20,
    );
    field("timings", &text)
}

/// One line of a log, with the lines that its text has below.
pub fn log(entry: &proto::LogEntry) -> String {
    let at = moment(entry.at).unwrap_or_default();
    let from = if entry.trigger_type.is_empty() { &entry.source } else { &entry.trigger_type };
    let text = plain(&entry.text).replace('\n', "\n    ");
    format!("{at} {:<5} v{} {from}  {text}", level(entry), entry.version)
}

/// Enums without the prefixes that protos need.
pub fn verdict(answer: &proto::InvokeResponse) -> &'static str {
    answer.verdict().as_str_name().trim_start_matches("VERDICT_")
}

pub fn decided_by(answer: &proto::InvokeResponse) -> &'static str {
    answer.decided_by().as_str_name().trim_start_matches("DECIDED_BY_")
}

pub fn kind(error: &proto::FunctionError) -> &'static str {
    error.kind().as_str_name().trim_start_matches("ERROR_KIND_")
}

pub fn level(entry: &proto::LogEntry) -> &'static str {
    entry.level().as_str_name().trim_start_matches("LOG_LEVEL_")
}

pub fn status(invocation: &proto::Invocation) -> &'static str {
    invocation.status().as_str_name().trim_start_matches("INVOCATION_STATUS_")
}

pub fn version_state(version: &proto::Version) -> &'static str {
    version.state().as_str_name().trim_start_matches("VERSION_STATE_")
}

/// Empty for a source that has no path, which only requests have.
pub fn entry(function: &proto::FunctionSpec) -> &str {
    match &function.code {
        Some(proto::function_spec::Code::Entry(path)) => path,
        _ => "",
    }
}

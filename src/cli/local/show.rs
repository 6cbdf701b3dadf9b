//! Invocations as people read them, and as scripts do.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::plain;
use crate::proto;
use crate::proto::ErrorKind;

/// Of what a log of many invocations shows of one result.
pub const BRIEF_BYTES_MAX: usize = 500;

/// `ok`, `DENIED` or `FAILED`, and what came of it, a line each.
pub fn outcome(invocation: &proto::Invocation, bytes_max: usize) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let value = plain(value.trim_end()).replace('\n', "\n           ");
        let _ = writeln!(text, "  {name:<8} {value}");
    };
    match (&invocation.error, &invocation.denied) {
        (Some(error), _) => {
            line("error", &format!("{} {}: {}", kind(error), error.name, error.message));
            // The stack's head says the name and the message again.
            if let Some(frames) = error.stack.find("\n    at ").and_then(|at| error.stack.get(at + 1..)) {
                line("", frames);
            }
        }
        (None, Some(denied)) => {
            let code = if denied.code.is_empty() { String::new() } else { format!(" ({})", denied.code) };
            line("denied", &format!("{}{code}", denied.reason));
            if !denied.data_json.is_empty() {
                line("data", &String::from_utf8_lossy(&denied.data_json));
            }
        }
        (None, None) => line("result", &cut(&String::from_utf8_lossy(&invocation.result_json), bytes_max)),
    }
    for entry in &invocation.logs {
        line(level(entry), &entry.text);
    }
    text
}

/// In one word.
pub fn word(invocation: &proto::Invocation) -> &'static str {
    match (&invocation.error, &invocation.denied) {
        (Some(_), _) => "FAILED",
        (None, Some(_)) => "DENIED",
        (None, None) => "ok",
    }
}

pub fn timings(invocation: &proto::Invocation) -> String {
    let timings = invocation.timings.unwrap_or_default();
    let cold = if invocation.cold_start { " (cold start)" } else { "" };
    format!(
        "queue {} · init {}{cold} · run {} · cpu {} · peak memory {} MiB",
        millis(timings.queue),
        millis(timings.init),
        millis(timings.run),
        millis(invocation.cpu_time),
        invocation.peak_memory_bytes >> 20,
    )
}

pub fn millis(span: Option<prost_types::Duration>) -> String {
    let span = span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

/// For scripts. `verdict` and `decided_by` as in [`proto::InvokeResponse`], empty where nobody waited.
pub fn json(invocation: &proto::Invocation, verdict: &str, decided_by: &str) -> Value {
    let timings = invocation.timings.unwrap_or_default();
    let micros = |span: Option<prost_types::Duration>| {
        span.and_then(|span| Duration::try_from(span).ok()).map(|span| span.as_micros() as u64)
    };
    let error = invocation.error.as_ref().map(|error| {
        json!({
            "kind": kind(error), "name": error.name, "message": error.message, "stack": error.stack, "code": error.code,
            "retryable": error.retryable,
        })
    });
    let denied = invocation
        .denied
        .as_ref()
        .map(|denied| json!({ "reason": denied.reason, "code": denied.code, "data": raw(&denied.data_json) }));
    let logs: Vec<Value> = invocation
        .logs
        .iter()
        .map(|entry| json!({ "level": level(entry), "source": entry.source, "text": entry.text }))
        .collect();
    json!({
        "invocation_id": invocation.invocation_id,
        "trigger_type": invocation.trigger_type,
        "version": invocation.version,
        "status": word(invocation).to_lowercase(),
        "verdict": Some(verdict).filter(|verdict| !verdict.is_empty()),
        "decided_by": Some(decided_by).filter(|decided_by| !decided_by.is_empty()),
        "result": raw(&invocation.result_json),
        "denied": denied,
        "error": error,
        "logs": logs,
        "cold_start": invocation.cold_start,
        "timings_micros": {
            "queue": micros(timings.queue), "init": micros(timings.init), "run": micros(timings.run),
            "cpu": micros(invocation.cpu_time),
        },
        "peak_memory_bytes": invocation.peak_memory_bytes,
    })
}

/// JSON of a tenant's. `null` if there is none.
fn raw(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or(Value::Null)
}

fn kind(error: &proto::FunctionError) -> String {
    let name = ErrorKind::try_from(error.kind).unwrap_or_default().as_str_name();
    name.trim_start_matches("ERROR_KIND_").to_owned()
}

fn level(entry: &proto::LogEntry) -> &'static str {
    match entry.level() {
        proto::LogLevel::Debug => "debug",
        proto::LogLevel::Warn => "warn",
        proto::LogLevel::Error => "ERROR",
        proto::LogLevel::Info | proto::LogLevel::Unspecified => "log",
    }
}

fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max);
    format!("{}… [{} bytes more]", &text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_result_is_cut_between_characters() {
        assert_eq!(cut("\"ab\"", 4), "\"ab\"");
        assert_eq!(cut("äää", 3), "ä… [4 bytes more]");
    }

    #[test]
    fn what_a_tenant_says_moves_no_cursor() {
        let denied = proto::Denied { reason: "a\u{1b}[2Jb\nc".to_owned(), ..Default::default() };
        let shown = outcome(&proto::Invocation { denied: Some(denied), ..Default::default() }, 10);
        assert_eq!(shown, "  denied   a\u{fffd}[2Jb\n           c\n");
    }
}

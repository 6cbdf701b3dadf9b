//! How commands print: lines, tables, JSON, times; and how they end.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost_types::Timestamp;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::client::plain;

/// From 1970 to 9999: what RFC 3339 can say.
const YEARS_KNOWN: Duration = Duration::from_secs(253_402_300_800);
const GAP: &str = "  ";

/// Of the commands that compare: what they compared differs.
pub const DIFFERS: u8 = 3;

/// Whoever read what is printed has read enough. Nothing went wrong.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is printed")]
pub struct Closed;

/// The command cannot mean anything as it was typed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What the process ends with: 0 done, 1 refused or failed, 2 typed wrongly.
pub fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    let err = match result {
        Ok(code) => return code,
        Err(err) => err,
    };
    if err.is::<Closed>() {
        return ExitCode::SUCCESS;
    }
    note(&format!("{err:#}"));
    if err.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// A line for whoever looks on: to stderr, even if nobody reads that.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "chatfn: {text}");
}

/// # Errors
/// [`Closed`], or the disk is full.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    match written {
        Err(err) if err.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("print"),
    }
}

/// Whether printing would fail, found out without printing.
pub fn nobody_reads() -> bool {
    let out = io::stdout();
    let mut out = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let ready = poll(&mut out, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    ready && out[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}

/// One line, whatever the tenants' JSON in it looks like, and nothing that a terminal would obey. (Line ends in JSON are space between
/// values; other control characters that may stand in it unescaped, DEL and those beyond ASCII, stand in strings.)
///
/// # Errors
/// Never, for what we print.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    let mut line = String::new();
    for c in serde_json::to_string(value)?.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    Ok(line)
}

/// RFC 3339, UTC, to the millisecond.
pub fn moment(at: Option<Timestamp>) -> Option<String> {
    let at = SystemTime::try_from(at?).ok()?;
    let known = at >= SystemTime::UNIX_EPOCH && at < SystemTime::UNIX_EPOCH + YEARS_KNOWN;
    known.then(|| humantime::format_rfc3339_millis(at).to_string())
}

/// As JSON has it: `0.25s`, as protobuf's mapping says.
pub fn span(span: Option<prost_types::Duration>) -> Option<String> {
    let span = Duration::try_from(span?).ok()?;
    let digits = format!("{}.{:09}", span.as_secs(), span.subsec_nanos());
    Some(format!("{}s", digits.trim_end_matches('0').trim_end_matches('.')))
}

/// For people: `5s`, `1m 30s`.
pub fn readable(span: Option<prost_types::Duration>) -> String {
    let span = span.and_then(|span| Duration::try_from(span).ok());
    span.map(|span| humantime::format_duration(span).to_string()).unwrap_or_default()
}

pub fn millis(span: Option<prost_types::Duration>) -> String {
    let span = span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
    format!("{:.2} ms", span.as_secs_f64() * 1000.0)
}

pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Harmless, on one line, and no longer than so many characters.
pub fn cell(text: &str, chars_max: usize) -> String {
    let text = plain(text).replace(['\n', '\t'], " ");
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Rows below their names, each column as wide as its widest cell.
pub fn table<const N: usize>(names: [&str; N], rows: &[[String; N]]) -> String {
    let names = names.map(str::to_owned);
    let lines = || std::iter::once(&names).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|i| lines().map(|line| line[i].width()).max().unwrap_or(0));
    let padded = |line: &[String; N]| {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.width())));
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    lines().map(padded).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_look() {
        let rows = [["名前".to_owned(), "1".to_owned()], ["é".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME  N\n名前  1\né");
        assert_eq!(table(["A", "B"], &[]), "A  B");
        assert_eq!(cell("a\n\u{1b}[2Jb", 3), "a \u{fffd}…");
        assert_eq!(cell("abc", 3), "abc");
    }

    #[test]
    fn json_is_one_harmless_line() {
        let raw = "{\n\t\"a\": \"\u{9b}2J\u{7f}\\n\"\r\n}";
        let raw: &RawValue = serde_json::from_str(raw).expect("JSON");
        let line = json_line(&raw).expect("a line");
        assert_eq!(line, r#"{  "a": "\u009b2J\u007f\n"  }"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["a"], "\u{9b}2J\u{7f}\n");
    }

    #[test]
    fn spans_are_exact() {
        let of = |seconds, nanos| span(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(of(5, 0).as_deref(), Some("5s"));
        assert_eq!(of(100, 250_000_000).as_deref(), Some("100.25s"));
        assert_eq!(of(0, 1).as_deref(), Some("0.000000001s"));
        assert_eq!(of(0, 0).as_deref(), Some("0s"));
    }
}

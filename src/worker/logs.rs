//! Turns what a worker writes into bounded log lines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use tokio::sync::mpsc;

use crate::model::{InvocationId, LogLevel, LogLine, LogSource, TriggerType};

use super::{Paths, Program};

/// Of one invocation; the descriptors 1 and 2 have as much again for themselves.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    pub lines_max: usize,
    pub bytes_max: usize,
    pub line_bytes_max: usize,
}

impl LogLimits {
    /// The shim counts too, and says once that it cut: that line must not be cut here.
    pub(super) fn with_room_for_the_shims_own_line(self) -> Self {
        Self { lines_max: self.lines_max + 1, bytes_max: self.bytes_max + 1024, ..self }
    }
}

/// Whose line it is.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    pub trigger_type: Option<TriggerType>,
    pub invocation: Option<InvocationId>,
}

/// What an invocation may still write.
#[derive(Debug)]
pub struct Budget {
    lines_left: usize,
    bytes_left: usize,
    said_so: bool,
}

enum Spent {
    Granted,
    /// The first line that is left out.
    Exhausted,
    Silent,
}

impl Budget {
    pub fn new(limits: &LogLimits) -> Self {
        Self { lines_left: limits.lines_max, bytes_left: limits.bytes_max, said_so: false }
    }

    fn spend(&mut self, bytes: usize) -> Spent {
        if self.lines_left > 0 && bytes <= self.bytes_left {
            self.lines_left -= 1;
            self.bytes_left -= bytes;
            return Spent::Granted;
        }
        // A shorter line that came later would still fit; but a gap that nobody sees is worse than an early end.
        self.lines_left = 0;
        if std::mem::replace(&mut self.said_so, true) { Spent::Silent } else { Spent::Exhausted }
    }
}

/// Writes a worker's lines to the history.
pub struct Sink {
    lines: mpsc::Sender<LogLine>,
    template: LogLine,
    paths: Paths,
    line_bytes_max: usize,
}

impl Sink {
    pub fn new(lines: mpsc::Sender<LogLine>, program: &Program, limits: &LogLimits) -> Self {
        let template = LogLine {
            app: program.app.clone(),
            version: program.version,
            trigger_type: None,
            invocation: None,
            at: UNIX_EPOCH,
            level: LogLevel::Info,
            source: LogSource::System,
            text: String::new(),
        };
        Self { lines, template, paths: program.paths.clone(), line_bytes_max: limits.line_bytes_max }
    }

    /// What `console.*` said. The shim has kept the limits already; this is for one that does not.
    pub fn console(&self, origin: &Origin, budget: &mut Budget, level: LogLevel, text: &str, at_ms: u64) {
        if let Spent::Granted = budget.spend(text.len()) {
            let now = SystemTime::now();
            // A worker cannot date its lines into another hour.
            let claimed = UNIX_EPOCH + Duration::from_millis(at_ms.min(u64::from(u32::MAX) * 1000));
            let near = now.duration_since(claimed).is_ok_and(|age| age < Duration::from_secs(60));
            self.send(origin, level, LogSource::Console, text, if near { claimed } else { now });
        }
    }

    /// A line from descriptor 1 or 2.
    pub fn raw(&self, origin: &Origin, budget: &mut Budget, source: LogSource, text: &str) {
        let level = if source == LogSource::Stderr { LogLevel::Error } else { LogLevel::Info };
        match budget.spend(text.len()) {
            Spent::Granted => self.send(origin, level, source, text, SystemTime::now()),
            Spent::Exhausted => self.system(origin, LogLevel::Warn, "[output truncated: too many lines or bytes]"),
            Spent::Silent => {}
        }
    }

    /// The runtime's own remark.
    pub fn system(&self, origin: &Origin, level: LogLevel, text: &str) {
        self.send(origin, level, LogSource::System, text, SystemTime::now());
    }

    fn send(&self, origin: &Origin, level: LogLevel, source: LogSource, text: &str, at: SystemTime) {
        let mut text = self.paths.rewrite(text);
        if text.len() > self.line_bytes_max {
            let more = text.len() - self.line_bytes_max;
            text.truncate(text.floor_char_boundary(self.line_bytes_max));
            text.push_str(&format!("… [{more} bytes more]"));
        }
        let line = LogLine {
            trigger_type: origin.trigger_type.clone(),
            invocation: origin.invocation,
            at,
            level,
            source,
            text,
            ..self.template.clone()
        };
        if self.lines.try_send(line).is_err() {
            tracing::debug!(app = %self.template.app, "a log line was lost: the history is behind");
        }
    }
}

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: BytesMut,
}

/// Longer lines are cut into several.
const LINE_BUFFER_BYTES_MAX: usize = 64 << 10;

impl LineBuffer {
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The next complete line, without its end.
    pub fn next_line(&mut self) -> Option<String> {
        if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line = self.bytes.split_to(end + 1);
            return Some(text(&line[..end]));
        }
        (self.bytes.len() >= LINE_BUFFER_BYTES_MAX).then(|| text(&self.bytes.split()))
    }

    /// What is left when the stream pauses at an invocation's end.
    pub fn rest(&mut self) -> Option<String> {
        (!self.bytes.is_empty()).then(|| text(&self.bytes.split()))
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_once_and_says_so_once() {
        let limits = LogLimits { lines_max: 2, bytes_max: 10, line_bytes_max: 100 };
        let mut budget = Budget::new(&limits);
        assert!(matches!(budget.spend(4), Spent::Granted));
        assert!(matches!(budget.spend(7), Spent::Exhausted));
        assert!(matches!(budget.spend(1), Spent::Silent));
        let mut budget = Budget::new(&limits);
        assert!(matches!(budget.spend(5), Spent::Granted));
        assert!(matches!(budget.spend(5), Spent::Granted));
        assert!(matches!(budget.spend(0), Spent::Exhausted));
    }

    #[test]
    fn lines_are_cut_at_their_ends_and_at_the_limit() {
        let mut lines = LineBuffer::default();
        lines.buffer().extend_from_slice(b"one\r\ntw");
        assert_eq!(lines.next_line().as_deref(), Some("one"));
        assert_eq!(lines.next_line(), None);
        lines.buffer().extend_from_slice(b"o\n");
        assert_eq!(lines.next_line().as_deref(), Some("two"));
        lines.buffer().extend_from_slice(&vec![b'x'; LINE_BUFFER_BYTES_MAX]);
        assert_eq!(lines.next_line().map(|line| line.len()), Some(LINE_BUFFER_BYTES_MAX));
        lines.buffer().extend_from_slice(b"rest");
        assert_eq!(lines.next_line(), None);
        assert_eq!(lines.rest().as_deref(), Some("rest"));
    }
}

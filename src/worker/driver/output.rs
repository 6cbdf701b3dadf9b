//! What a worker says beside its answers: lines of its console, of stdout and of stderr.

use crate::model::{LogLevel, LogSource};
use crate::worker::logs::Origin;

use super::Driver;

/// What a pipe can hold (64 KiB, pipe(7)) is what was written before an answer; more comes from somebody who goes on writing.
const PIPE_READS_MAX: usize = 3;

impl Driver {
    pub(super) fn origin(&self) -> Origin {
        // With several in flight nobody can tell whose output it is.
        match self.in_flight.as_slice() {
            [only] => Origin { trigger_type: Some(only.trigger_type.clone()), invocation: Some(only.invocation) },
            _ => Origin::default(),
        }
    }

    pub(super) fn log_console(&mut self, id: Option<&str>, level: LogLevel, text: &str, at_ms: u64) {
        let entry = id.and_then(|id| self.in_flight.iter_mut().find(|entry| entry.id == id));
        match entry {
            Some(entry) => {
                let origin =
                    Origin { trigger_type: Some(entry.trigger_type.clone()), invocation: Some(entry.invocation) };
                self.sink.console(&origin, &mut entry.console_budget, level, text, at_ms);
            }
            None => self.sink.console(&Origin::default(), &mut self.idle_budget, level, text, at_ms),
        }
    }

    /// Logs the complete lines that arrived; with `all`, takes what the pipe still holds and the unfinished line too.
    pub(super) fn log_output(&mut self, source: LogSource, all: bool) {
        let origin = self.origin();
        let stream = if source == LogSource::Stdout { &mut self.io.stdout } else { &mut self.io.stderr };
        let budget = match self.in_flight.as_mut_slice() {
            [only] => &mut only.raw_budget,
            _ => &mut self.idle_budget,
        };
        let mut reads_left = if all { PIPE_READS_MAX } else { 0 };
        loop {
            while let Some(line) = stream.next_line(&mut self.io.stderr_tail) {
                self.sink.raw(&origin, budget, source, &line);
            }
            if reads_left == 0 || !stream.read_now() {
                break;
            }
            reads_left -= 1;
        }
        if all && let Some(line) = stream.rest(&mut self.io.stderr_tail) {
            self.sink.raw(&origin, budget, source, &line);
        }
    }
}

//! A publish as it goes on, for whoever looks at stderr: a bar on a terminal, lines anywhere else.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::client::plain;
use super::output::{json_line, moment};
use crate::proto;

const PHASES: [&str; 8] = ["validate", "transpile", "install", "typecheck", "verify", "replay", "store", "activate"];
const TICK: Duration = Duration::from_millis(100);

/// Gone from the terminal when it is dropped.
pub enum Progress {
    Bar(ProgressBar),
    Lines,
    /// NDJSON.
    Json,
}

#[derive(Serialize)]
struct Shown<'a> {
    phase: &'a str,
    message: &'a str,
    at: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    diagnostics: Vec<Diagnostic<'a>>,
}

#[derive(Serialize)]
struct Diagnostic<'a> {
    file: &'a str,
    line: u32,
    column: u32,
    code: &'a str,
    message: &'a str,
    frame: &'a str,
}

impl<'a> From<&'a proto::Diagnostic> for Diagnostic<'a> {
    fn from(diagnostic: &'a proto::Diagnostic) -> Self {
        let proto::Diagnostic { file, line, column, code, message, frame } = diagnostic;
        Self { file, line: *line, column: *column, code, message, frame }
    }
}

impl Progress {
    /// `json`: machines read what is no terminal.
    pub fn new(json: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !io::stderr().is_terminal() || dumb {
            return if json { Self::Json } else { Self::Lines };
        }
        let bar = ProgressBar::new(PHASES.len() as u64 + 1);
        let style = ProgressStyle::with_template("{spinner} [{bar:18}] {prefix:>9}  {wide_msg}");
        bar.set_style(style.expect("a template of ours").progress_chars("=> "));
        bar.enable_steady_tick(TICK);
        bar.set_prefix("send");
        Self::Bar(bar)
    }

    /// What npm says is shown only while it is the latest; there is a lot of it.
    pub fn step(&self, step: &proto::Progress) {
        let proto::Progress { phase, message, at, diagnostics } = step;
        // A write that fails finds nobody who looks on.
        match self {
            Self::Bar(bar) => {
                let at = PHASES.iter().position(|known| known == phase);
                bar.set_position(at.map_or(bar.position(), |at| at as u64 + 1));
                let message = plain(message);
                bar.set_prefix(plain(phase));
                bar.set_message(message.replace('\n', " "));
                if phase != "install" {
                    bar.println(line(phase, &message));
                }
            }
            Self::Lines => drop(writeln!(io::stderr(), "{}", line(phase, message))),
            Self::Json => {
                let diagnostics = diagnostics.iter().map(Diagnostic::from).collect();
                if let Ok(line) = json_line(&Shown { phase, message, at: moment(*at), diagnostics }) {
                    drop(writeln!(io::stderr(), "{line}"));
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(phase: &str, message: &str) -> String {
    format!("  {:>9}  {}", plain(phase), plain(message).replace('\n', "\n             "))
}

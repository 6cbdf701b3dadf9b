//! What npm says: lines for whoever publishes, and the reason where it failed.

use std::collections::VecDeque;
use std::path::Path;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::publish::progress::Progress;
use crate::sandbox::REGISTRY_PORT;

use super::InstallError;

/// Of npm's output: the reason for a failure stands at its end.
const TAIL_LINES: usize = 60;
const LINE_BYTES_MAX: usize = 500;
/// Of a line without an end.
const LINE_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Progress messages of one run; a hostile script could print for ever.
const LINES_REPORTED_MAX: usize = 2000;

pub(super) type Stream = Option<(pipe::Receiver, BytesMut)>;

/// Reads what there is; false once the stream ended.
pub(super) async fn fill(stream: &mut Stream) -> bool {
    match stream {
        Some((pipe, buffer)) => matches!(pipe.read_buf(buffer).await, Ok(1..)),
        None => std::future::pending().await,
    }
}

/// Passes npm's lines on, and keeps what explains a failure.
pub(super) struct Output<'a> {
    progress: &'a Progress,
    /// Directories of this machine, the inner ones first, and what is told in their place.
    machine: Vec<(String, &'static str)>,
    reported: usize,
    tail: VecDeque<String>,
}

impl<'a> Output<'a> {
    pub(super) fn new(progress: &'a Progress, directory: &Path, cli: &Path) -> Self {
        let npm = cli.parent().and_then(Path::parent);
        let machine = [(Some(directory), ""), (directory.parent(), ""), (npm, "npm/")];
        let shown = |(path, shown): (Option<&Path>, _)| Some((format!("{}/", path?.display()), shown));
        let mut machine: Vec<_> = machine.into_iter().filter_map(shown).collect();
        // And as npm sees them from inside.
        machine
            .extend([("/work/", ""), ("/home/", ""), ("/npm/", "npm/")].map(|(path, shown)| (path.to_owned(), shown)));
        machine.push((format!("http://127.0.0.1:{REGISTRY_PORT}/"), "registry/"));
        Self { progress, machine, reported: 0, tail: VecDeque::new() }
    }

    pub(super) fn take_lines(&mut self, stream: &mut Stream, open: bool) {
        let Some((_, buffer)) = stream else { return };
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            self.line(&String::from_utf8_lossy(&line));
        }
        if !open || buffer.len() > LINE_BUFFER_BYTES_MAX {
            let rest = buffer.split();
            self.line(&String::from_utf8_lossy(&rest));
        }
        if !open {
            *stream = None;
        }
    }

    fn line(&mut self, line: &str) {
        if is_stack_of_npm(line) {
            return;
        }
        let mut line = line.trim_end().to_owned();
        for (directory, shown) in &self.machine {
            line = line.replace(directory, shown);
        }
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        if line.is_empty() {
            return;
        }
        if self.reported < LINES_REPORTED_MAX {
            self.reported += 1;
            self.progress.say("install", &line);
        }
        self.tail.push_back(line);
        if self.tail.len() > TAIL_LINES {
            self.tail.pop_front();
        }
    }

    /// npm's own words: `npm error code E404`, then lines of explanation.
    pub(super) fn explain(&self) -> InstallError {
        const OF_LOGS: [&str; 3] = ["complete log of this run", "-debug-0.log", "Log files were not written"];
        let errors = self
            .tail
            .iter()
            .filter_map(|line| line.strip_prefix("npm error").or_else(|| line.strip_prefix("npm ERR!")).map(str::trim));
        let mut code = String::new();
        let mut reason = Vec::new();
        for line in errors {
            match line.strip_prefix("code ") {
                Some(found) => code = found.to_owned(),
                None if line.is_empty() || OF_LOGS.iter().any(|text| line.contains(text)) => {}
                None => reason.push(line),
            }
        }
        let reason = if reason.is_empty() {
            self.tail.iter().rev().take(5).rev().cloned().collect::<Vec<_>>().join("\n")
        } else {
            reason.join("\n")
        };
        classify(code, reason)
    }
}

/// Of npm's own code: it explains nothing to a tenant, and names our paths.
fn is_stack_of_npm(line: &str) -> bool {
    let told = line.strip_prefix("npm error").or_else(|| line.strip_prefix("npm ERR!"));
    told.is_some_and(|told| {
        let told = told.trim_start();
        let told = told.strip_prefix("stack").map_or(told, str::trim_start);
        told.starts_with("at ") && (told.contains(".js:") || told.contains("node:") || told.contains("<anonymous>"))
    })
}

fn classify(code: String, reason: String) -> InstallError {
    const AWAY: [&str; 14] = [
        "ECONNREFUSED",
        "ENOTFOUND",
        "EAI_AGAIN",
        "ETIMEDOUT",
        "ECONNRESET",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ERR_SOCKET_TIMEOUT",
        "EPIPE",
        "ERR_SOCKET_CLOSED",
        "ERR_STREAM_PREMATURE_CLOSE",
        "E408",
        "E425",
        "E429",
    ];
    if code == "ENOSPC" || code == "EDQUOT" || reason.contains("ENOSPC") {
        return InstallError::DiskFull(reason);
    }
    // Whatever a registry, or what stands before it, says of itself: E500, E503, Cloudflare's E52x.
    let of_server = code.len() == 4 && code.starts_with("E5") && code[2..].bytes().all(|byte| byte.is_ascii_digit());
    if of_server || AWAY.contains(&code.as_str()) {
        return InstallError::RegistryAway { code, reason };
    }
    let code = if code.is_empty() { "unknown".to_owned() } else { code };
    InstallError::Failed { code, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npms_words_become_the_reason() {
        let progress = Progress::nowhere();
        let mut output =
            Output::new(&progress, Path::new("/data/tmp/layer-x"), Path::new("/usr/lib/npm/bin/npm-cli.js"));
        for line in [
            "npm http fetch GET 404 registry 40ms",
            "npm error code E404",
            "npm error 404 Not Found - GET nope",
            "npm error",
            "npm error     at onread (/usr/lib/npm/lib/x.js:1:2)",
            "npm error stack at Object.<anonymous> (node:fs:1:2)",
            "npm error A complete log of this run can be found in: /data/tmp/npm-home-y/_logs",
        ] {
            output.line(line);
        }
        let InstallError::Failed { code, reason } = output.explain() else { panic!("a failure of the request") };
        assert_eq!((code.as_str(), reason.as_str()), ("E404", "404 Not Found - GET nope"));
    }

    #[test]
    fn paths_of_the_machine_are_not_told() {
        let (progress, mut steps) = Progress::new(crate::model::TraceContext::begin(false, false));
        let mut output =
            Output::new(&progress, Path::new("/data/tmp/layer-x"), Path::new("/usr/lib/npm/bin/npm-cli.js"));
        for line in [
            "npm error path /data/tmp/layer-x/node_modules/a",
            "npm error enoent /data/tmp/npm-home-y/cache",
            "npm error syscall open /usr/lib/npm/lib/cli.js",
            "    at script (/data/tmp/layer-x/node_modules/a/install.js:1:1)",
        ] {
            output.line(line);
        }
        let told: Vec<String> = std::iter::from_fn(|| steps.try_recv().ok()).map(|step| step.message).collect();
        let expected = [
            "npm error path node_modules/a",
            "npm error enoent npm-home-y/cache",
            "npm error syscall open npm/lib/cli.js",
            "    at script (node_modules/a/install.js:1:1)",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn each_code_has_its_class() {
        let class = |code: &str, reason: &str| classify(code.to_owned(), reason.to_owned());
        for code in ["ECONNREFUSED", "E503", "E522", "E408", "EPIPE", "ERR_STREAM_PREMATURE_CLOSE"] {
            assert!(matches!(class(code, "x"), InstallError::RegistryAway { .. }), "{code}");
        }
        assert!(matches!(class("E404", "x"), InstallError::Failed { .. }));
        assert!(matches!(class("ETARGET", "x"), InstallError::Failed { .. }));
        assert!(matches!(class("ENOSPC", "x"), InstallError::DiskFull(_)));
        assert!(matches!(class("", "write ENOSPC"), InstallError::DiskFull(_)));
    }
}

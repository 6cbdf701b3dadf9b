//! The program itself, as a user runs it, with apps like a user's.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use chatfn::proto;
use chatfn::proto::app_service_client::AppServiceClient;
use chatfn::proto::invocation_service_client::InvocationServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::Result;

const CHATFN: &str = env!("CARGO_BIN_EXE_chatfn");
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
const EVENT: &str =
    r#"{"username":"jane","user":{"name":"jane"},"channel":{"id":1},"message":{"body":"How are you?"}}"#;
/// Each says one line, as most do.
const FUNCTIONS: [(&str, &str); 2] = [
    (
        "UserAttemptedStartSession",
        "exports.handleEvent = async (event) => { console.log(`${event.username} signs in`); return { displayName: event.username }; };\n",
    ),
    (
        "UserSentMessage",
        "exports.handleEvent = async (event) => { console.log(`${event.user.name} said something`); return { length: event.message.body.length }; };\n",
    ),
];

/// The trigger types of what each app has: a blocking one, and one whose events are queued.
pub const BLOCKING: &str = FUNCTIONS[0].0;
pub const QUEUED: &str = FUNCTIONS[1].0;

/// Ends when it is dropped.
pub struct Service {
    running: Running,
    database: Option<String>,
    directory: TempDir,
}

struct Running {
    process: Child,
    address: String,
    channel: Channel,
}

impl Service {
    /// As shipped but for its limits: it is alone on this machine. `database`: of PostgreSQL.
    pub async fn start(database: Option<&str>) -> Result<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let running = Running::start(directory.path(), database).await?;
        Ok(Self { running, database: database.map(str::to_owned), directory })
    }

    /// Then no app has a worker.
    pub async fn restart(self) -> Result<Self> {
        let Self { running, database, directory } = self;
        drop(running);
        let running = Running::start(directory.path(), database.as_deref()).await?;
        Ok(Self { running, database, directory })
    }

    pub fn pid(&self) -> u32 {
        self.running.process.id()
    }

    /// Publishes an app through the CLI.
    pub fn publish(&self, app: &str) -> Result<()> {
        let project = self.directory.path().join("project");
        fs::create_dir_all(project.join("functions"))?;
        for (trigger_type, source) in FUNCTIONS {
            fs::write(project.join("functions").join(trigger_type).with_extension("js"), source)?;
        }
        self.cli(&["publish", "--json", "--app", app], Some(&project)).map(drop)
    }

    /// One call. How long a worker's start took, if there was one.
    pub async fn invoke(&self, app: &str) -> Result<Option<Duration>> {
        let request = proto::InvokeRequest {
            app_id: app.to_owned(),
            trigger_type: BLOCKING.to_owned(),
            event_json: Bytes::from_static(EVENT.as_bytes()),
            ..Default::default()
        };
        let begin = std::time::Instant::now();
        let response = InvocationServiceClient::new(self.running.channel.clone()).invoke(request).await?.into_inner();
        Ok(response.cold_start.then(|| begin.elapsed()))
    }

    /// Calls at a fixed rate, until all that came of them is done. How many succeeded, and their median in µs.
    pub async fn load(&self, app: &str, trigger_type: &str, rate: u32, seconds: u32) -> Result<Load> {
        let (rate, seconds) = (rate.to_string(), format!("{seconds}s"));
        let arguments =
            ["bench", "--json", "--app", app, "--trigger-type", trigger_type, "--event", EVENT, "--warmup", "0s"];
        let arguments = [&arguments[..], &["--rate", &rate, "--duration", &seconds]].concat();
        let report: serde_json::Value = serde_json::from_slice(&self.cli(&arguments, None)?)?;
        if report["errors"] != 0 || report["skipped"] != 0 {
            return Err(format!("the machine is too slow for {rate}/s: {report}").into());
        }
        while self.queued(app).await? > 0 {
            sleep(PAUSE).await;
        }
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or_default();
        Ok(Load { calls: number(&report["succeeded"]), median_micros: number(&report["latency_micros"]["p50"]) })
    }

    /// Bytes of files, in the data directory.
    pub fn disk(&self) -> Result<u64> {
        bytes_below(&self.directory.path().join("data"))
    }

    async fn queued(&self, app: &str) -> Result<u64> {
        let request = proto::GetAppRequest { app_id: app.to_owned() };
        let app = AppServiceClient::new(self.running.channel.clone()).get_app(request).await?.into_inner().app;
        let queue = app.and_then(|app| app.queue).ok_or("an app without a queue")?;
        Ok(queue.queued + queue.running)
    }

    #[allow(clippy::disallowed_methods, reason = "as users do it")]
    fn cli(&self, arguments: &[&str], project: Option<&Path>) -> Result<Vec<u8>> {
        let mut command = Command::new(CHATFN);
        command.args(arguments).args(["--address", &self.running.address]).args(project).stderr(Stdio::null());
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("chatfn {}: {}", arguments[0], String::from_utf8_lossy(&output.stdout)).into());
        }
        Ok(output.stdout)
    }
}

impl Running {
    #[allow(clippy::disallowed_methods, reason = "as users start it")]
    async fn start(directory: &Path, database: Option<&str>) -> Result<Self> {
        let mut command = Command::new(CHATFN);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(directory.join("data"));
        command.args(["--set", "log_level=error", "--set", "memory_budget_bytes=64000000000"]);
        if let Some(url) = database {
            command.env("CHATFN_DATABASE_URL", url);
        }
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().strip_prefix("chatfn listens on ").ok_or("the service did not start")?.to_owned();
        let channel = Channel::from_shared(address.clone())?.connect().await?;
        Ok(Self { process, address, channel })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

pub struct Load {
    pub calls: f64,
    pub median_micros: f64,
}

fn bytes_below(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += if kind.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

//! A real service per test: its own process, port, data directory and configuration.
//!
//! [`TestServer::stop`] ends it as an operator would, and fails the test when a process is left over or the service logged a
//! WARN or ERROR that the test did not announce with [`TestServer::expect_log`].

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatfn::proto::app_service_client::AppServiceClient;
use chatfn::proto::event_service_client::EventServiceClient;
use chatfn::proto::invocation_service_client::InvocationServiceClient;
use chatfn::proto::publish_version_response::Event;
use chatfn::proto::version_service_client::VersionServiceClient;
use chatfn::proto::{self, invoke_response::Outcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

/// The blocking trigger, and a non-blocking one.
pub const LOGIN: &str = "UserAttemptedStartSession";
pub const SENT: &str = "UserSentMessage";
pub const SENT_EVENT: &str = r#"{"user":{"name":"jane"},"channel":{"id":1},"message":{"body":"hi"}}"#;

/// Names the binary of the version before, for the tests of upgrades.
pub const PREVIOUS: &str = "CHATFN_PREVIOUS";

/// For anything that should happen "soon". Generous: the machine is shared.
const PATIENCE: Duration = Duration::from_secs(120);
/// Announced at every start.
/// The first is a WARN where a layer is missing.
const ALWAYS_LOGGED: [&str; 2] = ["isolation: ", "open: no operator_token_file"];

pub struct TestServer {
    process: Child,
    pub address: String,
    pub channel: Channel,
    data: Arc<TempDir>,
    settings: Vec<String>,
    log: Arc<Mutex<Vec<String>>>,
    expected: Vec<String>,
}

impl TestServer {
    /// A service with no default dependencies (so that publishing needs no npm), patience for Node, and everything else as shipped.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings as `--set` takes them: `idle_ttl=1s`.
    pub async fn with(settings: &[&str]) -> Self {
        let data = Arc::new(tempfile::tempdir().expect("temp dir"));
        let mut settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        if !settings.iter().any(|setting| setting.starts_with("database_url=")) {
            settings.extend(crate::postgres::of_this_run());
        }
        Self::on(data, settings).await
    }

    async fn on(data: Arc<TempDir>, settings: Vec<String>) -> Self {
        Self::started(command(data.path(), &settings), data, settings).await
    }

    async fn started(command: Command, data: Arc<TempDir>, settings: Vec<String>) -> Self {
        let started = Self::reached(command, data, settings, async |endpoint| endpoint.connect().await).await;
        started.unwrap_or_else(|log| panic!("the service did not start: {log:?}"))
    }

    /// As [`TestServer::with`], where the settings have it speak TLS.
    pub async fn secured(settings: &[&str], tls: ClientTlsConfig) -> Self {
        let data = Arc::new(tempfile::tempdir().expect("temp dir"));
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let command = command(data.path(), &settings);
        // Again and again, as the service may give a handshake little time.
        let connect = async |endpoint: Endpoint| {
            let endpoint = endpoint.tls_config(tls).expect("certificates");
            let deadline = Instant::now() + PATIENCE;
            loop {
                match endpoint.connect().await {
                    Err(_) if Instant::now() < deadline => pause().await,
                    connected => return connected,
                }
            }
        };
        let started = Self::reached(command, data, settings, connect).await;
        started.unwrap_or_else(|log| panic!("the service did not start: {log:?}"))
    }

    /// Any command that ends up as the service, reached by a connection of the caller's making. `Err`: what it said if it did not
    /// start.
    pub async fn reached(
        command: Command,
        data: Arc<TempDir>,
        settings: Vec<String>,
        connect: impl AsyncFnOnce(Endpoint) -> Result<Channel, tonic::transport::Error>,
    ) -> Result<Self, Vec<String>> {
        let (mut process, log) = spawn(command);
        let stdout = process.stdout.take().expect("piped");
        let first_line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = first_line.await.expect("reads").expect("stdout");
        let Some(address) = line.trim().strip_prefix("chatfn listens on ") else {
            let _ = process.wait();
            wait_until("it says why", async || !log.lock().expect("log").is_empty()).await;
            let said = log.lock().expect("log").clone();
            return Err(said);
        };
        let address = address.to_owned();
        let channel = connect(Channel::from_shared(address.clone()).expect("address")).await.expect("connects");
        Ok(Self { process, address, channel, data, settings, log, expected: Vec::new() })
    }

    /// Another build of the program, as [`TestServer::with`] starts this one.
    pub async fn of(program: &Path, settings: &[&str]) -> Result<Self, Vec<String>> {
        let data = Arc::new(tempfile::tempdir().expect("temp dir"));
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let ours = command(data.path(), &settings);
        #[allow(clippy::disallowed_methods, reason = "tests start the service as users do")]
        let mut theirs = Command::new(program);
        theirs.args(ours.get_args());
        theirs.env_remove(PREVIOUS);
        theirs.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self::reached(theirs, data, settings, async |endpoint| endpoint.connect().await).await
    }

    /// Started in its data directory without `--config`, so with the `chatfn.toml` there, and with these variables.
    pub async fn with_environment(file: &str, variables: &[(&str, &str)], settings: &[&str]) -> Self {
        let data = Arc::new(tempfile::tempdir().expect("temp dir"));
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        std::fs::write(data.path().join("chatfn.toml"), file).expect("write the configuration");
        let mut command = binary();
        command.current_dir(data.path()).args(["serve", "--data-dir", "data"]).envs(variables.iter().copied());
        for setting in &settings {
            command.arg("--set").arg(setting);
        }
        Self::started(command, data, settings).await
    }

    /// Runs the binary with settings that it should refuse; returns what it said.
    pub fn refused(settings: &[&str]) -> String {
        let data = tempfile::tempdir().expect("temp dir");
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut command = command(data.path(), &settings);
        let output = command.output().expect("runs");
        assert!(!output.status.success(), "it was accepted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Kills the service with SIGKILL and starts it again on the same data.
    pub async fn crash_and_restart(self) -> Self {
        let (data, settings) = self.crash();
        Self::on(data, settings).await
    }

    /// Ends the service in order and starts it again on the same data.
    pub async fn stop_and_restart(self) -> Self {
        let (data, settings) = (Arc::clone(&self.data), self.settings.clone());
        self.stop().await;
        Self::on(data, settings).await
    }

    /// Kills the service with SIGKILL; what it needs to start again.
    pub fn crash(mut self) -> (Arc<TempDir>, Vec<String>) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
        (Arc::clone(&self.data), self.settings.clone())
    }

    pub async fn restart((data, settings): (Arc<TempDir>, Vec<String>)) -> Self {
        Self::on(data, settings).await
    }

    /// SIGTERM, then waits for its end, which must be a clean one.
    pub async fn stop(self) {
        self.terminate();
        self.ended_well().await;
    }

    /// Waits for its end after [`TestServer::terminate`], which must be a clean one.
    pub async fn ended_well(mut self) {
        let status = self.wait().await;
        assert!(status.success(), "it ended with {status}: {:?}", self.log.lock().expect("log"));
        let left_over = processes_of(self.data.path());
        assert!(left_over.is_empty(), "left over: {left_over:?}");
        let log = self.log.lock().expect("log");
        let unexpected: Vec<_> = log.iter().filter(|line| self.is_unexpected(line)).collect();
        assert!(unexpected.is_empty(), "logged: {unexpected:#?}");
    }

    pub fn terminate(&self) {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM).expect("signal");
    }

    /// Waits for the process to end.
    pub async fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "the service did not end");
            pause().await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// A WARN or ERROR that contains this text is all right.
    pub fn expect_log(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("log").clone()
    }

    fn is_unexpected(&self, line: &str) -> bool {
        let grave = line.contains(" WARN ") || line.contains(" ERROR ");
        let known = |text: &&str| line.contains(*text);
        grave && !ALWAYS_LOGGED.iter().any(known) && !self.expected.iter().any(|text| line.contains(text.as_str()))
    }

    pub fn invocations(&self) -> InvocationServiceClient<Channel> {
        InvocationServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn versions(&self) -> VersionServiceClient<Channel> {
        VersionServiceClient::new(self.channel.clone())
    }

    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub fn apps(&self) -> AppServiceClient<Channel> {
        AppServiceClient::new(self.channel.clone())
    }

    /// Publishes and returns the version, or the status it failed with.
    pub async fn publish(&self, request: proto::PublishVersionRequest) -> Result<proto::Version, Status> {
        self.publish_with_progress(request).await.map(|(version, _)| version)
    }

    pub async fn publish_with_progress(
        &self,
        request: proto::PublishVersionRequest,
    ) -> Result<(proto::Version, Vec<proto::Progress>), Status> {
        let mut steps = self.versions().publish_version(request).await?.into_inner();
        let mut progress = Vec::new();
        while let Some(step) = steps.message().await? {
            match step.event.expect("an event") {
                Event::Progress(step) => progress.push(step),
                Event::Version(version) => return Ok((version, progress)),
            }
        }
        panic!("the stream ended without a version or an error");
    }

    /// Publishes files that must be fine, and returns a handle to the app.
    pub async fn deploy(&self, app: &str, files: &[(&str, &str)]) -> TestApp {
        self.publish(request(app, files)).await.expect("publishes");
        self.app(app)
    }

    /// One function with this source.
    pub async fn deploy_function(&self, app: &str, trigger_type: &str, source: &str) -> TestApp {
        self.deploy(app, &[(&format!("functions/{trigger_type}.ts"), source)]).await
    }

    pub fn app(&self, app: &str) -> TestApp {
        TestApp { id: app.to_owned(), channel: self.channel.clone() }
    }

    /// Processes of this service's workers and installs, by its data directory's name.
    pub fn worker_processes(&self) -> Vec<u32> {
        let helps = |pid: &u32| HELPERS.contains(&name_of(*pid).as_str());
        processes_of(self.data.path()).into_iter().filter(|pid| !helps(pid) && !is_spare(*pid)).collect()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "tests start the service as users do")]
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatfn"));
    command.env_remove(PREVIOUS); // For us; the service would warn of it.
    command
}

fn command(data: &Path, settings: &[String]) -> Command {
    let config = data.join("chatfn.toml");
    // A machine that stands still for seconds is none of what these tests are about.
    let file = "default_dependencies = {}\nready_timeout = \"1m\"\n";
    std::fs::write(&config, file).expect("write the configuration");
    let mut command = binary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data-dir").arg(data.join("data"));
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    // None of it may reach a worker.
    command.envs([("NODE_OPTIONS", "--no-deprecation"), ("npm_config_loglevel", "warn"), ("CHATFN_LOG_LEVEL", "info")]);
    command.env("SERVICE_SECRET", "for the service alone");
    command
}

fn spawn(mut command: Command) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the service");
    let log = Arc::new(Mutex::new(Vec::new()));
    let stderr = process.stderr.take().expect("piped");
    let lines = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            lines.lock().expect("log").push(line);
        }
    });
    (process, log)
}

/// What runs as long as the service does.
const HELPERS: [&str; 2] = ["chatfn-broker", "chatfn-egress"];

/// Empty: it is gone.
pub fn name_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Whether it waits in reserve, or is the init of one that does: it sees the shim, and nothing of an app's.
pub fn is_spare(pid: u32) -> bool {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let shows = |target: &str| mounts.lines().any(|line| line.split(' ').nth(4) == Some(target));
    shows("/shim") && !shows("/app")
}

/// Processes with this directory in their command line, their environment or their mounts, the service itself excluded.
pub fn processes_of(directory: &Path) -> Vec<u32> {
    let needle = directory.join("data/").display().to_string().into_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let holds = |file: &str| {
            let content = std::fs::read(entry.path().join(file)).unwrap_or_default();
            content.windows(needle.len()).any(|window| window == needle)
        };
        if holds("cmdline") || holds("environ") || holds("mountinfo") {
            found.push(pid);
        }
    }
    found
}

/// Those that can still do something: a process that is being killed has pipes that take what nobody will read.
pub fn alive(pids: &[u32]) -> Vec<u32> {
    // A zombie is dead; whoever is its parent now has not looked yet.
    let runs =
        |pid: &&u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    pids.iter().filter(runs).copied().collect()
}

/// The only wait in the tests: until a condition holds.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for: {what}");
        pause().await;
    }
}

/// Why a call is refused. One that met the end of its connection is made again, as every gRPC client does by itself.
pub async fn refusal<T>(call: impl AsyncFn() -> Result<T, Status>) -> (Code, String) {
    loop {
        match call().await.err().expect("it is refused") {
            status if was_not_looked_at(&status) => pause().await,
            status => return reason(&status),
        }
    }
}

/// The call never left, or the server said that it did not begin with it.
pub fn was_not_looked_at(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(err) = cause {
        let never_left = err.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        // h2 names neither in its text: `GoAway(b"", NO_ERROR, Remote)`, for streams beyond the last one that the server takes.
        let kind = format!("{err:?}");
        if never_left || kind.contains("REFUSED_STREAM, Remote") || kind.contains(r#"GoAway(b"", NO_ERROR, Remote)"#) {
            return true;
        }
        cause = err.source();
    }
    false
}

/// Between two looks at a condition.
async fn pause() {
    tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_millis(10), Duration::from_secs(1))
        .tick()
        .await;
}

/// A publish request for these files.
pub fn request(app: &str, files: &[(&str, &str)]) -> proto::PublishVersionRequest {
    let files: BTreeMap<String, Bytes> =
        files.iter().map(|(path, content)| ((*path).to_owned(), Bytes::copy_from_slice(content.as_bytes()))).collect();
    proto::PublishVersionRequest {
        app_id: app.to_owned(),
        spec: Some(proto::VersionSpec { files, ..Default::default() }),
        ..Default::default()
    }
}

/// An app of a test's.
#[derive(Clone)]
pub struct TestApp {
    pub id: String,
    channel: Channel,
}

impl TestApp {
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn call(&self, trigger_type: &str, event: &str) -> proto::InvokeRequest {
        proto::InvokeRequest {
            app_id: self.id.clone(),
            trigger_type: trigger_type.to_owned(),
            event_json: Bytes::copy_from_slice(event.as_bytes()),
            ..Default::default()
        }
    }

    pub async fn send(&self, request: proto::InvokeRequest) -> Result<proto::InvokeResponse, Status> {
        let mut client = InvocationServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        client.invoke(request).await.map(tonic::Response::into_inner)
    }

    pub async fn invoke(&self, trigger_type: &str, event: &str) -> Result<proto::InvokeResponse, Status> {
        self.send(self.call(trigger_type, event)).await
    }

    /// The blocking trigger, with a user name that the function may read.
    pub async fn login(&self, username: &str) -> proto::InvokeResponse {
        let event = serde_json::json!({ "username": username }).to_string();
        self.invoke(LOGIN, &event).await.expect("an answer")
    }

    pub async fn show(&self) -> proto::App {
        let request = proto::GetAppRequest { app_id: self.id.clone() };
        let shown = AppServiceClient::new(self.channel.clone()).get_app(request).await;
        shown.expect("the app").into_inner().app.expect("the app")
    }

    /// A queued event, as it stands.
    pub async fn event(&self, event_id: &str) -> proto::Event {
        let request = proto::GetEventRequest { app_id: self.id.clone(), event_id: event_id.to_owned() };
        let got = EventServiceClient::new(self.channel.clone()).get_event(request).await;
        got.expect("the event").into_inner().event.expect("the event")
    }

    pub async fn pool(&self) -> proto::PoolFigures {
        self.show().await.pool.expect("figures")
    }

    pub async fn invocation(&self, invocation_id: &str) -> proto::Invocation {
        let request = proto::GetInvocationRequest { app_id: self.id.clone(), invocation_id: invocation_id.to_owned() };
        let got = InvocationServiceClient::new(self.channel.clone()).get_invocation(request).await;
        got.expect("the invocation").into_inner().invocation.expect("the invocation")
    }

    /// All, newest first (up to 1000).
    pub async fn history(&self) -> Vec<proto::Invocation> {
        let request = proto::ListInvocationsRequest { app_id: self.id.clone(), page_size: 1000, ..Default::default() };
        let mut client = InvocationServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        client.list_invocations(request).await.expect("the history").into_inner().invocations
    }
}

/// Reads outcomes without ceremony.
pub trait Answered {
    fn json(&self) -> serde_json::Value;
    fn failure(&self) -> &proto::FunctionError;
}

impl Answered for proto::InvokeResponse {
    fn json(&self) -> serde_json::Value {
        match &self.outcome {
            Some(Outcome::Result(result)) => serde_json::from_slice(&result.json).expect("JSON"),
            other => panic!("not a result: {other:?}"),
        }
    }

    fn failure(&self) -> &proto::FunctionError {
        match &self.outcome {
            Some(Outcome::Error(error)) => error,
            other => panic!("not an error: {other:?}"),
        }
    }
}

/// The stable reason of an error.
pub fn reason(status: &Status) -> (Code, String) {
    use tonic_types::StatusExt;
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    (status.code(), reason.unwrap_or_default())
}

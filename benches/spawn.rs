//! What confinement costs: a plain `node` beside one in each mode that works on this machine, in one run and taking turns, so that
//! whatever else the machine does hits all of them alike. `cargo bench --bench spawn -- 100` for medians of 100 instead of 30.
//!
//! Everything goes through [`Sandbox`], as in the service, and as there each child tells what the steps of its start took: the layers.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chatfn::config::Config;
use chatfn::host::{Host, shim_directory};
use chatfn::model::Mode;
use chatfn::sandbox::costs::Costs;
use chatfn::sandbox::egress::Policy;
use chatfn::sandbox::egress::policy::Egress;
use chatfn::sandbox::{self, Child, Limits, Mount, Network, Pipes, Profile, Sandbox, Settings, Spec};
use chatfn::worker::FrameCodec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tokio_util::codec::{Decoder, Encoder};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 30;
/// Of ping-pong: in a row, for each round.
const PINGS: u32 = 200;
/// A start that takes longer hangs.
const START_MAX: Duration = Duration::from_secs(20);
const FRAME_BYTES_MAX: usize = 1 << 20;
const MEMORY_BYTES: u64 = 256 << 20;
const HEAP: &str = "--max-old-space-size=160";
/// The numbers on which the shim speaks.
const PROTOCOL: [i32; 2] = [3, 4];

const PING: &str = r#"{"jsonrpc":"2.0","id":"ping","method":"ping"}"#;
const APP: &str = "exports.handleEvent = async (event) => event;\n";
/// Loops for ever as soon as it is loaded.
const SPINS: &str = "for (;;);\n";
/// Starts what starts itself again, as many times as it may.
const FORKS: &str = "const { spawn } = require('child_process');
const storm = () => spawn('/bin/sh', ['-c', 'while :; do sh -c : & sh -c : & done'], { stdio: 'ignore' }).on('error', storm);
for (let n = 0; n < 20; n++) storm();
for (const until = Date.now() + 100; Date.now() < until;);
for (;;) storm();\n";
/// Until a hostile app is in full swing. Nothing tells.
const SWING: Duration = Duration::from_millis(400);
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":"init","method":"initialize","params":{
    "appId":"bench","version":1,"directory":"DIRECTORY","environment":{},"concurrency":1,"init":null,
    "functions":[{"triggerType":"UserSentMessage","blocking":false,"name":"echo","file":"index.js","kind":"cjs"}],
    "limits":{"resultBytesMax":1048576,"logLinesMax":10,"logBytesMax":1024,"logLineBytesMax":256}}}"#;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "sandbox-broker") {
        return Ok(sandbox::serve_broker()?); // `Sandbox::start` runs this program again.
    }
    let rounds = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(ROUNDS).max(1);
    // First: nothing else can have taken the numbers then, and no thread exists while the brokers start.
    let plain = Plain::take_numbers()?;
    let files = Files::prepare()?;
    let mut contestants = vec![Contestant::new("plain node", None)];
    for mode in [Mode::None, Mode::Landlock, Mode::Userns, Mode::Full] {
        match Sandbox::start(files.settings(mode)?) {
            Ok(sandbox) => contestants.push(Contestant::new(mode.as_str(), Some(sandbox))),
            Err(err) => println!("mode {mode} does not work here: {err}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Bench { plain, files, rounds }.run(&mut contestants))
}

/// One way to run Node, and what was measured of it.
struct Contestant {
    name: &'static str,
    /// `None`: plainly.
    sandbox: Option<Sandbox>,
    /// Whether a running worker can be given an app: in a root of its own.
    attaches: bool,
    started: Vec<Duration>,
    first_byte: Vec<Duration>,
    round_trip: Vec<Duration>,
    initialized: Vec<Duration>,
    assigned: Vec<Duration>,
    /// Of each start.
    costs: Vec<Costs>,
}

type Times = fn(&Contestant) -> &Vec<Duration>;

impl Contestant {
    fn new(name: &'static str, sandbox: Option<Sandbox>) -> Self {
        let attaches = sandbox.as_ref().is_some_and(|sandbox| sandbox.report().mode.has_root());
        let [started, first_byte, round_trip, initialized, assigned] = Default::default();
        Self { name, sandbox, attaches, started, first_byte, round_trip, initialized, assigned, costs: Vec::new() }
    }

    fn forget(&mut self) {
        for values in [&mut self.started, &mut self.first_byte, &mut self.initialized, &mut self.assigned] {
            values.clear();
        }
        self.costs.clear();
    }
}

struct Bench {
    plain: Plain,
    files: Files,
    rounds: usize,
}

impl Bench {
    async fn run(&mut self, contestants: &mut [Contestant]) -> Result<()> {
        for round in 0..=self.rounds {
            for contestant in &mut *contestants {
                self.start(contestant).await?;
                self.initialize(contestant).await?;
                if contestant.attaches {
                    self.assign(contestant).await?;
                }
                if round == 0 {
                    contestant.forget(); // What is read for the first time comes from the disk.
                }
            }
        }
        self.ping(contestants).await?;
        self.report(contestants);
        self.kill(contestants).await
    }

    /// Spawn to the protocol's first byte.
    async fn start(&mut self, contestant: &mut Contestant) -> Result<()> {
        let begin = Instant::now();
        let mut worker = self.spawn(contestant, true).await?;
        let started = begin.elapsed();
        worker.first_byte().await?;
        contestant.first_byte.push(begin.elapsed());
        contestant.started.push(started);
        if let Process::Sandboxed(sandboxed) = &worker.process {
            contestant.costs.push(sandboxed.0.costs().clone());
        }
        worker.end().await
    }

    /// Spawn to the answer to `initialize`.
    async fn initialize(&mut self, contestant: &mut Contestant) -> Result<()> {
        let begin = Instant::now();
        let mut worker = self.spawn(contestant, true).await?;
        worker.initialize().await?;
        contestant.initialized.push(begin.elapsed());
        worker.end().await
    }

    /// Attach to the answer to `initialize`, with a worker that is ready.
    async fn assign(&mut self, contestant: &mut Contestant) -> Result<()> {
        let mut worker = self.spawn(contestant, false).await?;
        worker.first_byte().await?;
        let begin = Instant::now();
        let Process::Sandboxed(sandboxed) = &worker.process else { return worker.end().await };
        if let Err(err) = sandboxed.0.attach(vec![self.files.app()], LIMITS, egress()).await {
            println!("mode {}: {err}", contestant.name);
            contestant.attaches = false;
            return worker.end().await;
        }
        worker.initialize().await?;
        contestant.assigned.push(begin.elapsed());
        worker.end().await
    }

    /// Frames there and back, to workers that all live at the same time.
    async fn ping(&mut self, contestants: &mut [Contestant]) -> Result<()> {
        let mut workers = Vec::new();
        for contestant in &*contestants {
            let mut worker = self.spawn(contestant, true).await?;
            worker.initialize().await?;
            workers.push(worker);
        }
        for round in 0..=self.rounds {
            for (worker, contestant) in workers.iter_mut().zip(&mut *contestants) {
                let begin = Instant::now();
                for _ in 0..PINGS {
                    worker.ask(PING).await?;
                }
                if round > 0 {
                    contestant.round_trip.push(begin.elapsed() / PINGS);
                }
            }
        }
        for worker in workers {
            worker.end().await?;
        }
        Ok(())
    }

    /// The worst cases: from the kill until nothing is left, under a tenth of a CPU.
    async fn kill(&mut self, contestants: &[Contestant]) -> Result<()> {
        println!(
            "\nfrom SIGKILL until nothing is left, with 10 % of a CPU: median and worst of {}, in ms",
            self.rounds.min(10)
        );
        for contestant in contestants {
            let Some(sandbox) = &contestant.sandbox else { continue };
            let mut line = format!("{:<12}", contestant.name);
            for (what, profile, source) in
                [("loop", Profile::Worker, SPINS), ("fork storm", Profile::WorkerWithSubprocesses, FORKS)]
            {
                fs::write(self.files.app.join("index.js"), source)?;
                let mut took = Vec::new();
                for _ in 0..self.rounds.min(10) {
                    let spec = self.files.spec(sandbox, true);
                    let limits = Limits { cpu_millis: 100, ..LIMITS };
                    took.push(kill_one(sandbox, Spec { profile, limits, ..spec }, &self.files.app()).await?);
                }
                took.sort();
                let millis = |took: Duration| took.as_secs_f64() * 1000.0;
                let (median, worst) = (millis(took[took.len() / 2]), millis(took[took.len() - 1]));
                line += &format!("{what} {median:>7.1} {worst:>7.1}    ");
            }
            println!("{line}");
        }
        fs::write(self.files.app.join("index.js"), APP)?;
        Ok(())
    }

    async fn spawn(&mut self, contestant: &Contestant, with_app: bool) -> Result<Worker> {
        let Some(sandbox) = &contestant.sandbox else { return self.plain.spawn(&self.files) };
        let mut child = sandbox.spawn(self.files.spec(sandbox, with_app)).await?;
        let mut pipes = child.take_pipes().ok_or("no pipes")?;
        let (write, read) = pipes.protocol.take().ok_or("no protocol")?;
        let directory = sandbox.seen(&self.files.app());
        Ok(Worker::new(directory, Process::Sandboxed(Box::new((child, pipes))), write, read))
    }

    fn report(&self, contestants: &[Contestant]) {
        println!("\nmedians of {}, in ms and as a ratio to plain node", self.rounds);
        print_table(contestants, |sorted| sorted[sorted.len() / 2]);
        println!("\nthe least of each, which a busy machine disturbs less");
        print_table(contestants, |sorted| sorted[0]);
        print_costs(contestants);
        println!(
            "\nexecuted: from the request until Node was executed, so all that the sandbox does. first byte, initialized: from the \
             request until the shim said `ready`, and until it answered `initialize`.\nassigned: a ready worker without an app is given \
             one and answers `initialize`; its ratio is to a fresh plain start. round trip: one frame there and back."
        );
    }
}

/// `pick` is given at least one value, sorted.
fn print_table(contestants: &[Contestant], pick: fn(&[Duration]) -> Duration) {
    let columns: [(&str, Times); 5] = [
        ("executed", |contestant| &contestant.started),
        ("first byte", |contestant| &contestant.first_byte),
        ("initialized", |contestant| &contestant.initialized),
        ("assigned", |contestant| &contestant.assigned),
        ("round trip", |contestant| &contestant.round_trip),
    ];
    let millis = |values: &[Duration]| {
        let mut sorted = values.to_vec();
        sorted.sort();
        (!sorted.is_empty()).then(|| pick(&sorted).as_secs_f64() * 1000.0)
    };
    println!("{:<12}{}", "", columns.map(|(head, _)| format!("{head:>16}")).concat());
    for contestant in contestants {
        let cells = columns.map(|(head, of)| {
            let Some(time) = millis(of(contestant)) else { return format!("{:>16}", "–") };
            if head == "executed" {
                return format!("{time:>16.2}"); // Of next to nothing a ratio says nothing.
            }
            // Nothing plain can be assigned: compared with a fresh start instead.
            let plain = if head == "assigned" { &contestants[0].initialized } else { of(&contestants[0]) };
            let digits = if time < 1.0 { 4 } else { 2 };
            let ratio = time / millis(plain).unwrap_or(f64::NAN);
            format!("{:>16}", format!("{time:.digits$} ({ratio:.2}×)"))
        });
        println!("{:<12}{}", contestant.name, cells.concat());
    }
}

/// Medians of what each step took, in each mode; of a step that is not taken there, nothing.
fn print_costs(contestants: &[Contestant]) {
    let mut steps: Vec<&str> = Vec::new();
    // The mode with the most steps last: theirs are in order.
    for costs in contestants.iter().rev().filter_map(|contestant| contestant.costs.first()) {
        for cost in &costs.0 {
            if !steps.contains(&cost.step.as_str()) {
                steps.push(&cost.step);
            }
        }
    }
    let sandboxed: Vec<_> = contestants.iter().filter(|contestant| contestant.sandbox.is_some()).collect();
    println!("\nmedians of the steps before Node is executed, in ms");
    println!("{:<24}{}", "", sandboxed.iter().map(|contestant| format!("{:>10}", contestant.name)).collect::<String>());
    for step in steps {
        let cell = |contestant: &&Contestant| {
            let all = contestant.costs.iter().flat_map(|costs| &costs.0);
            let mut took: Vec<_> = all.filter(|cost| cost.step == step).map(|cost| cost.took).collect();
            took.sort();
            let median = took.get(took.len() / 2).map(|took| format!("{:.3}", took.as_secs_f64() * 1000.0));
            format!("{:>10}", median.as_deref().unwrap_or("–"))
        };
        println!("{step:<24}{}", sandboxed.iter().map(cell).collect::<String>());
    }
}

/// A running shim.
struct Worker {
    /// Where it sees the app.
    directory: PathBuf,
    process: Process,
    write: pipe::Sender,
    read: pipe::Receiver,
    codec: FrameCodec,
    buffer: BytesMut,
}

enum Process {
    Plain(std::process::Child),
    /// With the log pipes, which must stay open.
    Sandboxed(Box<(Child, Pipes)>),
}

impl Worker {
    fn new(directory: PathBuf, process: Process, write: pipe::Sender, read: pipe::Receiver) -> Self {
        Self { directory, process, write, read, codec: FrameCodec::new(FRAME_BYTES_MAX), buffer: BytesMut::new() }
    }

    async fn first_byte(&mut self) -> Result<()> {
        match timeout(START_MAX, self.read.read_buf(&mut self.buffer)).await?? {
            0 => Err(self.died()),
            _ => Ok(()),
        }
    }

    async fn initialize(&mut self) -> Result<()> {
        let initialize = INITIALIZE.replace("DIRECTORY", &self.directory.display().to_string());
        let answer = timeout(START_MAX, self.ask(&initialize)).await??;
        if answer.contains("\"result\"") { Ok(()) } else { Err(answer.into()) }
    }

    /// Sends a request and waits for its answer; what comes without an id (`ready`) is no answer.
    async fn ask(&mut self, request: &str) -> Result<String> {
        let mut frame = BytesMut::new();
        self.codec.encode(request.as_bytes(), &mut frame)?;
        self.write.write_all(&frame).await?;
        loop {
            while let Some(message) = self.codec.decode(&mut self.buffer)? {
                let text = String::from_utf8_lossy(&message);
                if text.contains("\"id\"") {
                    return Ok(text.into_owned());
                }
            }
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Err(self.died());
            }
        }
    }

    fn died(&mut self) -> Box<dyn Error> {
        let mut said = vec![0; 4096];
        let length = match &mut self.process {
            Process::Sandboxed(sandboxed) => sandboxed.1.stderr.try_read(&mut said).unwrap_or(0),
            Process::Plain(child) => child.stderr.as_mut().and_then(|stderr| stderr.read(&mut said).ok()).unwrap_or(0),
        };
        format!("a worker ended early: {}", String::from_utf8_lossy(&said[..length])).into()
    }

    async fn end(self) -> Result<()> {
        match self.process {
            Process::Sandboxed(mut sandboxed) => {
                sandboxed.0.kill();
                sandboxed.0.wait().await;
            }
            Process::Plain(mut child) => {
                child.kill()?;
                child.wait()?;
            }
        }
        Ok(())
    }
}

async fn kill_one(sandbox: &Sandbox, spec: Spec, app: &Mount) -> Result<Duration> {
    let mut child = sandbox.spawn(spec).await?;
    let mut pipes = child.take_pipes().ok_or("no pipes")?;
    let (write, read) = pipes.protocol.take().ok_or("no protocol")?;
    let mut worker = Worker::new(sandbox.seen(app), Process::Sandboxed(Box::new((child, pipes))), write, read);
    worker.first_byte().await?;
    if timeout(SWING, worker.initialize()).await.is_ok() {
        return Err("a hostile app came to an end".into());
    }
    let begin = Instant::now();
    worker.end().await?;
    Ok(begin.elapsed())
}

/// Starts Node as any program would, with the shim's two descriptors: ours of those numbers, inherited.
struct Plain {
    numbers: [OwnedFd; 2],
}

impl Plain {
    fn take_numbers() -> Result<Self> {
        let null = || File::open("/dev/null").map(OwnedFd::from);
        let numbers = [null()?, null()?];
        if numbers.each_ref().map(|number| number.as_raw_fd()) != PROTOCOL {
            return Err("descriptors 3 and 4 are in use: start this without any but 0, 1 and 2".into());
        }
        Ok(Self { numbers })
    }

    fn spawn(&mut self, files: &Files) -> Result<Worker> {
        let ((child_read, write), (read, child_write)) = (std::io::pipe()?, std::io::pipe()?);
        // dup2 takes close-on-exec away.
        nix::unistd::dup2(&child_read, &mut self.numbers[0])?;
        nix::unistd::dup2(&child_write, &mut self.numbers[1])?;
        #[expect(clippy::disallowed_methods, reason = "what is to be compared is a process that nothing confines")]
        let child = Command::new(&files.host.node)
            .args([HEAP.as_ref(), files.shim().join("main.js").as_os_str()])
            .env_clear()
            .envs(environment())
            .current_dir(&files.app)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        // Else we would hold the child's ends, and its brokers' and siblings' would, too.
        let null = File::open("/dev/null")?;
        for number in &mut self.numbers {
            nix::unistd::dup3(&null, number, nix::fcntl::OFlag::O_CLOEXEC)?;
        }
        let (write, read) = (OwnedFd::from(write), OwnedFd::from(read));
        Ok(Worker::new(
            files.app.clone(),
            Process::Plain(child?),
            pipe::Sender::from_owned_fd(write)?,
            pipe::Receiver::from_owned_fd(read)?,
        ))
    }
}

/// As much as a worker of the default limits has.
const LIMITS: Limits = Limits {
    memory_bytes: MEMORY_BYTES,
    data_bytes: MEMORY_BYTES,
    cpu_millis: 0,
    pids: 64,
    tmp_bytes: 64 << 20,
    open_files: 256,
    file_bytes: 64 << 20,
    cpu_time: None,
};

fn egress() -> Network {
    Network::Egress(Policy::new(Egress::Public { allow: Vec::new() }))
}

fn environment() -> BTreeMap<String, String> {
    let variables = [("PATH", "/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8"), ("NODE_ENV", "production")];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// The shim and an app, as a service has them.
struct Files {
    host: Host,
    app: PathBuf,
    scratch: PathBuf,
    /// Removed at the end.
    _directory: tempfile::TempDir,
}

impl Files {
    fn prepare() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = Config { data_dir: directory.path().join("data"), ..Config::default() };
        let host = Host::prepare(&config)?;
        let (app, scratch) = (host.data.join("app"), host.data.join("scratch"));
        fs::create_dir(&app)?;
        fs::create_dir(&scratch)?;
        fs::write(app.join("index.js"), APP)?;
        Ok(Self { host, app, scratch, _directory: directory })
    }

    fn shim(&self) -> PathBuf {
        shim_directory(&self.host.data)
    }

    /// A root for each mode's broker: they live at the same time.
    fn settings(&self, mode: Mode) -> Result<Settings> {
        let root = self.host.data.join(format!("sandbox-{mode}")).join("root");
        fs::create_dir_all(&root)?;
        let config = Config::default();
        Ok(Settings { root, mode: Some(mode), name: format!("bench-{mode}"), ..self.host.sandbox_settings(&config) })
    }

    fn app(&self) -> Mount {
        Mount::read_only(&self.app, "/app")
    }

    /// As `src/worker` makes it.
    fn spec(&self, sandbox: &Sandbox, with_app: bool) -> Spec {
        let shim = Mount::read_only(&self.shim(), "/shim");
        let main = sandbox.seen(&shim).join("main.js");
        let directory = if sandbox.report().mode.has_root() { Path::new("/app") } else { &self.app };
        let app = with_app.then(|| self.app());
        let mut args = vec![HEAP.to_owned(), main.display().to_string()];
        args.extend((!with_app).then(|| "reserve".to_owned()));
        Spec {
            profile: Profile::Worker,
            args,
            environment: environment(),
            mounts: app.into_iter().chain([shim]).collect(),
            directory: directory.to_owned(),
            scratch: Some(self.scratch.clone()),
            limits: LIMITS,
            network: if with_app { egress() } else { Network::Nothing },
            protocol: true,
        }
    }
}

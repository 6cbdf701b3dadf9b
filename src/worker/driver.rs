//! The task that owns one worker process: it alone writes to it, reads from it, times it, kills it and waits for it.

mod end;
mod output;
mod pipes;
mod start;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::{Decoder, Encoder};

use crate::model::{FailureKind, FunctionFailure, InvocationId, LogLevel, LogSource, Outcome, TriggerType};
use crate::sandbox::{Child, Exit, Pipes};

use super::logs::{Budget, Origin, Sink};
use super::protocol::{self, Inbound, Response};
use super::starts::StartPermit;
use super::{Boot, Command, Config, FrameCodec, Job, OnFree, Program, Reply, StartError, death};
use pipes::Io;

/// Between a timeout (the signal aborts, the caller is answered) and SIGKILL: a handler that heeds the signal keeps its worker.
const OVERDUE_GRACE: Duration = Duration::from_millis(50);
/// For an idle worker that was told to shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// For a worker that closed its end: it is exiting, and how it does says more than our SIGKILL would, which hits its init too.
const CLOSED_GRACE: Duration = Duration::from_millis(500);
/// After the process is gone its pipes hold at most what fits into them.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Room for the envelope around a result.
const ENVELOPE_BYTES: usize = 256 << 10;

pub(super) struct Driver {
    config: Arc<Config>,
    program: Arc<Program>,
    child: Child,
    io: Io,
    /// Removed when the driver ends.
    scratch: Option<TempDir>,
    commands: mpsc::Receiver<Command>,
    /// Whether a handle is left.
    wanted: bool,
    phase: Phase,
    in_flight: Vec<InFlight>,
    /// For lines outside of any invocation; refilled with each one.
    idle_budget: Budget,
    sink: Sink,
    killed: Option<KillCause>,
    /// When the kill follows, where it was put off.
    kill_at: Option<Instant>,
    /// The shim said that it exits. What it did not answer by then it never began.
    leaving: bool,
    /// It said that something an answered invocation left behind failed.
    faulted: bool,
    /// The process is gone.
    exited: bool,
    spawned: Instant,
    /// For Node until it is ready, and then until it takes `initialize`.
    patience: Duration,
}

type Started = oneshot::Sender<Result<Duration, StartError>>;

enum Phase {
    Booting {
        deadline: Instant,
        started: Started,
        permit: Option<StartPermit>,
    },
    Initializing {
        deadline: Instant,
        started: Started,
        id: String,
        /// It says so. Before that nothing of the tenant's has run.
        begun: bool,
    },
    Serving,
    /// Finishes what it runs, then shuts down.
    Stopping,
    ShuttingDown {
        deadline: Instant,
    },
}

struct InFlight {
    /// Random: code of an earlier invocation cannot answer for a later one.
    id: String,
    trigger_type: TriggerType,
    invocation: InvocationId,
    /// `None` once the caller was answered.
    reply: Option<oneshot::Sender<Reply>>,
    on_free: Option<OnFree>,
    started: Instant,
    /// Of the caller's answer; then of the kill.
    deadline: Instant,
    console_budget: Budget,
    raw_budget: Budget,
}

#[derive(Debug, Clone)]
enum KillCause {
    Overdue(TriggerType),
    /// It closed its end: it is exiting, or wants to.
    Closed,
    Protocol(String),
    Start,
    Stop,
}

enum Wake {
    Protocol(io::Result<usize>),
    Stdout(io::Result<usize>),
    Stderr(io::Result<usize>),
    Writable,
    Command(Option<Command>),
    Exited(Exit),
    Timer,
}

impl Driver {
    pub(super) fn new(
        config: Arc<Config>,
        program: Arc<Program>,
        (child, pipes): (Child, Pipes),
        scratch: Option<TempDir>,
        commands: mpsc::Receiver<Command>,
        started: Started,
        boot: Boot,
    ) -> Option<Self> {
        let spawned = Instant::now();
        let io = Io::new(pipes, config.result_bytes_max + ENVELOPE_BYTES)?;
        let sink = Sink::new(config.logs.clone(), &program, &config.log_limits);
        let idle_budget = Budget::new(&config.log_limits);
        let Boot { patience, permit } = boot;
        let phase = Phase::Booting { deadline: spawned + patience, started, permit };
        Some(Self {
            config,
            program,
            child,
            io,
            scratch,
            commands,
            wanted: true,
            phase,
            in_flight: Vec::new(),
            idle_budget,
            sink,
            killed: None,
            kill_at: None,
            leaving: false,
            faulted: false,
            exited: false,
            spawned,
            patience,
        })
    }

    /// Runs the worker to its end. On return neither it nor any descendant is alive, and every job was answered.
    pub(super) async fn run(mut self) {
        let exit = loop {
            let wake = self.next_wake().await;
            if let Wake::Exited(exit) = wake {
                break exit;
            }
            let talks = matches!(wake, Wake::Protocol(_));
            self.handle(wake);
            // A worker that never stops talking must not keep us from hearing others, nor its timer from being seen.
            if talks {
                self.listen();
            }
            if self.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                self.expire(Instant::now());
            }
        };
        self.exited = true;
        self.refuse_jobs();
        // What it said before it died still counts: an answer, a fault, or the reason on stderr.
        let _ = timeout(DRAIN_MAX, self.drain()).await;
        self.bury(&exit).await;
    }

    fn listen(&mut self) {
        match self.commands.try_recv() {
            Ok(command) => self.handle(Wake::Command(Some(command))),
            Err(TryRecvError::Disconnected) if self.wanted => self.handle(Wake::Command(None)),
            Err(TryRecvError::Disconnected | TryRecvError::Empty) => {}
        }
    }

    /// Nobody waits for the burial of a worker that died before it got their job.
    fn refuse_jobs(&mut self) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Invoke(job, _) = command {
                (job.on_free)(None);
            }
        }
    }

    async fn next_wake(&mut self) -> Wake {
        let timer = self.next_deadline();
        let far = Instant::now() + Duration::from_secs(3600);
        let Io { write, outbox, read, inbox, stdout, stderr, .. } = &mut self.io;
        tokio::select! {
            biased; // The protocol first: an answer that is here beats its own timeout.
            result = read.read_buf(inbox), if self.killed.is_none() => Wake::Protocol(result),
            exit = self.child.wait() => Wake::Exited(exit),
            command = self.commands.recv(), if self.wanted => Wake::Command(command),
            _ = write.writable(), if !outbox.is_empty() && self.killed.is_none() => Wake::Writable,
            () = sleep_until(timer.unwrap_or(far)), if timer.is_some() => Wake::Timer,
            result = stdout.read(), if stdout.open => Wake::Stdout(result),
            result = stderr.read(), if stderr.open => Wake::Stderr(result),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.killed.is_some() {
            // Its end may take a while; nobody's answer does.
            let waiting = self.in_flight.iter().filter(|entry| entry.reply.is_some());
            return waiting.map(|entry| entry.deadline).chain(self.kill_at).min();
        }
        let phase = match &self.phase {
            Phase::Booting { deadline, .. }
            | Phase::Initializing { deadline, .. }
            | Phase::ShuttingDown { deadline } => Some(*deadline),
            Phase::Serving | Phase::Stopping => None,
        };
        self.in_flight.iter().map(|entry| entry.deadline).chain(phase).min()
    }

    fn handle(&mut self, wake: Wake) {
        match wake {
            Wake::Protocol(Ok(0)) => self.kill(KillCause::Closed),
            Wake::Protocol(Ok(_)) => self.read_frames(),
            Wake::Protocol(Err(err)) => self.kill(KillCause::Protocol(err.to_string())),
            Wake::Stdout(result) => {
                self.io.stdout.note(&result);
                self.log_output(LogSource::Stdout, false);
            }
            Wake::Stderr(result) => {
                self.io.stderr.note(&result);
                self.log_output(LogSource::Stderr, false);
            }
            Wake::Writable => drop(self.flush()),
            Wake::Command(Some(Command::Invoke(job, reply))) if self.takes_jobs() => self.invoke(*job, reply),
            // Too late: dropping the reply says that it was not begun.
            Wake::Command(Some(Command::Invoke(job, _))) => (job.on_free)(None),
            Wake::Command(Some(Command::Stop)) => self.stop(),
            Wake::Command(None) => {
                self.wanted = false;
                self.stop();
            }
            Wake::Command(Some(Command::Kill)) => self.kill(KillCause::Stop),
            Wake::Timer => self.expire(Instant::now()),
            Wake::Exited(_) => unreachable!("the loop ends there"),
        }
    }

    fn takes_jobs(&self) -> bool {
        matches!(self.phase, Phase::Serving) && self.killed.is_none() && !self.exited
    }

    fn kill(&mut self, cause: KillCause) {
        let closed = matches!(cause, KillCause::Closed);
        if self.killed.is_none() {
            self.killed = Some(cause);
            self.kill_at = Some(Instant::now() + CLOSED_GRACE);
        }
        if !closed && self.kill_at.take().is_some() {
            self.child.kill();
        }
    }

    /// False: nobody reads at the other end.
    fn send(&mut self, body: &[u8]) -> bool {
        let mut encoder = FrameCodec::new(usize::MAX); // Our own messages: their parts were limited where they came in.
        encoder.encode(body, &mut self.io.outbox).is_ok() && self.flush()
    }

    fn flush(&mut self) -> bool {
        while !self.io.outbox.is_empty() {
            match self.io.write.try_write(&self.io.outbox) {
                Ok(written) => self.io.outbox.advance(written),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => {
                    self.io.outbox.clear();
                    // It is dying, or it has closed its end and would hear of nothing any more, not even that it is to shut down.
                    self.kill(KillCause::Closed);
                    return false;
                }
            }
        }
        true
    }

    fn invoke(&mut self, job: Job, reply: oneshot::Sender<Reply>) {
        let id = format!("{:016x}", rand::random::<u64>());
        let timeout_ms = u64::try_from(job.timeout.as_millis()).unwrap_or(u64::MAX);
        let event: &RawValue = match serde_json::from_str(job.event.as_str()) {
            Ok(event) => event,
            Err(err) => unreachable!("RawJson holds JSON: {err}"),
        };
        let params = protocol::Invoke {
            trigger_type: job.trigger_type.as_str(),
            invocation_id: &job.invocation.to_string(),
            attempt: job.attempt,
            hops: job.hops,
            timeout_ms,
            trace: (&job.trace).into(),
            event,
        };
        let body = protocol::invoke(&id, &params);
        let now = Instant::now();
        let limits = &self.config.log_limits;
        self.idle_budget = Budget::new(limits);
        self.in_flight.push(InFlight {
            id,
            trigger_type: job.trigger_type,
            invocation: job.invocation,
            reply: Some(reply),
            on_free: Some(job.on_free),
            started: now,
            deadline: now + job.timeout,
            console_budget: Budget::new(&limits.with_room_for_the_shims_own_line()),
            raw_budget: Budget::new(limits),
        });
        if !self.send(&body)
            && let Some(entry) = self.in_flight.pop()
            && let Some(on_free) = entry.on_free
        {
            on_free(None); // Its reply is dropped: it never began.
        }
    }

    fn read_frames(&mut self) {
        loop {
            match self.io.codec.decode(&mut self.io.inbox) {
                Ok(Some(frame)) => self.receive(&frame),
                Ok(None) => return,
                Err(err) => return self.kill(KillCause::Protocol(err.to_string())),
            }
        }
    }

    fn receive(&mut self, frame: &[u8]) {
        match protocol::parse(frame) {
            Ok(Inbound::Ready { node }) => self.ready(&node),
            Ok(Inbound::Initializing) => self.initializing(),
            Ok(Inbound::Log { id, level, text, at_ms }) => self.log_console(id.as_deref(), level, &text, at_ms),
            Ok(Inbound::Fault { failure, exiting }) => {
                let failure = self.cleaned(failure);
                let text = format!("uncaught after its invocation ended: {failure}");
                self.sink.system(&Origin::default(), LogLevel::Error, &text);
                self.fault(exiting);
            }
            Ok(Inbound::Response { id, body }) => self.respond(&id, body),
            Err(err) => self.kill(KillCause::Protocol(err.to_string())),
        }
    }

    /// The shim says it once, and only while it serves; a worker that goes on about it is not our shim any more.
    fn fault(&mut self, exiting: bool) {
        if self.faulted || matches!(self.phase, Phase::Booting { .. } | Phase::Initializing { .. }) {
            return self.kill(KillCause::Protocol("a fault out of place".to_owned()));
        }
        self.faulted = !exiting;
        if exiting { self.leave() } else { self.stop() }
    }

    fn respond(&mut self, id: &str, body: Response<'_>) {
        if let Phase::Initializing { id: expected, .. } = &self.phase
            && expected == id
        {
            return self.initialized(body);
        }
        // Not found: it answers an invocation that is over, or one that never was. Either way nobody waits for it.
        if let Some(index) = self.in_flight.iter().position(|entry| entry.id == id) {
            self.complete(index, body);
        }
    }

    fn complete(&mut self, index: usize, body: Response<'_>) {
        let parsed = match body {
            Response::Result(result) => protocol::parse_invoke_result(result).map_err(|err| err.to_string()),
            Response::Error { message, .. } => Err(message),
        };
        let (outcome, usage) = match parsed {
            Ok((Outcome::Failed(failure), usage)) => {
                let mut failure = self.cleaned(failure);
                if failure.kind == FailureKind::OutOfMemory {
                    let memory = death::memory(self.program.limits.memory_bytes, usage.peak_memory_bytes);
                    failure.message = format!("{} (the worker: {memory})", failure.message);
                }
                (Outcome::Failed(failure), usage)
            }
            Ok(parsed) => parsed,
            Err(problem) => return self.kill(KillCause::Protocol(problem)),
        };
        let leaving = matches!(&outcome, Outcome::Failed(failure)
            if matches!(failure.kind, FailureKind::Crashed | FailureKind::Collateral));
        // Written before the answer, so it is in the pipe: it belongs to this invocation.
        self.log_output(LogSource::Stdout, true);
        self.log_output(LogSource::Stderr, true);
        let mut entry = self.in_flight.swap_remove(index);
        if let Some(reply) = entry.reply.take() {
            let _ = reply.send(Reply { outcome, usage, run: entry.started.elapsed() });
        } else {
            let origin = Origin { trigger_type: Some(entry.trigger_type), invocation: Some(entry.invocation) };
            let late = entry.started.elapsed().as_millis();
            self.sink.system(
                &origin,
                LogLevel::Warn,
                &format!("the handler settled after its timeout, {late} ms after it began"),
            );
        }
        if let Some(on_free) = entry.on_free.take() {
            // On its way out it takes no other job: the pool hears that it is gone.
            on_free((!leaving && self.takes_jobs()).then_some(usage));
        }
        if leaving {
            self.leave();
        }
        self.shut_down_if_idle();
    }

    /// The worker is exiting: no more jobs, and not for ever.
    fn leave(&mut self) {
        self.leaving = true;
        if !matches!(self.phase, Phase::Booting { .. } | Phase::Initializing { .. }) {
            self.phase = Phase::ShuttingDown { deadline: Instant::now() + SHUTDOWN_GRACE };
        }
    }

    fn stop(&mut self) {
        match self.phase {
            Phase::Booting { .. } | Phase::Initializing { .. } => self.kill(KillCause::Start),
            Phase::Serving => {
                self.phase = Phase::Stopping;
                self.shut_down_if_idle();
            }
            Phase::Stopping | Phase::ShuttingDown { .. } => {}
        }
    }

    fn shut_down_if_idle(&mut self) {
        if matches!(self.phase, Phase::Stopping) && self.in_flight.is_empty() {
            self.phase = Phase::ShuttingDown { deadline: Instant::now() + SHUTDOWN_GRACE };
            self.send(&protocol::shutdown("shutdown"));
        }
    }

    /// Whatever is due: a start that took too long, a caller's budget, the grace after it.
    fn expire(&mut self, now: Instant) {
        if self.kill_at.take_if(|at| *at <= now).is_some() {
            self.child.kill();
        }
        match &self.phase {
            Phase::Booting { deadline, .. } | Phase::Initializing { deadline, .. } if *deadline <= now => {
                return self.start_timed_out();
            }
            Phase::ShuttingDown { deadline } if *deadline <= now => return self.kill(KillCause::Stop),
            _ => {}
        }
        let mut cancelled = Vec::new();
        let mut overdue = None;
        for entry in self.in_flight.iter_mut().filter(|entry| entry.deadline <= now) {
            let Some(reply) = entry.reply.take() else {
                overdue = Some(entry.trigger_type.clone());
                continue;
            };
            let run = now - entry.started;
            let _ = reply.send(Reply::timed_out(run));
            entry.deadline = now + OVERDUE_GRACE;
            cancelled.push(entry.id.clone());
        }
        for id in cancelled {
            self.send(&protocol::cancel(&id));
        }
        // With `killed` set already this changes nothing.
        if let Some(trigger_type) = overdue {
            self.kill(KillCause::Overdue(trigger_type));
        }
    }

    fn cleaned(&self, mut failure: FunctionFailure) -> FunctionFailure {
        failure.message = self.program.paths.rewrite(&failure.message);
        failure.stack = self.program.paths.rewrite_stack(&failure.stack);
        failure
    }
}

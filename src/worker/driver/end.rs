//! A worker's end: what is still in its pipes, and what those are told who waited for it.

use tokio::io::AsyncReadExt;

use crate::model::{FailureKind, FunctionFailure, LogLevel, LogSource, Outcome};
use crate::sandbox::{Exit, ExitStatus, open_up};
use crate::worker::protocol::Usage;
use crate::worker::{Reply, StartError, death};

use super::{Driver, KillCause, Phase};

impl Driver {
    /// After the end: reads what is left in the pipes.
    pub(super) async fn drain(&mut self) {
        let understood = !matches!(self.killed, Some(KillCause::Protocol(_)));
        while understood && matches!(self.io.read.read_buf(&mut self.io.inbox).await, Ok(1..)) {
            self.read_frames();
        }
        self.log_output(LogSource::Stdout, true);
        self.log_output(LogSource::Stderr, true);
    }

    /// Answers everybody who still waits.
    pub(super) async fn bury(mut self, exit: &Exit) {
        let tail = String::from_utf8_lossy(&self.io.stderr_tail).into_owned();
        let end = death::failure(exit, &tail, self.program.limits.memory_bytes);
        match std::mem::replace(&mut self.phase, Phase::Stopping) {
            Phase::Booting { started, .. } | Phase::Initializing { started, .. } if self.unwanted() => {
                let _ = started.send(Err(StartError::Stopped));
            }
            Phase::Booting { started, .. } => {
                let _ = started.send(Err(StartError::Broken(format!("Node ended before it was ready: {end}"))));
            }
            Phase::Initializing { started, begun: false, .. } => {
                let _ = started.send(Err(StartError::Broken(format!("Node ended before it took its app: {end}"))));
            }
            Phase::Initializing { started, .. } if end.kind == FailureKind::Collateral => {
                let _ = started.send(Err(StartError::Broken(format!("Node ended while it took its app: {end}"))));
            }
            Phase::Initializing { started, .. } => {
                let failure = FunctionFailure { kind: FailureKind::InitFailed, ..end.clone() };
                let _ = started.send(Err(StartError::Init(failure)));
            }
            Phase::Serving | Phase::Stopping | Phase::ShuttingDown { .. } => {}
        }
        // One that was answered at its timeout and still runs is as much a suspect as those who wait.
        let running = self.in_flight.len();
        let failure = self.failure_of_survivors(&end, running);
        let by_itself = matches!(self.killed, None | Some(KillCause::Closed)) && !self.leaving;
        if by_itself && !matches!(exit.status, ExitStatus::Code(0)) {
            self.sink.system(&self.origin(), LogLevel::Error, &end.to_string());
        }
        for mut entry in self.in_flight.drain(..) {
            if let Some(reply) = entry.reply.take()
                && !self.leaving
            {
                let usage = Usage { peak_memory_bytes: exit.peak_memory_bytes, ..Usage::default() };
                let _ = reply.send(Reply {
                    outcome: Outcome::Failed(failure.clone()),
                    usage,
                    run: entry.started.elapsed(),
                });
            }
            if let Some(on_free) = entry.on_free.take() {
                on_free(None);
            }
        }
        // A tenant may have left a million files there.
        let Some(scratch) = self.scratch else { return };
        let remove = move || open_up(scratch.path()).and_then(|()| scratch.close());
        let removed = tokio::task::spawn_blocking(remove).await;
        if let Ok(Err(err)) = removed {
            tracing::warn!(%err, "failed to remove a worker's temporary directory");
        }
    }

    /// We ended it, and for no fault of its own.
    fn unwanted(&self) -> bool {
        matches!(self.killed, Some(KillCause::Start | KillCause::Stop))
    }

    /// What those are told who had no answer when the worker ended.
    fn failure_of_survivors(&self, end: &FunctionFailure, running: usize) -> FunctionFailure {
        let collateral = |name: &str, why: String| FunctionFailure::new(FailureKind::Collateral, name, why);
        match &self.killed {
            Some(KillCause::Overdue(culprit)) => {
                collateral("WorkerStopped", format!("another invocation on this worker ({culprit}) timed out"))
            }
            Some(KillCause::Stop | KillCause::Start) => {
                collateral("WorkerStopped", "the service stopped this worker".to_owned())
            }
            Some(KillCause::Closed | KillCause::Protocol(_)) | None if running > 1 => collateral(
                "WorkerCrashed",
                format!(
                    "the worker ended while {running} invocations ran, and which one did it is unknown: {}",
                    end.message
                ),
            ),
            Some(KillCause::Protocol(problem)) => FunctionFailure::new(
                FailureKind::Crashed,
                "ProtocolViolation",
                format!("the worker said something that is not an answer: {problem}"),
            ),
            Some(KillCause::Closed) | None => end.clone(),
        }
    }
}

//! A worker's start: ready, initialized, or too late.

use tokio::time::Instant;

use crate::model::{FailureKind, FunctionFailure, LogSource, Sdk};
use crate::worker::StartError;
use crate::worker::protocol::{self, Response};

use super::{Driver, KillCause, Phase};

impl Driver {
    pub(super) fn ready(&mut self, node: &str) {
        let phase = std::mem::replace(&mut self.phase, Phase::Serving);
        let Phase::Booting { started, permit, .. } = phase else {
            self.phase = phase;
            return self.kill(KillCause::Protocol("it was ready twice".to_owned()));
        };
        drop(permit); // What follows is the tenant's.
        tracing::trace!(pid = self.child.pid(), node, "worker is ready");
        let id = format!("{:016x}", rand::random::<u64>());
        let limits = self.config.log_limits;
        let params = protocol::Initialize {
            app_id: self.program.app.to_string(),
            version: self.program.version.0,
            directory: self.config.directory(&self.program).display().to_string(),
            environment: self.program.environment.clone(),
            concurrency: self.program.limits.concurrency,
            init: self.program.init.clone(),
            functions: self.program.functions.clone(),
            sdk: Some(self.config.sdk.clone()).filter(Sdk::is_some),
            limits: protocol::ShimLimits {
                result_bytes_max: self.config.result_bytes_max,
                log_lines_max: limits.lines_max,
                log_bytes_max: limits.bytes_max,
                log_line_bytes_max: limits.line_bytes_max,
            },
        };
        let body = protocol::initialize(&id, &params);
        self.phase = Phase::Initializing { deadline: Instant::now() + self.patience, started, id, begun: false };
        self.send(&body);
    }

    pub(super) fn initializing(&mut self) {
        match &mut self.phase {
            Phase::Initializing { deadline, begun, .. } if !*begun => {
                *begun = true;
                *deadline = Instant::now() + self.config.init_timeout;
            }
            _ => self.kill(KillCause::Protocol("it began to initialize out of place".to_owned())),
        }
    }

    pub(super) fn initialized(&mut self, body: Response<'_>) {
        let Phase::Initializing { started, .. } = std::mem::replace(&mut self.phase, Phase::Serving) else { return };
        let result = match body {
            Response::Result(_) => Ok(self.spawned.elapsed()),
            Response::Error { message, failure, phase } => {
                let kind = FailureKind::InitFailed;
                let failure = failure.unwrap_or_else(|| FunctionFailure::new(kind, "InitializationFailed", message));
                let mut failure = self.cleaned(failure);
                failure.kind = kind;
                tracing::debug!(app = %self.program.app, version = %self.program.version, phase, "initialization failed");
                Err(StartError::Init(failure))
            }
        };
        self.log_output(LogSource::Stdout, true);
        self.log_output(LogSource::Stderr, true);
        let failed = result.is_err();
        if started.send(result).is_err() || failed {
            self.kill(KillCause::Start); // Nobody wants it any more, or nobody could.
        }
    }

    pub(super) fn start_timed_out(&mut self) {
        let error = match std::mem::replace(&mut self.phase, Phase::Stopping) {
            Phase::Booting { started, .. } => {
                Some((started, StartError::Broken(format!("Node was not ready within {:?}", self.patience))))
            }
            Phase::Initializing { started, begun: false, .. } => {
                let problem = format!("Node was ready, but did not take its app within {:?}", self.patience);
                Some((started, StartError::Broken(problem)))
            }
            Phase::Initializing { started, .. } => {
                let message = format!(
                    "initialization did not end within {:?}: the initialization script or a module is still loading",
                    self.config.init_timeout
                );
                let failure = FunctionFailure::new(FailureKind::InitFailed, "InitializationTimedOut", message);
                Some((started, StartError::Init(failure)))
            }
            _ => None,
        };
        if let Some((started, error)) = error {
            let _ = started.send(Err(error));
        }
        self.kill(KillCause::Start);
    }
}

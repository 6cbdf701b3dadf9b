//! What a publish tells its caller while it runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use super::typecheck::{Report, TypeDiagnostic};
use crate::metrics::series;
use crate::model::TraceContext;
use crate::traces::{Kind, Span};

/// Steps on their way to the caller; when it does not read, the newer ones are lost, never the publish.
const STEPS_QUEUED_MAX: usize = 4096;

/// One step of a publish.
#[derive(Debug, Clone)]
pub struct Step {
    pub phase: &'static str,
    pub message: String,
    pub at: SystemTime,
    /// Of a type check.
    pub diagnostics: Vec<TypeDiagnostic>,
}

/// Where the steps go.
#[derive(Debug, Clone)]
pub struct Progress {
    steps: mpsc::Sender<Step>,
    phase: Arc<Mutex<Option<Phase>>>,
    /// Of the publish.
    trace: TraceContext,
}

/// The phase that a publish is in.
#[derive(Debug)]
struct Phase {
    name: &'static str,
    since: Instant,
    span: Span,
}

impl Progress {
    pub fn new(trace: TraceContext) -> (Self, mpsc::Receiver<Step>) {
        let (steps, receiver) = mpsc::channel(STEPS_QUEUED_MAX);
        (Self { steps, phase: Arc::default(), trace }, receiver)
    }

    /// What a part of the phase goes on with.
    pub fn trace(&self) -> TraceContext {
        let phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        phase.as_ref().map_or_else(|| self.trace.clone(), |phase| phase.span.context().clone())
    }

    #[cfg(test)]
    pub fn nowhere() -> Self {
        Self::new(TraceContext::begin(false, false)).0
    }

    pub fn say(&self, phase: &'static str, message: &str) {
        self.step(phase, message.to_owned(), Vec::new());
    }

    /// Type errors, all in one step.
    pub fn diagnose(&self, phase: &'static str, report: &Report) {
        self.step(phase, report.to_string(), report.diagnostics.clone());
    }

    /// The phase before it, if there is one, took until now.
    fn enter(&self, next: Option<&'static str>) {
        let mut current = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().map(|phase| phase.name) == next {
            return;
        }
        let entered =
            |name| Phase { name, since: Instant::now(), span: Span::within(&self.trace, Kind::Internal, name) };
        if let Some(Phase { name, since, .. }) = std::mem::replace(&mut *current, next.map(entered)) {
            series().publish_phase(name, since.elapsed());
        }
    }

    /// The last phase is over.
    pub fn end(&self) {
        self.enter(None);
    }

    fn step(&self, phase: &'static str, message: String, diagnostics: Vec<TypeDiagnostic>) {
        self.enter(Some(phase));
        // A caller that hung up does not stop a publish.
        let _ = self.steps.try_send(Step { phase, message, at: SystemTime::now(), diagnostics });
    }
}

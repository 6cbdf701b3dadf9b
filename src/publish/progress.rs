//! What a publish tells its caller while it runs.

use std::time::SystemTime;

use tokio::sync::mpsc;

/// Steps on their way to the caller; when it does not read, the newer ones are lost, never the publish.
const STEPS_QUEUED_MAX: usize = 4096;

/// One step of a publish.
#[derive(Debug, Clone)]
pub struct Step {
    pub phase: &'static str,
    pub message: String,
    pub at: SystemTime,
}

/// Where the steps go.
#[derive(Debug, Clone)]
pub struct Progress {
    steps: mpsc::Sender<Step>,
}

impl Progress {
    pub fn new() -> (Self, mpsc::Receiver<Step>) {
        let (steps, receiver) = mpsc::channel(STEPS_QUEUED_MAX);
        (Self { steps }, receiver)
    }

    #[cfg(test)]
    pub fn nowhere() -> Self {
        Self::new().0
    }

    pub fn say(&self, phase: &'static str, message: &str) {
        // A caller that hung up does not stop a publish.
        let _ = self.steps.try_send(Step { phase, message: message.to_owned(), at: SystemTime::now() });
    }
}

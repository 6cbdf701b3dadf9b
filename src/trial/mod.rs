//! Running functions on the side: of a version, or of a draft, in a pool of its own. Nothing is recorded, queued or delivered.
//!
//! [`Trial`] runs one event; [`replay`] runs recorded ones and compares. Which version, and whether it may, is for callers to say.

mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::artifacts::Manifest;
use crate::model::{Function, InvocationId, LogLine, Outcome, RawJson, Timings, TraceContext, Version};
use crate::pool;
use crate::serving::{Served, Serving};
use crate::traces::{Kind, Span};
use crate::worker::StartError;

pub use replay::{Ended, Recorded, Replay, Replayed};

/// So often another worker is asked for, where one ended before it began.
const TRIES_MAX: u32 = 4;
/// Of a trial; what comes on top of them is lost.
pub const LINES_MAX: usize = 2_000;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("no worker was free: {0}")]
    AtCapacity(String),
    /// The machine or the sandbox failed, not the function.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
    /// The app or the version was deleted meanwhile, or the service stops.
    #[error("the version was unloaded meanwhile: try again")]
    Closed,
    #[error("read the store: {0}")]
    Store(#[from] crate::store::Error),
}

/// A pool on the side. Dropping it ends its workers, soon; [`Trial::end`] waits for that.
pub struct Trial {
    serving: Serving,
    served: Arc<Served>,
    lines: mpsc::Receiver<LogLine>,
    wait_max: Duration,
    trace: TraceContext,
}

/// One event for a function.
#[derive(Debug, Clone)]
pub struct Event {
    pub invocation: InvocationId,
    pub attempt: u32,
    pub json: RawJson,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Tried {
    pub outcome: Outcome,
    pub timings: Timings,
    pub cpu_time: Duration,
    pub peak_memory_bytes: u64,
}

impl Trial {
    /// `lines_max`: of the log; the others are lost. `wait_max`: for a worker. `trace`: of whoever asks for it.
    pub fn start(
        serving: &Serving,
        mut version: Version,
        environment: BTreeMap<String, String>,
        manifest: &Manifest,
        lines_max: usize,
        wait_max: Duration,
        trace: TraceContext,
    ) -> Self {
        version.limits.workers_min = 0;
        let (logs, lines) = mpsc::channel(lines_max.max(1));
        let served = serving.prepare_aside(version, environment, manifest, logs);
        Self { serving: serving.clone(), served, lines, wait_max, trace }
    }

    pub fn version(&self) -> &Version {
        &self.served.version
    }

    /// Runs a function once.
    ///
    /// # Errors
    /// There was no worker to run it. What the function does wrong is an [`Outcome`].
    pub async fn run(&self, function: &Function, event: Event) -> Result<Tried, Error> {
        let asked = Instant::now();
        for _ in 0..TRIES_MAX {
            let lease = match self.served.pool.acquire(asked + self.wait_max).await {
                Ok(lease) => lease,
                Err(pool::Error::NotStarted(StartError::Init(failure))) => {
                    let timings = Timings { queue: asked.elapsed(), ..Timings::default() };
                    let outcome = Outcome::Failed(failure);
                    return Ok(Tried { outcome, timings, cpu_time: Duration::ZERO, peak_memory_bytes: 0 });
                }
                Err(pool::Error::NotStarted(err)) => return Err(Error::NoWorker(err.to_string())),
                Err(pool::Error::Retired) => return Err(Error::Closed),
                Err(err @ (pool::Error::QueueFull | pool::Error::TimedOut)) => {
                    return Err(Error::AtCapacity(err.to_string()));
                }
            };
            let span = Span::within(&self.trace, Kind::Internal, "run");
            let (queue, init) = (asked.elapsed(), lease.cold().unwrap_or_default());
            let request = pool::Request {
                trigger_type: function.trigger_type.clone(),
                invocation: event.invocation,
                attempt: event.attempt,
                hops: 0,
                trace: span.context().clone(),
                event: event.json.clone(),
                timeout: function.timeout,
            };
            if let Some(reply) = lease.run(request).await {
                return Ok(Tried {
                    outcome: reply.outcome,
                    timings: Timings { queue, init, run: reply.run },
                    cpu_time: reply.usage.cpu_time,
                    peak_memory_bytes: reply.usage.peak_memory_bytes,
                });
            }
        }
        Err(Error::NoWorker("workers kept ending before they could begin".to_owned()))
    }

    /// On return no process of it is left. Gives what was logged.
    pub async fn end(mut self) -> Vec<LogLine> {
        self.serving.end(&self.served).await;
        let mut lines = Vec::new();
        while let Ok(line) = self.lines.try_recv() {
            lines.push(line);
        }
        lines
    }
}

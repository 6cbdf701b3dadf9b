//! The right to use a worker for one invocation.

use std::time::Duration;

use tokio::sync::mpsc::OwnedPermit;

use crate::model::{InvocationId, RawJson, TraceContext, TriggerType};
use crate::worker::{Job, Reply, Worker};

use super::state::{LeaseId, WorkerId};

/// What came back, on its way to the supervisor.
#[derive(Debug)]
pub struct Released {
    pub worker: WorkerId,
    pub lease: LeaseId,
    pub memory_bytes: Option<u64>,
}

/// Held for one invocation. It goes back by message: when the worker has truly finished, or when it is dropped unused.
#[derive(Debug)]
pub struct Lease {
    worker: Worker,
    ids: (WorkerId, LeaseId),
    /// Its own place in the supervisor's queue, so that its return cannot get lost. Taken on drop.
    released: Option<OwnedPermit<Released>>,
    /// Reported on drop: 0 for an unused lease, `None` for a worker that is gone or going.
    memory_bytes: Option<u64>,
    cold: Option<Duration>,
}

/// One invocation, as a lease runs it.
#[derive(Debug, Clone)]
pub struct Request {
    pub trigger_type: TriggerType,
    pub invocation: InvocationId,
    pub attempt: u32,
    pub hops: u32,
    /// What the function goes on with.
    pub trace: TraceContext,
    pub event: RawJson,
    pub timeout: Duration,
}

impl Lease {
    pub(super) fn new(
        worker: Worker,
        ids: (WorkerId, LeaseId),
        released: OwnedPermit<Released>,
        cold: Option<Duration>,
    ) -> Self {
        Self { worker, ids, released: Some(released), memory_bytes: Some(0), cold }
    }

    /// How long the worker took to initialize, if this lease had to wait for that.
    pub fn cold(&self) -> Option<Duration> {
        self.cold
    }

    /// Runs an invocation. `None`: the worker ended before it began; another lease can run it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the invocation running until its timeout; the lease goes back after it.
    pub async fn run(self, request: Request) -> Option<Reply> {
        let worker = self.worker.clone();
        let mut lease = self;
        // So it is if nobody says otherwise: a job that is dropped unseen was for a worker that is gone.
        lease.memory_bytes = None;
        let on_free = Box::new(move |usage: Option<crate::worker::Usage>| {
            lease.memory_bytes = usage.map(|usage| usage.memory_bytes);
            drop(lease);
        });
        let job = Job {
            trigger_type: request.trigger_type,
            invocation: request.invocation,
            attempt: request.attempt,
            hops: request.hops,
            trace: request.trace,
            event: request.event,
            timeout: request.timeout,
            on_free,
        };
        worker.run(job).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (worker, lease) = self.ids;
        if let Some(released) = self.released.take() {
            released.send(Released { worker, lease, memory_bytes: self.memory_bytes });
        }
    }
}

//! The right to use a worker for one invocation.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::{InvocationId, RawJson, TriggerType};
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
    /// Holds a place for every lease that can be out, so sending never waits.
    released: mpsc::Sender<Released>,
    /// Reported on drop; the supervisor keeps the last figure for an unused lease.
    memory_bytes: Option<u64>,
    cold: Option<Duration>,
}

/// One invocation, as a lease runs it.
#[derive(Debug, Clone)]
pub struct Request {
    pub trigger_type: TriggerType,
    pub invocation: InvocationId,
    pub attempt: u32,
    pub event: RawJson,
    pub timeout: Duration,
}

impl Lease {
    pub(super) fn new(
        worker: Worker,
        ids: (WorkerId, LeaseId),
        released: mpsc::Sender<Released>,
        cold: Option<Duration>,
    ) -> Self {
        Self { worker, ids, released, memory_bytes: Some(0), cold }
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
        let on_free = Box::new(move |usage: Option<crate::worker::Usage>| {
            lease.memory_bytes = usage.map(|usage| usage.memory_bytes);
            drop(lease);
        });
        let job = Job {
            trigger_type: request.trigger_type,
            invocation: request.invocation,
            attempt: request.attempt,
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
        let released = Released { worker, lease, memory_bytes: self.memory_bytes };
        if self.released.try_send(released).is_err() {
            // Only once the supervisor is gone: nobody counts leases then.
            tracing::debug!("a lease came back to a pool that has ended");
        }
    }
}

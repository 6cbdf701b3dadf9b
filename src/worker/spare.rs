//! A worker in reserve: Node with the shim, confined and ready, without anything of a tenant's.
//!
//! Its `ready` stays unread in its pipe, so that the driver, which begins with the assignment, finds it there and goes on as after a
//! fresh spawn.

use tokio::io::Interest;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::model::Limits;
use crate::sandbox::{self, Child, Exit, Pipes};

use super::{Config, StartError, spec};

/// What a process is started with and cannot be given later: V8's heap, its rlimits, the size of its `/tmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    pub memory_bytes: u64,
    tmp_bytes: u64,
    pids_max: u32,
}

impl Class {
    /// `None`: such workers are always started for their app alone.
    pub fn of(limits: &Limits) -> Option<Self> {
        let Limits { memory_bytes, tmp_bytes, pids_max, .. } = *limits;
        // One that may start programs sees more of the host than the others do.
        (!limits.subprocesses).then_some(Self { memory_bytes, tmp_bytes, pids_max })
    }

    fn limits(self) -> Limits {
        let Self { memory_bytes, tmp_bytes, pids_max } = self;
        Limits { memory_bytes, tmp_bytes, pids_max, cpu_millis: 0, ..Limits::default() }
    }
}

/// Dropping it kills it.
pub struct Spare {
    pub(super) child: Child,
    pub(super) pipes: Pipes,
}

impl Spare {
    /// Whether a running child can be given an app's files here.
    pub fn is_possible(config: &Config) -> bool {
        config.sandbox.report().no_attach.is_none()
    }

    /// Starts one, and returns once its shim is ready.
    ///
    /// # Errors
    /// It ended, was not ready in time, or is not wanted any more. Nothing is left of it.
    ///
    /// # Cancel safety
    /// Dropping the future kills it.
    pub async fn start(config: &Config, class: Class, unwanted: &CancellationToken) -> Result<Self, StartError> {
        let broken = |what: &str| StartError::Broken(what.to_owned());
        let spec = spec(config, &class.limits(), None, None);
        let spawned = config.sandbox.spawn(spec).await;
        let mut child = spawned.map_err(|err| match err {
            sandbox::Error::BrokerGone => StartError::Stopped, // Which it has said itself.
            err => broken(&format!("spawn: {err}")),
        })?;
        let pipes = child.take_pipes().ok_or_else(|| broken("the child has no pipes"))?;
        let spare = Self { child, pipes };
        let ready = tokio::select! {
            ready = timeout(config.ready_timeout, spare.speaks()) => Some(ready),
            () = unwanted.cancelled() => None,
        };
        let problem = match ready {
            Some(Ok(true)) => return Ok(spare),
            Some(Ok(false)) => "Node ended before it was ready".to_owned(),
            Some(Err(_)) => format!("Node was not ready within {:?}", config.ready_timeout),
            None => String::new(),
        };
        let exit = spare.end().await;
        Err(if ready.is_some() { broken(&format!("{problem} ({:?})", exit.status)) } else { StartError::Stopped })
    }

    /// Whether it says something before it ends.
    async fn speaks(&self) -> bool {
        let Some((_, protocol)) = &self.pipes.protocol else { return false };
        protocol.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed())
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Resolves when it has ended, which it does only if something is wrong with it or somebody kills it.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ended(&mut self) -> Exit {
        self.child.wait().await
    }

    /// On return it is gone.
    pub async fn end(mut self) -> Exit {
        self.child.kill();
        self.child.wait().await
    }
}

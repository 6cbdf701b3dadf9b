//! Traces: where the time of a call goes, from its caller through queue and worker into the function.
//!
//! A [`TraceContext`] comes with a call and goes on to the function whether spans are sent or not; [`Span`]s are recorded only where an
//! OpenTelemetry collector is configured and the trace is sampled, else one costs a load and a branch. What has ended goes through a
//! bounded queue to [`sender`], the only one that knows OpenTelemetry; whatever becomes of the collector, no call waits for it or fails.
//! What each span is, `docs/traces.md` says.
#![cfg_attr(
    not(feature = "otlp"),
    allow(dead_code, reason = "without it nobody reads what is recorded, and nothing is")
)]

#[cfg(feature = "otlp")]
mod sender;
mod span;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::model::{TraceContext, TraceId};

pub use span::{Kind, Recording, Span, Value};

use span::Ended;

/// Spans on their way to the collector; those that find no place are lost.
const QUEUED_MAX: usize = 8192;
/// Of this process: so that whoever records a span need not carry it along.
static TRACER: OnceLock<Tracer> = OnceLock::new();

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Runs a request's work, which finds its place in the trace by [`current`]. Tasks that it spawns do not: they are to be told.
pub async fn scope<T>(context: TraceContext, work: impl Future<Output = T>) -> T {
    CURRENT.scope(context, work).await
}

/// Where this request is in its trace. Outside of any: in a new one.
pub fn current() -> TraceContext {
    CURRENT.try_with(TraceContext::clone).unwrap_or_else(|_| TraceContext::begin(false, false))
}

/// How spans are sent.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http://` or `https://` and the collector's address; it speaks OTLP over gRPC.
    pub endpoint: String,
    /// Of the traces that begin here: 0 to 1.
    pub sample_ratio: f64,
    pub service_name: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this chatfn was built without the feature `otlp`, and cannot send traces")]
    NotBuilt,
    #[error("traces.otlp_endpoint: {0}")]
    Endpoint(String),
    #[error("traces are sent from this process already")]
    Twice,
}

/// Who decides what is recorded, and takes it.
struct Tracer {
    sampler: Sampler,
    ended: mpsc::Sender<Box<Ended>>,
    lost: AtomicU64,
}

impl Tracer {
    fn take(&self, span: Box<Ended>) {
        if self.ended.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `None`: nothing is recorded.
fn tracer() -> Option<&'static Tracer> {
    TRACER.get()
}

/// A share of the traces that begin here, the same by every replica and every OpenTelemetry SDK: the trace's id decides.
#[derive(Debug, Clone, Copy)]
struct Sampler {
    below: u64,
}

impl Sampler {
    fn new(ratio: f64) -> Self {
        // As OpenTelemetry's TraceIdRatioBased. A float that is too large saturates.
        Self { below: (ratio.clamp(0.0, 1.0) * (1u64 << 63) as f64) as u64 }
    }

    fn takes(self, trace: TraceId) -> bool {
        let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < self.below
    }
}

/// The task that sends.
pub struct Sending {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Sending {
    /// Sends what has ended until now, for at most so long. What ends later is lost.
    pub async fn stop(self, patience: Duration) {
        self.stop.cancel();
        let mut task = self.task;
        if timeout(patience, &mut task).await.is_err() {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Records from now on. Call within the runtime, once.
///
/// # Errors
/// See [`Error`]. That the collector cannot be reached is none: it may come.
pub fn start(settings: &Settings) -> Result<Sending, Error> {
    let (ended, queue) = mpsc::channel(QUEUED_MAX);
    let stop = CancellationToken::new();
    let sending = sending(settings, queue, stop.clone())?;
    let tracer = Tracer { sampler: Sampler::new(settings.sample_ratio), ended, lost: AtomicU64::new(0) };
    TRACER.set(tracer).map_err(|_| Error::Twice)?;
    Ok(Sending { stop, task: tokio::spawn(sending) })
}

#[cfg(feature = "otlp")]
fn sending(
    settings: &Settings,
    queue: mpsc::Receiver<Box<Ended>>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, Error> {
    Ok(sender::Sender::new(settings, queue)?.run(stop))
}

#[cfg(not(feature = "otlp"))]
fn sending(_: &Settings, _: mpsc::Receiver<Box<Ended>>, _: CancellationToken) -> Result<std::future::Ready<()>, Error> {
    Err(Error::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_takes_its_share_of_traces() {
        let ids: Vec<TraceId> = (0..2000).map(|_| TraceContext::begin(true, true).trace_id).collect();
        let taken = |ratio| ids.iter().filter(|id| Sampler::new(ratio).takes(**id)).count();
        assert_eq!((taken(0.0), taken(1.0)), (0, 2000));
        let quarter = taken(0.25);
        // Binomial: a deviation of 200 is ten of the standard ones.
        assert!((300..700).contains(&quarter), "{quarter}");
        let smaller = |id: &&TraceId| Sampler::new(0.1).takes(**id) && !Sampler::new(0.25).takes(**id);
        assert_eq!(ids.iter().filter(smaller).count(), 0, "whoever samples more has all of those who sample less");
    }
}

//! When the functions of accepted events began, as the history tells: it is written by the service for every event alike, so the
//! function need not know that it is measured.
//!
//! The history counts in whole milliseconds from which the wait for a worker goes on in microseconds. What is reported is the end of
//! that millisecond: never less than the truth, and at most one millisecond more.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::transport::Channel;

use super::{Args, MICROS_MAX, histogram};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;

/// Without news of another event that began.
const PATIENCE: Duration = Duration::from_secs(30);
const PAGE: u32 = 1000;

/// Waits until all of them began. `accepted`: when each was due to be sent.
pub async fn measure(
    mut client: InvocationServiceClient<Channel>,
    args: &Args,
    accepted: &HashMap<String, SystemTime>,
) -> anyhow::Result<Histogram<u64>> {
    if accepted.is_empty() {
        bail!("--starts is for non-blocking triggers: no event was accepted to run later");
    }
    let mut starts: HashMap<String, Duration> = HashMap::new();
    let mut looks = interval(Duration::from_millis(200));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut news = Instant::now();
    loop {
        looks.tick().await;
        let before = starts.len();
        look(&mut client, args, accepted, &mut starts).await?;
        if starts.len() == accepted.len() {
            break;
        }
        if starts.len() > before {
            news = Instant::now();
        }
        if news.elapsed() > PATIENCE {
            bail!("{} of {} events have not begun", accepted.len() - starts.len(), accepted.len());
        }
    }
    let mut latencies = histogram();
    for start in starts.values() {
        latencies.saturating_record((start.as_micros() as u64).clamp(1, MICROS_MAX));
    }
    Ok(latencies)
}

/// Reads the history, the newest first, until it has told of all.
async fn look(
    client: &mut InvocationServiceClient<Channel>,
    args: &Args,
    accepted: &HashMap<String, SystemTime>,
    starts: &mut HashMap<String, Duration>,
) -> anyhow::Result<()> {
    let mut request = proto::ListInvocationsRequest {
        app_id: args.app.name(&args.connection)?,
        trigger_type: args.trigger_type.clone(),
        page_size: PAGE,
        ..Default::default()
    };
    loop {
        let page =
            client.list_invocations(args.connection.request(request.clone())?).await.context("read the history")?;
        let page = page.into_inner();
        for invocation in page.invocations.iter().filter(|invocation| invocation.attempt == 1) {
            if let (Some(due), Some(began)) = (accepted.get(&invocation.event_id), began(invocation)) {
                starts.insert(invocation.event_id.clone(), began.duration_since(*due).unwrap_or_default());
            }
        }
        if page.next_page_token.is_empty() || starts.len() == accepted.len() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

fn began(invocation: &proto::Invocation) -> Option<SystemTime> {
    let created: Duration =
        invocation.created_at.and_then(|at| SystemTime::try_from(at).ok())?.duration_since(UNIX_EPOCH).ok()?;
    let queue = invocation.timings.as_ref()?.queue.and_then(|queue| Duration::try_from(queue).ok())?;
    Some(UNIX_EPOCH + created + Duration::from_millis(1) + queue)
}

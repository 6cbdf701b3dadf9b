//! `chatfn bench`: open-loop load. Calls start when they are due, not when the one before ended, and latency counts from the due
//! time: a server that stalls is charged for all the calls that it kept waiting (no coordinated omission).

mod starts;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::bail;
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;

use crate::cli::client::{AppOption, Connection};
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;
use crate::proto::invoke_response::Outcome;

/// Results on their way to the histogram.
const RESULTS_QUEUED_MAX: usize = 64 << 10;
const MICROS_MAX: u64 = 600_000_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    app: AppOption,
    /// The trigger type
    #[arg(long, default_value = "UserAttemptedStartSession")]
    trigger_type: String,
    /// The event, as JSON
    #[arg(long, default_value = r#"{"username":"jane"}"#)]
    event: String,
    /// Calls per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Calls that are not measured come first, for so long
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// HTTP/2 connections
    #[arg(long, default_value_t = 2)]
    connections: u32,
    /// Calls that may be under way at once; those that find no place count as errors
    #[arg(long, default_value_t = 4096)]
    in_flight_max: u32,
    /// Of a non-blocking trigger: measure until the function began, too, as the history tells. The clocks here and there have to be one
    #[arg(long)]
    starts: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or not one call succeeded.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.rate == 0 || args.connections == 0 || args.in_flight_max == 0 || args.duration.is_zero() {
        bail!("rate, connections, in-flight-max and duration must be above 0");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    report.print(args);
    if report.latencies.is_empty() {
        bail!("not one call succeeded: {}", report.first_error.unwrap_or_default());
    }
    Ok(())
}

struct Report {
    latencies: Histogram<u64>,
    errors: u64,
    /// Calls that found `in_flight_max` others under way.
    skipped: u64,
    cold_starts: u64,
    first_error: Option<String>,
    elapsed: Duration,
    /// When measured events that were accepted were due.
    accepted: HashMap<String, SystemTime>,
    /// Until their functions began, if that was asked for.
    starts: Option<Histogram<u64>>,
}

struct Sample {
    due: Instant,
    done: Instant,
    result: Result<Answer, String>,
}

struct Answer {
    cold_start: bool,
    /// Of a non-blocking trigger.
    event_id: Option<String>,
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let mut channels = Vec::new();
    for _ in 0..args.connections {
        channels.push(args.connection.open().await?);
    }
    let places = Arc::new(Semaphore::new(args.in_flight_max as usize));
    let skipped = Arc::new(AtomicU64::new(0));
    let (samples, receiver) = mpsc::channel(RESULTS_QUEUED_MAX);
    let start = Instant::now();
    let measured_from = start + args.warmup;
    let collector = tokio::spawn(collect(receiver, measured_from));
    let gap = Duration::from_secs(1) / args.rate;
    let calls = ((args.warmup + args.duration).as_secs_f64() * f64::from(args.rate)) as u32;
    for call in 0..calls {
        let due = start + gap * call;
        sleep_until(due).await;
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            skipped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let client = InvocationServiceClient::new(channels[call as usize % channels.len()].clone());
        let (request, samples) = (request(args)?, samples.clone());
        tokio::spawn(async move {
            let result = call_once(client, request).await;
            let _ = samples.send(Sample { due, done: Instant::now(), result }).await;
            drop(place);
        });
    }
    drop(samples);
    let mut report = collector.await?;
    report.skipped = skipped.load(Ordering::Relaxed);
    report.elapsed = measured_from.elapsed();
    if args.starts {
        let client = InvocationServiceClient::new(channels[0].clone());
        report.starts = Some(starts::measure(client, args, &report.accepted).await?);
    }
    Ok(report)
}

fn request(args: &Args) -> anyhow::Result<tonic::Request<proto::InvokeRequest>> {
    args.connection.request(proto::InvokeRequest {
        app_id: args.app.name(&args.connection)?,
        trigger_type: args.trigger_type.clone(),
        event_json: Bytes::copy_from_slice(args.event.as_bytes()),
        ..Default::default()
    })
}

async fn call_once(
    mut client: InvocationServiceClient<Channel>,
    request: tonic::Request<proto::InvokeRequest>,
) -> Result<Answer, String> {
    let response =
        client.invoke(request).await.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    let response = response.into_inner();
    match response.outcome {
        Some(Outcome::Error(error)) => Err(format!("{}: {}", error.name, error.message)),
        Some(Outcome::Skipped(skipped)) => Err(format!("skipped: {}", skipped.reason)),
        Some(Outcome::Accepted(accepted)) => Ok(Answer { cold_start: false, event_id: Some(accepted.event_id) }),
        Some(_) => Ok(Answer { cold_start: response.cold_start, event_id: None }),
        None => Err("no outcome".to_owned()),
    }
}

async fn collect(mut samples: mpsc::Receiver<Sample>, measured_from: Instant) -> Report {
    let mut report = Report {
        latencies: histogram(),
        errors: 0,
        skipped: 0,
        cold_starts: 0,
        first_error: None,
        elapsed: Duration::ZERO,
        accepted: HashMap::new(),
        starts: None,
    };
    while let Some(sample) = samples.recv().await {
        if sample.due < measured_from {
            continue;
        }
        match sample.result {
            Ok(answer) => {
                report.cold_starts += u64::from(answer.cold_start);
                if let Some(event_id) = answer.event_id {
                    report.accepted.insert(event_id, SystemTime::now() - sample.due.elapsed());
                }
                let micros = sample.done.duration_since(sample.due).as_micros() as u64;
                report.latencies.saturating_record(micros.clamp(1, MICROS_MAX));
            }
            Err(err) => {
                report.errors += 1;
                report.first_error.get_or_insert(err);
            }
        }
    }
    report
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("the bounds are valid")
}

fn as_json(latencies: &Histogram<u64>) -> serde_json::Value {
    let quantile = |q| latencies.value_at_quantile(q);
    json!({
        "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "p999": quantile(0.999),
        "max": latencies.max(), "mean": latencies.mean(),
    })
}

fn as_text(latencies: &Histogram<u64>) -> String {
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|q| latencies.value_at_quantile(q));
    format!("p50 {p50} · p90 {p90} · p99 {p99} · p99.9 {p999} · max {}", latencies.max())
}

impl Report {
    fn print(&self, args: &Args) {
        let achieved = self.latencies.len() as f64 / self.elapsed.as_secs_f64();
        if args.json {
            let mut report = json!({
                "rate": args.rate,
                "achieved_per_second": achieved,
                "succeeded": self.latencies.len(),
                "errors": self.errors,
                "skipped": self.skipped,
                "cold_starts": self.cold_starts,
                "first_error": self.first_error,
                "latency_micros": as_json(&self.latencies),
            });
            if let Some(starts) = &self.starts {
                report["start_micros"] = as_json(starts);
            }
            println!("{report}");
            return;
        }
        println!("asked for {} calls/s over {:?}: {achieved:.0}/s succeeded", args.rate, args.duration);
        println!(
            "  {} succeeded, {} failed, {} not started (in-flight-max)",
            self.latencies.len(),
            self.errors,
            self.skipped
        );
        println!("  {} cold starts", self.cold_starts);
        println!("  latency from due time, µs: {}", as_text(&self.latencies));
        if let Some(starts) = &self.starts {
            println!("  until the function began, at most, µs: {}", as_text(starts));
        }
        if let Some(err) = &self.first_error {
            println!("  first error: {err}");
        }
    }
}

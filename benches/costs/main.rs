//! What a call, a worker and an app cost: the service's own figures for `docs/scaling.md` and for the simulation in
//! `benches/capacity`. `scripts/with-postgres cargo bench --bench costs [-- --write FILE]`; without PostgreSQL, SQLite alone.
//!
//! The program runs as shipped; CPU time is the kernel's count for each process, so whoever makes the load is not in it. CPU time
//! depends less on what else the machine does than times do, but it does: compare engines and rates within a run.

mod database;
mod service;
mod usage;

use std::error::Error;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use database::{Database, Work};
use service::{BLOCKING, QUEUED, Service};
use usage::{memory, usage};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Calls in a second: costs that a batch shares are less for each call at a high rate.
const RATES: [u32; 3] = [100, 400, 1000];
const QUEUED_RATES: [u32; 2] = [50, 200];
const SECONDS: u32 = 8;
const WARM_UP_SECONDS: u32 = 5;
/// Beside the first one: each with a worker of its own.
const APPS: u32 = 40;
/// Between their first calls, so that the reserve is full again.
const PAUSE: Duration = Duration::from_millis(400);
const IDLE: Duration = Duration::from_secs(10);
const MIB: f64 = 1_048_576.0;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let write = arguments.iter().position(|text| text == "--write").and_then(|at| arguments.get(at + 1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        let mut figures = json!({ "sqlite": measure("SQLite", None).await? });
        match Database::create().await? {
            Some(database) => figures["postgres"] = measure("PostgreSQL", Some(database)).await?,
            None => println!("PostgreSQL: skipped, because there is none: run this with scripts/with-postgres"),
        }
        Ok::<_, Box<dyn Error>>(figures)
    })?;
    if let Some(file) = write {
        std::fs::write(file, serde_json::to_string_pretty(&figures)? + "\n")?;
    }
    Ok(())
}

async fn measure(engine: &str, mut database: Option<Database>) -> Result<Value> {
    println!("\n{engine}");
    let service = Service::start(database.as_ref().map(|database| database.url.as_str())).await?;
    service.publish("app-0")?;
    service.load("app-0", BLOCKING, RATES[0], WARM_UP_SECONDS).await?;
    service.load("app-0", QUEUED, QUEUED_RATES[0], WARM_UP_SECONDS).await?;
    println!("| calls | service µs | worker µs | PostgreSQL µs | p50 µs | transactions | WAL bytes | stored bytes |");
    println!("|---|---|---|---|---|---|---|---|");
    let (mut blocking, mut queued) = (Vec::new(), Vec::new());
    for rate in RATES {
        blocking.push(calls(&service, database.as_mut(), BLOCKING, rate).await?);
    }
    for rate in QUEUED_RATES {
        queued.push(calls(&service, database.as_mut(), QUEUED, rate).await?);
    }
    let apps = apps(service).await?;
    Ok(json!({ "blocking": blocking, "queued": queued, "apps": apps }))
}

/// Of one call, all that followed from it included.
async fn calls(service: &Service, mut database: Option<&mut Database>, trigger_type: &str, rate: u32) -> Result<Value> {
    let postmaster = database.as_ref().map(|database| database.postmaster);
    let work_before = work(database.as_deref_mut()).await?;
    let before = usage(service.pid(), postmaster)?;
    let load = service.load("app-0", trigger_type, rate, SECONDS).await?;
    sleep(PAUSE).await; // For the history, which is written behind the replies.
    let used = usage(service.pid(), postmaster)? - before;
    let done = work(database).await? - work_before;
    let each = |total: f64| (total / load.calls * 10.0).round() / 10.0;
    let figures = json!({
        "rate": rate,
        "service_micros": each(used.service_cpu),
        "worker_micros": each(used.workers_cpu),
        "database_micros": each(used.database_cpu),
        "median_micros": load.median_micros,
        "transactions": (done.transactions / load.calls * 1000.0).round() / 1000.0,
        "wal_bytes": each(done.wal_bytes).round(),
        "stored_bytes": each(done.stored_bytes).round(),
    });
    let columns = [
        "service_micros",
        "worker_micros",
        "database_micros",
        "median_micros",
        "transactions",
        "wal_bytes",
        "stored_bytes",
    ];
    let columns = columns.map(|column| figures[column].to_string()).join(" | ");
    println!("| {trigger_type}, {rate}/s | {columns} |");
    Ok(figures)
}

async fn work(database: Option<&mut Database>) -> Result<Work> {
    match database {
        Some(database) => database.work().await,
        None => Ok(Work::default()),
    }
}

/// What an app has of its own, a worker among it, and what the first call costs.
async fn apps(service: Service) -> Result<Value> {
    let disk_before = service.disk()?;
    for app in 1..=APPS {
        service.publish(&format!("app-{app}"))?;
    }
    let disk = (service.disk()? - disk_before) as f64 / f64::from(APPS);
    // A publish leaves a warm worker; and now there are none but the reserve's.
    let service = service.restart().await?;
    let idle_before = idle(&service).await?;
    let memory_before = memory(service.pid())?;
    let before = usage(service.pid(), None)?;
    let mut starts = Vec::new();
    for app in 1..=APPS {
        starts.extend(service.invoke(&format!("app-{app}")).await?);
        sleep(PAUSE).await;
    }
    let used = usage(service.pid(), None)? - before;
    starts.sort_unstable();
    let median = starts.get(starts.len() / 2).ok_or("no call started a worker")?;
    let after = memory(service.pid())?;
    let each = |total: f64| total / f64::from(APPS);
    let pool_idle = each((idle(&service).await? - idle_before).max(0.0));
    let figures = json!({
        "service_bytes": after.service.round(),
        "service_bytes_per_app": each(after.service - memory_before.service).round(),
        "disk_bytes_per_app": disk.round(),
        "workers": after.workers,
        "worker_private_bytes": after.worker_private.round(),
        "worker_share_bytes": after.worker_share.round(),
        "starts": starts.len(),
        "start_micros": median.as_micros() as u64,
        "start_cpu_micros": each(used.service_cpu + used.workers_cpu).round(),
        "idle_cpu_micros_per_second": idle_before.round(),
        "idle_cpu_micros_per_second_per_app": pool_idle.round(),
    });
    println!("\n{APPS} apps more, each with a worker:");
    println!(
        "- the service: {:.1} MiB, {:.0} KiB for each app",
        after.service / MIB,
        each(after.service - memory_before.service) / 1024.0
    );
    println!(
        "- a worker: {:.1} MiB of its own, {:.1} with its part of what they share",
        after.worker_private / MIB,
        after.worker_share / MIB
    );
    println!(
        "- a first call: {:.1} ms ({} of {APPS} were cold), {:.1} ms of CPU",
        median.as_secs_f64() * 1e3,
        starts.len(),
        each(used.service_cpu + used.workers_cpu) / 1e3
    );
    println!("- on disk: {:.0} KiB for each app", disk / 1024.0);
    println!("- idle: {idle_before:.0} µs of CPU a second, and {pool_idle:.0} for each app with a worker");
    Ok(figures)
}

/// CPU time in a second, with nothing to do, in µs.
async fn idle(service: &Service) -> Result<f64> {
    let before = usage(service.pid(), None)?;
    sleep(IDLE).await;
    let used = usage(service.pid(), None)? - before;
    Ok((used.service_cpu + used.workers_cpu) / IDLE.as_secs_f64())
}

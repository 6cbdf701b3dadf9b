//! How many replicas 10 000 apps with 50 000 calls a second take: a simulation from what `benches/costs` measured.
//! `cargo bench --bench capacity [-- FIGURES [NAME]]`, NAME for those scenarios that have it in theirs; docs/scaling.md has its tables and says
//! what they mean.
//!
//! What decides about workers and memory is the service's own ([`chatfn::pool::state`], [`chatfn::pool::budget`]), in simulated
//! time; cores, the front and the calls are models of them. One seed, so the same figures give the same tables.

mod agenda;
mod figures;
mod processor;
mod replica;
mod router;
mod simulation;
mod workload;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use figures::Figures;
use router::Routing;
use simulation::{Report, Scenario};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FIGURES: &str = "benches/capacity/figures.json";
const RATE: f64 = 50_000.0;
const GIB: u64 = 1 << 30;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let file = arguments.next().unwrap_or_else(|| FIGURES.to_owned());
    let figures = Figures::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
    println!(
        "| | CPU: mean · most | workers | in use, GiB | promised, GiB | added p50 · p99 · p99.9, ms | cold | refused | hottest: share · replicas · p99, ms · refused |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let wanted = arguments.next().unwrap_or_default();
    for (name, scenario) in scenarios().into_iter().filter(|(name, _)| name.contains(&wanted)) {
        eprintln!("simulates {name}");
        let report = simulation::run(&scenario, &figures);
        println!("| {name} | {} |", columns(&scenario, &report, &figures));
    }
    database(&figures);
    Ok(())
}

fn scenarios() -> Vec<(String, Scenario)> {
    let base = Scenario {
        apps: 10_000,
        rate: RATE,
        hot: None,
        replicas: 16,
        cores: 8,
        budget_bytes: 512 * GIB,
        starts_max: 8,
        routing: Routing::Hashed { balance: 1.5 },
        workers_max: 4,
        concurrency: 1,
        limit_bytes: 256 << 20,
        warm_up: Duration::from_secs(60),
        measured: Duration::from_secs(10),
        one_dies: false,
    };
    let with = |change: fn(&mut Scenario)| {
        let mut scenario = base.clone();
        change(&mut scenario);
        scenario
    };
    let mut all: Vec<(String, Scenario)> =
        [16, 24].map(|replicas| (format!("{replicas} replicas"), Scenario { replicas, ..base.clone() })).into();
    all.extend([
        ("16, `concurrency` 20".to_owned(), with(|s| s.concurrency = 20)),
        ("16, `concurrency` 20, one dies".to_owned(), with(|s| (s.concurrency, s.one_dies) = (20, true))),
        (
            "16, `concurrency` 20, all of it at once".to_owned(),
            with(|s| {
                s.concurrency = 20;
                s.warm_up = Duration::ZERO;
                s.measured = Duration::from_secs(60);
            }),
        ),
        (
            "the same, with all starts at a time".to_owned(),
            with(|s| {
                s.concurrency = 20;
                s.warm_up = Duration::ZERO;
                s.measured = Duration::from_secs(60);
                s.starts_max = usize::MAX;
            }),
        ),
        (
            "16, `concurrency` 20, without a front that keeps apps together".to_owned(),
            with(|s| (s.concurrency, s.routing) = (20, Routing::Any)),
        ),
        (
            "16, `concurrency` 20, `memory_budget_bytes` 192 GiB".to_owned(),
            with(|s| (s.concurrency, s.budget_bytes) = (20, 192 * GIB)),
        ),
        (
            "16, `concurrency` 20, `memory_budget_bytes` 96 GiB".to_owned(),
            with(|s| (s.concurrency, s.budget_bytes) = (20, 96 * GIB)),
        ),
        (
            "16, `concurrency` 20, `memory_budget_bytes` 48 GiB (as shipped on 64)".to_owned(),
            with(|s| (s.concurrency, s.budget_bytes) = (20, 48 * GIB)),
        ),
        ("16, one app has 30 %".to_owned(), with(|s| s.hot = Some(0.3))),
        ("the same, its `workers_max` 16".to_owned(), with(|s| (s.hot, s.workers_max) = (Some(0.3), 16))),
        ("the same, `concurrency` 20 instead".to_owned(), with(|s| (s.hot, s.concurrency) = (Some(0.3), 20))),
    ]);
    all
}

fn columns(scenario: &Scenario, report: &Report, figures: &Figures) -> String {
    let apps = figures.apps();
    let gib = |bytes: f64| bytes / GIB as f64;
    let in_use = apps.service_bytes
        + apps.service_bytes_per_app * report.apps_each
        + apps.worker_private_bytes * report.workers_peak as f64;
    let millis = |value: u64| value as f64 / 1000.0;
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| millis(report.added.value_at_quantile(q)));
    let calls = report.added.len() + report.refused;
    let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
    let lost = if scenario.one_dies { format!(" ({} calls died with it)", report.lost) } else { String::new() };
    let hot_calls = report.added_hot.len() + report.refused_hot;
    format!(
        "{:.0} · {:.0} % | {} | {:.1} | {:.0} | {p50:.2} · {p99:.1} · {p999:.1} | {:.3} % | {:.2} %{lost} | {:.0} % · {} · {:.1} · {:.2} %",
        100.0 * report.busy,
        100.0 * report.busy_most,
        report.workers,
        gib(in_use),
        gib(report.promised_bytes as f64),
        percent(report.cold, calls),
        percent(report.refused, calls),
        100.0 * report.hottest,
        report.replicas_of_hottest,
        millis(report.added_hot.value_at_quantile(0.99)),
        percent(report.refused_hot, hot_calls),
    )
}

/// What comes to the one PostgreSQL, by how many of the calls are events of non-blocking triggers.
fn database(figures: &Figures) {
    println!("\n| PostgreSQL, of 50 000 calls/s | cores | write transactions/s | WAL, MiB/s | stored, GiB a day |");
    println!("|---|---|---|---|---|");
    for queued in [0.0, 0.1, 0.3] {
        let (blocking, event) = (figures.blocking(RATE / 16.0), figures.queued(RATE / 16.0));
        let of_all = |blocking: f64, event: f64| RATE * (blocking * (1.0 - queued) + event * queued);
        println!(
            "| {:.0} % are queued events | {:.0} | {:.0} | {:.0} | {:.0} |",
            queued * 100.0,
            of_all(blocking.database_micros, event.database_micros) / 1e6,
            of_all(blocking.transactions, event.transactions),
            of_all(blocking.wal_bytes, event.wal_bytes) / f64::from(1 << 20),
            of_all(blocking.stored_bytes, event.stored_bytes) * 86_400.0 / GIB as f64,
        );
    }
}

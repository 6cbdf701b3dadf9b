//! Keeps what grows in bounds.

use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::api::{Auth, Rates};
use crate::artifacts::Blobs;
use crate::config::Config;
use crate::metrics::Exposition;
use crate::publish::Publisher;
use crate::serving::Serving;
use crate::store::{self, Store};

/// What is counted gathers in memory until it is put in order.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// So late a replica knows what another one has counted for quotas.
const QUOTA_INTERVAL: Duration = Duration::from_secs(3);
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Rows removed in one transaction, so that writers in between wait little.
const PURGE_BATCH: u32 = 1000;

/// Ends when it is stopped.
pub(super) async fn maintain(
    (store, serving): (Store, Serving),
    (publisher, blobs): (Publisher, Blobs),
    (auth, rates): (Auth, Rates),
    config: Config,
    stop: CancellationToken,
) {
    let files = sweep_files(&publisher, &blobs, stop.clone());
    let quotas = tell_quotas(&rates, stop.clone());
    let rows = maintain_rows(store, serving, (auth, rates.clone()), config, stop.clone());
    tokio::join!(rows, blobs.maintain(stop), files, quotas);
}

/// What was counted for the apps' quotas.
async fn tell_quotas(rates: &Rates, stop: CancellationToken) {
    let mut ticks = interval(QUOTA_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(err) = rates.tell().await {
            tracing::warn!(%err, "what was counted for quotas is not added yet");
        }
    }
}

/// Of versions that were deleted on another replica. Those deleted here are swept at once.
async fn sweep_files(publisher: &Publisher, blobs: &Blobs, stop: CancellationToken) {
    if !blobs.are_shared() {
        return;
    }
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // The start has swept already.
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => publisher.sweep_all().await,
        }
    }
}

/// Of the metrics, for ever.
pub(super) async fn keep_up(exposition: Exposition) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        exposition.run_upkeep();
    }
}

async fn maintain_rows(
    store: Store,
    serving: Serving,
    (auth, rates): (Auth, Rates),
    config: Config,
    stop: CancellationToken,
) {
    let mut ticks = interval(MAINTENANCE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        auth.sweep();
        rates.sweep();
        serving.unload_idle(config.idle_ttl).await;
        if let Err(err) = purge(&store, &rates, &config).await {
            tracing::error!(%err, "failed to purge old rows");
        }
    }
}

async fn purge(store: &Store, rates: &Rates, config: &Config) -> Result<(), store::Error> {
    let now = SystemTime::now();
    let (retention, window) = (config.history_retention, config.idempotency_window);
    while store.purge_history(now, retention, PURGE_BATCH).await? > 0 {}
    while store.purge_events(now, retention, window, PURGE_BATCH).await? > 0 {}
    let long_ago = |span| now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
    while store.purge_old_dead_letters(long_ago(config.dead_letter_retention), PURGE_BATCH).await? > 0 {}
    while store.purge_audit(long_ago(config.audit_retention), PURGE_BATCH).await? > 0 {}
    let before = long_ago(window);
    while store.purge_replies(before, PURGE_BATCH).await? > 0 {}
    while rates.purge(PURGE_BATCH).await? > 0 {}
    store.shrink().await
}

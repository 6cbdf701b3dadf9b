//! What keeps both sides in bounds: the data directory below its limit, the artifact store free of what no version uses, and every
//! version in it that this node has files of.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::blobs::{Blobs, BlobsError, blocking};
use super::remote::{Listed, Remote, RemoteError};
use crate::store;

const COLLECT_INTERVAL: Duration = Duration::from_secs(600);
/// One collection; what is left is for the next.
const REMOVALS_MAX: usize = 1000;
/// Objects that one collection looks at.
const LISTED_MAX: usize = 1_000_000;
const PAGE: u32 = 200;
/// Put back in one pass, so that the rest of the work is not kept waiting.
const RESTORED_MAX: u32 = 200;

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub forgotten: u64,
    pub removed: usize,
    pub restored: u32,
}

#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Blobs(#[from] BlobsError),
}

impl Blobs {
    /// Evicts when something came, and collects now and then, until `stop`. Without an artifact store there is nothing to do.
    pub async fn maintain(&self, stop: CancellationToken) {
        let Some(remote) = self.shared.remote.clone() else { return stop.cancelled().await };
        let artifacts = self.shared.artifacts.clone();
        if blocking(move || artifacts.count_all()).await.is_err() {
            tracing::error!("failed to count what is at hand");
        }
        let work = async { tokio::join!(self.keep_evicting(), self.keep_collecting(&remote)) };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = work => {}
        }
    }

    async fn keep_evicting(&self) {
        loop {
            if let Err(err) = self.evict().await {
                tracing::error!(%err, "failed to evict files from the data directory");
            }
            self.shared.came.notified().await;
        }
    }

    /// Each replica collects: which of them removes an object does not matter, and none relies on another.
    async fn keep_collecting(&self, remote: &Remote) {
        let mut ticks = interval(COLLECT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.collect(remote).await {
                Ok(done) if done == Collected::default() => {}
                Ok(done) => tracing::info!(?done, "collected in the artifact store"),
                Err(err) => tracing::error!(%err, "failed to collect in the artifact store; it is tried again"),
            }
        }
    }

    /// Removes from the data directory what nobody uses, least recently used first, until the rest fits. What is not in the artifact
    /// store stays.
    async fn evict(&self) -> Result<(), BlobsError> {
        let shared = &self.shared;
        let bytes_max = shared.settings.cache_bytes_max;
        for name in shared.artifacts.evictable(bytes_max) {
            if shared.artifacts.fits(bytes_max) {
                break;
            }
            if shared.store.blob(&name).await?.is_none() {
                continue;
            }
            let (artifacts, of) = (shared.artifacts.clone(), name.clone());
            match blocking(move || artifacts.remove(&of)).await? {
                Ok(true) => tracing::info!(files = %name, "evicted from the data directory"),
                Ok(false) => {}
                Err(err) => tracing::error!(%err, files = %name, "failed to evict"),
            }
        }
        Ok(())
    }

    async fn collect(&self, remote: &Remote) -> Result<Collected, CollectError> {
        let now = SystemTime::now();
        let before = now.checked_sub(self.shared.settings.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let forgotten = self.shared.store.forget_blobs(before).await?;
        let (mut there, mut removed, mut listed) = (HashMap::new(), 0, remote.list());
        while let Some(Listed { hash, size_bytes, modified }) = listed.try_next().await? {
            // The database is asked after the listing: what began since then is seen, and stays.
            if modified < before && removed < REMOVALS_MAX && self.remove_unused(remote, &hash).await? {
                removed += 1;
            } else if there.len() < LISTED_MAX {
                there.insert(hash, size_bytes);
            }
        }
        let all_listed = there.len() < LISTED_MAX;
        let restored = if all_listed { self.restore(&there).await? } else { 0 };
        Ok(Collected { forgotten, removed, restored })
    }

    async fn remove_unused(&self, remote: &Remote, hash: &str) -> Result<bool, CollectError> {
        let store = &self.shared.store;
        if !store.begin_removal(hash, SystemTime::now()).await? {
            return Ok(false);
        }
        // On an error the mark stays: the request may still be under way.
        remote.remove(hash).await?;
        store.end_removal(hash).await?;
        Ok(true)
    }

    /// Puts what is at hand and not there: of versions from before there was an artifact store, or where an object was lost.
    async fn restore(&self, there: &HashMap<String, u64>) -> Result<u32, CollectError> {
        let (shared, mut restored, mut after) = (&self.shared, 0, None);
        loop {
            let page = shared.store.version_files(after.as_ref(), PAGE).await?;
            for name in page.iter().flat_map(store::VersionFiles::names) {
                let held = shared.artifacts.hold([name.clone()]);
                if !shared.artifacts.has(&name) {
                    continue;
                }
                let blob = shared.store.blob(&name).await?;
                let lost = blob.as_ref().is_none_or(|blob| there.get(&blob.hash) != Some(&blob.size_bytes));
                // One that was put since the listing is found by another look.
                if lost && restored < RESTORED_MAX {
                    restored += u32::from(self.put_one(&name, false).await?);
                }
                drop(held);
            }
            after = page.last().cloned();
            if after.is_none() {
                return Ok(restored);
            }
        }
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;

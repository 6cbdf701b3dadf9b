//! Credentials that were seen lately, so that a call costs no look into the store.
//!
//! Only those that exist are kept: a new one need not be announced, and nobody can fill this with guesses. Whoever changes
//! credentials tells [`Known::forget`], and other replicas are told by the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::model::{ClientId, Credential};
use crate::store::{self, Secret256, Store};

/// Entries are a few hundred bytes.
const ENTRIES_MAX: usize = 10_000;
/// Less than the store has readers: whoever sends wrong secrets must not take all of them.
const LOOKUPS_MAX: usize = 2;

pub struct Entry {
    pub credential: Credential,
    pub secret_sha256: Secret256,
}

pub struct Known {
    store: Store,
    cache: Mutex<Cache>,
    lookups: Semaphore,
    /// Changes whenever something is forgotten.
    forgotten: watch::Sender<()>,
}

#[derive(Default)]
struct Cache {
    /// How often something was forgotten: what was read before that may be gone.
    generation: u64,
    by_id: HashMap<ClientId, Arc<Entry>>,
    by_secret: HashMap<Secret256, ClientId>,
}

impl Known {
    pub fn new(store: Store) -> Self {
        Self { store, cache: Mutex::default(), lookups: Semaphore::new(LOOKUPS_MAX), forgotten: watch::Sender::new(()) }
    }

    /// Without a look into the store.
    pub fn seen_by_id(&self, id: ClientId) -> Option<Arc<Entry>> {
        self.cache().by_id.get(&id).cloned()
    }

    /// Without a look into the store.
    pub fn seen_by_secret(&self, sha256: &Secret256) -> Option<Arc<Entry>> {
        let cache = self.cache();
        cache.by_id.get(cache.by_secret.get(sha256)?).cloned()
    }

    pub async fn by_id(&self, id: ClientId) -> Result<Option<Arc<Entry>>, store::Error> {
        self.find(|cache| cache.by_id.get(&id).cloned(), || self.store.credential(id)).await
    }

    pub async fn by_secret(&self, sha256: &Secret256) -> Result<Option<Arc<Entry>>, store::Error> {
        let cached = |cache: &Cache| cache.by_id.get(cache.by_secret.get(sha256)?).cloned();
        self.find(cached, || self.store.credential_by_secret(sha256)).await
    }

    async fn find<F>(
        &self,
        cached: impl Fn(&Cache) -> Option<Arc<Entry>>,
        read: impl FnOnce() -> F,
    ) -> Result<Option<Arc<Entry>>, store::Error>
    where
        F: Future<Output = Result<Option<(Credential, Secret256)>, store::Error>>,
    {
        if let Some(entry) = cached(&self.cache()) {
            return Ok(Some(entry));
        }
        let _turn = self.lookups.acquire().await.map_err(|_| store::Error::Closed)?;
        let generation = {
            let cache = self.cache();
            // Another may have looked it up while we waited.
            if let Some(entry) = cached(&cache) {
                return Ok(Some(entry));
            }
            cache.generation
        };
        let Some((credential, secret_sha256)) = read().await? else { return Ok(None) };
        let entry = Arc::new(Entry { credential, secret_sha256 });
        self.cache().keep(&entry, generation);
        Ok(Some(entry))
    }

    /// Those that this says yes to. Their rows must be gone.
    pub fn forget(&self, gone: impl Fn(&Entry) -> bool) {
        let mut cache = self.cache();
        cache.generation += 1;
        cache.by_id.retain(|_, entry| !gone(entry));
        let Cache { by_id, by_secret, .. } = &mut *cache;
        by_secret.retain(|_, id| by_id.contains_key(id));
        drop(cache);
        self.forgotten.send_replace(());
    }

    /// Resolves when there is no such credential (any more), or no store to ask.
    pub async fn gone(&self, id: ClientId) {
        // Before the first look, so that nothing is missed in between.
        let mut forgotten = self.forgotten.subscribe();
        while let Ok(Some(_)) = self.by_id(id).await {
            if forgotten.changed().await.is_err() {
                return;
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic in between leaves at worst an entry that only one of the two maps knows.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn keep(&mut self, entry: &Arc<Entry>, generation: u64) {
        if self.generation != generation {
            return; // It may have been revoked since it was read.
        }
        if self.by_id.len() >= ENTRIES_MAX
            && let Some(id) = self.by_id.keys().next().copied()
            && let Some(evicted) = self.by_id.remove(&id)
        {
            self.by_secret.remove(&evicted.secret_sha256);
        }
        let id = entry.credential.client_id;
        self.by_secret.insert(entry.secret_sha256, id);
        self.by_id.insert(id, Arc::clone(entry));
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn entry(n: u32) -> Arc<Entry> {
        let credential = Credential {
            client_id: ClientId::new(),
            app: None,
            scopes: Default::default(),
            description: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
        };
        Arc::new(Entry { credential, secret_sha256: *blake3::hash(&n.to_be_bytes()).as_bytes() })
    }

    #[test]
    fn what_was_read_before_something_was_forgotten_is_not_kept() {
        let mut cache = Cache { generation: 1, ..Cache::default() };
        cache.keep(&entry(1), 0);
        assert!(cache.by_id.is_empty() && cache.by_secret.is_empty());
        cache.keep(&entry(1), 1);
        assert_eq!((cache.by_id.len(), cache.by_secret.len()), (1, 1));
    }

    #[test]
    fn a_full_cache_lets_one_go_for_each_that_comes() {
        let mut cache = Cache::default();
        for n in 0..u32::try_from(ENTRIES_MAX).expect("small") + 5 {
            cache.keep(&entry(n), 0);
        }
        assert_eq!((cache.by_id.len(), cache.by_secret.len()), (ENTRIES_MAX, ENTRIES_MAX));
    }
}

//! What happens to each app right now: whose turn it is to change it, which builds run, and which files these need.
//!
//! A build takes minutes, a rollback must not wait for it. So a turn is held only while store, routes and files change
//! together, and what a build will refer to is pinned against sweeps meanwhile. The outcome is that of one request after the
//! other, in the order in which they came: an activation that came later is not undone by a build that ends later.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::artifacts::Held;
use crate::model::AppId;

/// Of all apps; those to which nothing happens are forgotten.
#[derive(Default)]
pub(super) struct Turns {
    apps: Mutex<HashMap<AppId, Arc<App>>>,
}

/// Where an activation stands among the others of its app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Default)]
pub(super) struct App {
    turn: tokio::sync::Mutex<()>,
    changes: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    build_ended: Notify,
}

#[derive(Default)]
struct State {
    next_ticket: u64,
    /// Of the activation that serves.
    activated: Ticket,
    next_build: u64,
    builds: HashMap<u64, Running>,
    /// Held while a publish with the key runs.
    keys: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

#[derive(Default)]
struct Running {
    stop: CancellationToken,
    digests: BTreeSet<String>,
    layers: BTreeSet<String>,
    held: Vec<Held>,
}

impl Turns {
    pub fn of(&self, app: &AppId) -> Arc<App> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.retain(|_, app| Arc::strong_count(app) > 1);
        Arc::clone(apps.entry(app.clone()).or_default())
    }
}

impl App {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to change store, routes and files together. Never held during a build.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Changes are made one after the other, builds included: each starts from what the one before made. Taken before a turn.
    pub async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changes.lock().await
    }

    /// One publish at a time for each idempotency key.
    pub async fn key(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let keys = &mut self.state().keys;
            keys.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(keys.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// The next activation's.
    pub fn ticket(&self) -> Ticket {
        let mut state = self.state();
        state.next_ticket += 1;
        Ticket(state.next_ticket)
    }

    /// Whether no activation that came later has served already. Ask it, and tell of it, in one turn.
    pub fn may_activate(&self, ticket: Ticket) -> bool {
        self.state().activated < ticket
    }

    pub fn activated(&self, ticket: Ticket) {
        let mut state = self.state();
        state.activated = state.activated.max(ticket);
    }

    /// Call it in a turn, so that [`App::end_builds`] in a turn sees all of them.
    pub fn begin_build(self: &Arc<Self>) -> Build {
        let mut state = self.state();
        state.next_build += 1;
        let id = state.next_build;
        state.builds.insert(id, Running::default());
        Build { app: Arc::clone(self), id }
    }

    /// Stops every build and waits until each has cleaned up, then takes the turn: no build runs while it is held.
    pub async fn end_builds(&self) -> tokio::sync::MutexGuard<'_, ()> {
        loop {
            let ended = self.build_ended.notified();
            let turn = self.turn().await;
            let running: Vec<CancellationToken> =
                self.state().builds.values().map(|build| build.stop.clone()).collect();
            if running.is_empty() {
                return turn;
            }
            running.iter().for_each(CancellationToken::cancel);
            drop(turn); // They need it to clean up.
            ended.await;
        }
    }

    /// Artifacts and layers that running builds are about to refer to. Only in a turn is it all that there will be.
    pub fn pinned(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let state = self.state();
        let digests = state.builds.values().flat_map(|build| build.digests.iter().cloned()).collect();
        let layers = state.builds.values().flat_map(|build| build.layers.iter().cloned()).collect();
        (digests, layers)
    }
}

/// A version's build, until whatever is left of it was cleaned up.
pub(super) struct Build {
    app: Arc<App>,
    id: u64,
}

impl Build {
    /// Cancelled when the app is deleted.
    pub fn stop(&self) -> CancellationToken {
        self.app.state().builds.get(&self.id).map(|build| build.stop.clone()).unwrap_or_default()
    }

    /// From here on sweeps leave this artifact alone: look for it after this.
    pub async fn pin_digest(&self, digest: &str) {
        if let Some(build) = self.app.state().builds.get_mut(&self.id) {
            build.digests.insert(digest.to_owned());
        }
        drop(self.app.turn().await); // A sweep that did not see it has ended.
    }

    /// As [`Build::pin_digest`], of a layer.
    pub async fn pin_layer(&self, key: &str) {
        if let Some(build) = self.app.state().builds.get_mut(&self.id) {
            build.layers.insert(key.to_owned());
        }
        drop(self.app.turn().await);
    }

    /// From here on these files are not evicted either.
    pub fn keep(&self, held: Held) {
        if let Some(build) = self.app.state().builds.get_mut(&self.id) {
            build.held.push(held);
        }
    }

    /// What it pinned is not needed.
    pub fn unpin(&self) {
        if let Some(build) = self.app.state().builds.get_mut(&self.id) {
            build.digests.clear();
            build.layers.clear();
            build.held.clear();
        }
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        self.app.state().builds.remove(&self.id);
        self.app.build_ended.notify_waiters();
    }
}

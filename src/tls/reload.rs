//! Certificates that change while the service runs.
//!
//! The files' contents are compared, not their times or names: Kubernetes swaps a symlink above them, certbot renames, a person copies.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::{Contents, Error, Files, Loaded};
use crate::config::Tls;

const INTERVAL: Duration = Duration::from_secs(2);
/// Between two warnings of the same certificate's end.
const WARN_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Looks at the files every few seconds, and at once on SIGHUP.
pub struct Reloader {
    state: State,
    configs: watch::Sender<Arc<ServerConfig>>,
    hang_up: Signal,
}

/// What is in use and what was refused.
struct State {
    files: Files,
    loaded: Loaded,
    in_use: blake3::Hash,
    /// New and unusable when last seen. Two files are never replaced at the same moment, so it gets a second look.
    doubtful: Option<blake3::Hash>,
    /// Told already.
    refused: Option<blake3::Hash>,
    warned_at: Option<SystemTime>,
}

impl Reloader {
    /// Reads the files for the first time. `None`: the port speaks no TLS. Call it within a runtime.
    ///
    /// # Errors
    /// The files cannot be used, or the signal cannot be listened for.
    pub fn start(config: &Tls) -> anyhow::Result<Option<Self>> {
        let Some(files) = Files::of(config) else { return Ok(None) };
        let state = State::open(files)?;
        let configs = watch::Sender::new(Arc::clone(&state.loaded.config));
        Ok(Some(Self { state, configs, hang_up: signal(SignalKind::hangup())? }))
    }

    /// What to accept connections with, now and later.
    pub fn configs(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.configs.subscribe()
    }

    /// Until it is dropped.
    pub async fn run(mut self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                Some(()) = self.hang_up.recv() => true,
            };
            let files = self.state.files.clone();
            // A file may lie on a disk that hangs.
            let Ok(read) = spawn_blocking(move || files.read()).await else { continue };
            if let Some(config) = self.state.look(read, asked) {
                self.configs.send_replace(config);
            }
            self.state.warn(SystemTime::now());
        }
    }
}

impl State {
    fn open(files: Files) -> Result<Self, Error> {
        let contents = files.read()?;
        let loaded = files.parse(&contents)?;
        Ok(Self { files, loaded, in_use: contents.hash(), doubtful: None, refused: None, warned_at: None })
    }

    /// The new configuration, if there is one. What cannot be used is told once; `asked`: at once.
    fn look(&mut self, read: Result<Contents, Error>, asked: bool) -> Option<Arc<ServerConfig>> {
        let seen = match &read {
            Ok(contents) => contents.hash(),
            Err(err) => blake3::hash(err.to_string().as_bytes()),
        };
        if seen == self.in_use {
            (self.doubtful, self.refused) = (None, None);
            return None;
        }
        if self.refused == Some(seen) {
            return None;
        }
        match read.and_then(|contents| self.files.parse(&contents)) {
            Ok(loaded) => {
                let until = loaded.expires_at.map(|at| humantime::format_rfc3339_seconds(at).to_string());
                tracing::info!(until, "tls: the new certificate is in use for new connections");
                let config = Arc::clone(&loaded.config);
                (self.loaded, self.in_use) = (loaded, seen);
                (self.doubtful, self.refused, self.warned_at) = (None, None, None);
                Some(config)
            }
            Err(err) if asked || self.doubtful == Some(seen) => {
                tracing::error!(%err, "tls: the files changed and cannot be used: what was read before stays in use");
                self.refused = Some(seen);
                None
            }
            Err(_) => {
                self.doubtful = Some(seen);
                None
            }
        }
    }

    fn warn(&mut self, now: SystemTime) {
        let lately = self.warned_at.and_then(|at| now.duration_since(at).ok()).is_some_and(|ago| ago < WARN_INTERVAL);
        if let Some(warning) = self.loaded.warning(now).filter(|_| !lately) {
            tracing::warn!("{warning}");
            self.warned_at = Some(now);
        }
    }
}

impl Contents {
    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [Some(&self.cert), Some(&*self.key), self.client_ca.as_ref()].into_iter().flatten() {
            hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Ca;
    use super::*;

    #[test]
    fn a_new_pair_is_taken_and_a_broken_one_leaves_the_old_one_until_it_is_whole() {
        let directory = tempfile::tempdir().expect("temp dir");
        let (ca, at) = (Ca::new(), directory.path());
        let config = Tls { cert_file: Some(at.join("cert.pem")), key_file: Some(at.join("key.pem")), ..Tls::default() };
        let files = Files::of(&config).expect("TLS");
        let (first, second) = (ca.issue("localhost", 30), ca.issue("localhost", 60));
        first.write(at);
        let mut state = State::open(files.clone()).expect("fine");
        let before = state.in_use;
        assert!(state.look(files.read(), false).is_none(), "nothing changed");

        std::fs::write(at.join("key.pem"), &second.key).expect("write");
        assert!(state.look(files.read(), false).is_none());
        assert!(state.doubtful.is_some() && state.refused.is_none(), "the certificate may be about to come");
        assert!(state.look(files.read(), false).is_none());
        assert!(state.refused.is_some(), "it did not come");
        assert_eq!(state.in_use, before);

        second.write(at);
        assert!(state.look(files.read(), false).is_some());
        assert!(state.in_use != before && state.refused.is_none());
        std::fs::remove_file(at.join("key.pem")).expect("remove");
        assert!(state.look(files.read(), true).is_none());
        assert!(state.refused.is_some(), "who asks learns at once");
        second.write(at);
        assert!(state.look(files.read(), false).is_none(), "as before, so nothing is new");
        assert!(state.refused.is_none());
    }
}

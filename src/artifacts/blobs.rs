//! The files of versions, wherever they are: at hand in the data directory, or fetched into it from the artifact store.
//!
//! Without an artifact store all of this does nothing: files are where they were made. With one, a publish puts what it made there
//! before its version becomes READY, and whoever needs files asks for them first ([`Blobs::get`]), which also keeps them from being
//! evicted meanwhile. Start reading at [`Blobs::get`] and [`Blobs::put`].

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as SharedFuture};
use tokio::sync::{Notify, Semaphore};

use super::remote::{Remote, RemoteError};
use super::{Artifacts, Error, Held, LAYER_LINK, Manifest, link_layer, pack, unpack};
use crate::model::{AppId, Blob, FilesKind, FilesName};
use crate::store::{self, BeginBlob, Store};

/// At a time, of all apps: each costs a core while it is unpacked or packed.
const FETCHES_MAX: usize = 4;
const PACKS_MAX: usize = 2;
/// Another replica that removes an object just when it is needed is done soon.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);
const REMOVAL_POLL: Duration = Duration::from_millis(200);
/// So often a row that others change meanwhile is begun again.
const PUT_TRIES_MAX: u32 = 3;

/// Why files are not at hand, or could not be kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobsError {
    /// Its detail is in the log: it is for the operator, not for callers.
    #[error("the artifact store cannot be used right now")]
    Away { detail: String },
    #[error("{name} is damaged in the artifact store: {problem}")]
    Damaged { name: FilesName, problem: String },
    #[error("{name} is neither here nor in the artifact store")]
    Missing { name: FilesName },
    #[error("other replicas keep changing {0} in the artifact store")]
    Contended(FilesName),
    #[error(transparent)]
    Local(#[from] Arc<Error>),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a task panicked")]
    Panicked,
}

impl BlobsError {
    /// What clients and the audit log know it by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Away { .. } => "ARTIFACT_STORE_UNAVAILABLE",
            Self::Contended(_) => "ARTIFACT_STORE_CONTENDED",
            Self::Damaged { .. } => "ARTIFACT_DAMAGED",
            Self::Missing { .. } => "ARTIFACT_MISSING",
            Self::Store(err) => err.reason(),
            Self::Local(_) | Self::Panicked => "INTERNAL",
        }
    }

    /// Once, where it happens: those who wait for it may be many.
    fn log(&self, what: &str, files: &FilesName) {
        match self {
            Self::Away { detail } => tracing::error!(%files, err = %detail, "{what}"),
            err => tracing::error!(%files, %err, "{what}"),
        }
    }

    /// Whether it may heal by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Contended(_) | Self::Panicked => true,
            Self::Store(err) => !matches!(err, store::Error::Corrupt(_)),
            Self::Damaged { .. } | Self::Missing { .. } | Self::Local(_) => false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct BlobsSettings {
    pub cache_bytes_max: u64,
    pub grace: Duration,
}

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub artifacts: Artifacts,
    pub store: Store,
    pub remote: Option<Remote>,
    pub settings: BlobsSettings,
    /// By what is fetched: everybody who waits for the same files waits for the same fetch, and shares its outcome.
    fetches: Mutex<HashMap<FilesName, Fetch>>,
    fetching: Semaphore,
    packing: Semaphore,
    /// Something came, and there may be too much now.
    pub came: Notify,
}

type Fetch = SharedFuture<BoxFuture<'static, Result<(), BlobsError>>>;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Blobs {
    pub fn new(artifacts: Artifacts, store: Store, remote: Option<Remote>, settings: BlobsSettings) -> Self {
        let shared = Shared {
            artifacts,
            store,
            remote,
            settings,
            fetches: Mutex::default(),
            fetching: Semaphore::new(FETCHES_MAX),
            packing: Semaphore::new(PACKS_MAX),
            came: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The directories themselves.
    pub fn artifacts(&self) -> &Artifacts {
        &self.shared.artifacts
    }

    /// Whether there is an artifact store.
    pub fn are_shared(&self) -> bool {
        self.shared.remote.is_some()
    }

    /// On return an artifact and its layer are at hand, and stay until what is returned is dropped.
    ///
    /// # Errors
    /// They are not here, and cannot be fetched. Without an artifact store whoever reads them notices.
    ///
    /// # Cancel safety
    /// Of the others here, too: a fetch that has begun goes on.
    pub async fn get(&self, app: &AppId, digest: &str) -> Result<Held, BlobsError> {
        let mut held = self.get_artifact(app, digest).await?;
        if self.are_shared() {
            let manifest = self.shared.artifacts.manifest(app, digest).map_err(Arc::new)?;
            if let Some(layer) = manifest.layer {
                let name = FilesName::layer(app, &layer);
                held.add(name.clone());
                self.bring(name).await?;
            }
        }
        Ok(held)
    }

    /// As [`Blobs::get`], without the layer.
    pub async fn get_artifact(&self, app: &AppId, digest: &str) -> Result<Held, BlobsError> {
        let name = FilesName::artifact(app, digest);
        let held = self.shared.artifacts.hold([name.clone()]);
        self.bring(name).await?;
        Ok(held)
    }

    /// As [`Blobs::get`], of a layer.
    pub async fn get_layer(&self, app: &AppId, key: &str) -> Result<Held, BlobsError> {
        let name = FilesName::layer(app, key);
        let held = self.shared.artifacts.hold([name.clone()]);
        self.bring(name).await?;
        Ok(held)
    }

    /// Puts what a version runs from into the artifact store. On return it is there. Hold it meanwhile.
    ///
    /// # Errors
    /// It cannot be written; a version must not become READY then.
    pub async fn put(&self, names: &[FilesName]) -> Result<(), BlobsError> {
        for name in names {
            self.put_one(name, false)
                .await
                .inspect_err(|err| err.log("failed to put files into the artifact store", name))?;
        }
        Ok(())
    }

    /// Right before a version becomes READY: what was put for it is still there, and stays.
    ///
    /// # Errors
    /// It was collected since, which takes a publish longer than the time of grace.
    pub async fn confirm(&self, names: &[FilesName]) -> Result<(), BlobsError> {
        if !self.are_shared() {
            return Ok(());
        }
        for name in names {
            if self.shared.store.touch_blob(name, SystemTime::now()).await?.is_none() {
                return Err(BlobsError::Contended(name.clone()));
            }
            // Made here, or fetched: from now on it can be fetched again.
            self.counted(name).await?;
        }
        Ok(())
    }

    async fn counted(&self, name: &FilesName) -> Result<(), BlobsError> {
        let (artifacts, of) = (self.shared.artifacts.clone(), name.clone());
        blocking(move || artifacts.count(&of)).await?;
        self.shared.came.notify_one();
        Ok(())
    }

    async fn bring(&self, name: FilesName) -> Result<(), BlobsError> {
        if !self.are_shared() || self.shared.artifacts.has(&name) {
            return Ok(());
        }
        self.fetch(name).await
    }

    fn fetch(&self, name: FilesName) -> Fetch {
        let mut fetches = self.shared.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetches.get(&name) {
            return running.clone();
        }
        let (this, of) = (self.clone(), name.clone());
        // It outlives whoever began it: a caller that hangs up must not undo what others wait for.
        let task = tokio::spawn(async move {
            let result = this.fetch_now(&of).await;
            if let Err(err) = &result {
                err.log("failed to fetch from the artifact store", &of);
            }
            this.shared.fetches.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
            result
        });
        let fetch = task.map(|ended| ended.unwrap_or(Err(BlobsError::Panicked))).boxed().shared();
        fetches.insert(name, fetch.clone());
        fetch
    }

    async fn fetch_now(&self, name: &FilesName) -> Result<(), BlobsError> {
        let shared = &self.shared;
        let Some(remote) = &shared.remote else { return Ok(()) };
        let _turn = shared.fetching.acquire().await.map_err(|_| BlobsError::Panicked)?;
        if shared.artifacts.has(name) {
            return Ok(()); // Another fetch ended between the look and this.
        }
        let missing = || BlobsError::Missing { name: name.clone() };
        let blob = shared.store.blob(name).await?.ok_or_else(missing)?;
        let began = std::time::Instant::now();
        let staged = shared.artifacts.stage("fetched-").map_err(Arc::new)?;
        let packed = staged.path().join("packed");
        remote.fetch(&blob, &packed).await.map_err(|err| of(name, err))?;
        let fetched = began.elapsed();
        let (artifacts, files, size_bytes) = (shared.artifacts.clone(), name.clone(), blob.size_bytes);
        blocking(move || artifacts.lay_out(&files, &packed, &blob)).await??;
        tracing::info!(files = %name, size_bytes, ?fetched, took = ?began.elapsed(), "fetched from the artifact store");
        self.counted(name).await
    }

    /// Whether it had to be written. `replace`: although a row says that it is there already.
    pub(super) async fn put_one(&self, name: &FilesName, replace: bool) -> Result<bool, BlobsError> {
        let shared = &self.shared;
        let Some(remote) = &shared.remote else { return Ok(false) };
        let mut replace = replace;
        if !replace && let Some(blob) = shared.store.touch_blob(name, SystemTime::now()).await? {
            // An object that somebody removed by hand is put again.
            match remote.has(&blob).await {
                Ok(true) => return Ok(false),
                Ok(false) => replace = true,
                Err(err) => return Err(of(name, err)),
            }
        }
        let _turn = shared.packing.acquire().await.map_err(|_| BlobsError::Panicked)?;
        let staged = shared.artifacts.stage("packed-").map_err(Arc::new)?;
        let packed = staged.path().join("packed");
        let (artifacts, files, into) = (shared.artifacts.clone(), name.clone(), packed.clone());
        let blob = blocking(move || artifacts.pack(&files, &into)).await??;
        for _ in 0..PUT_TRIES_MAX {
            if !self.begin(name, &blob, replace).await? {
                return Ok(false);
            }
            remote.put(&packed, &blob).await.map_err(|err| of(name, err))?;
            if shared.store.finish_blob(name, &blob, SystemTime::now()).await? {
                return Ok(true);
            }
        }
        Err(BlobsError::Contended(name.clone()))
    }

    /// Whether the object is to be written: others have stored these files meanwhile, else.
    async fn begin(&self, name: &FilesName, blob: &Blob, replace: bool) -> Result<bool, BlobsError> {
        let until = tokio::time::Instant::now() + REMOVAL_PATIENCE;
        let mut polls = tokio::time::interval(REMOVAL_POLL);
        while tokio::time::Instant::now() < until {
            polls.tick().await;
            match self.shared.store.begin_blob(name, blob, replace, SystemTime::now()).await? {
                BeginBlob::Begun => return Ok(true),
                BeginBlob::Stored(_) => return Ok(false),
                BeginBlob::BeingRemoved => {}
            }
        }
        Err(BlobsError::Contended(name.clone()))
    }
}

impl Artifacts {
    /// Whether these files are here, complete.
    pub fn has(&self, name: &FilesName) -> bool {
        let proof = match name.kind {
            FilesKind::Artifact => "manifest.json",
            FilesKind::Layer => "layer.json",
        };
        self.directory(name).join(proof).is_file()
    }

    /// Packs these files into an empty file. Blocking.
    ///
    /// # Errors
    /// They are not there, or cannot be read or written.
    pub fn pack(&self, name: &FilesName, into: &std::path::Path) -> Result<Blob, BlobsError> {
        let left_out: &[&str] = match name.kind {
            FilesKind::Artifact => &[LAYER_LINK],
            FilesKind::Layer => &[],
        };
        pack::pack(&self.directory(name), left_out, into).map_err(|err| Arc::new(err).into())
    }

    /// Gives fetched files their place. Blocking. The hash of what was fetched has been compared.
    ///
    /// # Errors
    /// They are not what the blob says, or cannot be written.
    pub fn lay_out(&self, name: &FilesName, packed: &std::path::Path, blob: &Blob) -> Result<(), BlobsError> {
        let damaged = |problem: String| BlobsError::Damaged { name: name.clone(), problem };
        let staged = self.stage("unpacked-").map_err(Arc::new)?;
        unpack::unpack(packed, staged.path(), blob).map_err(|err| match err.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Arc::new(Error::at("unpack into", staged.path())(err)).into()
            }
            _ => damaged(err.to_string()),
        })?;
        match name.kind {
            FilesKind::Layer => {
                // As it was when it was made: workers have users of their own.
                let opened = std::fs::set_permissions(staged.path(), Permissions::from_mode(0o755));
                opened.map_err(Error::at("open", staged.path())).map_err(Arc::new)?;
            }
            FilesKind::Artifact => {
                let path = staged.path().join("manifest.json");
                let text = std::fs::read(&path).map_err(|err| damaged(err.to_string()))?;
                let manifest: Manifest = serde_json::from_slice(&text).map_err(|err| damaged(err.to_string()))?;
                if let Some(layer) = &manifest.layer {
                    link_layer(staged.path(), &name.app, layer).map_err(Arc::new)?;
                }
            }
        }
        self.keep(staged, &self.directory(name)).map_err(|err| Arc::new(err).into())
    }
}

pub(super) fn of(name: &FilesName, err: RemoteError) -> BlobsError {
    match err {
        RemoteError::Missing(_) => BlobsError::Missing { name: name.clone() },
        RemoteError::Damaged { problem, .. } => BlobsError::Damaged { name: name.clone(), problem },
        err @ (RemoteError::Away { .. } | RemoteError::Disk { .. }) => BlobsError::Away { detail: err.to_string() },
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BlobsError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BlobsError::Panicked)
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;

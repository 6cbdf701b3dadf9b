//! What versions run, on disk: immutable artifacts (the emitted sources) and layers (installed dependencies).
//!
//! ```text
//! <data>/artifacts/<app>/<digest>/manifest.json
//!                                 spec.json    what was published
//!                                 layer → ../../../layers/<app>/<key>
//!                                 tree/…, tree/node_modules → ../layer/node_modules
//! <data>/layers/<app>/<key>/{layer.json, package.json, package-lock.json, node_modules/}
//! <data>/tools/<name>/                        what the service installs for itself
//! <data>/tmp/                                  everything that is not finished; emptied at start
//! ```
//! Links are relative, so that the data directory can be moved, and a sandbox can mount a tree and its layer side by side.
//! A directory appears under its final name complete and synced, or not at all; it is never written again. Which of them count
//! is the store's knowledge: [`Artifacts::sweep`] removes the others.
//!
//! Where replicas share an artifact store, these directories are what a node has at hand of it: see [`Blobs`].

mod blobs;
mod cache;
mod collect;
mod layers;
mod manifest;
mod pack;
mod remote;
#[cfg(test)]
#[path = "../../tests/e2e/s3.rs"]
mod s3;
mod source_map;
#[cfg(test)]
mod testing;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tempfile::TempDir;

use crate::model::{AppId, FilesKind, FilesName};
use crate::sandbox::open_up;

pub use blobs::{Blobs, BlobsError, BlobsSettings};
pub use cache::Held;
pub use layers::{Layer, LayerKey, measure, platform};
pub use manifest::{Manifest, Unit};
pub use remote::Remote;
pub use source_map::SourceMap;

const LAYER_LINK: &str = "layer";

/// The data directory's files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Artifacts {
    root: PathBuf,
    index: Arc<Mutex<cache::Index>>,
}

#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self { action, path: path.to_owned(), source }
    }

    pub fn is_disk_full(&self) -> bool {
        self.source.kind() == io::ErrorKind::StorageFull || self.source.kind() == io::ErrorKind::QuotaExceeded
    }
}

impl Artifacts {
    /// Makes the directories, readable by this user alone, and empties `tmp`.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub fn open(data_directory: &Path) -> Result<Self, Error> {
        let artifacts = Self { root: data_directory.to_owned(), index: Arc::default() };
        let tmp = artifacts.tmp();
        if tmp.exists() {
            open_up(&tmp).and_then(|()| fs::remove_dir_all(&tmp)).map_err(Error::at("empty", &tmp))?;
        }
        for directory in
            [data_directory.to_owned(), tmp, artifacts.root.join("artifacts"), artifacts.root.join("layers")]
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::at("make", &directory))?;
        }
        Ok(artifacts)
    }

    /// For a look at what is there, beside a service that may be running.
    pub fn at(data_directory: &Path) -> Self {
        Self { root: data_directory.to_owned(), index: Arc::default() }
    }

    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// A directory for something unfinished, on the same file system as what it becomes.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub fn stage(&self, prefix: &str) -> Result<TempDir, Error> {
        let tmp = self.tmp();
        tempfile::Builder::new().prefix(prefix).tempdir_in(&tmp).map_err(Error::at("make a directory in", &tmp))
    }

    /// Where a program that the service uses itself stands, once it does.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.root.join("tools").join(name)
    }

    /// Gives a tool its place. Blocking.
    ///
    /// # Errors
    /// The data directory cannot be written; nothing is left of it then.
    pub fn keep_tool(&self, staged: TempDir, name: &str) -> Result<(), Error> {
        self.keep(staged, &self.tool(name))
    }

    fn directory(&self, of: &FilesName) -> PathBuf {
        let kind = match of.kind {
            FilesKind::Artifact => "artifacts",
            FilesKind::Layer => "layers",
        };
        self.root.join(kind).join(of.app.as_str()).join(&of.name)
    }

    fn artifact(&self, app: &AppId, digest: &str) -> PathBuf {
        self.directory(&FilesName::artifact(app, digest))
    }

    /// The directory that a worker of this artifact starts in.
    pub fn tree(&self, app: &AppId, digest: &str) -> PathBuf {
        self.artifact(app, digest).join("tree")
    }

    /// Writes an artifact, unless the same one is there. `spec` is what it came from. Blocking.
    ///
    /// # Errors
    /// A file could not be written; nothing is left of it then.
    pub fn store(
        &self,
        app: &AppId,
        manifest: &Manifest,
        files: &BTreeMap<String, Bytes>,
        spec: &[u8],
    ) -> Result<Stored, Error> {
        let digest = manifest.digest();
        let target = self.artifact(app, &digest);
        let size_bytes = files.values().map(|content| content.len() as u64).sum();
        if target.join("manifest.json").exists() {
            return Ok(Stored { digest, size_bytes });
        }
        let staged = self.stage("artifact-")?;
        let tree = staged.path().join("tree");
        fs::create_dir(&tree).map_err(Error::at("make", &tree))?;
        for (path, content) in files {
            write_file(&tree.join(path), content)?;
        }
        if let Some(layer) = &manifest.layer {
            link_layer(staged.path(), app, layer)?;
            let link = tree.join("node_modules");
            symlink("../layer/node_modules", &link).map_err(Error::at("link", &link))?;
        }
        write_file(&staged.path().join("spec.json"), spec)?;
        write_file(&staged.path().join("manifest.json"), &manifest.to_json())?;
        self.keep(staged, &target)?;
        Ok(Stored { digest, size_bytes })
    }

    /// # Errors
    /// The artifact is not there, or not readable.
    pub fn manifest(&self, app: &AppId, digest: &str) -> Result<Manifest, Error> {
        let path = self.artifact(app, digest).join("manifest.json");
        let text = fs::read(&path).map_err(Error::at("read", &path))?;
        serde_json::from_slice(&text).map_err(|err| Error::at("read", &path)(io::Error::other(err)))
    }

    /// What an artifact came from. `None`: that was not kept. Blocking.
    ///
    /// # Errors
    /// It cannot be read, or is not what the manifest says.
    pub fn spec(&self, app: &AppId, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        let kept = self.manifest(app, digest)?.spec;
        if kept.is_empty() {
            return Ok(None);
        }
        let path = self.artifact(app, digest).join("spec.json");
        let spec = fs::read(&path).map_err(Error::at("read", &path))?;
        if blake3::hash(&spec).to_hex().as_str() != kept {
            return Err(Error::at("read", &path)(io::Error::other("it was changed")));
        }
        Ok(Some(spec))
    }

    /// Gives a staged directory its final name: synced first, so that the name never stands for less than all of it.
    fn keep(&self, staged: TempDir, target: &Path) -> Result<(), Error> {
        let parent = target.parent().unwrap_or(&self.root);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(Error::at("make", parent))?;
        let directory = fs::File::open(parent).map_err(Error::at("open", parent))?;
        // One call for the thousands of files of a layer; fsync of each would take minutes on a slow disk.
        nix::unistd::syncfs(directory.as_fd()).map_err(io::Error::from).map_err(Error::at("sync", parent))?;
        let staged = staged.keep();
        match fs::rename(&staged, target) {
            Ok(()) => {}
            // Another publish was faster with the same content.
            Err(_) if target.exists() => return fs::remove_dir_all(&staged).map_err(Error::at("remove", &staged)),
            Err(err) => {
                let _ = fs::remove_dir_all(&staged);
                return Err(Error::at("rename to", target)(err));
            }
        }
        directory.sync_all().map_err(Error::at("sync", parent))
    }

    /// Removes an app's artifacts and layers that are not in use. Blocking.
    ///
    /// # Errors
    /// A directory could not be read or removed.
    pub fn sweep(&self, app: &AppId, digests: &BTreeSet<String>, layers: &BTreeSet<String>) -> Result<(), Error> {
        let names: BTreeSet<&str> = digests.iter().map(|digest| digest.trim_start_matches("blake3:")).collect();
        self.remove_others(FilesKind::Artifact, app, &|name| names.contains(name))?;
        self.remove_others(FilesKind::Layer, app, &|name| layers.contains(name))
    }

    /// The apps that have files.
    pub fn apps(&self) -> BTreeSet<AppId> {
        let listed = |kind| fs::read_dir(self.root.join(kind)).into_iter().flatten().flatten();
        let entries = listed("artifacts").chain(listed("layers"));
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn remove_others(&self, kind: FilesKind, app: &AppId, in_use: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        let of = |name: &str| FilesName { kind, app: app.clone(), name: name.to_owned() };
        let parent = self.directory(&of(""));
        let entries = match fs::read_dir(&parent) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::at("read", &parent))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::at("read", &parent))?;
            if let Some(name) = entry.file_name().to_str().filter(|name| !in_use(name)) {
                self.remove(&of(name))?;
            }
        }
        let _ = fs::remove_dir(&parent); // Unless something is left.
        Ok(())
    }
}

/// An artifact that is on disk.
#[derive(Debug)]
pub struct Stored {
    pub digest: String,
    pub size_bytes: u64,
}

/// The link that leads out of an artifact. It names the app, so it is no part of what is packed.
fn link_layer(artifact: &Path, app: &AppId, layer: &str) -> Result<(), Error> {
    let link = artifact.join(LAYER_LINK);
    let target = Path::new("../../../layers").join(app.as_str()).join(layer);
    symlink(target, &link).map_err(Error::at("link", &link))
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::at("make", parent))?;
    }
    let mut file = fs::File::create_new(path).map_err(Error::at("write", path))?;
    file.write_all(content).map_err(Error::at("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> Manifest {
        Manifest { files: BTreeMap::from([(name.to_owned(), "hash".to_owned())]), ..Manifest::default() }
    }

    #[test]
    fn an_artifact_is_stored_once_and_swept_when_nothing_uses_it() {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        let app: AppId = "demo".parse().expect("id");
        let files = BTreeMap::from([("lib/a.js".to_owned(), Bytes::from_static(b"1"))]);
        let stored = artifacts.store(&app, &manifest("a"), &files, b"{}").expect("store");
        let again = artifacts.store(&app, &manifest("a"), &files, b"{}").expect("store again");
        assert_eq!((stored.size_bytes, &stored.digest), (1, &again.digest));
        let tree = artifacts.tree(&app, &stored.digest);
        assert_eq!(fs::read(tree.join("lib/a.js")).expect("file"), b"1");
        let other = artifacts.store(&app, &manifest("b"), &files, b"{}").expect("store another");
        artifacts.sweep(&app, &BTreeSet::from([other.digest.clone()]), &BTreeSet::new()).expect("sweep");
        assert!(!tree.exists());
        assert_eq!(artifacts.manifest(&app, &other.digest).expect("manifest"), manifest("b"));
        assert_eq!(fs::read_dir(artifacts.tmp()).expect("tmp").count(), 0);
    }

    #[test]
    fn what_was_published_is_read_back_unchanged_or_not_at_all() {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        let app: AppId = "demo".parse().expect("id");
        let kept = Manifest { spec: blake3::hash(b"{}").to_hex().to_string(), ..manifest("a") };
        let stored = artifacts.store(&app, &kept, &BTreeMap::new(), b"{}").expect("store");
        assert_eq!(artifacts.spec(&app, &stored.digest).expect("read").as_deref(), Some(&b"{}"[..]));
        let old = artifacts.store(&app, &manifest("b"), &BTreeMap::new(), b"{}").expect("store");
        assert_eq!(artifacts.spec(&app, &old.digest).expect("read"), None);
        let changed = Manifest { files: BTreeMap::new(), ..kept };
        let changed = artifacts.store(&app, &changed, &BTreeMap::new(), b"{ }").expect("store");
        assert!(artifacts.spec(&app, &changed.digest).is_err());
    }

    #[test]
    fn an_artifact_finds_its_layer_from_wherever_the_data_is() {
        let data = tempfile::tempdir().expect("temp dir");
        let before = data.path().join("before");
        let artifacts = Artifacts::open(&before).expect("open");
        let app: AppId = "demo".parse().expect("id");
        let staged = artifacts.stage("layer-").expect("stage");
        write_file(&staged.path().join("node_modules/ms/index.js"), b"1").expect("write");
        let layer = Layer { key: "k".into(), size_bytes: 1, files: 1, dependencies: BTreeMap::new() };
        artifacts.keep_layer(&app, staged, &layer).expect("keep");
        let manifest = Manifest { layer: Some("k".to_owned()), ..manifest("a") };
        let stored = artifacts.store(&app, &manifest, &BTreeMap::new(), b"{}").expect("store");
        let after = data.path().join("after");
        fs::rename(&before, &after).expect("move");
        let tree = Artifacts::open(&after).expect("open").tree(&app, &stored.digest);
        assert_eq!(fs::read(tree.join("node_modules/ms/index.js")).expect("file"), b"1");
        assert_eq!(fs::read_link(tree.join("node_modules")).expect("a link"), Path::new("../layer/node_modules"));
        assert_eq!(fs::read_link(tree.join("../layer")).expect("a link"), Path::new("../../../layers/demo/k"));
    }

    #[test]
    fn opening_empties_what_a_crash_left() {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        let half = artifacts.stage("artifact-").expect("stage").keep();
        fs::write(half.join("half"), "x").expect("write");
        Artifacts::open(data.path()).expect("open again");
        assert!(!half.exists());
    }
}

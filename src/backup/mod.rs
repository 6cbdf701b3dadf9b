//! A backup of a service on SQLite, taken while it runs, and the way back.
//!
//! ```text
//! <backup>/backup.json                    what it is and holds, with the hash of each file
//!          chatfn.db                      the database as it stood at one moment
//!          files/blake3-<hash>.tar.zst    what its versions run from, packed as in an artifact store
//! ```
//! The order makes it whole: the database first, then the files that it names. Files are never changed, so they are those of that moment,
//! unless a version was deleted in between: then the database is copied once more. The directory appears under its name when all of
//! it is on disk, or not at all. What encrypts secrets is not in it.
//!
//! Start reading at [`take`]; [`restore()`] is the way back.

mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::artifacts::{Artifacts, BlobsError};
use crate::model::{Blob, FilesKind, FilesName};
use crate::store::{self, Copied, SQLITE_FILE};

pub use restore::{Restored, restore};

const FORMAT: u32 = 1;
const MANIFEST: &str = "backup.json";
const DATABASE: &str = SQLITE_FILE;
const FILES: &str = "files";
/// Each one is for versions that were deleted while the one before was taken.
const ATTEMPTS_MAX: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} exists: a backup goes to a path of its own", .0.display())]
    Exists(PathBuf),
    #[error("{} is in the data directory: a backup belongs elsewhere, best on another disk", .0.display())]
    Inside(PathBuf),
    #[error("there is no database {}: name the service's data directory", .0.display())]
    NoDatabase(PathBuf),
    #[error(
        "the {0} is not in the data directory, though the database names it: delete that version, or publish it again"
    )]
    Missing(FilesName),
    #[error("versions were deleted all the time: try again")]
    Restless,
    #[error(transparent)]
    Files(#[from] BlobsError),
    #[error("{} is no backup of chatfn's: {problem}", path.display())]
    NoBackup { path: PathBuf, problem: String },
    #[error("{} is damaged ({problem}): nothing was restored; use another backup", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("{} has something in it: restore into a directory that is empty, or does not exist", .0.display())]
    NotEmpty(PathBuf),
    #[error("{0}")]
    InUse(String),
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// What a backup is and holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub created_at: String,
    /// Of the program that took it.
    pub chatfn: String,
    /// The last migration that the database has seen.
    pub migration: i64,
    pub apps: u64,
    /// Queued, running or waiting for their time.
    pub events: u64,
    /// Where files are that are not in it.
    pub artifacts: Option<String>,
    pub database: Entry,
    pub files: Vec<Packed>,
}

/// A file of the backup's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// blake3, in hex.
    pub hash: String,
    pub size_bytes: u64,
}

/// An artifact or a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packed {
    pub kind: String,
    pub app: String,
    pub name: String,
    #[serde(flatten)]
    pub entry: Entry,
    pub unpacked_bytes: u64,
    pub entries: u64,
}

impl Packed {
    fn new(name: &FilesName, blob: &Blob) -> Self {
        Self {
            kind: name.kind.as_str().to_owned(),
            app: name.app.to_string(),
            name: name.name.clone(),
            entry: Entry { hash: blob.hash.clone(), size_bytes: blob.size_bytes },
            unpacked_bytes: blob.unpacked_bytes,
            entries: blob.entries,
        }
    }

    /// `None`: nothing that we wrote.
    fn parts(&self) -> Option<(FilesName, Blob)> {
        let kind = [FilesKind::Artifact, FilesKind::Layer].into_iter().find(|kind| kind.as_str() == self.kind)?;
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let app = self.app.parse().ok()?;
        if !is_name(&self.name) || !is_name(&self.entry.hash) {
            return None;
        }
        let blob = Blob {
            hash: self.entry.hash.clone(),
            size_bytes: self.entry.size_bytes,
            unpacked_bytes: self.unpacked_bytes,
            entries: self.entries,
        };
        Some((FilesName { kind, app, name: self.name.clone() }, blob))
    }
}

/// Backs up what is in a data directory, of a service that runs or not. `artifacts`: where the service keeps its files, if not there.
/// `progress` is called for each step.
///
/// # Errors
/// Something cannot be read or written, or the path is taken; nothing is left of the backup then.
pub async fn take(
    data: &Path,
    artifacts: Option<String>,
    into: &Path,
    progress: impl Fn(&str),
) -> Result<Manifest, Error> {
    let database = data.join(DATABASE);
    if !database.is_file() {
        return Err(Error::NoDatabase(database));
    }
    let parent = check_target(data, into)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".chatfn-backup-").permissions(Permissions::from_mode(0o700));
    let staged = builder.tempdir_in(&parent).map_err(at("write into", &parent))?;
    let files = staged.path().join(FILES);
    DirBuilder::new().mode(0o700).create(&files).map_err(at("make", &files))?;
    let mut taking = Taking { source: Artifacts::at(data), files, packed: BTreeMap::new() };
    let copied = taking.all(&database, staged.path(), artifacts.is_some(), progress).await?;
    let path = staged.path().join(DATABASE);
    let manifest = Manifest {
        format: FORMAT,
        created_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        chatfn: env!("CARGO_PKG_VERSION").to_owned(),
        migration: copied.schema.newer.unwrap_or(copied.schema.known),
        apps: copied.apps,
        events: copied.events,
        artifacts,
        database: entry_of(&path)?,
        files: taking.packed.iter().map(|(name, blob)| Packed::new(name, blob)).collect(),
    };
    write_private(
        &staged.path().join(MANIFEST),
        &serde_json::to_vec_pretty(&manifest).expect("plain data serializes"),
    )?;
    for directory in [&taking.files, &staged.path().to_owned()] {
        sync_directory(directory)?;
    }
    let staged = staged.keep();
    if let Err(err) = fs::rename(&staged, into) {
        let _ = fs::remove_dir_all(&staged);
        return Err(at("rename to", into)(err));
    }
    sync_directory(&parent)?;
    Ok(manifest)
}

/// The directory that the backup is to be in.
fn check_target(data: &Path, into: &Path) -> Result<PathBuf, Error> {
    if into.symlink_metadata().is_ok() {
        return Err(Error::Exists(into.to_owned()));
    }
    let parent = match into.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(at("find", parent))?;
    let data = data.canonicalize().map_err(at("find", data))?;
    if parent.starts_with(data) {
        return Err(Error::Inside(into.to_owned()));
    }
    Ok(parent)
}

struct Taking {
    source: Artifacts,
    files: PathBuf,
    packed: BTreeMap<FilesName, Blob>,
}

impl Taking {
    /// Copies the database and what it names, until nothing was deleted in between.
    async fn all(
        &mut self,
        database: &Path,
        staged: &Path,
        elsewhere: bool,
        progress: impl Fn(&str),
    ) -> Result<Copied, Error> {
        let copy = staged.join(DATABASE);
        let mut gone_before = BTreeSet::new();
        for _ in 0..ATTEMPTS_MAX {
            write_private(&copy, b"")?; // SQLite would make it for everybody to read.
            progress("copying the database");
            store::copy(database, &copy).await?;
            File::open(&copy).and_then(|file| file.sync_all()).map_err(at("sync", &copy))?;
            let copied = store::inspect(&copy).await?;
            let mut wanted = copied.files.clone();
            if elsewhere {
                wanted.retain(|name| !copied.stored.contains(name));
            }
            let gone = self.pack(&wanted, &progress)?;
            if gone.is_empty() {
                self.drop_others(&wanted)?;
                return Ok(copied);
            }
            // Whatever was deleted is not named by the next copy; what is, was not deleted.
            if let Some(missing) = gone.intersection(&gone_before).next() {
                return Err(Error::Missing(missing.clone()));
            }
            progress("versions were deleted meanwhile: once more");
            gone_before = gone;
            fs::remove_file(&copy).map_err(at("remove", &copy))?;
        }
        Err(Error::Restless)
    }

    /// Those that are not there. Nothing else runs in this process, so it may block.
    fn pack(&mut self, wanted: &BTreeSet<FilesName>, progress: &impl Fn(&str)) -> Result<BTreeSet<FilesName>, Error> {
        let mut gone = BTreeSet::new();
        for (n, name) in wanted.iter().enumerate() {
            if self.packed.contains_key(name) {
                continue;
            }
            progress(&format!("{}/{}: {name}", n + 1, wanted.len()));
            let partial = self.files.join("partial");
            let packed = self.source.pack(name, &partial);
            // They are renamed before they are removed: what is still there under its name was read to its end.
            if !self.source.has(name) {
                gone.insert(name.clone());
                continue;
            }
            let blob = packed?;
            let path = self.files.join(file_name(&blob.hash));
            fs::set_permissions(&partial, Permissions::from_mode(0o600))
                .and_then(|()| File::open(&partial)?.sync_all())
                .and_then(|()| fs::rename(&partial, &path))
                .map_err(at("write", &path))?;
            self.packed.insert(name.clone(), blob);
        }
        Ok(gone)
    }

    /// Of a copy that was not used.
    fn drop_others(&mut self, wanted: &BTreeSet<FilesName>) -> Result<(), Error> {
        self.packed.retain(|name, _| wanted.contains(name));
        let kept: BTreeSet<_> = self.packed.values().map(|blob| file_name(&blob.hash)).collect();
        for entry in fs::read_dir(&self.files).map_err(at("read", &self.files))?.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !kept.contains(name)) {
                fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

fn file_name(hash: &str) -> String {
    format!("blake3-{hash}.tar.zst")
}

fn entry_of(path: &Path) -> Result<Entry, Error> {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut hasher));
    let size_bytes = read.map_err(at("read", path))?;
    Ok(Entry { hash: hasher.finalize().to_hex().to_string(), size_bytes })
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written.map_err(at("write", path))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(at("sync", path))
}

//! From a backup to a data directory. Everything is looked at before anything is written, and the database gets its name last: what
//! is half restored is no service's data.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::{
    DATABASE, Entry, Error, FILES, FORMAT, MANIFEST, Manifest, Packed, at, entry_of, file_name, sync_directory,
};
use crate::artifacts::Artifacts;
use crate::host;
use crate::model::FilesName;
use crate::store::{self, Copied};

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    pub manifest: Manifest,
    pub files: usize,
}

/// Restores into a directory that is empty, or does not exist. Start the service on it afterwards.
///
/// # Errors
/// The backup is damaged or not one, or the directory is in use; what was written until then is removed.
pub async fn restore(backup: &Path, data: &Path, progress: impl Fn(&str)) -> Result<Restored, Error> {
    let manifest = read(backup)?;
    progress("checking the backup");
    let copied = check(backup, &manifest).await?;
    check_complete(backup, &manifest, &copied)?;
    prepare(data)?;
    let lock = host::lock(data).map_err(|err| Error::InUse(format!("{err:#}")))?;
    let laid_out = lay_out(backup, &manifest, data, progress);
    if laid_out.is_err() {
        empty(data);
    }
    drop(lock);
    laid_out?;
    Ok(Restored { files: manifest.files.len(), manifest })
}

fn read(backup: &Path) -> Result<Manifest, Error> {
    let no_backup = |problem: String| Error::NoBackup { path: backup.to_owned(), problem };
    let path = backup.join(MANIFEST);
    let text = fs::read(&path).map_err(|err| no_backup(format!("{MANIFEST}: {err}")))?;
    let told: serde_json::Value =
        serde_json::from_slice(&text).map_err(|err| no_backup(format!("{MANIFEST}: {err}")))?;
    match told["format"].as_u64() {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => {
            return Err(no_backup(format!("its format is {format}, and this chatfn knows {FORMAT}: use a newer one")));
        }
        None => return Err(no_backup(format!("{MANIFEST} says no format"))),
    }
    serde_json::from_value(told).map_err(|err| no_backup(format!("{MANIFEST}: {err}")))
}

/// Every byte, and that the database is whole in itself.
async fn check(backup: &Path, manifest: &Manifest) -> Result<Copied, Error> {
    let same = |path: &Path, told: &Entry| {
        let damaged = |problem: String| Error::Damaged { path: path.to_owned(), problem };
        match entry_of(path) {
            Ok(found) if found == *told => Ok(()),
            Ok(found) if found.size_bytes != told.size_bytes => {
                Err(damaged(format!("it has {} bytes, and had {}", found.size_bytes, told.size_bytes)))
            }
            Ok(_) => Err(damaged("its hash is not what it was".to_owned())),
            Err(Error::Io { source, .. }) => Err(damaged(source.to_string())),
            Err(err) => Err(err),
        }
    };
    let database = backup.join(DATABASE);
    same(&database, &manifest.database)?;
    let hashes: BTreeSet<_> = manifest.files.iter().map(|file| (&file.entry.hash, file.entry.size_bytes)).collect();
    for file in &manifest.files {
        if file.parts().is_none() {
            let problem = format!("it names a file {:?} of app {:?}", file.name, file.app);
            return Err(Error::Damaged { path: backup.join(MANIFEST), problem });
        }
    }
    for (hash, size_bytes) in hashes {
        same(&backup.join(FILES).join(file_name(hash)), &Entry { hash: hash.clone(), size_bytes })?;
    }
    store::inspect(&database).await.map_err(|err| match err {
        err @ store::Error::Newer { .. } => err.into(),
        err => Error::Damaged { path: database, problem: err.to_string() },
    })
}

/// Nothing that the database names is missing, unless it is in an artifact store.
fn check_complete(backup: &Path, manifest: &Manifest, copied: &Copied) -> Result<(), Error> {
    let held: BTreeSet<FilesName> = manifest.files.iter().filter_map(Packed::parts).map(|(name, _)| name).collect();
    let elsewhere = |name: &FilesName| manifest.artifacts.is_some() && copied.stored.contains(name);
    match copied.files.iter().find(|name| !held.contains(name) && !elsewhere(name)) {
        None => Ok(()),
        Some(name) => Err(Error::Damaged { path: backup.join(MANIFEST), problem: format!("the {name} is not in it") }),
    }
}

fn prepare(data: &Path) -> Result<(), Error> {
    match fs::read_dir(data) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(at("make", data))
        }
        Err(err) => Err(at("read", data)(err)),
        // A new file system has it.
        Ok(entries) => match entries.flatten().all(|entry| entry.file_name() == "lost+found") {
            true => Ok(()),
            false => Err(Error::NotEmpty(data.to_owned())),
        },
    }
}

fn lay_out(backup: &Path, manifest: &Manifest, data: &Path, progress: impl Fn(&str)) -> Result<(), Error> {
    let artifacts = Artifacts::open(data).map_err(|err| Error::Files(std::sync::Arc::new(err).into()))?;
    for (n, (name, blob)) in manifest.files.iter().filter_map(Packed::parts).enumerate() {
        progress(&format!("{}/{}: {name}", n + 1, manifest.files.len()));
        artifacts.lay_out(&name, &backup.join(FILES).join(file_name(&blob.hash)), &blob)?;
    }
    progress("restoring the database");
    let (partial, path) = (data.join("chatfn.db.partial"), data.join(DATABASE));
    let copied = File::open(backup.join(DATABASE)).and_then(|mut from| {
        let mut to = File::options().write(true).create_new(true).mode(0o600).open(&partial)?;
        io::copy(&mut from, &mut to)?;
        to.sync_all()
    });
    copied.and_then(|()| fs::rename(&partial, &path)).map_err(at("write", &path))?;
    sync_directory(data)
}

/// As it was found.
fn empty(data: &Path) {
    for entry in fs::read_dir(data).into_iter().flatten().flatten().filter(|entry| entry.file_name() != "lost+found") {
        let path = entry.path();
        let _ = crate::sandbox::open_up(&path);
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

//! What is at hand in the data directory: who uses it right now, and what may go first.
//!
//! When something was last used is the time of its directory, so that a restart knows it too.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::layers::measure;
use super::{Artifacts, Error};
use crate::model::{FilesKind, FilesName};

/// A use is written down at most so often.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// Decides, sees no files.
#[derive(Debug, Default)]
pub(super) struct Index {
    present: HashMap<FilesName, Present>,
    holds: HashMap<FilesName, usize>,
    bytes: u64,
}

#[derive(Debug)]
struct Present {
    bytes: u64,
    used: SystemTime,
}

impl Index {
    fn hold(&mut self, name: &FilesName) {
        *self.holds.entry(name.clone()).or_default() += 1;
    }

    fn release(&mut self, name: &FilesName) {
        if let Some(holds) = self.holds.get_mut(name) {
            *holds -= 1;
            if *holds == 0 {
                self.holds.remove(name);
            }
        }
    }

    /// Whether that is worth being written down.
    fn used(&mut self, name: &FilesName, now: SystemTime) -> bool {
        let Some(present) = self.present.get_mut(name) else { return false };
        let before = std::mem::replace(&mut present.used, now);
        now.duration_since(before).map_or(true, |since| since >= TOUCH_INTERVAL)
    }

    fn add(&mut self, name: FilesName, bytes: u64, used: SystemTime) {
        self.bytes += bytes;
        if let Some(before) = self.present.insert(name, Present { bytes, used }) {
            self.bytes -= before.bytes;
        }
    }

    fn remove(&mut self, name: &FilesName) {
        if let Some(gone) = self.present.remove(name) {
            self.bytes -= gone.bytes;
        }
    }

    fn is_held(&self, name: &FilesName) -> bool {
        self.holds.contains_key(name)
    }

    /// What nobody uses, least recently used first; none where all of it fits.
    fn candidates(&self, bytes_max: u64) -> Vec<FilesName> {
        if self.bytes <= bytes_max {
            return Vec::new();
        }
        let mut free: Vec<_> = self.present.iter().filter(|(name, _)| !self.is_held(name)).collect();
        free.sort_by_key(|(_, present)| present.used);
        free.into_iter().map(|(name, _)| name.clone()).collect()
    }
}

/// The right to find some files where they are: they are not evicted or swept until it is dropped.
#[derive(Debug)]
pub struct Held {
    artifacts: Artifacts,
    names: Vec<FilesName>,
}

impl Held {
    pub fn add(&mut self, name: FilesName) {
        self.artifacts.index().hold(&name);
        self.artifacts.touch(&name);
        self.names.push(name);
    }

    pub fn names(&self) -> &[FilesName] {
        &self.names
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for name in &self.names {
            self.artifacts.touch(name); // It was in use until now.
            self.artifacts.index().release(name);
        }
    }
}

impl Artifacts {
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        let index: &Mutex<Index> = &self.index;
        index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps these files, whether they are here already or not.
    pub fn hold(&self, names: impl IntoIterator<Item = FilesName>) -> Held {
        let mut held = Held { artifacts: self.clone(), names: Vec::new() };
        names.into_iter().for_each(|name| held.add(name));
        held
    }

    fn touch(&self, name: &FilesName) {
        let now = SystemTime::now();
        let write = self.index().used(name, now);
        if write && let Ok(directory) = File::open(self.directory(name)) {
            let _ = directory.set_modified(now); // At worst it is evicted too early.
        }
    }

    /// Counts what just came, or was just made.
    pub(super) fn count(&self, name: &FilesName) {
        let directory = self.directory(name);
        let bytes = match name.kind {
            FilesKind::Layer => self.layer(&name.app, &name.name).map(|layer| layer.size_bytes),
            FilesKind::Artifact => None,
        };
        let bytes = bytes.unwrap_or_else(|| measure(&directory).0);
        let used = fs::metadata(&directory).and_then(|metadata| metadata.modified());
        if let Ok(used) = used {
            self.index().add(name.clone(), bytes, used);
        }
    }

    /// Counts all that is here. Blocking.
    pub(super) fn count_all(&self) {
        for app in self.apps() {
            for kind in [FilesKind::Artifact, FilesKind::Layer] {
                let parent = self.directory(&FilesName { kind, app: app.clone(), name: String::new() });
                let names = fs::read_dir(parent).into_iter().flatten().flatten();
                let names = names.filter_map(|entry| entry.file_name().into_string().ok());
                names.for_each(|name| self.count(&FilesName { kind, app: app.clone(), name }));
            }
        }
    }

    pub(super) fn evictable(&self, bytes_max: u64) -> Vec<FilesName> {
        self.index().candidates(bytes_max)
    }

    pub(super) fn fits(&self, bytes_max: u64) -> bool {
        self.index().bytes <= bytes_max
    }

    /// Removes files, unless somebody uses them. Blocking.
    ///
    /// # Errors
    /// They cannot be removed.
    pub(super) fn remove(&self, name: &FilesName) -> Result<bool, Error> {
        let path = self.directory(name);
        // Out of its name first: a crash half-way leaves garbage in tmp, not half an artifact.
        let doomed = self.stage("doomed-")?;
        {
            // Under the lock: whoever holds them from here on sees that they are gone.
            let mut index = self.index();
            if index.is_held(name) {
                return Ok(false);
            }
            index.remove(name);
            match fs::rename(&path, doomed.path().join("it")) {
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                renamed => renamed.map_err(Error::at("remove", &path))?,
            }
        }
        doomed.close().map_err(Error::at("remove", &path))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> FilesName {
        FilesName::layer(&"demo".parse().expect("id"), name)
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn candidates(index: &Index, bytes_max: u64) -> Vec<String> {
        index.candidates(bytes_max).into_iter().map(|name| name.name).collect()
    }

    #[test]
    fn the_least_recently_used_goes_first_and_what_is_in_use_not_at_all() {
        let mut index = Index::default();
        for (of, used) in [("a", 3), ("b", 1), ("c", 2), ("d", 0)] {
            index.add(name(of), 10, at(used));
        }
        assert_eq!(candidates(&index, 40), [""; 0], "it fits");
        assert_eq!(candidates(&index, 39), ["d", "b", "c", "a"]);
        index.hold(&name("b"));
        index.hold(&name("b"));
        assert!(index.used(&name("d"), at(100)), "long after its last use");
        assert!(!index.used(&name("d"), at(101)), "not again");
        assert_eq!(candidates(&index, 0), ["c", "a", "d"]);
        index.release(&name("b"));
        assert_eq!(candidates(&index, 0), ["c", "a", "d"], "held twice");
        index.release(&name("b"));
        assert_eq!(candidates(&index, 0), ["b", "c", "a", "d"]);
        index.remove(&name("b"));
        index.add(name("a"), 5, at(3)); // Counted once more: not twice.
        assert_eq!((candidates(&index, 25).len(), candidates(&index, 24).len()), (0, 3));
    }

    #[test]
    fn a_restart_knows_what_was_used_last() {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        for (of, used) in [("old", 10), ("new", 20)] {
            let directory = artifacts.directory(&name(of));
            fs::create_dir_all(&directory).expect("make");
            fs::write(directory.join("x"), "12345").expect("write");
            File::open(&directory).and_then(|file| file.set_modified(at(used))).expect("time");
        }
        let evictable = |artifacts: &Artifacts| -> Vec<String> {
            artifacts.count_all();
            artifacts.evictable(9).into_iter().map(|name| name.name).collect()
        };
        assert_eq!(evictable(&artifacts), ["old", "new"]);
        drop(artifacts.hold([name("old")]));
        assert_eq!(evictable(&Artifacts::open(data.path()).expect("open again")), ["new", "old"]);
    }

    #[test]
    fn nothing_is_removed_while_somebody_holds_it() {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        let directory = artifacts.directory(&name("a"));
        fs::create_dir_all(&directory).expect("make");
        let held = artifacts.hold([name("a")]);
        assert!(!artifacts.remove(&name("a")).expect("no error") && directory.exists());
        drop(held);
        assert!(artifacts.remove(&name("a")).expect("removes") && !directory.exists());
        assert_eq!(fs::read_dir(artifacts.tmp()).expect("tmp").count(), 0);
    }
}

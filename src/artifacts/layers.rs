//! Layers: an installed `node_modules`, kept under the key of all that determines it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::model::AppId;

use super::{Artifacts, Error, write_file};

/// What determines an installed tree.
pub struct LayerKey<'a> {
    pub lockfile: &'a [u8],
    pub node_version: &'a str,
    /// See [`platform`].
    pub platform: &'a str,
    /// Packages whose install scripts ran.
    pub scripts_allowed: &'a BTreeSet<String>,
}

impl LayerKey<'_> {
    /// Hex; a directory's name.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [self.lockfile, self.node_version.as_bytes(), self.platform.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        for package in self.scripts_allowed {
            hasher.update(package.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// What native addons are built for, besides the Node version.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// What is known of a layer; beside its `node_modules` as `layer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    pub key: String,
    pub size_bytes: u64,
    pub files: u64,
    /// The lockfile's direct dependencies: name → exact version.
    pub dependencies: BTreeMap<String, String>,
}

impl Artifacts {
    pub fn layer_directory(&self, app: &AppId, key: &str) -> PathBuf {
        self.root.join("layers").join(app.as_str()).join(key)
    }

    /// The layer of this key, if it is there.
    pub fn layer(&self, app: &AppId, key: &str) -> Option<Layer> {
        let text = fs::read(self.layer_directory(app, key).join("layer.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps a staged installation as a layer, unless there is one. Blocking.
    ///
    /// # Errors
    /// It could not be synced or renamed; nothing is left of it then.
    pub fn keep_layer(&self, app: &AppId, staged: TempDir, layer: &Layer) -> Result<(), Error> {
        if self.layer(app, &layer.key).is_some() {
            return Ok(());
        }
        let description = serde_json::to_vec(layer).expect("plain data serializes");
        write_file(&staged.path().join("layer.json"), &description)?;
        self.keep(staged, &self.layer_directory(app, &layer.key))
    }
}

/// Bytes and entries below a directory; links are not followed. What vanishes meanwhile is not counted. Blocking.
pub fn measure(directory: &Path) -> (u64, u64) {
    let (mut bytes, mut entries) = (0, 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            entries += 1;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => pending.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    (bytes, entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_another_key_when_anything_that_determines_it_changes() {
        let none = BTreeSet::new();
        let some = BTreeSet::from(["esbuild".to_owned()]);
        let key = |lockfile, node_version, platform, scripts_allowed| {
            LayerKey { lockfile, node_version, platform, scripts_allowed }.digest()
        };
        let base = key(&b"lock"[..], "v20.1.0", "linux-x86_64", &none);
        assert_eq!(base, key(b"lock", "v20.1.0", "linux-x86_64", &none));
        assert_ne!(base, key(b"lock2", "v20.1.0", "linux-x86_64", &none));
        assert_ne!(base, key(b"lock", "v22.1.0", "linux-x86_64", &none));
        assert_ne!(base, key(b"lock", "v20.1.0", "linux-aarch64", &none));
        assert_ne!(base, key(b"lock", "v20.1.0", "linux-x86_64", &some));
    }

    #[test]
    fn a_layer_is_kept_whole_or_not_at_all() {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        let app: AppId = "demo".parse().expect("id");
        let staged = artifacts.stage("layer-").expect("stage");
        fs::create_dir(staged.path().join("node_modules")).expect("make");
        fs::write(staged.path().join("node_modules/a.js"), "12345").expect("write");
        assert_eq!(measure(staged.path()), (5, 2));
        let layer = Layer { key: "k".into(), size_bytes: 5, files: 2, dependencies: BTreeMap::new() };
        assert!(artifacts.layer(&app, "k").is_none());
        artifacts.keep_layer(&app, staged, &layer).expect("keep");
        assert_eq!(artifacts.layer(&app, "k"), Some(layer));
    }
}

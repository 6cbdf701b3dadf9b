//! What versions run from, as it lies in the artifact store: one packed file for each artifact and each layer.

use std::fmt::{self, Display};

use super::AppId;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilesKind {
    /// The emitted sources; named by the version's digest without its `blake3:`.
    Artifact,
    /// An installed `node_modules`; named by its key.
    Layer,
}

impl FilesKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Layer => "layer",
        }
    }
}

/// A directory of an app's, on every node the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilesName {
    pub kind: FilesKind,
    pub app: AppId,
    pub name: String,
}

impl FilesName {
    pub fn artifact(app: &AppId, digest: &str) -> Self {
        let name = digest.strip_prefix("blake3:").unwrap_or(digest).to_owned();
        Self { kind: FilesKind::Artifact, app: app.clone(), name }
    }

    pub fn layer(app: &AppId, key: &str) -> Self {
        Self { kind: FilesKind::Layer, app: app.clone(), name: key.to_owned() }
    }
}

impl Display for FilesName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of app {}", self.kind.as_str(), self.name, self.app)
    }
}

/// A packed directory. The numbers are limits for whoever unpacks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// blake3 of the packed bytes, in hex.
    pub hash: String,
    /// Of the packed bytes.
    pub size_bytes: u64,
    /// Of all files in it.
    pub unpacked_bytes: u64,
    /// Files, directories and links in it.
    pub entries: u64,
}

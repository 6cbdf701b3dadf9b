//! What the broker is told once, before anything else.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::Mode;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// The Node binary.
    pub node: PathBuf,
    /// An existing directory over which the root for children is mounted, in a namespace of the broker's: nothing of that shows.
    pub root: PathBuf,
    /// The only directories whose content a child may be shown. The broker has privileges and the service has none: it must not be
    /// talked into showing anything else.
    pub sources: Vec<PathBuf>,
    /// `None`: the best that works.
    pub mode: Option<Mode>,
    /// Names the cgroups of this service.
    pub name: String,
    pub service_pid: u32,
    /// Whom the service becomes as soon as the broker is ready. `None`: it stays who it is, who is the broker's user.
    pub service: Option<Identity>,
}

/// A user with its groups, as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub user: u32,
    pub group: u32,
    /// Supplementary ones.
    pub groups: Vec<u32>,
}

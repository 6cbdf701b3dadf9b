//! Where calls go: which version of each app serves, and the pools that there are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use tokio_util::sync::CancellationToken;

use super::Served;
use crate::model::{AppId, VersionNumber};
use crate::store::ActiveVersion;

#[derive(Default)]
pub(super) struct Routes {
    pub active: HashMap<AppId, ActiveVersion>,
    /// Children of `Shared::kill`.
    pub kill: HashMap<AppId, CancellationToken>,
    pub loaded: HashMap<(AppId, VersionNumber), Arc<Served>>,
    /// Every pool that may have a process, also where no route leads to it any more: its files are needed.
    pub live: Vec<Live>,
    /// Versions of another Node that were warned of.
    pub warned: HashSet<(AppId, VersionNumber)>,
}

impl Routes {
    /// From now on this version serves, unless what it was activated by is old news. The one that served before, if it is another.
    pub fn activate(&mut self, app: &AppId, new: ActiveVersion) -> Option<VersionNumber> {
        match self.active.get_mut(app) {
            Some(active) if active.activation > new.activation => None,
            Some(active) => {
                let before = std::mem::replace(active, new).number;
                (before != new.number).then_some(before)
            }
            None => {
                self.active.insert(app.clone(), new);
                None
            }
        }
    }
}

/// A pool from its start to the end of its last worker.
#[derive(Clone)]
pub(super) struct Live {
    pub app: AppId,
    pub number: VersionNumber,
    /// Weak: a pool that everybody dropped ends.
    pub served: Weak<Served>,
    pub kill: CancellationToken,
    pub ended: CancellationToken,
}

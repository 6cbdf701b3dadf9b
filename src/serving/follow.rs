//! What other replicas activate and delete, done here too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Error, Served, Serving};
use crate::model::AppId;

impl Serving {
    /// Of an app without a route: another replica may have activated a version just now, and the news of it is still under way.
    pub(super) async fn activated_elsewhere(&self, app: &AppId) -> Result<Option<Arc<Served>>, Error> {
        if let Some(active) = self.shared.store.active_version(app).await? {
            self.routes().activate(app, active);
            return self.load(app, active.number).await.map(Some);
        }
        match self.shared.store.app(app).await? {
            Some(_) => Ok(None),
            None => Err(Error::UnknownApp(app.to_string())),
        }
    }

    /// Does what another replica did to an app: moves its traffic to the version that serves now, or ends what runs of an app that is
    /// gone. While the version cannot be loaded for so long as `patience`, the one before serves; then callers wait for the new one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn follow(&self, app: &AppId, patience: Duration) -> Result<(), Error> {
        let Some(now) = self.shared.store.active_version(app).await? else {
            if self.shared.store.app(app).await?.is_none() {
                self.forget_app(app).await;
            }
            return Ok(());
        };
        let known = self.routes().active.get(app).copied();
        if known.is_some_and(|known| known.activation >= now.activation) {
            return Ok(());
        }
        let loaded = match known {
            Some(_) => timeout(patience, self.version(app, now.number)).await.ok().and_then(Result::ok),
            None => None,
        };
        self.route(app, now, loaded.as_ref()).await;
        Ok(())
    }

    /// As [`Serving::follow`], for all apps.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn follow_all(&self, patience: Duration) -> Result<(), Error> {
        let now: HashMap<_, _> = self.shared.store.active_versions().await?.into_iter().collect();
        let changed: Vec<AppId> = {
            let active = &self.routes().active;
            let gone = active.keys().filter(|app| !now.contains_key(app));
            gone.chain(now.iter().filter(|(app, new)| active.get(*app) != Some(new)).map(|(app, _)| app))
                .cloned()
                .collect()
        };
        for app in changed {
            self.follow(&app, patience).await?;
        }
        Ok(())
    }
}

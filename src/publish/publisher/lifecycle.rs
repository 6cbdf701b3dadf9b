//! Changes to the versions that there are: which one serves, which go away, and which files with them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::{Actor, AppId, Version, VersionNumber};
use crate::serving::{self, Served};
use crate::store::{self, DeleteVersion};

use super::{Error, Publisher};
use crate::publish::turns::{App, Build, Ticket};

/// A delete waits so long for what still runs on the version; then it is refused.
const DELETE_PATIENCE: Duration = Duration::from_secs(5);

impl Publisher {
    /// After a build that failed.
    pub(super) async fn clean_up(&self, app: &AppId, number: VersionNumber, build: &Build, err: &Error, actor: &Actor) {
        let failure = (err.to_string(), err.reason());
        if let Err(err) = self.shared.store.fail_version(app, number, (&failure.0, failure.1), actor).await {
            tracing::error!(%app, version = %number, %err, "failed to mark a version as failed; the next start does");
        }
        self.sweep_after(app, number, build).await;
    }

    /// After a build whose files nothing is to refer to.
    pub(super) async fn sweep_after(&self, app: &AppId, number: VersionNumber, build: &Build) {
        // A worker that starts just now needs them.
        self.shared.serving.end_dropped(app, number).await;
        build.unpin();
        let state = self.shared.turns.of(app);
        let _turn = state.turn().await;
        self.sweep(app, &state).await;
    }

    /// Removes files that no version needs any more, and no build. Call it in a turn.
    async fn sweep(&self, app: &AppId, state: &App) {
        let (mut digests, mut layers) = state.pinned();
        match self.in_use(app).await {
            Ok((used, used_layers)) => {
                digests.extend(used);
                layers.extend(used_layers);
            }
            Err(err) => return tracing::error!(%app, %err, "failed to read which files are in use"),
        }
        let (artifacts, owner) = (self.shared.blobs.artifacts().clone(), app.clone());
        let swept = tokio::task::spawn_blocking(move || artifacts.sweep(&owner, &digests, &layers)).await;
        if let Ok(Err(err)) = swept {
            tracing::error!(%app, %err, "failed to remove files that are not in use");
        }
    }

    async fn in_use(&self, app: &AppId) -> Result<(BTreeSet<String>, BTreeSet<String>), store::Error> {
        Ok((self.shared.store.digests_in_use(app).await?, self.shared.store.layers_in_use(app).await?))
    }

    /// What a crash left: files that no version refers to. Call it once, before serving.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn recover(&self) -> Result<(), store::Error> {
        self.sweep_all().await;
        Ok(())
    }

    /// Removes files that no version needs any more: of those that were deleted on another replica, too.
    pub async fn sweep_all(&self) {
        for app in self.shared.blobs.artifacts().apps() {
            let state = self.shared.turns.of(&app);
            let _turn = state.turn().await;
            self.sweep(&app, &state).await;
        }
    }

    /// Makes a READY version the active one; a worker of it is initialized before traffic moves.
    ///
    /// # Errors
    /// It does not exist, is not READY, or no longer initializes: then the version before it goes on serving.
    ///
    /// # Cancel safety
    /// Of this and the two below: a caller that hangs up does not stop what has begun. Store, routes and files change together.
    pub async fn activate(&self, app: &AppId, number: VersionNumber, actor: Actor) -> Result<Version, Error> {
        let (this, app) = (self.clone(), app.clone());
        self.detached(async move { this.activate_now(&app, number, &actor).await }).await
    }

    /// # Errors
    /// It does not exist, is active, or is still needed.
    pub async fn delete_version(&self, app: &AppId, number: VersionNumber, actor: Actor) -> Result<(), Error> {
        let (this, app) = (self.clone(), app.clone());
        self.detached(async move { this.delete_version_now(&app, number, &actor).await }).await
    }

    /// `on_gone` is called as soon as the store does not know the app any more: its workers and files take longer.
    ///
    /// # Errors
    /// There is no such app.
    pub async fn delete_app(
        &self,
        app: &AppId,
        actor: Actor,
        on_gone: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let (this, app) = (self.clone(), app.clone());
        self.detached(async move { this.delete_app_now(&app, &actor, on_gone).await }).await
    }

    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.running.spawn(work).await.map_err(|_| Error::Internal)?
    }

    pub(super) async fn activate_now(
        &self,
        app: &AppId,
        number: VersionNumber,
        actor: &Actor,
    ) -> Result<Version, Error> {
        let state = self.shared.turns.of(app);
        let ticket = state.ticket();
        let served = self.initialized(app, number).await?;
        let _turn = state.turn().await;
        self.promote(&served, &state, ticket, actor).await?;
        Ok(served.version.clone())
    }

    /// The version with a worker that proved itself.
    async fn initialized(&self, app: &AppId, number: VersionNumber) -> Result<Arc<Served>, Error> {
        let served = self.shared.serving.version(app, number).await?;
        match self.verify(&served.pool).await {
            // It was unloaded, or another version just took its place: it is loaded again.
            Err(Error::Closed) => {
                self.shared.serving.discard(&served);
                let served = self.shared.serving.version(app, number).await?;
                self.verify(&served.pool).await?;
                Ok(served)
            }
            verified => verified.map(|()| served),
        }
    }

    /// Moves traffic, in a turn: unless an activation that came later has moved it already.
    async fn promote(&self, served: &Arc<Served>, state: &App, ticket: Ticket, actor: &Actor) -> Result<(), Error> {
        if !state.may_activate(ticket) {
            return Ok(());
        }
        let Version { app, number, .. } = &served.version;
        let activated = self.shared.store.activate_version(app, *number, SystemTime::now(), actor).await?;
        let Some(activation) = activated else {
            return Err(serving::Error::NotReady { app: app.clone(), number: *number }.into());
        };
        self.shared.serving.promote(served, activation).await;
        state.activated(ticket);
        Ok(())
    }

    async fn delete_version_now(&self, app: &AppId, number: VersionNumber, actor: &Actor) -> Result<(), Error> {
        // What would keep it anyway is told at once, not after the wait for its workers.
        if let Some(kept) = self.shared.store.version_kept_by(app, number).await? {
            return refused(app, number, kept);
        }
        if !self.shared.serving.release(app, number, DELETE_PATIENCE).await {
            return Err(Error::StillRunning(number));
        }
        let state = self.shared.turns.of(app);
        let _turn = state.turn().await;
        refused(app, number, self.shared.store.delete_version(app, number, actor).await?)?;
        self.shared.serving.forget(app, number).await;
        self.sweep(app, &state).await;
        Ok(())
    }

    async fn delete_app_now(&self, app: &AppId, actor: &Actor, on_gone: impl FnOnce() + Send) -> Result<(), Error> {
        let state = self.shared.turns.of(app);
        // Their numbers will be given out again.
        let _no_builds = state.end_builds().await;
        if !self.shared.store.delete_app(app, actor).await? {
            return Err(serving::Error::UnknownApp(app.to_string()).into());
        }
        on_gone();
        self.shared.serving.forget_app(app).await;
        self.sweep(app, &state).await;
        Ok(())
    }
}

/// Of what became of a deletion.
fn refused(app: &AppId, number: VersionNumber, outcome: DeleteVersion) -> Result<(), Error> {
    Err(match outcome {
        DeleteVersion::Deleted => return Ok(()),
        DeleteVersion::NotFound => serving::Error::UnknownVersion { app: app.clone(), number }.into(),
        DeleteVersion::Active => Error::Active(number),
        DeleteVersion::Building => Error::Building(number),
        DeleteVersion::NeededByEvents(events) => Error::NeededByEvents { number, events },
    })
}

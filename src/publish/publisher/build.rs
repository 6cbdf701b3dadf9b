//! The steps of a build: compile → install → check types → verify → store → activate.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::draft::{manifest, sources};
use super::{Error, Plan, Publisher};
use crate::artifacts::{BlobsError, Manifest};
use crate::declarations::{Sdk, declarations};
use crate::model::{AppId, FilesName, Version, VersionState};
use crate::pool;
use crate::publish::layer::{self, Installed};
use crate::publish::progress::Progress;
use crate::publish::turns::Build;
use crate::publish::typecheck::{Subject, TypeCheck};
use crate::publish::{Built, InvalidSpec, Project, ProjectSpec, transpile};
use crate::serving::Served;
use crate::store::Sources;
use crate::worker::StartError;

impl Publisher {
    pub(super) async fn compile(
        &self,
        spec: ProjectSpec,
        functions_required: bool,
        progress: &Progress,
    ) -> Result<(Project, Built), Error> {
        let _turn = self.shared.transpiles.acquire().await.map_err(|_| Error::Draining)?;
        let shared = Arc::clone(&self.shared);
        let progress = progress.clone();
        let compiled = tokio::task::spawn_blocking(move || {
            let registries = shared.installer.registries();
            let project = Project::check(spec, &shared.catalogue, &shared.settings.source_limits, registries)?;
            if functions_required {
                project.require_functions()?;
            }
            let memory_bytes = project.limits.memory_bytes;
            if memory_bytes > shared.settings.memory_bytes_max {
                let what = "limits.memory_bytes (against the service's memory_budget_bytes)".to_owned();
                let limit = shared.settings.memory_bytes_max;
                return Err(InvalidSpec::TooLarge { what, actual: memory_bytes, limit }.into());
            }
            for warning in &project.warnings {
                progress.say("validate", warning);
            }
            progress.say("transpile", &format!("transpiling {} files", project.files.len()));
            let built = transpile(&project)?;
            Ok((project, built))
        });
        compiled.await.map_err(|_| Error::Internal)?
    }

    pub(super) async fn build(
        &self,
        project: &Project,
        built: &Built,
        mut version: Version,
        plan: Plan<'_>,
        progress: &Progress,
    ) -> Result<Version, Error> {
        let shared = &self.shared;
        let manifest = self.assemble(project, built, &mut version, plan.build, progress).await?;
        self.check_types(project, &version, plan.typecheck, progress).await?;
        progress.say("verify", "loading the version in a worker");
        let served = shared.serving.prepare(version.clone(), project.environment.clone(), &manifest);
        let proven = async {
            tokio::try_join!(self.verify(&served.pool), self.put(&version, progress))?;
            if let Some(verification) = plan.verification {
                self.check_replay(&version, &project.environment, &manifest, verification, progress).await?;
            }
            self.finish(&served, &sources(project), plan, progress).await
        };
        // The worker that proves the version is the one that serves its first invocation.
        match proven.await {
            Ok(()) => Ok(version),
            Err(err) => {
                served.pool.kill().await;
                Err(err)
            }
        }
    }

    /// Installs what the project needs and writes the artifact; both are pinned. Fills in what the version says about them.
    pub(super) async fn assemble(
        &self,
        project: &Project,
        built: &Built,
        version: &mut Version,
        build: &Build,
        progress: &Progress,
    ) -> Result<Manifest, Error> {
        let shared = &self.shared;
        let spec = serde_json::to_vec(&project.spec).expect("plain data serializes");
        let installed = self.install(project, &version.app, build, progress).await?;
        let node_version = shared.installer.node_version();
        let manifest = manifest(&shared.catalogue, project, built, installed.as_ref(), node_version, &spec);
        if let Some(installed) = installed {
            version.layer = installed.key;
            version.layer_size_bytes = installed.size_bytes;
            version.dependencies = installed.dependencies;
        }
        let artifacts = shared.blobs.artifacts();
        build.pin_digest(&manifest.digest()).await;
        build.keep(artifacts.hold([FilesName::artifact(&version.app, &manifest.digest())]));
        let stored = {
            let (artifacts, app, manifest) = (artifacts.clone(), version.app.clone(), manifest.clone());
            let files = built.files.clone();
            let store = tokio::task::spawn_blocking(move || artifacts.store(&app, &manifest, &files, &spec));
            store.await.map_err(|_| Error::Internal)??
        };
        version.digest = stored.digest;
        version.size_bytes = stored.size_bytes;
        version.state = VersionState::Ready;
        Ok(manifest)
    }

    pub(super) async fn check_types(
        &self,
        project: &Project,
        version: &Version,
        wanted: TypeCheck,
        progress: &Progress,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let layer =
            (!version.layer.is_empty()).then(|| shared.blobs.artifacts().layer_directory(&version.app, &version.layer));
        let declarations =
            declarations(&shared.catalogue, Sdk::of(&shared.settings.sdk).as_ref(), project.environment.keys());
        let subject = Subject { project, declarations: &declarations, layer };
        Ok(shared.checker.check(wanted, subject, &shared.installer, shared.blobs.artifacts(), progress).await?)
    }

    /// To where the other replicas find it, while a worker proves it.
    async fn put(&self, version: &Version, progress: &Progress) -> Result<(), Error> {
        let blobs = &self.shared.blobs;
        if blobs.are_shared() {
            blobs.put(&files(version)).await?;
            progress.say("store", "the artifact store has it");
        }
        Ok(())
    }

    /// Makes a verified version READY and, if it is to serve, moves traffic to it.
    async fn finish(
        &self,
        served: &Arc<Served>,
        sources: &Sources,
        plan: Plan<'_>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let (shared, version) = (&self.shared, &served.version);
        let state = shared.turns.of(&version.app);
        let _turn = state.turn().await;
        progress.say("store", &format!("storing version {}", version.number));
        if plan.ticket.is_some()
            && let Some(before) = plan.started_from
            && shared.store.app(&version.app).await?.and_then(|app| app.active) != before
        {
            return Err(Error::ActiveMoved);
        }
        shared.blobs.confirm(&files(version)).await?;
        let ticket = plan.ticket.filter(|ticket| state.may_activate(*ticket));
        let activate = ticket.is_some().then(SystemTime::now);
        let activation = shared.store.finish_version(version, sources, activate, plan.base, plan.actor).await?;
        if let (Some(ticket), Some(activation)) = (ticket, activation) {
            progress.say("activate", &format!("version {} is active", version.number));
            shared.serving.promote(served, activation).await;
            state.activated(ticket);
            return Ok(());
        }
        if plan.ticket.is_some() {
            let message = "another version was activated since this publish began: that one goes on serving";
            progress.say("activate", &format!("version {} is READY; {message}", version.number));
        }
        served.pool.retire().await;
        Ok(())
    }

    pub(super) async fn install(
        &self,
        project: &Project,
        app: &AppId,
        build: &Build,
        progress: &Progress,
    ) -> Result<Option<Installed>, Error> {
        let shared = &self.shared;
        let wanted = shared.installer.names(project);
        if wanted.is_empty() {
            progress.say("install", "no dependencies");
            return Ok(None);
        }
        if let Some(before) = shared.store.layer_for(app, &shared.installer.request_digest(project)).await? {
            build.pin_layer(&before.layer).await;
            match shared.blobs.get_layer(app, &before.layer).await {
                Ok(held) => build.keep(held),
                // It can be made again.
                Err(err @ (BlobsError::Missing { .. } | BlobsError::Damaged { .. })) => {
                    progress.say("install", &err.to_string());
                }
                Err(err) => return Err(err.into()),
            }
            if let Some(layer) = shared.blobs.artifacts().layer(app, &before.layer) {
                progress.say("install", &format!("reusing the dependencies of version {}", before.number));
                return Ok(Some(layer));
            }
        }
        let _turn = match shared.builds.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                progress.say("install", "waiting for other installs to finish");
                shared.builds.acquire().await.map_err(|_| Error::Draining)?
            }
        };
        progress.say("install", &format!("installing {} dependencies with npm", wanted.len()));
        Ok(Some(layer::install(&shared.installer, shared.blobs.artifacts(), app, project, build, progress).await?))
    }

    pub(super) async fn verify(&self, pool: &pool::Pool) -> Result<(), Error> {
        match pool.warm(Instant::now() + self.shared.settings.verify_timeout).await {
            Ok(()) => Ok(()),
            Err(pool::Error::NotStarted(StartError::Init(failure))) => Err(Error::Verify(failure)),
            Err(pool::Error::NotStarted(err)) => Err(Error::NoWorker(err.to_string())),
            Err(pool::Error::Retired) => Err(Error::Closed),
            Err(err @ (pool::Error::QueueFull | pool::Error::TimedOut)) => Err(Error::AtCapacity(err.to_string())),
        }
    }
}

/// What a version runs from.
fn files(version: &Version) -> Vec<FilesName> {
    let layer = (!version.layer.is_empty()).then(|| FilesName::layer(&version.app, &version.layer));
    std::iter::once(FilesName::artifact(&version.app, &version.digest)).chain(layer).collect()
}

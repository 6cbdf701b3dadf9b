//! Installs a project's dependencies as a layer.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::artifacts::{Artifacts, Layer, LayerKey, measure, platform};
use crate::model::AppId;

use super::Project;
use super::lockfile;
use super::npm::{InstallError, Npm};
use super::progress::Progress;
use super::publisher::Error;
use super::registries::Registries;
use super::turns::Build;

pub use crate::artifacts::Layer as Installed;

const PACKAGE: &str = "package.json";
const LOCKFILE: &str = "package-lock.json";

/// npm, and what every app gets.
pub struct Installer {
    pub npm: Npm,
    pub node_version: String,
    /// Name → version, unless the app names the package itself.
    pub default_dependencies: BTreeMap<String, String>,
}

impl Installer {
    pub fn node_version(&self) -> &str {
        &self.node_version
    }

    /// Where packages may come from.
    pub fn registries(&self) -> Registries {
        Registries::of_npm(&self.npm.node, &self.npm.cli, self.npm.userconfig.as_deref())
    }

    /// The project's, and the default ones.
    pub fn dependencies(&self, project: &Project) -> BTreeMap<String, String> {
        let mut dependencies = self.default_dependencies.clone();
        dependencies.extend(project.package.dependencies.clone());
        dependencies
    }

    /// Of what a layer is asked for. The same request gets the layer that it got before, as a lockfile would give it.
    pub fn request_digest(&self, project: &Project) -> String {
        let request = json!({
            "package": self.package_json(project),
            "lockfile": project.lockfile.as_ref().map(|lockfile| blake3::hash(lockfile).to_hex().to_string()),
            "node": self.node_version,
            "platform": platform(),
            "scripts": project.scripts_allowed,
        });
        blake3::hash(request.to_string().as_bytes()).to_hex().to_string()
    }

    fn package_json(&self, project: &Project) -> serde_json::Value {
        let mut package =
            json!({ "name": "app", "version": "1.0.0", "private": true, "dependencies": self.dependencies(project) });
        if let Some(overrides) = &project.package.overrides {
            package["overrides"] = overrides.clone();
        }
        if !project.scripts_allowed.is_empty() {
            // Read by newer npm, which warns of (and is to refuse) what is not listed; older ones ignore it.
            let allowed: BTreeMap<&str, bool> =
                project.scripts_allowed.iter().map(|name| (name.as_str(), true)).collect();
            package["allowScripts"] = json!(allowed);
        }
        package
    }
}

/// Installs into a staged directory and keeps it as a layer, or the one of the same key that is there already.
pub(super) async fn install(
    installer: &Installer,
    artifacts: &Artifacts,
    app: &AppId,
    project: &Project,
    build: &Build,
    progress: &Progress,
) -> Result<Layer, Error> {
    let staged = artifacts.stage("layer-")?;
    let package = installer.package_json(project);
    let write = |name: &str, content: &[u8]| {
        std::fs::write(staged.path().join(name), content).map_err(|err| disk_error(&err, name))
    };
    write(PACKAGE, package.to_string().as_bytes())?;
    let mut matches = false;
    if let Some(lockfile) = &project.lockfile {
        write(LOCKFILE, lockfile)?;
        matches = lockfile::matches(lockfile, &installer.dependencies(project));
    }
    let scripts: BTreeSet<String> = project.scripts_allowed.iter().cloned().collect();
    installer.npm.install(staged.path(), matches, &scripts, progress).await?;
    let lockfile = std::fs::read(staged.path().join(LOCKFILE)).map_err(|err| disk_error(&err, LOCKFILE))?;
    let key = LayerKey {
        lockfile: &lockfile,
        node_version: &installer.node_version,
        platform: &platform(),
        scripts_allowed: &scripts,
    };
    let key = key.digest();
    build.pin_layer(&key).await;
    let names = installer.dependencies(project);
    let (artifacts, app) = (artifacts.clone(), app.clone());
    let kept = tokio::task::spawn_blocking(move || {
        if let Some(layer) = artifacts.layer(&app, &key) {
            return Ok(layer);
        }
        std::fs::create_dir_all(staged.path().join("node_modules")).map_err(|err| disk_error(&err, "node_modules"))?;
        let (size_bytes, files) = measure(staged.path());
        let layer = Layer { key, size_bytes, files, dependencies: lockfile::resolved(&lockfile, &names) };
        artifacts.keep_layer(&app, staged, &layer)?;
        Ok(layer)
    });
    kept.await.map_err(|_| Error::Internal)?
}

fn disk_error(err: &std::io::Error, name: &str) -> Error {
    let text = format!("{name}: {err}");
    if err.kind() == std::io::ErrorKind::StorageFull {
        return InstallError::DiskFull(text).into();
    }
    InstallError::Broken(text).into()
}

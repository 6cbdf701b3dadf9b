//! Installs a project's dependencies as a layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::artifacts::{Artifacts, Layer, LayerKey, measure, platform};
use crate::model::{AppId, FilesName};

use super::Project;
use super::lockfile;
use super::npm::{InstallError, Npm};
use super::package::PackageJson;
use super::progress::Progress;
use super::publisher::Error;
use super::registry::Registries;
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
    pub fn registries(&self) -> &Registries {
        self.npm.proxy.registries()
    }

    /// The default dependencies that the project does not name itself.
    fn defaults<'a>(&'a self, project: &'a Project) -> impl Iterator<Item = (&'a String, &'a String)> {
        let PackageJson { dependencies, optional, .. } = &project.package;
        let named = move |name: &String| dependencies.contains_key(name) || optional.contains_key(name);
        self.default_dependencies.iter().filter(move |(name, _)| !named(name))
    }

    /// Of all that is to be installed.
    pub fn names(&self, project: &Project) -> BTreeSet<String> {
        let PackageJson { dependencies, optional, .. } = &project.package;
        let own = dependencies.keys().chain(optional.keys());
        own.chain(self.defaults(project).map(|(name, _)| name)).cloned().collect()
    }

    /// Of what a layer is asked for. The same request gets the layer that it got before, as a lockfile would give it.
    pub fn request_digest(&self, project: &Project) -> String {
        let request = json!({
            "package": package_json(project, self.defaults(project)),
            "lockfile": project.lockfile.as_ref().map(|lockfile| blake3::hash(lockfile).to_hex().to_string()),
            "node": self.node_version,
            "platform": platform(),
            "scripts": project.scripts_allowed,
        });
        blake3::hash(request.to_string().as_bytes()).to_hex().to_string()
    }
}

/// What npm is asked for: nothing of the tenant's but dependencies and overrides.
fn package_json<'a>(project: &Project, defaults: impl Iterator<Item = (&'a String, &'a String)>) -> serde_json::Value {
    let mut dependencies = project.package.dependencies.clone();
    dependencies.extend(defaults.map(|(name, spec)| (name.clone(), spec.clone())));
    let mut package = json!({ "name": "app", "version": "1.0.0", "private": true, "dependencies": dependencies });
    if !project.package.optional.is_empty() {
        package["optionalDependencies"] = json!(project.package.optional);
    }
    if let Some(overrides) = &project.package.overrides {
        package["overrides"] = overrides.clone();
    }
    if !project.scripts_allowed.is_empty() {
        // Read by newer npm, which warns of (and is to refuse) what is not listed; older ones ignore it.
        let allowed: BTreeMap<&str, bool> = project.scripts_allowed.iter().map(|name| (name.as_str(), true)).collect();
        package["allowScripts"] = json!(allowed);
    }
    package
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
    let scripts: BTreeSet<String> = project.scripts_allowed.iter().cloned().collect();
    run_npm(installer, staged.path(), project, progress).await?;
    // Before any script runs: those can write here too, and leave a link to whatever the service can read.
    let lockfile = std::fs::read(staged.path().join(LOCKFILE)).map_err(|err| disk_error(&err, LOCKFILE))?;
    installer.npm.run_scripts(staged.path(), &scripts, progress).await?;
    replace(&staged.path().join(LOCKFILE), &lockfile).map_err(|err| disk_error(&err, LOCKFILE))?;
    let key = LayerKey {
        lockfile: &lockfile,
        node_version: &installer.node_version,
        platform: &platform(),
        scripts_allowed: &scripts,
    };
    let key = key.digest();
    build.pin_layer(&key).await;
    build.keep(artifacts.hold([FilesName::layer(app, &key)]));
    let names = installer.names(project);
    let (artifacts, app) = (artifacts.clone(), app.clone());
    let kept = tokio::task::spawn_blocking(move || {
        if let Some(layer) = artifacts.layer(&app, &key) {
            return Ok(layer);
        }
        std::fs::create_dir_all(staged.path().join("node_modules")).map_err(|err| disk_error(&err, "node_modules"))?;
        // Workers have users of their own; what is above it in the data directory keeps everybody else out.
        std::fs::set_permissions(staged.path(), Permissions::from_mode(0o755))
            .map_err(|err| disk_error(&err, "layer"))?;
        let (size_bytes, files) = measure(staged.path());
        let layer = Layer { key, size_bytes, files, dependencies: lockfile::resolved(&lockfile, &names) };
        artifacts.keep_layer(&app, staged, &layer)?;
        Ok(layer)
    });
    kept.await.map_err(|_| Error::Internal)?
}

/// On return `package.json`, `package-lock.json` and (unless there is nothing to install) `node_modules` stand in the directory.
async fn run_npm(installer: &Installer, directory: &Path, project: &Project, progress: &Progress) -> Result<(), Error> {
    let npm = &installer.npm;
    let write = |name: &str, content: &[u8]| {
        std::fs::write(directory.join(name), content).map_err(|err| disk_error(&err, name))
    };
    let mut exact = false;
    if let Some(lockfile) = &project.lockfile {
        write(LOCKFILE, lockfile)?;
        exact = lockfile::matches(lockfile, &project.package);
        let how = if exact { "matches: installing exactly that (npm ci)" } else { "does not match: resolving again" };
        progress.say("install", &format!("package-lock.json {how}"));
    }
    // A tenant's lockfile cannot know of the defaults: they come after it, on top of what it pins.
    if exact {
        write(PACKAGE, package_json(project, std::iter::empty()).to_string().as_bytes())?;
        npm.install_exactly(directory, progress).await?;
    }
    if !exact || installer.defaults(project).next().is_some() {
        write(PACKAGE, package_json(project, installer.defaults(project)).to_string().as_bytes())?;
        npm.install(directory, progress).await?;
    }
    Ok(())
}

/// Whatever stands there now, a link included, which is not followed.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    std::fs::remove_file(path)?;
    std::fs::File::create_new(path)?.write_all(content)
}

fn disk_error(err: &std::io::Error, name: &str) -> Error {
    let text = format!("{name}: {err}");
    if err.kind() == std::io::ErrorKind::StorageFull {
        return InstallError::DiskFull(text).into();
    }
    InstallError::Broken(text).into()
}

//! TypeScript and Node's types, installed once: `<data>/tools/typescript-<version>-<lockfile's digest>/`.

use std::fs::{Permissions, create_dir, set_permissions, write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Error, PHASE};
use crate::artifacts::Artifacts;
use crate::publish::layer::Installer;
use crate::publish::npm::InstallError;
use crate::publish::progress::Progress;

const PACKAGE: &str = include_str!("package.json");
/// Pins every file by its hash. Made by `npm install --omit-lockfile-registry-resolved` beside `package.json`: where packages come
/// from is the operator's choice.
const LOCKFILE: &str = include_str!("package-lock.json");
/// Majors of Node that there are types of.
const NODE_MAJORS: [u32; 3] = [20, 22, 24];
/// Holds `node`: the types of the Node that runs functions.
pub(super) const TYPES: &str = "types";

/// Of TypeScript.
pub(super) fn version() -> &'static str {
    let after = PACKAGE.split_once("\"typescript\": \"").map_or("", |(_, rest)| rest);
    after.split('"').next().unwrap_or_default()
}

/// Where it is; it is installed if it is not there. One at a time.
pub(super) async fn installed(
    installer: &Installer,
    artifacts: &Artifacts,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let major = types_of(installer.node_version());
    let lockfile = blake3::hash(LOCKFILE.as_bytes()).to_hex();
    let name = format!("typescript-{}-{}-node-{major}", version(), &lockfile[..12]);
    let directory = artifacts.tool(&name);
    if directory.exists() {
        return Ok(directory);
    }
    progress.say(PHASE, &format!("installing TypeScript {} (this once)", version()));
    let failed = |err: &dyn std::fmt::Display| Error::Tool(InstallError::Broken(err.to_string()));
    let staged = artifacts.stage("tool-").map_err(|err| failed(&err))?;
    for (file, content) in [("package.json", PACKAGE), ("package-lock.json", LOCKFILE)] {
        write(staged.path().join(file), content).map_err(|err| failed(&err))?;
    }
    installer.npm.install_exactly(staged.path(), progress).await.map_err(Error::Tool)?;
    add_types(staged.path(), major).map_err(|err| failed(&err))?;
    let (artifacts, kept) = (artifacts.clone(), name.clone());
    let keeping = tokio::task::spawn_blocking(move || artifacts.keep_tool(staged, &kept)).await;
    keeping.map_err(|err| failed(&err))?.map_err(|err| failed(&err))?;
    Ok(directory)
}

/// `types: ["node"]`, whichever major that is. Whoever runs the compiler is another user: the data directory keeps everybody else out.
fn add_types(directory: &Path, major: u32) -> std::io::Result<()> {
    create_dir(directory.join(TYPES))?;
    symlink(format!("../node_modules/node-{major}"), directory.join(TYPES).join("node"))?;
    set_permissions(directory, Permissions::from_mode(0o755))
}

/// The newest that is not newer than this Node; of an older one, the oldest.
fn types_of(node_version: &str) -> u32 {
    let major: u32 =
        node_version.trim_start_matches('v').split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    NODE_MAJORS.into_iter().rev().find(|one| *one <= major).unwrap_or(NODE_MAJORS[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockfile_pins_everything_and_names_no_registry() {
        let lockfile: serde_json::Value = serde_json::from_str(LOCKFILE).expect("JSON");
        let packages = lockfile["packages"].as_object().expect("packages");
        assert_eq!(packages["node_modules/typescript"]["version"], version());
        for (path, package) in packages.iter().filter(|(path, _)| !path.is_empty()) {
            assert!(package["integrity"].is_string() && package["resolved"].is_null(), "{path}");
        }
        for major in NODE_MAJORS {
            let pinned = packages[&format!("node_modules/node-{major}")]["version"].as_str().expect("a version");
            assert!(pinned.starts_with(&format!("{major}.")), "{pinned}");
        }
    }

    #[test]
    fn each_node_gets_types_that_it_has() {
        for (node, types) in
            [("v20.20.2", 20), ("21.0.0", 20), ("v22.1.0", 22), ("v26.0.0", 24), ("v18.0.0", 20), ("", 20)]
        {
            assert_eq!(types_of(node), types, "{node}");
        }
    }
}

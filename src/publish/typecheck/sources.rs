//! The directory that the compiler is shown.

use std::collections::BTreeMap;
use std::fs::{Permissions, create_dir_all, set_permissions, write as write_file};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::tsconfig;
use crate::declarations::FILE_NAME;
use crate::publish::sources::{is_code, is_declaration};

pub(super) const TSCONFIG: &str = "tsconfig.json";

/// Where the compiler finds what is not the project's own.
pub(super) struct Seen {
    pub types: PathBuf,
    pub layer: Option<PathBuf>,
}

/// Writes it. What comes back is to be told: about the tenant's `tsconfig.json`.
pub(super) fn write(
    directory: &Path,
    files: &BTreeMap<String, Bytes>,
    declarations: &str,
    seen: &Seen,
) -> io::Result<Option<String>> {
    let shown = |path: &&String| !is_ours(path) && !is_generated(path);
    for path in files.keys().filter(shown) {
        let target = directory.join(path);
        create_dir_all(target.parent().unwrap_or(directory))?;
        write_file(target, &files[path])?;
    }
    write_file(directory.join(FILE_NAME), declarations)?;
    let roots = files.keys().filter(shown).filter(|path| is_code(path) || is_declaration(path));
    let roots = roots.map(String::as_str).chain([FILE_NAME]);
    let (config, problem) = tsconfig::ours(files.get(TSCONFIG).map(AsRef::as_ref), roots, &seen.types);
    write_file(directory.join(TSCONFIG), config.to_string())?;
    if let Some(layer) = &seen.layer {
        symlink(layer.join("node_modules"), directory.join("node_modules"))?;
    }
    // The compiler runs as another user; the data directory keeps everybody else out.
    set_permissions(directory, Permissions::from_mode(0o755))?;
    Ok(problem)
}

/// Where we write a file of our own nothing else stands, be it a directory of that name.
fn is_ours(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    first == TSCONFIG || first == FILE_NAME
}

/// `chatfn init` and editors leave copies, which may be old: ours takes their place.
fn is_generated(path: &str) -> bool {
    path.rsplit('/').next() == Some(FILE_NAME)
}

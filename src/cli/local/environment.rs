//! `.env`: the environment of local runs, read as `--env-file` reads it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::environment::read_file;

/// Empty without the file.
///
/// # Errors
/// Names the line, never what stands in it.
pub fn read(project: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let path = project.join(".env");
    if path.try_exists().is_ok_and(|exists| !exists) {
        return Ok(BTreeMap::new());
    }
    read_file(&path)
}

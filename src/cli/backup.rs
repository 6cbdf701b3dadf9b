//! `chatfn backup`: what a service on SQLite has, at one moment, while it runs. Works on the data directory itself: no token opens it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use super::client::block_on;
use super::configured::Configured;
use super::keys::check_owner;
use super::output::{bytes, note, say};
use crate::backup::{self, Manifest};
use crate::store::SQLITE_FILE;

/// The backup is a new directory, for this user alone. `chatfn restore` makes a data directory of it.
///
/// The keys of encryption_keys_file are not in it: without them its secrets cannot be opened. Keep a copy of them elsewhere.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory to make; what is there already is never written to
    path: PathBuf,
    #[command(flatten)]
    service: Configured,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service is on PostgreSQL, or something cannot be read or written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.service.load()?;
    if config.database_url.is_some() {
        bail!("this service's data is in PostgreSQL: back it up with pg_dump, as docs/backup.md tells");
    }
    let database = config.data_dir.join(SQLITE_FILE);
    if database.exists() {
        check_owner(&database)?;
    }
    let artifacts = config.artifacts.as_ref().map(ToString::to_string);
    let done = block_on(async { Ok(backup::take(&config.data_dir, artifacts, &args.path, note).await?) })?;
    say(&if args.json { as_json(&args.path, &done) } else { as_text(&args.path, &done) })?;
    if config.encryption_keys_file.is_some() {
        note("the keys of encryption_keys_file are not in it: without them its secrets cannot be opened");
    }
    Ok(ExitCode::SUCCESS)
}

fn files_bytes(manifest: &Manifest) -> u64 {
    manifest.files.iter().map(|file| file.entry.size_bytes).sum()
}

fn as_text(path: &Path, done: &Manifest) -> String {
    let Manifest { apps, events, database, files, artifacts, .. } = done;
    let elsewhere = match artifacts {
        Some(url) => format!("\nWhat else its versions run from is in {url}, which needs a copy of its own."),
        None => String::new(),
    };
    format!(
        "{} holds {apps} apps, {events} events that wait or run: a database of {} and {} packed files of {}.{elsewhere}",
        path.display(),
        bytes(database.size_bytes),
        files.len(),
        bytes(files_bytes(done)),
    )
}

fn as_json(path: &Path, done: &Manifest) -> String {
    let Manifest { created_at, chatfn, migration, apps, events, artifacts, database, files, .. } = done;
    json!({
        "path": path, "created_at": created_at, "chatfn": chatfn, "migration": migration, "apps": apps, "events": events,
        "artifacts": artifacts, "database_bytes": database.size_bytes, "files": files.len(), "files_bytes": files_bytes(done),
    })
    .to_string()
}

//! `chatfn restore`: a data directory from a backup.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use super::client::block_on;
use super::configured::Configured;
use super::output::{note, say};
use crate::backup::{self, Restored};

/// Everything in the backup is checked first. Run it as the user that the service runs as.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `chatfn backup` made
    path: PathBuf,
    #[command(flatten)]
    service: Configured,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The backup is damaged, or the data directory is in use.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.service.load()?;
    if config.database_url.is_some() {
        bail!("this service's data is in PostgreSQL: restore it with pg_restore, as docs/backup.md tells");
    }
    let data = &config.data_dir;
    let Restored { manifest, files } = block_on(async { Ok(backup::restore(&args.path, data, note).await?) })?;
    let text = || {
        let elsewhere = manifest.artifacts.iter().map(|url| format!("\nIt needs the artifacts in {url} as well."));
        format!(
            "{} holds what {} had at {}: {} apps, {} events that wait.{}\nStart it: chatfn serve --data-dir {}\nEvents that ran at that \
             time run again. Secrets open with the keys of that time (encryption_keys_file).",
            data.display(),
            args.path.display(),
            manifest.created_at,
            manifest.apps,
            manifest.events,
            elsewhere.collect::<String>(),
            data.display(),
        )
    };
    let json = || {
        let backup::Manifest { created_at, migration, apps, events, artifacts, .. } = &manifest;
        json!({ "data_dir": data, "created_at": created_at, "migration": migration, "apps": apps, "events": events, "files": files,
                "artifacts": artifacts })
        .to_string()
    };
    say(&if args.json { json() } else { text() })?;
    Ok(ExitCode::SUCCESS)
}

//! `chatfn migrate`: brings the database up to date before the services of a new version start, as a step of its own.

use std::process::ExitCode;

use serde_json::json;

use super::client::block_on;
use super::configured::Configured;
use super::output::say;
use crate::service;
use crate::store::{QueueLimits, Schema, Store};

/// Migrations only ever add, so that services of the version before go on beside it. `chatfn serve` does the same when it starts.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    service: Configured,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The configuration is wrong, or the database cannot be reached, is not ours, or a newer chatfn took away what this one needs.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.service.load()?;
    let database = service::database(&config, &config.data_dir)?;
    let name = database.to_string();
    block_on(async {
        let store = Store::open(database, QueueLimits::default()).await?;
        let Schema { known, newer } = store.schema();
        store.close().await;
        say(&match (args.json, newer) {
            (true, _) => json!({ "database": name, "migration": newer.unwrap_or(known), "known": known }).to_string(),
            (false, None) => format!("{name} is up to date: migration {known}"),
            (false, Some(newer)) => format!(
                "{name} was brought up to migration {newer} by a newer chatfn; this one knows migrations up to {known}, has all of \
                 them there, and runs on it. Nothing was undone"
            ),
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

//! `chatfn migrate`: brings the database up to date before the services of a new version start, as a step of its own.

use std::process::ExitCode;

use super::client::block_on;
use super::configured::Configured;
use super::output::say;
use crate::service;
use crate::store::{QueueLimits, Store};

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
/// The configuration is wrong, or the database cannot be reached, is not ours, or was written by a newer chatfn.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.service.load()?;
    let database = service::database(&config, &config.data_dir)?;
    let name = database.to_string();
    block_on(async {
        let store = Store::open(database, QueueLimits::default()).await?;
        let migration = store.migration().await;
        store.close().await;
        let migration = migration?;
        say(&match args.json {
            true => serde_json::json!({ "database": name, "migration": migration }).to_string(),
            false => format!("{name} is up to date: migration {migration}"),
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

//! `chatfn migrate`: brings the database up to date before the services of a new version start, as a step of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use super::client::block_on;
use super::output::say;
use crate::config::{Config, parse_override};
use crate::service;
use crate::store::{QueueLimits, Store};

/// Migrations only ever add, so that services of the version before go on beside it. `chatfn serve` does the same when it starts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PostgreSQL, postgres://… (safer as the variable CHATFN_DATABASE_URL) [default: SQLite in the data directory]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The service's data directory [default: as configured]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The service's configuration file [default: chatfn.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting of the configuration; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The configuration is wrong, or the database cannot be reached, is not ours, or was written by a newer chatfn.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut overrides = args.overrides.iter().map(|text| parse_override(text)).collect::<Result<Vec<_>, _>>()?;
    overrides.extend(args.database_url.iter().map(|url| ("database_url".to_owned(), url.clone())));
    overrides.extend(args.data_dir.iter().map(|dir| ("data_dir".to_owned(), dir.display().to_string())));
    let config = Config::load(args.config.as_deref(), &overrides)?;
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

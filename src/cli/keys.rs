//! `chatfn keys`: what secrets are encrypted with. Works on the database itself: no token opens it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;
use tokio::time::sleep;

use super::client::block_on;
use super::configured::Configured;
use super::output::{note, say};
use crate::model::Actor;
use crate::secrets::{Keyring, generate};
use crate::service;
use crate::store::{Database, QueueLimits, Rotation, Store};

/// For those who read the write-ahead log to be done with it.
const LOG_ATTEMPTS: u32 = 50;
const LOG_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a line for encryption_keys_file, with a new key. Nobody can make the same one again: keep a copy elsewhere.
    Generate(Generate),
    /// Encrypt everything with the first key of encryption_keys_file, also what lies in the database as it is.
    ///
    /// Safe beside a running service, and to be repeated. Afterwards the other keys of the file can go, unless backups need them.
    Rotate(Rotate),
}

#[derive(Debug, clap::Args)]
struct Generate {
    /// Its name: letters, digits, - and _ [default: today's date and something random]
    #[arg(long)]
    id: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Rotate {
    #[command(flatten)]
    service: Configured,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The configuration is wrong, a key is missing, or the database cannot be used.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Generate(args) => {
            say(&generate(&args.id.clone().unwrap_or_else(new_id))?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Rotate(args) => block_on(rotate(args)),
    }
}

/// `2026-11-27-3f9a`.
fn new_id() -> String {
    let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", today.get(..10).unwrap_or_default(), &random[..4])
}

async fn rotate(args: &Rotate) -> anyhow::Result<ExitCode> {
    let config = args.service.load()?;
    let Some(path) = &config.encryption_keys_file else {
        bail!("no encryption_keys_file is set: `chatfn keys generate` makes a line for one");
    };
    let keys = Keyring::open(path)?;
    let database = service::database(&config, &config.data_dir)?;
    if let Database::Sqlite(file) = &database {
        check_owner(file)?;
    }
    let store = Store::open(database, QueueLimits::default()).await?;
    store.use_keys(keys);
    let rotated = store.rotate_keys(&actor(), |done| note(&counted(done))).await;
    let emptied = emptied(&store).await;
    store.close().await;
    let done = rotated?;
    if !emptied? {
        note("others read the database just now: what was there before goes from its write-ahead log a little later");
    }
    for failure in &done.failed {
        note(failure);
    }
    say(&if args.json { as_json(&done) } else { counted(&done) })?;
    Ok(if done.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As the audit log knows who runs this.
fn actor() -> Actor {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    Actor::command(user.map_or_else(|| format!("uid {uid}"), |user| user.name))
}

async fn emptied(store: &Store) -> anyhow::Result<bool> {
    for _ in 0..LOG_ATTEMPTS {
        if store.empty_log().await? {
            return Ok(true);
        }
        sleep(LOG_PAUSE).await;
    }
    Ok(false)
}

/// Files that we made beside it would be closed to a service of another user.
pub(super) fn check_owner(database: &Path) -> anyhow::Result<()> {
    let owner = std::fs::metadata(database).with_context(|| format!("read {}", database.display()))?.uid();
    if owner != nix::unistd::geteuid().as_raw() {
        bail!("{} is user {owner}'s: run this as that user", database.display());
    }
    Ok(())
}

fn counted(done: &Rotation) -> String {
    let Rotation { key_id, data_keys, values, service_keys, failed } = done;
    let failed = if failed.is_empty() { String::new() } else { format!(", {} could not be opened", failed.len()) };
    format!(
        "key {key_id}: {data_keys} data keys moved to it, {values} values encrypted, {service_keys} keys of the service{failed}"
    )
}

fn as_json(done: &Rotation) -> String {
    let Rotation { key_id, data_keys, values, service_keys, failed } = done;
    json!({ "key_id": key_id, "data_keys": data_keys, "values": values, "service_keys": service_keys, "failed": failed })
        .to_string()
}

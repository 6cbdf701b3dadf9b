//! Opening the store: a file, or a database of PostgreSQL.

mod copy;
mod postgres;
mod schema;
mod sqlite;

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

#[cfg(test)]
use sqlx::migrate::Migrator;

use super::changes::Crier;
use super::db::Pool;
use super::queue::{Backlog, Writer};
use super::{Error, Inner, QueueLimits, Store};

pub use copy::{Copied, copy, inspect};
pub use postgres::Postgres;
pub use schema::Schema;

/// Where everything durable is.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file of one service's.
    Sqlite(PathBuf),
    /// Shared by all replicas.
    Postgres(Box<Postgres>),
}

/// SQLite's file, in a data directory.
pub const SQLITE_FILE: &str = "chatfn.db";

/// Connections to write and to read with.
struct Pools {
    write: Pool,
    read: Pool,
    schema: Schema,
}

impl Store {
    /// Opens the store, creating it (a file has mode 0600) or bringing it up to date.
    ///
    /// # Errors
    /// It cannot be reached, is not ours, or a newer chatfn took away something that this one needs.
    pub async fn open(database: impl Into<Database>, limits: QueueLimits) -> Result<Self, Error> {
        let database = database.into();
        let Pools { write, read, schema } = match &database {
            Database::Sqlite(path) => sqlite::open(path).await?,
            Database::Postgres(settings) => postgres::open(settings).await?,
        };
        if let Schema { known, newer: Some(newer) } = schema {
            tracing::info!(
                known,
                newer,
                "{database} was brought up to date by a newer chatfn, which only added to it: going on with what is known here"
            );
        }
        let backlog = Backlog::open(&read, limits).await?;
        let replica = Arc::new(AtomicI64::new(0));
        let ours = Arc::clone(&replica);
        let crier = Crier::start(&write, move || ours.load(Ordering::Acquire));
        let queue = Writer::start(write.clone(), backlog, crier);
        Ok(Self {
            inner: Arc::new(Inner {
                write,
                read,
                schema,
                queue,
                doubtful_claim: Mutex::default(),
                replica,
                keys: OnceLock::new(),
            }),
        })
    }
}

#[cfg(test)]
fn migrations(pool: &Pool) -> &'static Migrator {
    match pool {
        Pool::Sqlite(_) => &sqlite::MIGRATIONS,
        Pool::Postgres(_) => &postgres::MIGRATIONS,
    }
}

impl From<&Path> for Database {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl From<&PathBuf> for Database {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

/// Without the password.
impl Display for Database {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => Display::fmt(&path.display(), f),
            Self::Postgres(settings) => Display::fmt(settings, f),
        }
    }
}

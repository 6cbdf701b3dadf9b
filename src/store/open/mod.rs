//! Opening the store: a file, or a database of PostgreSQL.

mod postgres;
mod sqlite;

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use sqlx::migrate::{MigrateError, Migrator};

use super::changes::Crier;
use super::db::Pool;
use super::queue::{Backlog, Writer};
use super::{Error, Inner, QueueLimits, Store};

pub use postgres::Postgres;

/// Where everything durable is.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file of one service's.
    Sqlite(PathBuf),
    /// Shared by all replicas.
    Postgres(Box<Postgres>),
}

/// Connections to write and to read with.
struct Pools {
    write: Pool,
    read: Pool,
}

impl Store {
    /// Opens the store, creating it (a file has mode 0600) or bringing it up to date.
    ///
    /// # Errors
    /// It cannot be reached, is not ours, or was written by a newer chatfn.
    pub async fn open(database: impl Into<Database>, limits: QueueLimits) -> Result<Self, Error> {
        let Pools { write, read } = match database.into() {
            Database::Sqlite(path) => sqlite::open(&path).await?,
            Database::Postgres(settings) => postgres::open(&settings).await?,
        };
        let backlog = Backlog::open(&read, limits).await?;
        let replica = Arc::new(AtomicI64::new(0));
        let ours = Arc::clone(&replica);
        let crier = Crier::start(&write, move || ours.load(Ordering::Acquire));
        let queue = Writer::start(write.clone(), backlog, crier);
        Ok(Self {
            inner: Arc::new(Inner {
                write,
                read,
                queue,
                doubtful_claim: Mutex::default(),
                replica,
                keys: OnceLock::new(),
            }),
        })
    }
}

/// Brings the schema up to date. On PostgreSQL one at a time: sqlx holds an advisory lock meanwhile.
async fn migrate(database: &str, migrations: &Migrator, pool: &Pool) -> Result<(), Error> {
    let migrated = match pool {
        Pool::Sqlite(pool) => migrations.run(pool).await,
        Pool::Postgres(pool) => migrations.run(pool).await,
    };
    migrated.map_err(|err| match err {
        MigrateError::VersionMissing(migration) => Error::Newer { database: database.to_owned(), migration },
        err => Error::Migration { database: database.to_owned(), problem: err.to_string() },
    })
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

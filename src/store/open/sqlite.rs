//! The file: its mode, its settings, and clear words where it is not ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::fs::OpenOptions;

use super::super::db::{self, Pool};
use super::super::{Error, during};
use super::Pools;
use super::schema;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

const READERS_MAX: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What the write-ahead log may keep on disk after a checkpoint.
const LOG_BYTES_MAX: &str = "67108864";
/// Each connection's page cache, in SQLite's negative KiB: with its default of 2 MB a queue of a million events is read from the file
/// again and again, and a purge spills what it is about to write.
const WRITER_CACHE: &str = "-65536";
const READER_CACHE: &str = "-16384";
/// SQLite's code for a file with other contents (one that was damaged is 11).
const NOT_A_DATABASE: &str = "26";

pub async fn open(path: &Path) -> Result<Pools, Error> {
    create_private(path).await?;
    let write = open_writer(path).await?;
    check_ours(path, &write).await?;
    let name = path.display().to_string();
    let schema = schema::check(&name, &MIGRATIONS, &Pool::Sqlite(write.clone())).await?;
    let migrated = schema::tolerant(&MIGRATIONS).run(&write).await;
    migrated.map_err(|err| Error::Migration { database: name, problem: err.to_string() })?;
    // After the migrations: a reader can neither create the file nor switch it to WAL.
    Ok(Pools { write: Pool::Sqlite(write), read: Pool::Sqlite(open_readers(path).await?), schema })
}

/// SQLite would create the file for everybody to read; its log and index files take the mode of this one.
async fn create_private(path: &Path) -> Result<(), Error> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).await;
    opened.map(|_| ()).map_err(|err| Error::File { path: path.to_owned(), source: Arc::new(err) })
}

async fn open_writer(path: &Path) -> Result<SqlitePool, Error> {
    let options = options(path)
        // Before the first table exists, else it has no effect.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        // NORMAL may lose the last commits when the power goes, and an accepted event is a promise.
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", LOG_BYTES_MAX)
        .pragma("cache_size", WRITER_CACHE);
    let pool = pool(1).connect_with(options).await;
    pool.map_err(|err| not_a_database(path, &err).unwrap_or_else(|| during("open the store")(err)))
}

async fn open_readers(path: &Path) -> Result<SqlitePool, Error> {
    let options = options(path).read_only(true).pragma("cache_size", READER_CACHE);
    pool(READERS_MAX).connect_with(options).await.map_err(during("open the store for reading"))
}

pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).foreign_keys(true).busy_timeout(BUSY_TIMEOUT)
}

/// Connections to a file do not go stale, so none is tested or replaced.
pub(super) fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// A file that holds tables of some other program's is left alone.
pub(super) async fn check_ours(path: &Path, pool: &SqlitePool) -> Result<(), Error> {
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table'";
    let tables: Vec<String> = match db::query_scalar(tables).fetch_all(&Pool::Sqlite(pool.clone())).await {
        Ok(tables) => tables,
        Err(err) => return Err(not_a_database(path, &err).unwrap_or_else(|| during("read the schema")(err))),
    };
    match tables.is_empty() || tables.iter().any(|name| name == "_sqlx_migrations") {
        true => Ok(()),
        false => Err(Error::NotADatabase(path.display().to_string())),
    }
}

pub(super) fn not_a_database(path: &Path, err: &sqlx::Error) -> Option<Error> {
    let code = err.as_database_error()?.code()?;
    (code == NOT_A_DATABASE).then(|| Error::NotADatabase(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::super::testing::{app, ready_version, sqlite_store as store};
    use super::*;
    use crate::store::{QueueLimits, Store};

    async fn refusal(path: &Path) -> String {
        Store::open(path, QueueLimits::default()).await.err().expect("a refusal").to_string()
    }

    #[tokio::test]
    async fn the_file_is_private_and_durable() {
        let (dir, store) = store().await;
        for name in ["store.db", "store.db-wal", "store.db-shm"] {
            let mode = std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let pragma =
            async |sql: &'static str| -> i64 { db::query_scalar(sql).fetch_one(store.write()).await.expect("pragma") };
        assert_eq!(pragma("PRAGMA synchronous").await, 2, "FULL");
        assert_eq!(pragma("PRAGMA auto_vacuum").await, 2, "INCREMENTAL");
        assert_eq!(pragma("PRAGMA foreign_keys").await, 1);
        assert_eq!(pragma("PRAGMA cache_size").await, -65536);
        assert_eq!(pragma("PRAGMA busy_timeout").await, 5000);
        assert_eq!(pragma("PRAGMA journal_size_limit").await, 67_108_864);
        let mode: String = db::query_scalar("PRAGMA journal_mode").fetch_one(store.read()).await.expect("mode");
        assert_eq!(mode, "wal");
        let refused = db::query("DELETE FROM apps").execute(store.read()).await;
        assert!(refused.is_err(), "a reader cannot write");
        store.shrink().await.expect("shrink");
    }

    #[tokio::test]
    async fn reopening_keeps_everything() {
        let (dir, store) = store().await;
        let version = ready_version(&store, "shop").await;
        store.close().await;
        store.close().await;
        assert!(matches!(store.app(&app("shop")).await, Err(Error::Closed)));

        let store = Store::open(&dir.path().join("store.db"), QueueLimits::default()).await.expect("reopen");
        assert_eq!(store.version(&app("shop"), version.number).await.expect("version"), Some(version));
    }

    #[tokio::test]
    async fn what_is_not_ours_is_refused_with_advice() {
        let dir = tempfile::tempdir().expect("tempdir");
        let text = dir.path().join("text");
        std::fs::write(&text, "just a text file\n".repeat(200)).expect("write");
        assert!(refusal(&text).await.contains("is not a chatfn database: move it away"));

        let foreign = dir.path().join("foreign.db");
        let options = SqliteConnectOptions::new().filename(&foreign).create_if_missing(true);
        let other = pool(1).connect_with(options).await.expect("connect");
        db::query("CREATE TABLE t (x)").execute(&Pool::Sqlite(other.clone())).await.expect("create");
        other.close().await;
        assert!(refusal(&foreign).await.contains("is not a chatfn database"));

        let missing = dir.path().join("no/such/folder/store.db");
        assert!(refusal(&missing).await.contains("No such file or directory"));
    }
}

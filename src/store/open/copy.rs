//! A copy of a database of SQLite's, for a backup, and a look at one before it is used.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use sqlx::SqlitePool;

use super::super::codec::{get, get_parsed};
use super::super::db::{self, Pool};
use super::super::{Error, during};
use super::schema::{self, Schema};
use super::sqlite::{MIGRATIONS, check_ours, not_a_database, options, pool};
use crate::model::{AppId, FilesKind, FilesName};

/// A service that is writing makes nobody wait so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a copy says of itself.
#[derive(Debug, Clone)]
pub struct Copied {
    pub schema: Schema,
    pub apps: u64,
    /// Queued, running or waiting for their time.
    pub events: u64,
    /// What its READY versions run from.
    pub files: BTreeSet<FilesName>,
    /// Of these, what the artifact store has.
    pub stored: BTreeSet<FilesName>,
}

/// Copies the database as it stands at one moment, while a service goes on with it. `into` is empty, or is made.
///
/// # Errors
/// The database cannot be read, or the copy not be written.
pub async fn copy(database: &Path, into: &Path) -> Result<(), Error> {
    const VERB: &str = "copy the database";
    // Not read-only: it may have to make the log's index, which goes with the last connection.
    let from = pool(1).connect_with(options(database).busy_timeout(PATIENCE)).await;
    let from = from.map_err(|err| not_a_database(database, &err).unwrap_or_else(|| during(VERB)(err)))?;
    let copied = match check_ours(database, &from).await {
        Ok(()) => {
            let vacuum = db::query("VACUUM INTO $1").bind(into.display().to_string());
            vacuum.execute(&Pool::Sqlite(from.clone())).await.map_err(during(VERB))
        }
        Err(err) => Err(err),
    };
    from.close().await;
    copied.map(|_| ())
}

/// Looks at a copy: whether it is whole, and of a version that this one can use.
///
/// # Errors
/// It is damaged, or a newer chatfn's that took away what this one needs.
pub async fn inspect(copy: &Path) -> Result<Copied, Error> {
    const VERB: &str = "look at the copy of the database";
    let opened = pool(1).connect_with(options(copy).read_only(true)).await;
    let opened = opened.map_err(|err| not_a_database(copy, &err).unwrap_or_else(|| during(VERB)(err)))?;
    let copied = inspect_opened(copy, &opened).await;
    opened.close().await;
    copied
}

async fn inspect_opened(copy: &Path, opened: &SqlitePool) -> Result<Copied, Error> {
    const VERB: &str = "look at the copy of the database";
    check_ours(copy, opened).await?;
    let pool = Pool::Sqlite(opened.clone());
    let problem: String = db::query_scalar("PRAGMA integrity_check(1)").fetch_one(&pool).await.map_err(during(VERB))?;
    if problem != "ok" {
        return Err(Error::Corrupt(format!("{}: {problem}", copy.display())));
    }
    let dangling = db::query("PRAGMA foreign_key_check").fetch_all(&pool).await.map_err(during(VERB))?;
    if !dangling.is_empty() {
        return Err(Error::Corrupt(format!("{}: {} rows refer to what is not there", copy.display(), dangling.len())));
    }
    let schema = schema::check(&copy.display().to_string(), &MIGRATIONS, &pool).await?;
    let count = async |sql: &'static str| -> Result<u64, Error> {
        let count: i64 = db::query_scalar(sql).fetch_one(&pool).await.map_err(during(VERB))?;
        Ok(count.unsigned_abs())
    };
    let apps = count("SELECT COUNT(*) FROM apps").await?;
    let events = count("SELECT COUNT(*) FROM events WHERE state IN (0, 1, 5, 6, 7)").await?;
    let versions = "SELECT app_id, digest, layer FROM versions WHERE state = 1";
    let versions = db::query(versions).fetch_all(&pool).await.map_err(during(VERB))?;
    let mut files = BTreeSet::new();
    for row in &versions {
        let (app, digest, layer): (AppId, &str, &str) =
            (get_parsed(row, "app_id")?, get(row, "digest")?, get(row, "layer")?);
        files.insert(FilesName::artifact(&app, digest));
        if !layer.is_empty() {
            files.insert(FilesName::layer(&app, layer));
        }
    }
    Ok(Copied { schema, apps, events, stored: stored(&pool).await?, files })
}

async fn stored(pool: &Pool) -> Result<BTreeSet<FilesName>, Error> {
    const VERB: &str = "look at what the artifact store has";
    if !schema::exists("blobs", pool).await? {
        return Ok(BTreeSet::new()); // Of before there was one.
    }
    let blobs = "SELECT app_id, kind, name FROM blobs WHERE stored";
    let rows = db::query(blobs).fetch_all(pool).await.map_err(during(VERB))?;
    let mut stored = BTreeSet::new();
    for row in &rows {
        let kind = match get(row, "kind")? {
            "layer" => FilesKind::Layer,
            _ => FilesKind::Artifact,
        };
        stored.insert(FilesName { kind, app: get_parsed(row, "app_id")?, name: get(row, "name")? });
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{ready_version, sqlite_store};
    use super::*;

    #[tokio::test]
    async fn a_copy_is_what_was_there_down_to_the_numbers_of_its_rows() {
        let (dir, store) = sqlite_store().await;
        ready_version(&store, "shop").await;
        let insert = "INSERT INTO invocations (rowid, id, app_id, trigger_type, version, attempt, event_json, status, created_at,
                          cold_start, queue_us, init_us, run_us, cpu_us, peak_memory_bytes)
                      VALUES ($1, $2, 'shop', 't', 1, 1, '{}', 1, 0, FALSE, 0, 0, 0, 0, 0)";
        // The REST API names invocations by these: they must survive, gaps included.
        for (rowid, id) in [(7_i64, "b"), (40, "a"), (41, "c")] {
            db::query(insert).bind(rowid).bind(id).execute(store.write()).await.expect("insert");
        }
        let into = dir.path().join("copy.db");
        copy(&dir.path().join("store.db"), &into).await.expect("copies");
        ready_version(&store, "later").await;
        let copied = inspect(&into).await.expect("whole");
        assert_eq!((copied.apps, copied.files.len(), copied.stored.len()), (1, 2, 0), "{copied:?}");
        store.close().await;
        let store = super::super::super::Store::open(&into, Default::default()).await.expect("opens");
        let rows: Vec<i64> = db::query_scalar("SELECT rowid FROM invocations ORDER BY rowid")
            .fetch_all(store.read())
            .await
            .expect("rows");
        assert_eq!(rows, [7, 40, 41]);
        store.close().await;
        let again = copy(&dir.path().join("store.db"), &into).await.expect_err("it is there").to_string();
        assert!(again.contains("copy the database"), "{again}");
    }

    #[tokio::test]
    async fn what_is_damaged_or_not_ours_is_told() {
        let (dir, store) = sqlite_store().await;
        for n in 0..50 {
            ready_version(&store, &format!("app-{n}")).await;
        }
        store.close().await;
        let path = dir.path().join("store.db");
        let mut bytes = std::fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0x5a);
        std::fs::write(&path, &bytes).expect("write");
        assert!(inspect(&path).await.is_err());
        std::fs::write(&path, "text ".repeat(1000)).expect("write");
        let refused = inspect(&path).await.expect_err("text").to_string();
        assert!(refused.contains("is not a chatfn database"), "{refused}");
    }
}

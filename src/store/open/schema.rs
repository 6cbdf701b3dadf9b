//! The schema's versions. Migrations only add, so that services of two versions run side by side on one database; one that takes
//! something away says in its name who can live with that, and those who cannot are kept off.
//!
//! `0020_contract_0014_old_column.sql`: nobody who knows migration 14 reads or writes the old column any more. It runs when no living
//! replica is older than that, and a chatfn that is older does not start on a database that has seen it. `docs/upgrade.md` has the rules;
//! `tests/migrations.rs` holds the files to them.

use std::collections::BTreeSet;

use sqlx::migrate::{MigrateError, Migrator};

use super::super::codec::get;
use super::super::db::{self, Pool, each};
use super::super::{Error, during};

const CONTRACT: &str = "contract ";
/// A replica that was not seen for so long is dead, or stopped.
const ALIVE_MS: i64 = 60_000;
/// PostgreSQL's code for a lock that was not had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// What a database has seen that this program does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The last migration that is known here.
    pub known: i64,
    /// The last one of a newer chatfn, if there is any.
    pub newer: Option<i64>,
}

/// How a migration failed.
pub enum Failed {
    /// Somebody holds a table for long: worth another try.
    Locked(String),
    For(Error),
}

/// Refuses a database that this program cannot use, or must not change yet. Look before anything else.
///
/// # Errors
/// [`Error::Newer`], or [`Error::OldReplicas`].
pub async fn check(database: &str, migrations: &Migrator, pool: &Pool) -> Result<Schema, Error> {
    let known = migrations.iter().map(|migration| migration.version).max().unwrap_or_default();
    if !exists("_sqlx_migrations", pool).await? {
        return Ok(Schema { known, newer: None });
    }
    let applied = "SELECT version, description FROM _sqlx_migrations ORDER BY version";
    let rows = db::query(applied).fetch_all(pool).await.map_err(during("read the schema's version"))?;
    let mut applied = Vec::with_capacity(rows.len());
    for row in &rows {
        applied.push((get(row, "version")?, get(row, "description")?));
    }
    let judged = judge(migrations, &applied);
    let newer = judged.newer.map_err(|migration| Error::Newer { database: database.to_owned(), migration, known })?;
    if let Some(contract) = judged.contract {
        check_replicas(database, contract, pool).await?;
    }
    Ok(Schema { known, newer })
}

/// What comes of the migrations that a database has seen.
struct Judged {
    /// The last that is not known here; `Err`: one that takes away what is needed here.
    newer: Result<Option<i64>, i64>,
    /// The last to come that takes something away, after what one must know to live with it.
    contract: Option<(i64, i64)>,
}

fn judge(migrations: &Migrator, applied: &[(i64, String)]) -> Judged {
    let known = migrations.iter().map(|migration| migration.version).max().unwrap_or_default();
    let unknown = || applied.iter().filter(|(migration, _)| !migrations.version_exists(*migration));
    let hostile = unknown().find(|(_, description)| contracts_since(description).is_some_and(|since| since > known));
    let newer = match hostile {
        Some((migration, _)) => Err(*migration),
        None => Ok(unknown().map(|(migration, _)| *migration).max()),
    };
    let seen: BTreeSet<i64> = applied.iter().map(|(migration, _)| *migration).collect();
    let pending = migrations.iter().filter(|migration| !seen.contains(&migration.version));
    let contract = pending.filter_map(|m| Some((contracts_since(&m.description)?, m.version))).max();
    Judged { newer, contract }
}

/// Runs what the database has not seen, and leaves what a newer chatfn has added.
pub fn tolerant(migrations: &Migrator) -> Migrator {
    let mut tolerant = Migrator::with_migrations(migrations.iter().cloned().collect());
    tolerant.set_ignore_missing(true);
    tolerant
}

pub fn failed(database: &str, err: &MigrateError) -> Failed {
    match err {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) if is_locked(source) => {
            Failed::Locked(err.to_string())
        }
        err => Failed::For(Error::Migration { database: database.to_owned(), problem: err.to_string() }),
    }
}

fn is_locked(err: &sqlx::Error) -> bool {
    err.as_database_error().and_then(|err| err.code()).is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

/// The migration that one must know to live with this one. `None`: it takes nothing away.
fn contracts_since(description: &str) -> Option<i64> {
    description.strip_prefix(CONTRACT)?.split(' ').next()?.parse().ok()
}

/// Of SQLite there is one service, which is not running when it starts.
async fn check_replicas(database: &str, (since, migration): (i64, i64), pool: &Pool) -> Result<(), Error> {
    const VERB: &str = "look for replicas of an older version";
    if !pool.is_postgres() || !exists("replicas", pool).await? {
        return Ok(());
    }
    let columns = "SELECT COUNT(*) FROM information_schema.columns
                   WHERE table_schema = CURRENT_SCHEMA() AND table_name = 'replicas' AND column_name = 'migration'";
    let columns: i64 = db::query_scalar(columns).fetch_one(pool).await.map_err(during(VERB))?;
    let mut sql = db::Builder::new("SELECT COUNT(*) FROM replicas WHERE ");
    sql.push(if columns > 0 { "COALESCE(migration, 0)" } else { "CAST(0 AS BIGINT)" }).push(" < ").push_bind(since);
    sql.push(" AND seen_at > CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) - ").push_bind(ALIVE_MS);
    let alive: i64 = sql.build().scalar().fetch_one(pool).await.map_err(during(VERB))?;
    match alive {
        0 => Ok(()),
        alive => Err(Error::OldReplicas { database: database.to_owned(), migration, since, alive }),
    }
}

pub async fn exists(table: &str, pool: &Pool) -> Result<bool, Error> {
    let sql = each(
        "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = $1",
        "SELECT COUNT(*) FROM pg_tables WHERE schemaname = CURRENT_SCHEMA() AND tablename = $1",
    );
    let found: i64 = db::query_scalar(sql).bind(table).fetch_one(pool).await.map_err(during("read the schema"))?;
    Ok(found > 0)
}

#[cfg(test)]
mod tests {
    use sqlx::SqlSafeStr;
    use sqlx::migrate::{Migration, MigrationType};

    use super::super::super::Store;
    use super::super::super::testing::{Place, postgres_store, sqlite_store};
    use super::*;

    /// What this program knows, and one more.
    fn with(pool: &Pool, version: i64, description: &'static str, sql: &'static str) -> Migrator {
        let ours = super::super::migrations(pool);
        let more = Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false);
        Migrator::with_migrations(ours.iter().cloned().chain([more]).collect())
    }

    async fn migrate(migrations: &Migrator, pool: &Pool) -> Result<(), String> {
        check("d", migrations, pool).await.map_err(|err| err.to_string())?;
        let ran = match pool {
            Pool::Sqlite(pool) => tolerant(migrations).run(pool).await,
            Pool::Postgres(pool) => tolerant(migrations).run(pool).await,
        };
        ran.map_err(|err| err.to_string())
    }

    #[test]
    fn the_name_says_who_can_live_with_a_migration_that_takes_away() {
        assert_eq!(contracts_since("contract 0014 old column"), Some(14));
        assert_eq!(contracts_since("contract 0014"), Some(14));
        assert_eq!(contracts_since("contracts and more"), None);
        assert_eq!(contracts_since("initial"), None);
    }

    #[tokio::test]
    async fn what_only_adds_is_lived_with_and_what_takes_away_is_not() {
        let place = Place::new().await;
        let store = place.open().await;
        let (pool, ours) = (store.write(), super::super::migrations(store.write()));
        let known = ours.iter().map(|migration| migration.version).max().expect("some");
        assert_eq!(check("d", ours, pool).await.expect("fine"), Schema { known, newer: None });

        migrate(&with(pool, 90, "more", "ALTER TABLE apps ADD COLUMN more BIGINT"), pool).await.expect("added");
        assert_eq!(check("d", ours, pool).await.expect("fine"), Schema { known, newer: Some(90) });
        migrate(ours, pool).await.expect("nothing to do");
        let descriptions = |to: String| {
            db::Builder::new(format!("UPDATE _sqlx_migrations SET description = '{to}' WHERE version = 90")).build()
        };
        // Somebody who knows as much as we do lives with it; who has to know one more does not.
        descriptions(format!("contract {known:04} more")).execute(pool).await.expect("set");
        assert_eq!(check("d", ours, pool).await.expect("fine").newer, Some(90));
        descriptions(format!("contract {:04} more", known + 1)).execute(pool).await.expect("set");
        let refused = check("d", ours, pool).await.expect_err("too old").to_string();
        assert!(refused.contains("migration 90") && refused.contains(&format!("up to {known}")), "{refused}");
        store.close().await;
        let refused = Store::open(place.database(), Default::default()).await.err().expect("refused").to_string();
        assert!(refused.contains("was written by a newer chatfn"), "{refused}");
    }

    #[tokio::test]
    async fn nothing_is_taken_away_while_a_replica_lives_that_needs_it() {
        let place = Place::new().await;
        let store = place.open().await;
        store.heartbeat(std::time::SystemTime::now()).await.expect("lives");
        let pool = store.write();
        let ours = super::super::migrations(pool);
        let known = ours.iter().map(|migration| migration.version).max().expect("some");
        let seen: Option<i64> =
            db::query_scalar("SELECT migration FROM replicas").fetch_one(pool).await.expect("a replica");
        assert_eq!(seen, Some(known));
        let next = with(pool, 90, "contract 0090 more", "ALTER TABLE apps DROP COLUMN description");
        let migrated = migrate(&next, pool).await;
        if !pool.is_postgres() {
            migrated.expect("a file has one service, which starts just now");
            return;
        }
        let refused = migrated.expect_err("we live");
        assert!(refused.contains("1 running replica") && refused.contains("migration 90"), "{refused}");
        store.app(&"a".parse().expect("an id")).await.expect("the column is there");
        // Of before replicas said what they know.
        db::query("UPDATE replicas SET migration = NULL").execute(pool).await.expect("set");
        migrate(&next, pool).await.expect_err("as old as can be");
        store.sign_off().await.expect("gone");
        migrate(&next, pool).await.expect("nobody needs it");
    }

    /// Table, column, and whether it may be NULL.
    async fn columns(pool: &Pool) -> BTreeSet<(String, String, bool)> {
        let sql = each(
            "SELECT m.name AS tab, c.name AS col, c.\"notnull\" = 0 AND c.pk = 0 AS nullable
             FROM sqlite_schema m, pragma_table_info(m.name) c
             WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name <> '_sqlx_migrations'",
            "SELECT CAST(table_name AS TEXT) AS tab, CAST(column_name AS TEXT) AS col, is_nullable = 'YES' AS nullable
             FROM information_schema.columns WHERE table_schema = CURRENT_SCHEMA() AND table_name <> '_sqlx_migrations'",
        );
        let rows = db::query(sql).fetch_all(pool).await.expect("columns");
        let row = |row| Ok::<_, Error>((get(row, "tab")?, get(row, "col")?, get(row, "nullable")?));
        rows.iter().map(row).collect::<Result<_, _>>().expect("rows")
    }

    #[tokio::test]
    async fn both_engines_have_the_same_columns() {
        let (_dir, file) = sqlite_store().await;
        let Some(server) = postgres_store().await else { return };
        let (file, mut server) = (columns(file.write()).await, columns(server.write()).await);
        // As SQLite numbers rows.
        assert!(server.remove(&("invocations".to_owned(), "rowid".to_owned(), false)));
        assert!(file.len() > 100, "they are found: {file:?}");
        assert_eq!(
            file.difference(&server).collect::<Vec<_>>(),
            Vec::<&(String, String, bool)>::new(),
            "on SQLite alone"
        );
        assert_eq!(
            server.difference(&file).collect::<Vec<_>>(),
            Vec::<&(String, String, bool)>::new(),
            "on PostgreSQL alone"
        );
    }
}

//! One way to speak to two engines: SQLite in a file, and PostgreSQL.
//!
//! The same SQL text serves both wherever it can: `$1` placeholders, `BIGINT` numbers, `TEXT` ids. Where PostgreSQL needs more, for
//! there others write at the same time, the text has it in a comment that only PostgreSQL is shown, `/*pg FOR UPDATE */`; where the two
//! have no words in common, [`each`] holds both texts.
//!
//! SQLite has one writer, whose transactions are serial by themselves. PostgreSQL runs at READ COMMITTED: what must not happen at the
//! same time takes a lock, [`Tx::lock_app`] or [`Tx::lock`], which on SQLite costs nothing.

mod builder;
mod query;
mod row;

use sqlx::{PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool, Transaction};

pub use builder::Builder;
pub use query::{Query, Value, each, query, query_scalar};
pub use row::{Column, Row};

/// Connections; clones share them.
#[derive(Debug, Clone)]
pub enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction; dropped, it is rolled back.
pub enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// Where a statement runs.
pub enum On<'c> {
    SqlitePool(&'c SqlitePool),
    SqliteTx(&'c mut SqliteConnection),
    PostgresPool(&'c PgPool),
    PostgresTx(&'c mut PgConnection),
}

impl Pool {
    pub fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// How many connections there are, and how many of them are idle.
    pub fn size(&self) -> (u32, u32) {
        let (size, idle) = match self {
            Self::Sqlite(pool) => (pool.size(), pool.num_idle()),
            Self::Postgres(pool) => (pool.size(), pool.num_idle()),
        };
        (size, u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// A transaction that may write.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        match self {
            // One that read first and wrote later would fail at once, whatever the busy timeout.
            Self::Sqlite(pool) => pool.begin_with("BEGIN IMMEDIATE").await.map(Tx::Sqlite),
            Self::Postgres(pool) => pool.begin().await.map(Tx::Postgres),
        }
    }

    /// A transaction whose statements all see the same rows.
    pub async fn begin_read(&self) -> Result<Tx, sqlx::Error> {
        match self {
            Self::Sqlite(pool) => pool.begin().await.map(Tx::Sqlite),
            Self::Postgres(pool) => {
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.map(Tx::Postgres)
            }
        }
    }

    /// Many statements, without values.
    #[cfg(test)]
    pub async fn run_script(&self, script: &'static str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(pool) => sqlx::raw_sql(script).execute(pool).await.map(|_| ()),
            Self::Postgres(pool) => sqlx::raw_sql(script).execute(pool).await.map(|_| ()),
        }
    }

    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
    }

    /// Until the end of the transaction nobody else who asks for this lock changes the app. Take it before the first look at what
    /// must not change. An app that does not exist is not locked.
    pub async fn lock_app(&mut self, app: &str) -> Result<(), sqlx::Error> {
        if let Self::Postgres(_) = self {
            // Not FOR UPDATE: events and history of the app come in meanwhile.
            let lock = query("SELECT 1 FROM apps WHERE id = $1 FOR NO KEY UPDATE").bind(app);
            lock.fetch_optional(self).await?;
        }
        Ok(())
    }

    /// Until the end of the transaction nobody else who asks for these locks changes what they stand for. All that a transaction
    /// needs at once: taken in the order of their numbers, so that no two wait for each other.
    pub async fn lock(&mut self, mut keys: Vec<i64>) -> Result<(), sqlx::Error> {
        if matches!(self, Self::Sqlite(_)) || keys.is_empty() {
            return Ok(());
        }
        keys.sort_unstable();
        keys.dedup();
        let list = keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let lock = "SELECT pg_advisory_xact_lock(key) FROM (
                        SELECT key FROM UNNEST(CAST($1 AS BIGINT[])) AS keys (key) ORDER BY key) AS ordered";
        query(lock).bind(format!("{{{list}}}")).execute(self).await.map(|_| ())
    }
}

impl<'c> From<&'c Pool> for On<'c> {
    fn from(pool: &'c Pool) -> Self {
        match pool {
            Pool::Sqlite(pool) => Self::SqlitePool(pool),
            Pool::Postgres(pool) => Self::PostgresPool(pool),
        }
    }
}

impl<'c> From<&'c mut Tx> for On<'c> {
    fn from(tx: &'c mut Tx) -> Self {
        match tx {
            Tx::Sqlite(tx) => Self::SqliteTx(tx),
            Tx::Postgres(tx) => Self::PostgresTx(tx),
        }
    }
}

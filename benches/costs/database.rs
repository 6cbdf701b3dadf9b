//! A database of the server that `scripts/with-postgres` starts, and what was done to it.

use std::ops::Sub;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::Result;
use crate::usage::parent_of;

const SERVER: &str = "POSTGRES_FOR_TESTS";
const NAME: &str = "costs";

pub struct Database {
    pub url: String,
    pub postmaster: u32,
    connection: PgConnection,
}

/// Counted since the server was made; nobody else uses it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Transactions that wrote something.
    pub transactions: f64,
    /// Of write-ahead log: what a standby and an archive get.
    pub wal_bytes: f64,
    /// Of tables and indexes.
    pub stored_bytes: f64,
}

impl Sub for Work {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            transactions: self.transactions - before.transactions,
            wal_bytes: self.wal_bytes - before.wal_bytes,
            stored_bytes: self.stored_bytes - before.stored_bytes,
        }
    }
}

impl Database {
    /// `None`: there is no server.
    pub async fn create() -> Result<Option<Self>> {
        let Ok(server) = std::env::var(SERVER) else { return Ok(None) };
        let mut connection = PgConnection::connect(&server).await?;
        sqlx::query(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {NAME}"))).execute(&mut connection).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {NAME}"))).execute(&mut connection).await?;
        let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        let mut url: url::Url = server.parse()?;
        url.set_path(NAME);
        Ok(Some(Self { url: url.into(), postmaster: parent_of(backend.unsigned_abs())?, connection }))
    }

    pub async fn work(&mut self) -> Result<Work> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT txid_snapshot_xmax(txid_current_snapshot())::float8,
                    pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8,
                    pg_database_size('{NAME}')::float8"
        )))
        .fetch_one(&mut self.connection)
        .await?;
        Ok(Work { transactions: row.get(0), wal_bytes: row.get(1), stored_bytes: row.get(2) })
    }
}

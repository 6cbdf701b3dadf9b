//! PostgreSQL 14 or newer: one database for all replicas.

use std::fmt::{self, Debug, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};
use tokio::time::sleep;

use super::super::db::{self, Pool};
use super::super::{Error, during};
use super::Pools;
use super::schema::{self, Failed};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// A connection that was idle for longer is tried before it is used: the server may have been restarted since.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// No statement of ours takes so long, unless it waits for one that hangs.
const STATEMENT_TIMEOUT: &str = "60s";
/// A transaction of a replica that is gone, or stopped, must not hold what others wait for.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "30s";

/// For a table that is to be changed, and for another replica that changes it.
const LOCK_TIMEOUT: &str = "2s";
const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// How to reach a database.
#[derive(Clone)]
pub struct Postgres {
    options: PgConnectOptions,
    connections_max: u32,
    timeout: Duration,
}

impl Postgres {
    /// `url`: `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=…`. `timeout`: how long to wait for a
    /// connection, at the start and for each statement.
    ///
    /// # Errors
    /// Not such a URL. The message does not repeat it, as it may hold a password.
    pub fn new(url: &str, connections_max: u32, timeout: Duration) -> Result<Self, String> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err("it must begin with postgres://".to_owned());
        }
        let options: PgConnectOptions = url.parse().map_err(|err: sqlx::Error| err.to_string())?;
        let options = options.application_name("chatfn").options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
        ]);
        Ok(Self { options, connections_max, timeout })
    }
}

impl Display for Postgres {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let database = self.options.get_database().unwrap_or(self.options.get_username());
        write!(f, "database {database:?} at {}:{}", self.options.get_host(), self.options.get_port())
    }
}

/// Without the password.
impl Debug for Postgres {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

pub async fn open(settings: &Postgres) -> Result<Pools, Error> {
    let unreachable = |err| Error::Unreachable { database: settings.to_string(), source: Arc::new(err) };
    let pool = connect(settings).await.map_err(unreachable)?;
    check_ours(settings, &pool).await?;
    let pool = Pool::Postgres(pool);
    let schema = schema::check(&settings.to_string(), &MIGRATIONS, &pool).await?;
    migrate(settings, &MIGRATIONS).await?;
    Ok(Pools { write: pool.clone(), read: pool, schema })
}

/// On a connection of its own, for what a failed one holds must go with it. A change that waits for its table keeps everybody else
/// waiting behind it, so it gives up soon and tries again: a `pg_dump` may hold all tables for hours.
async fn migrate(settings: &Postgres, migrations: &Migrator) -> Result<(), Error> {
    let database = settings.to_string();
    let options = settings.options.clone().options([("lock_timeout", LOCK_TIMEOUT)]);
    let migrations = schema::tolerant(migrations);
    for attempt in 1.. {
        let mut connection = options.connect().await.map_err(during("connect to bring the schema up to date"))?;
        let ran =
            migrations.run_direct(None, &mut connection, false).await.map_err(|err| schema::failed(&database, &err));
        let _ = connection.close().await;
        match ran {
            Err(Failed::Locked(problem)) if attempt == LOCK_ATTEMPTS => {
                let problem =
                    format!("{problem}; a long transaction, such as pg_dump's, holds a table: wait for its end");
                return Err(Error::Migration { database, problem });
            }
            Err(Failed::Locked(problem)) => {
                tracing::info!(problem, "a table that is to be changed is in use: trying again soon");
                sleep(LOCK_PAUSE).await;
            }
            Err(Failed::For(err)) => return Err(err),
            Ok(()) => break,
        }
    }
    Ok(())
}

/// Waits for a server that is starting.
async fn connect(settings: &Postgres) -> Result<PgPool, sqlx::Error> {
    PgPoolOptions::new()
        .max_connections(settings.connections_max)
        .acquire_timeout(settings.timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, about| {
            Box::pin(async move { Ok(about.idle_for < TRUSTED_FOR || connection.ping().await.is_ok()) })
        })
        .connect_with(settings.options.clone())
        .await
}

/// A database that holds tables of somebody else's is left alone.
async fn check_ours(settings: &Postgres, pool: &PgPool) -> Result<(), Error> {
    let tables = "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = CURRENT_SCHEMA()";
    let pool = Pool::Postgres(pool.clone());
    let tables: Vec<String> = db::query_scalar(tables).fetch_all(&pool).await.map_err(during("read the schema"))?;
    match tables.is_empty() || tables.iter().any(|name| name == "_sqlx_migrations") {
        true => Ok(()),
        false => Err(Error::NotADatabase(settings.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let url = "postgres://chatfn:hunter2@db.internal:6432/functions?sslmode=require";
        let settings = Postgres::new(url, 4, Duration::from_secs(1)).expect("valid");
        assert_eq!(settings.to_string(), "database \"functions\" at db.internal:6432");
        assert!(!format!("{settings:?}").contains("hunter2"));
        let refused = Postgres::new("mysql://root:hunter2@db/x", 4, Duration::from_secs(1)).expect_err("another's");
        assert!(refused.contains("postgres://") && !refused.contains("hunter2"), "{refused}");
    }
}

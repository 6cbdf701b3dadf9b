//! The durable truth: apps, versions, queued events, history. Every transaction of the service lives here.
//!
//! It is a file of SQLite's, for one service, or a database of PostgreSQL's, for many replicas; [`db`] is what they differ in. SQLite
//! has one writer, so there is one writing connection, and readers have connections of their own that cannot write. Callers speak
//! [`crate::model`]; no SQL type leaves this module, no proto type enters.
//!
//! Start reading at [`Store::open`], then [`queue`], where the promises about events are kept.

mod apps;
mod audit;
mod blobs;
mod changes;
mod codec;
mod credentials;
mod db;
mod figures;
mod functions;
mod history;
mod idempotency;
mod invocation_page;
mod invocation_row;
mod open;
mod queue;
mod replicas;
mod running_keys;
mod secrets;
#[cfg(test)]
pub mod testing;
mod usage;
mod versions;

use std::path::PathBuf;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crate::metrics::series;
use crate::model::AppId;
use db::{Pool, Tx};

pub use apps::{Activation, ActiveVersion, App, AppChange, AppRate};
pub use audit::AuditFilter;
pub use blobs::{BeginBlob, VersionFiles};
pub use changes::{Change, Changes};
pub use credentials::{CreateCredential, Secret256};
pub use figures::{Connections, QueueTotals};
pub use functions::{FunctionRecord, FunctionVersionRecord, Sources};
pub use history::{HistoryItem, InvocationFilter, LogFilter, LogPosition};
pub use invocation_page::{COUNTED_MAX, PagedInvocation};
pub use open::{Copied, Database, Postgres, SQLITE_FILE, Schema, copy, inspect};
pub use queue::{
    AttemptEnd, AttemptRecord, ClaimId, ClaimedEvent, DeadReason, Disposition, Due, Enqueued, EventRecord, Letters,
    Moved, NewEvent, QueueFigures, QueueLimits,
};
pub use replicas::TakenOver;
pub use running_keys::{Holder, KeyHolder};
pub use secrets::Rotation;
pub use usage::{Day, DayUsage};
pub use versions::{BeginError, DeleteVersion, NewVersion, PublishKey};

/// What can go wrong here. Cheap to clone: one failed transaction may be the answer to many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{verb}: {source}")]
    Database { verb: &'static str, source: Arc<sqlx::Error> },
    #[error("open {}: {source}", path.display())]
    File { path: PathBuf, source: Arc<std::io::Error> },
    #[error("reach {database}: {source}")]
    Unreachable { database: String, source: Arc<sqlx::Error> },
    #[error("{0} is not a chatfn database: move it away, or let the store use another one")]
    NotADatabase(String),
    #[error(
        "{database} was written by a newer chatfn: migration {migration} took away what this one, which knows migrations up to {known}, \
         needs: run that chatfn, or restore the backup made before the upgrade"
    )]
    Newer { database: String, migration: i64, known: i64 },
    #[error(
        "{database}: migration {migration} takes away what {alive} running replica(s) of an older chatfn need (they do not know \
         migration {since}): end them first, or upgrade them to a version in between"
    )]
    OldReplicas { database: String, migration: i64, since: i64, alive: i64 },
    #[error("bring {database} up to date: {problem}")]
    Migration { database: String, problem: String },
    /// A row that does not decode: the file was changed by something else.
    #[error("the store holds a row that does not decode: {0}")]
    Corrupt(String),
    #[error("app {0} does not exist")]
    UnknownApp(AppId),
    #[error("{} wait or run, which is the limit: try again later", match app {
        Some(app) => format!("{limit} events of app {app}"),
        None => format!("{limit} events of all apps"),
    })]
    QueueFull { app: Option<AppId>, limit: u64 },
    #[error("the store is closed")]
    Closed,
    /// A value or a key that cannot be encrypted or opened.
    #[error(transparent)]
    Secret(#[from] crate::secrets::Error),
}

impl Error {
    /// What clients and the audit log know it by.
    pub fn reason(&self) -> &'static str {
        use crate::secrets::Error as Secret;
        match self {
            Self::UnknownApp(_) => "APP_NOT_FOUND",
            Self::Closed => "DRAINING",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::Database { .. } | Self::Unreachable { .. } => "STORE_UNAVAILABLE",
            Self::Secret(
                Secret::UnknownKey { .. } | Secret::NoKeys { .. } | Secret::Tampered { .. } | Secret::Malformed { .. },
            ) => "SECRET_UNREADABLE",
            Self::Secret(Secret::Read { .. } | Secret::File { .. } | Secret::NoRandom(_))
            | Self::File { .. }
            | Self::NotADatabase(_)
            | Self::Newer { .. }
            | Self::OldReplicas { .. }
            | Self::Migration { .. }
            | Self::Corrupt(_) => "INTERNAL",
        }
    }
}

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// Of SQLite one connection.
    write: Pool,
    /// Of PostgreSQL the same as `write`.
    read: Pool,
    schema: open::Schema,
    queue: queue::Writer,
    /// A claim that failed, but may have been made.
    doubtful_claim: Mutex<Option<queue::ClaimId>>,
    /// Who we are among the [`replicas`].
    replica: Arc<AtomicI64>,
    keys: OnceLock<crate::secrets::Keyring>,
}

impl Store {
    /// Writes down what was accepted and closes the file. On return every accepted event is durable or its caller has
    /// an error, and no connection is left. A second call does nothing.
    pub async fn close(&self) {
        self.inner.queue.close().await;
        // Readers first: the last connection to close folds the log into the file, and a reader cannot.
        self.inner.read.close().await;
        self.inner.write.close().await;
    }

    /// Transactions that enqueued or finished something, since open.
    pub fn queue_batches(&self) -> u64 {
        self.inner.queue.batches()
    }

    /// Whether other replicas may use it at the same time.
    pub fn is_shared(&self) -> bool {
        self.read().is_postgres()
    }

    /// Counts anew what waits: other replicas queue and finish events, too.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn recount(&self) -> Result<(), Error> {
        self.inner.queue.recount(self.read()).await
    }

    /// What was known of the database's schema when it was opened.
    pub fn schema(&self) -> Schema {
        self.inner.schema
    }

    /// Gives up to a thousand free pages back to the file system: call it now and then after a purge.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn shrink(&self) -> Result<(), Error> {
        if self.write().is_postgres() {
            return Ok(()); // Its autovacuum does.
        }
        let done = db::query("PRAGMA incremental_vacuum(1000)").execute(self.write()).await;
        done.map(|_| ()).map_err(during("shrink the store"))
    }

    fn read(&self) -> &Pool {
        &self.inner.read
    }

    /// For single statements, which are transactions by themselves. One with RETURNING has to be fetched to its end
    /// (`fetch_all`): only then is it known to be committed.
    fn write(&self) -> &Pool {
        &self.inner.write
    }

    async fn begin(&self, verb: &'static str) -> Result<Tx, Error> {
        let asked = Instant::now();
        let begun = self.write().begin().await.map_err(during(verb));
        series().store_begun(asked.elapsed());
        begun
    }
}

/// Names what was being done when the database failed.
fn during(verb: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| match source {
        sqlx::Error::PoolClosed => Error::Closed,
        source => Error::Database { verb, source: Arc::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{actor, app, at, building, built, event, store, trigger};
    use super::*;
    use crate::model::{InvocationId, VersionNumber};

    /// The compiler's check: servers spawn what awaits these.
    #[tokio::test]
    async fn futures_can_move_between_threads() {
        fn is_send(future: impl Future + Send) {
            drop(future);
        }
        let (_dir, store) = store().await;
        let (id, one) = (app("shop"), VersionNumber(1));
        is_send(Store::open(std::path::Path::new("x"), QueueLimits::default()));
        is_send(store.begin_version(building("shop"), actor()));
        is_send(store.finish_version(&built(&building("shop"), one), &Default::default(), None, None, actor()));
        is_send(store.list_apps(None, 1));
        is_send(store.delete_app(&id, actor()));
        is_send(store.delete_version(&id, one, actor()));
        is_send(store.layers_in_use(&id));
        is_send(store.layer_for(&id, ""));
        is_send(store.enqueue(event("shop")));
        is_send(store.claim(&[(id.clone(), 1)], at(1), at(0)));
        is_send(store.record(&[]));
        is_send(store.list_invocations(&id, InvocationFilter::default(), None, 1, 1));
        is_send(store.logs(&id, LogFilter::default(), 1));
        is_send(store.invocation(&id, InvocationId::new()));
        is_send(store.recorded_reply(&id, &trigger(), "", at(0)));
        is_send(store.credential(crate::model::ClientId::new()));
        is_send(store.revoke_credential(crate::model::ClientId::new(), None, actor()));
        is_send(store.audit_entries(&AuditFilter::default(), None, 1));
        is_send(store.close());
    }
}

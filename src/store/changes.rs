//! What other replicas changed, so that nobody goes on with old news. With SQLite there are no others.
//!
//! PostgreSQL's notifications carry it at once. They can be lost (a connection ends, a pooler swallows them), so whoever listens also
//! compares [`Store::digest`] every now and then.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::db::{self, Pool, Tx};
use super::{Error, Store, during};
use crate::model::AppId;

const CHANNEL: &str = "chatfn";
const APP: &str = "app:";
const CREDENTIALS: &str = "credentials";
const EVENTS: &str = "events:";
/// Between two notifications of new events: others help out where one is busy, and need not hear of each.
const EVENTS_QUIET: Duration = Duration::from_millis(50);
/// How often the crier looks whether its store is still there.
const LOOK_UP: Duration = Duration::from_secs(5);
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// Something that another replica did, or this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Another queued events.
    Events,
    /// Another version of the app serves, or the app is gone.
    App(AppId),
    /// One was revoked.
    Credentials,
    /// News may have been missed.
    Anything,
}

/// What is heard of changes.
pub struct Changes {
    store: Store,
    pool: Option<PgPool>,
    listener: Option<PgListener>,
}

impl Store {
    /// Listens, from the first [`Changes::next`] on, on a connection of its own.
    pub fn changes(&self) -> Changes {
        let pool = match self.read() {
            Pool::Postgres(pool) => {
                let options = (*pool.connect_options()).clone();
                Some(
                    PgPoolOptions::new()
                        .max_connections(1)
                        .idle_timeout(None)
                        .max_lifetime(None)
                        .connect_lazy_with(options),
                )
            }
            Pool::Sqlite(_) => None,
        };
        Changes { store: self.clone(), pool, listener: None }
    }

    /// Differs from before if an app, its active version or a credential came or went. Always the same where there are no other replicas.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn digest(&self) -> Result<String, Error> {
        if !self.read().is_postgres() {
            return Ok(String::new());
        }
        let sql = "SELECT CONCAT_WS(' ', (SELECT COUNT(*) FROM apps), (SELECT SUM(activation) FROM apps),
                       (SELECT COUNT(*) FROM credentials), (SELECT SUM(seq) FROM credentials))";
        db::query_scalar(sql).fetch_one(self.read()).await.map_err(during("look for changes"))
    }
}

impl Changes {
    /// The next change. After a connection was lost, and at first, [`Change::Anything`].
    pub async fn next(&mut self) -> Change {
        let Some(pool) = &self.pool else { return pending().await };
        loop {
            let Some(listener) = &mut self.listener else {
                match listen(pool).await {
                    Ok(listener) => self.listener = Some(listener),
                    Err(err) => {
                        tracing::debug!(%err, "cannot listen to other replicas yet");
                        sleep(RECONNECT_AFTER).await;
                        continue;
                    }
                }
                return Change::Anything;
            };
            match listener.try_recv().await {
                Ok(Some(notification)) => {
                    if let Some(change) = heard(notification.payload(), self.store.replica()) {
                        return change;
                    }
                }
                Ok(None) | Err(_) => self.listener = None,
            }
        }
    }
}

async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// `None`: nothing new for this replica, or said by a chatfn of another version.
fn heard(payload: &str, replica: i64) -> Option<Change> {
    if let Some(app) = payload.strip_prefix(APP) {
        return app.parse().ok().map(Change::App);
    }
    if let Some(by) = payload.strip_prefix(EVENTS) {
        return (by != replica.to_string()).then_some(Change::Events);
    }
    (payload == CREDENTIALS).then_some(Change::Credentials)
}

impl Tx {
    /// Tells all replicas, once the transaction is committed, that another version of the app serves, or that it is gone.
    pub(super) async fn tell_of_app(&mut self, app: &AppId) -> Result<(), sqlx::Error> {
        self.tell(format!("{APP}{app}")).await
    }

    pub(super) async fn tell_of_credentials(&mut self) -> Result<(), sqlx::Error> {
        self.tell(CREDENTIALS.to_owned()).await
    }

    async fn tell(&mut self, payload: String) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(_) => notification(payload).execute(self).await.map(|_| ()),
        }
    }
}

fn notification(payload: String) -> db::Query<'static> {
    db::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload)
}

/// Tells the other replicas of new events. Outside of the transactions that queue them: those would wait for each other at their commits.
#[derive(Clone)]
pub(super) struct Crier(Option<Arc<Notify>>);

impl Crier {
    /// Ends with its last handle, or when the pool is closed.
    pub fn start(pool: &Pool, replica: impl Fn() -> i64 + Send + 'static) -> Self {
        if !pool.is_postgres() {
            return Self(None);
        }
        let (queued, pool) = (Arc::new(Notify::new()), pool.clone());
        let news = Arc::downgrade(&queued);
        tokio::spawn(async move {
            while let Some(news) = news.upgrade() {
                // Looks up now and then whether anybody is left who could queue.
                let queued = timeout(LOOK_UP, news.notified()).await.is_ok();
                drop(news);
                if !queued {
                    continue;
                }
                // It does not matter if nobody hears it: they poll, too.
                match notification(format!("{EVENTS}{}", replica())).execute(&pool).await {
                    Err(sqlx::Error::PoolClosed) => return,
                    Ok(_) | Err(_) => sleep(EVENTS_QUIET).await,
                }
            }
        });
        Self(Some(queued))
    }

    pub fn events_queued(&self) {
        if let Some(queued) = &self.0 {
            queued.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_is_understood_or_left_alone() {
        assert_eq!(heard("app:shop", 1), Some(Change::App("shop".parse().expect("an id"))));
        assert_eq!(heard("credentials", 1), Some(Change::Credentials));
        assert_eq!(heard("events:2", 1), Some(Change::Events));
        assert_eq!(heard("events:1", 1), None, "our own");
        assert_eq!(heard("weather:rain", 1), None);
    }
}

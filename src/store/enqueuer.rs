//! Group commit: what many callers enqueue at the same time becomes durable in one transaction.
//!
//! While one transaction is synced to disk the next callers gather in the channel, so the batch grows with the load and
//! nobody waits for a timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::codec::{get_parsed, get_version, millis, signed};
use super::events::{Enqueued, NewEvent};
use super::{Error, during};
use crate::model::EventId;

/// Events that may wait for their transaction; then callers wait for room.
pub const WAITING_MAX: usize = 1024;
const BATCH_MAX: usize = 512;
const VERB: &str = "enqueue an event";

pub struct Request {
    pub event: NewEvent,
    pub reply: oneshot::Sender<Result<Enqueued, Error>>,
}

/// Owns the requests; ends when it is stopped or every handle on the store is gone, and what is accepted is committed.
pub struct Enqueuer {
    pool: SqlitePool,
    requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
    batches: Arc<AtomicU64>,
}

impl Enqueuer {
    pub fn new(
        pool: SqlitePool,
        requests: mpsc::Receiver<Request>,
        stop: CancellationToken,
        batches: Arc<AtomicU64>,
    ) -> Self {
        Self { pool, requests, stop, batches }
    }

    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            // Both are cancel safe: a batch that was not returned stays in the channel.
            tokio::select! {
                () = self.stop.cancelled(), if !self.requests.is_closed() => self.requests.close(),
                received = self.requests.recv_many(&mut batch, BATCH_MAX) => match received {
                    0 => return,
                    _ => self.answer(&mut batch).await,
                },
            }
        }
    }

    async fn answer(&self, batch: &mut Vec<Request>) {
        // A caller that went away was promised nothing.
        batch.retain(|request| !request.reply.is_closed());
        if batch.is_empty() {
            return;
        }
        let committed = self.commit(batch).await;
        let (mut results, failure) = match committed {
            Ok(results) => (results.into_iter(), Error::Closed),
            Err(err) => (Vec::new().into_iter(), err),
        };
        for request in batch.drain(..) {
            let result = results.next().unwrap_or_else(|| Err(failure.clone()));
            let _ = request.reply.send(result); // The caller may have gone meanwhile.
        }
    }

    /// One result for each request; an error of the database is everybody's.
    async fn commit(&self, batch: &[Request]) -> Result<Vec<Result<Enqueued, Error>>, Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(during(VERB))?;
        let mut results = Vec::with_capacity(batch.len());
        for request in batch {
            results.push(match insert(&mut tx, &request.event).await {
                Err(err @ Error::Database { .. }) => return Err(err),
                result => result,
            });
        }
        tx.commit().await.map_err(during(VERB))?;
        self.batches.fetch_add(1, Ordering::Relaxed);
        Ok(results)
    }
}

async fn insert(tx: &mut Transaction<'static, Sqlite>, event: &NewEvent) -> Result<Enqueued, Error> {
    let event_id = EventId::new();
    // FROM apps: a foreign key that fails would end the transaction of the others.
    let query = sqlx::query(
        "INSERT INTO events (id, app_id, trigger_type, version, payload_json, ordering_key, idempotency_key, state,
             attempt, due_at, enqueued_at)
         SELECT $1, id, $3, $4, $5, $6, $7, 0, 0, $8, $9 FROM apps WHERE id = $2
         ON CONFLICT (app_id, trigger_type, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING",
    );
    let query = query.bind(event_id.to_string()).bind(event.app.as_str()).bind(event.trigger_type.as_str());
    let query = query.bind(signed(event.version.0)).bind(event.payload.as_str()).bind(&event.ordering_key);
    let query = query.bind(&event.idempotency_key).bind(millis(event.due_at)).bind(millis(event.enqueued_at));
    let inserted = query.execute(&mut **tx).await.map_err(during(VERB))?.rows_affected();
    if inserted > 0 {
        Ok(Enqueued { event_id, version: event.version, duplicate: false })
    } else {
        first(tx, event).await
    }
}

/// The event that has the idempotency key already.
async fn first(tx: &mut Transaction<'static, Sqlite>, event: &NewEvent) -> Result<Enqueued, Error> {
    let query =
        sqlx::query("SELECT id, version FROM events WHERE app_id = $1 AND trigger_type = $2 AND idempotency_key = $3");
    let query = query.bind(event.app.as_str()).bind(event.trigger_type.as_str()).bind(&event.idempotency_key);
    match query.fetch_optional(&mut **tx).await.map_err(during(VERB))? {
        Some(row) => {
            Ok(Enqueued { event_id: get_parsed(&row, "id")?, version: get_version(&row, "version")?, duplicate: true })
        }
        None => Err(Error::UnknownApp(event.app.clone())),
    }
}

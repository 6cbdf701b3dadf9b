//! Group commit: what many enqueue and finish at the same time becomes durable in one transaction.
//!
//! While one transaction is synced to disk the next requests gather in the channel, so the batch grows with the load and nobody waits
//! for a timer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::changes::Crier;
use super::super::codec::{get, json, millis};
use super::super::db::{self, Pool, Tx};
use super::super::{Error, during};
use super::backlog::Backlog;
use super::{AttemptEnd, ClaimedEvent, Disposition, Enqueued, NewEvent, insert, line};
use crate::metrics::series;
use crate::model::{AppId, Event};

/// Requests that may wait for their transaction; then callers wait for room.
const WAITING_MAX: usize = 1024;
const BATCH_MAX: usize = 512;
const ENQUEUE: &str = "enqueue an event";
const FINISH: &str = "finish a claim";

/// A handle on the task that writes.
pub struct Writer {
    requests: mpsc::Sender<Request>,
    pub(super) backlog: Backlog,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Makes it stop accepting; it still commits what it has accepted.
    stop: CancellationToken,
    /// Transactions so far.
    batches: Arc<AtomicU64>,
}

enum Request {
    Enqueue(Box<NewEvent>, oneshot::Sender<Result<Enqueued, Error>>),
    Finish(Box<Finish>, oneshot::Sender<Result<bool, Error>>),
}

impl Request {
    /// The line that it changes.
    fn line(&self) -> Option<i64> {
        let (app, trigger_type, key) = match self {
            Self::Enqueue(new, _) => (&new.app, &new.trigger_type, &new.ordering_key),
            Self::Finish(end, _) => {
                let event = &end.claimed.event;
                (&event.app, &event.trigger_type, &event.ordering_key)
            }
        };
        let key = key.as_deref()?;
        Some(line::lock_key(app.as_str(), trigger_type.as_str(), key))
    }
}

/// The end of a claim.
pub struct Finish {
    pub claimed: ClaimedEvent,
    pub disposition: Disposition,
    /// Of those that ran together with it, in their order.
    pub others: Vec<Disposition>,
    pub attempt: Option<AttemptEnd>,
    pub now: SystemTime,
}

impl Writer {
    pub fn start(pool: Pool, backlog: Backlog, crier: Crier) -> Self {
        let (requests, queue) = mpsc::channel(WAITING_MAX);
        let (stop, batches) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let (ending, counted) = (stop.clone(), batches.clone());
        let task = Task { pool, requests: queue, stop: ending, batches: counted, backlog: backlog.clone(), crier };
        Self { requests, backlog, task: Mutex::new(Some(tokio::spawn(task.run()))), stop, batches }
    }

    pub async fn enqueue(&self, event: NewEvent) -> Result<Enqueued, Error> {
        self.ask(|reply| Request::Enqueue(Box::new(event), reply)).await
    }

    pub async fn finish(&self, finish: Finish) -> Result<bool, Error> {
        self.ask(|reply| Request::Finish(Box::new(finish), reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Transactions since open.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Counts the events anew.
    pub async fn recount(&self, pool: &Pool) -> Result<(), Error> {
        self.backlog.recount(pool).await
    }

    /// The app is deleted, with its events.
    pub fn forget(&self, app: &AppId) {
        self.backlog.forget(app);
    }

    /// On return what was accepted is committed, and nothing else will be.
    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(err) = task.await
        {
            tracing::error!("the queue's writer ended badly: {err}");
        }
    }
}

/// Owns the requests; ends when it is stopped or every handle on the store is gone.
struct Task {
    pool: Pool,
    requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
    batches: Arc<AtomicU64>,
    backlog: Backlog,
    crier: Crier,
}

/// What a request came to, to be said once it is durable.
enum Done {
    Enqueued(Result<Enqueued, Error>),
    Finished(bool),
}

impl Task {
    async fn run(mut self) {
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
        // A caller that went away was promised nothing. What has ended has, whoever waits to hear of it.
        batch.retain(|request| !matches!(request, Request::Enqueue(_, reply) if reply.is_closed()));
        if batch.is_empty() {
            return;
        }
        let began = Instant::now();
        let committed = self.commit(batch).await;
        series().queue_written(batch.len(), began.elapsed(), committed.is_ok());
        let mut committed = committed.map(Vec::into_iter);
        for request in batch.drain(..) {
            let done = match &mut committed {
                Ok(done) => done.next().ok_or(Error::Closed),
                Err(err) => Err(err.clone()),
            };
            // The caller may have gone meanwhile.
            match (request, done) {
                (Request::Enqueue(_, reply), Ok(Done::Enqueued(result))) => drop(reply.send(result)),
                (Request::Finish(_, reply), Ok(Done::Finished(ours))) => drop(reply.send(Ok(ours))),
                (Request::Enqueue(_, reply), done) => drop(reply.send(Err(done.err().unwrap_or(Error::Closed)))),
                (Request::Finish(_, reply), done) => drop(reply.send(Err(done.err().unwrap_or(Error::Closed)))),
            }
        }
    }

    /// One answer to each request; an error of the database is everybody's.
    async fn commit(&self, batch: &[Request]) -> Result<Vec<Done>, Error> {
        let mut tx = self.pool.begin().await.map_err(during(ENQUEUE))?;
        let events = batch.iter().filter_map(|request| match request {
            Request::Enqueue(event, _) => Some(&**event),
            Request::Finish(..) => None,
        });
        tx.lock(batch.iter().filter_map(Request::line).collect()).await.map_err(during(ENQUEUE))?;
        // Together, before what has ended: nobody was promised an order between the two.
        let (enqueued, coming) = insert::enqueue(&mut tx, &self.backlog, &events.collect::<Vec<_>>()).await?;
        let (mut answers, mut enqueued, mut leaving) =
            (Vec::with_capacity(batch.len()), enqueued.into_iter(), Vec::new());
        for request in batch {
            answers.push(match request {
                Request::Enqueue(..) => Done::Enqueued(enqueued.next().unwrap_or(Err(Error::Closed))),
                Request::Finish(end, _) => {
                    let ours = finish(&mut tx, end).await?;
                    if ours {
                        let ends = end.others.iter().chain([&end.disposition]);
                        leaving.push((&end.claimed.event.app, ends.filter(|end| end.is_final()).count() as u64));
                    }
                    Done::Finished(ours)
                }
            });
        }
        tx.commit().await.map_err(during(ENQUEUE))?;
        if coming.of_apps().next().is_some() {
            self.crier.events_queued();
        }
        coming.of_apps().for_each(|(app, events)| self.backlog.came(app, events));
        leaving.into_iter().for_each(|(app, events)| self.backlog.left(app, events));
        self.batches.fetch_add(1, Ordering::Relaxed);
        Ok(answers)
    }
}

async fn finish(tx: &mut Tx, end: &Finish) -> Result<bool, Error> {
    let Finish { claimed, disposition, others, attempt, now } = end;
    let mut columns = Columns::of(disposition, *now);
    if attempt.is_none() && matches!(disposition, Disposition::Dead { .. }) {
        columns.attempts_returned = 1; // Nothing ran: the claim was no attempt.
    }
    let error = attempt.as_ref().and_then(|attempt| attempt.failure.as_ref());
    let query = db::query(
        "UPDATE events SET state = $1, due_at = COALESCE($2, due_at), finished_at = $3,
             reason = COALESCE($4, reason), error = COALESCE($5, error), attempt = attempt - $6, claim_id = NULL
         WHERE id = $7 AND claim_id = $8 AND state = 1 RETURNING seq",
    );
    let query = query.bind(columns.state).bind(columns.due_at).bind(columns.finished_at).bind(columns.reason);
    let query = query.bind(error.map(|failure| format!("{}: {}", failure.name, failure.message)));
    let query = query.bind(columns.attempts_returned).bind(claimed.event.id.to_string()).bind(claimed.claim.0);
    let rows = query.fetch_all(&mut *tx).await.map_err(during(FINISH))?;
    let Some(row) = rows.first() else { return Ok(false) };
    let seq: i64 = get(row, "seq")?;
    if let Some(attempt) = attempt
        && columns.attempts_returned == 0
    {
        record(tx, seq, (&claimed.event, claimed.at), attempt, *now).await?;
    }
    for (event, disposition) in claimed.others.iter().zip(others) {
        finish_other(tx, end, event, disposition).await?;
    }
    if disposition.is_final() && claimed.event.ordering_key.is_some() {
        line::advance(tx, seq, *now).await?;
    }
    Ok(true)
}

/// One that ran together with the head of its line: if it has not ended, it goes back to its place.
async fn finish_other(tx: &mut Tx, end: &Finish, event: &Event, disposition: &Disposition) -> Result<(), Error> {
    let columns = Columns::of(disposition, end.now);
    let state = if disposition.is_final() { columns.state } else { 5 };
    let query = db::query(
        "UPDATE events SET state = $1, finished_at = $2, reason = COALESCE($3, reason), attempt = attempt - $4, claim_id = NULL
         WHERE id = $5 AND claim_id = $6 AND state = 7 RETURNING seq",
    );
    let query = query.bind(state).bind(columns.finished_at).bind(columns.reason).bind(columns.attempts_returned);
    let query = query.bind(event.id.to_string()).bind(end.claimed.claim.0);
    let rows = query.fetch_all(&mut *tx).await.map_err(during(FINISH))?;
    if let (Some(row), Some(attempt), 0) = (rows.first(), &end.attempt, columns.attempts_returned) {
        record(tx, get(row, "seq")?, (event, end.claimed.at), attempt, end.now).await?;
    }
    Ok(())
}

async fn record(
    tx: &mut Tx,
    seq: i64,
    (event, started_at): (&Event, SystemTime),
    attempt: &AttemptEnd,
    now: SystemTime,
) -> Result<(), Error> {
    let error = attempt.failure.as_ref().map(json).transpose()?;
    let query = db::query(
        "INSERT INTO attempts (event_seq, number, invocation_id, error_json, started_at, finished_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (event_seq, number) DO NOTHING",
    );
    let query = query.bind(seq).bind(i64::from(event.attempt)).bind(attempt.invocation.map(|id| id.to_string()));
    let query = query.bind(error).bind(millis(started_at)).bind(millis(now));
    query.execute(&mut *tx).await.map(|_| ()).map_err(during(FINISH))
}

/// What a [`Disposition`] sets.
struct Columns {
    state: i64,
    due_at: Option<i64>,
    finished_at: Option<i64>,
    reason: Option<String>,
    attempts_returned: i64,
}

impl Columns {
    fn of(disposition: &Disposition, now: SystemTime) -> Self {
        let again = |due_at: &SystemTime, attempts_returned| Self {
            state: 0,
            due_at: Some(millis(*due_at)),
            finished_at: None,
            reason: None,
            attempts_returned,
        };
        let ended =
            |state, reason| Self { state, due_at: None, finished_at: Some(millis(now)), reason, attempts_returned: 0 };
        match disposition {
            Disposition::Done => ended(2, None),
            Disposition::Skipped { reason } => ended(3, Some(reason.clone())),
            Disposition::Dead { reason } => ended(4, Some(reason.as_str().to_owned())),
            Disposition::Retry { due_at } => again(due_at, 0),
            Disposition::Release { due_at } => again(due_at, 1),
        }
    }
}

impl Disposition {
    /// Whether it leaves the queue.
    fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Skipped { .. } | Self::Dead { .. })
    }
}

//! Inserting many events at once: a statement costs a trip to the database's thread and back, which for a row alone is more than the
//! row itself.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::super::codec::{get, get_parsed, get_version, millis, signed, span_millis};
use super::super::db::{self, Builder, Tx, Value};
use super::super::{Error, during};
use super::backlog::Backlog;
use super::{DeadReason, Enqueued, NewEvent, batch};
use crate::model::{AppId, Batch, EventId, TraceContext};

const WAITING: i64 = 5;
const VERB: &str = "enqueue an event";
/// Rows of one statement: few sizes, so that the connection keeps them prepared.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Of the lines that these new events stand in, whoever waits longest, if nobody is at the head.
pub(super) const ADVANCE_NEW: &str = "UPDATE events SET state = 0 WHERE seq IN (
         SELECT (SELECT w.seq FROM events w WHERE w.app_id = k.app_id AND w.trigger_type = k.trigger_type
             AND w.ordering_key = k.ordering_key AND w.state = 5 ORDER BY w.place, w.seq LIMIT 1)
         FROM events k WHERE k.seq BETWEEN $1 AND $2 AND k.state = 5 AND NOT EXISTS (
             SELECT 1 FROM events h WHERE h.app_id = k.app_id AND h.trigger_type = k.trigger_type
                 AND h.ordering_key = k.ordering_key AND h.state < 2))";

/// Events that a transaction adds to what waits.
#[derive(Default)]
pub struct Coming {
    of_apps: HashMap<AppId, u64>,
    in_all: u64,
}

impl Coming {
    pub fn of_apps(&self) -> impl Iterator<Item = (&AppId, u64)> {
        self.of_apps.iter().map(|(app, events)| (app, *events))
    }

    fn add(&mut self, event: &NewEvent) {
        if event.dead.is_none() {
            *self.of_apps.entry(event.app.clone()).or_default() += 1;
            self.in_all += 1;
        }
    }

    fn remove(&mut self, event: &NewEvent) {
        if event.dead.is_none()
            && let Some(of_app) = self.of_apps.get_mut(&event.app)
        {
            *of_app -= 1;
            self.in_all -= 1;
        }
    }

    fn check(&self, backlog: &Backlog, event: &NewEvent) -> Result<(), Error> {
        if event.dead.is_some() {
            return Ok(());
        }
        backlog.check(&event.app, self.of_apps.get(&event.app).copied().unwrap_or(0), self.in_all)
    }
}

/// One answer to each event, in their order; an error of the database is everybody's.
pub async fn enqueue(
    tx: &mut Tx,
    backlog: &Backlog,
    events: &[&NewEvent],
) -> Result<(Vec<Result<Enqueued, Error>>, Coming), Error> {
    let (mut answers, mut coming) = (Vec::with_capacity(events.len()), Coming::default());
    let mut pending = Vec::new();
    for &event in events {
        if coming.check(backlog, event).is_err() {
            // Some of those may be duplicates, which take no place.
            flush(tx, &mut pending, &mut answers, &mut coming).await?;
            if let Err(full) = coming.check(backlog, event) {
                answers.push(match first(tx, event).await {
                    Ok(first) => Ok(first), // What was accepted stays accepted.
                    Err(err @ Error::Database { .. }) => return Err(err),
                    Err(_) => Err(full),
                });
                continue;
            }
        }
        coming.add(event);
        pending.push(event);
    }
    flush(tx, &mut pending, &mut answers, &mut coming).await?;
    Ok((answers, coming))
}

async fn flush(
    tx: &mut Tx,
    pending: &mut Vec<&NewEvent>,
    answers: &mut Vec<Result<Enqueued, Error>>,
    coming: &mut Coming,
) -> Result<(), Error> {
    let mut left = pending.as_slice();
    for size in CHUNKS {
        while left.len() >= size {
            let (chunk, rest) = left.split_at(size);
            let ids: Vec<EventId> = chunk.iter().map(|_| EventId::new()).collect();
            let inserted = insert(tx, chunk, &ids).await?;
            for (event, event_id) in chunk.iter().zip(ids) {
                if inserted.contains_key(&event_id) {
                    answers.push(Ok(Enqueued { event_id, version: event.version, duplicate: false }));
                    continue;
                }
                coming.remove(event);
                answers.push(match first(tx, event).await {
                    Err(err @ Error::Database { .. }) => return Err(err),
                    answer => answer,
                });
            }
            left = rest;
        }
    }
    pending.clear();
    Ok(())
}

/// What became a row: ids and their `seq`. Not among them: duplicates, and events of apps that are gone.
async fn insert(tx: &mut Tx, events: &[&NewEvent], ids: &[EventId]) -> Result<HashMap<EventId, i64>, Error> {
    let mut query = Builder::new(
        "INSERT INTO events (id, app_id, trigger_type, version, payload_json, ordering_key, idempotency_key, state,
             attempt, due_at, enqueued_at, since, hops, finished_at, reason, batch_max, batch_wait_ms,
             traceparent, tracestate, place)
         SELECT column2, a.id, column4, column5, column6, column7, column8, column9, 0, column10, column11,
             column12, column13, column14, column15, column16, column17, column18, column19, (SELECT COALESCE(MAX(seq), 0) + 1 FROM events)
         FROM (VALUES ",
    );
    query.push_rows(events.iter().zip(ids).enumerate().map(|(index, (event, id))| row(index, event, *id)));
    // JOIN apps: a foreign key that fails would end the transaction of the others. Ordered, as `seq` is the order of arrival.
    query.push(
        ") AS new CROSS JOIN apps a WHERE a.id = column3 ORDER BY column1 /*pg FOR KEY SHARE OF a */
         ON CONFLICT (app_id, trigger_type, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
         RETURNING seq, id",
    );
    let rows = query.build().fetch_all(&mut *tx).await.map_err(during(VERB))?;
    let mut inserted = HashMap::with_capacity(rows.len());
    for row in &rows {
        inserted.insert(get_parsed(row, "id")?, get(row, "seq")?);
    }
    let seqs = inserted.values().copied();
    if let (Some(from), Some(to)) = (seqs.clone().min(), seqs.max())
        && events.iter().any(|event| initial(event).state == WAITING)
    {
        db::query(ADVANCE_NEW).bind(from).bind(to).execute(&mut *tx).await.map_err(during(VERB))?;
    }
    for (event, id) in events.iter().zip(ids) {
        if let (Some(batch), Some(seq), WAITING) = (batch_of(event), inserted.get(id), initial(event).state) {
            batch::hasten_line(tx, *seq, batch.max_size.into(), event.enqueued_at).await?;
        }
    }
    Ok(inserted)
}

fn row(index: usize, event: &NewEvent, id: EventId) -> Vec<Value<'_>> {
    let Initial { state, due_at, finished_at } = initial(event);
    let batch = batch_of(event);
    vec![
        (index as i64).into(),
        id.to_string().into(),
        event.app.as_str().into(),
        event.trigger_type.as_str().into(),
        signed(event.version.0).into(),
        event.payload.as_str().into(),
        event.ordering_key.as_deref().into(),
        event.idempotency_key.as_deref().into(),
        state.into(),
        millis(due_at).into(),
        millis(event.enqueued_at).into(),
        millis(event.due_at.max(event.enqueued_at)).into(),
        i64::from(event.hops).into(),
        finished_at.into(),
        event.dead.map(DeadReason::as_str).into(),
        batch.map(|batch| i64::from(batch.max_size)).into(),
        batch.map(|batch| span_millis(batch.max_wait)).into(),
        event.trace.as_ref().map(TraceContext::traceparent).into(),
        event.trace.as_ref().and_then(TraceContext::tracestate).into(),
    ]
}

/// How an event begins.
struct Initial {
    state: i64,
    due_at: SystemTime,
    /// If that is at once.
    finished_at: Option<i64>,
}

fn initial(event: &NewEvent) -> Initial {
    let due_at = event.due_at;
    let scheduled = due_at > event.enqueued_at;
    match (&event.dead, &event.ordering_key) {
        (Some(_), _) => Initial { state: 4, due_at, finished_at: Some(millis(event.enqueued_at)) },
        (None, None) => Initial { state: 0, due_at, finished_at: None },
        (None, Some(_)) if scheduled => Initial { state: 6, due_at, finished_at: None },
        // As WAITING first: it may have to wait, and if not it advances at once. At the head it waits for others to run together.
        (None, Some(_)) => {
            let wait = batch_of(event).map_or(Duration::ZERO, |batch| batch.max_wait);
            Initial { state: WAITING, due_at: due_at + wait, finished_at: None }
        }
    }
}

/// Only events of a line run together.
fn batch_of(event: &NewEvent) -> Option<Batch> {
    event.batch.filter(|_| event.ordering_key.is_some())
}

/// The event that has the idempotency key already.
async fn first(tx: &mut Tx, event: &NewEvent) -> Result<Enqueued, Error> {
    let query =
        db::query("SELECT id, version FROM events WHERE app_id = $1 AND trigger_type = $2 AND idempotency_key = $3");
    let query = query.bind(event.app.as_str()).bind(event.trigger_type.as_str()).bind(&event.idempotency_key);
    match query.fetch_optional(&mut *tx).await.map_err(during(VERB))? {
        Some(row) => {
            Ok(Enqueued { event_id: get_parsed(&row, "id")?, version: get_version(&row, "version")?, duplicate: true })
        }
        None => Err(Error::UnknownApp(event.app.clone())),
    }
}

//! The queue of non-blocking events: what was accepted is delivered at least once, and in order where a key asks for it.
//!
//! An event is QUEUED, or RUNNING under a claim that ends at a time unless it is renewed. Both keep in `due_at` when the
//! next may claim them, so that one index holds all that has to be done. Of each (app, trigger type, ordering key) one
//! event is RUNNING at a time, and only the first of the others may follow it: a retry keeps its place. Whoever claims
//! an event gets a fence with it; when somebody else has claimed it since, the late one changes nothing.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::codec::{
    Row, corrupt, get, get_parsed, get_time, get_u32, get_unsigned, get_version, millis, span_millis, time,
};
use super::{Error, Store, during, enqueuer};
use crate::model::{AppId, Event, EventId, RawJson, TriggerType, VersionNumber};

/// An event to be queued.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub app: AppId,
    pub trigger_type: TriggerType,
    pub version: VersionNumber,
    pub payload: RawJson,
    /// FIFO among the events of this app and trigger type that have the same key.
    pub ordering_key: Option<String>,
    /// Of one app: a second event with the same key is a duplicate, as long as the first is kept.
    pub idempotency_key: Option<String>,
    pub due_at: SystemTime,
    pub enqueued_at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    pub event_id: EventId,
    pub version: VersionNumber,
    /// The id and version are those of an earlier event with this idempotency key.
    pub duplicate: bool,
}

/// The fence of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimId(i64);

#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedEvent {
    pub event: Event,
    pub claim: ClaimId,
}

/// What becomes of a claimed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    Done,
    /// Its function is gone or disabled.
    Skipped {
        reason: String,
    },
    Retry {
        due_at: SystemTime,
        error: String,
    },
    /// Our own fault, not the function's: the attempt does not count.
    Release {
        due_at: SystemTime,
    },
    /// A dead letter.
    Dead {
        reason: String,
        error: String,
    },
}

/// How much waits and runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueFigures {
    pub queued: u64,
    pub running: u64,
    pub dead: u64,
}

/// Whether it is event `e`'s turn. One that runs has it already, however old the queued ones are (a redriven one may be
/// older). The terms on `state` are written as in the partial indexes, else SQLite would not use them.
macro_rules! has_its_turn {
    () => {
        "(e.state = 1 OR e.ordering_key IS NULL OR (
             NOT EXISTS (SELECT 1 FROM events p WHERE p.app_id = e.app_id AND p.trigger_type = e.trigger_type
                 AND p.ordering_key = e.ordering_key AND p.state < 2 AND p.seq < e.seq)
             AND NOT EXISTS (SELECT 1 FROM events p WHERE p.app_id = e.app_id AND p.trigger_type = e.trigger_type
                 AND p.ordering_key = e.ordering_key AND p.state = 1)))"
    };
}

const CLAIM: &str = concat!(
    "UPDATE events SET state = 1, attempt = attempt + 1, due_at = $1, claim_id = $2 WHERE seq IN (
         SELECT e.seq FROM events e WHERE e.state < 2 AND e.due_at <= $3 AND ",
    has_its_turn!(),
    " ORDER BY e.due_at, e.seq LIMIT $4) RETURNING *"
);

/// An event that waits for its turn does not count: it would be due at once, and the caller would ask again and again.
const NEXT_DUE: &str =
    concat!("SELECT e.due_at FROM events e WHERE e.state < 2 AND ", has_its_turn!(), " ORDER BY e.due_at LIMIT 1");

impl Store {
    /// Queues an event; on return it is on disk.
    ///
    /// # Cancel safety
    /// An event whose future is dropped may be queued or not.
    pub async fn enqueue(&self, event: NewEvent) -> Result<Enqueued, Error> {
        let (reply, answer) = oneshot::channel();
        let request = enqueuer::Request { event, reply };
        self.inner.enqueues.send(request).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// The event that was queued under an idempotency key.
    pub async fn enqueued(
        &self,
        app: &AppId,
        trigger: &TriggerType,
        idempotency_key: &str,
    ) -> Result<Option<Enqueued>, Error> {
        let sql = "SELECT id, version FROM events WHERE app_id = $1 AND trigger_type = $2 AND idempotency_key = $3";
        let query = sqlx::query(sql).bind(app.as_str()).bind(trigger.as_str()).bind(idempotency_key);
        let row = query.fetch_optional(self.read()).await.map_err(during("look an idempotency key up"))?;
        row.map(|row| {
            Ok(Enqueued { event_id: get_parsed(&row, "id")?, version: get_version(&row, "version")?, duplicate: true })
        })
        .transpose()
    }

    /// Claims up to `limit` events that are due, and those whose claim has expired, until `claim_until`. They come in the
    /// order of their arrival. A row that does not decode becomes a dead letter: it must not keep the others from running.
    pub async fn claim(
        &self,
        limit: u32,
        claim_until: SystemTime,
        now: SystemTime,
    ) -> Result<Vec<ClaimedEvent>, Error> {
        let claim = ClaimId(rand::random());
        let query = sqlx::query(CLAIM).bind(millis(claim_until)).bind(claim.0).bind(millis(now)).bind(i64::from(limit));
        let mut rows = query.fetch_all(self.write()).await.map_err(during("claim events"))?;
        rows.sort_by_cached_key(|row| get::<i64>(row, "seq").unwrap_or(i64::MAX)); // RETURNING has no order.
        let mut claimed = Vec::with_capacity(rows.len());
        for row in &rows {
            match decode(row) {
                Ok(event) => claimed.push(ClaimedEvent { event, claim }),
                Err(err) => self.bury(get(row, "seq")?, claim, &err, now).await?,
            }
        }
        Ok(claimed)
    }

    async fn bury(&self, seq: i64, claim: ClaimId, err: &Error, now: SystemTime) -> Result<(), Error> {
        tracing::error!(%err, seq, "an event's row is damaged; it becomes a dead letter");
        let query = sqlx::query(
            "UPDATE events SET state = 4, reason = 'DAMAGED', error = $1, finished_at = $2, claim_id = NULL
             WHERE seq = $3 AND claim_id = $4",
        );
        let query = query.bind(err.to_string()).bind(millis(now)).bind(seq).bind(claim.0);
        query.execute(self.write()).await.map(|_| ()).map_err(during("bury an event"))
    }

    /// Prolongs a claim; false where it is no longer ours.
    pub async fn renew_claim(&self, claimed: &ClaimedEvent, until: SystemTime) -> Result<bool, Error> {
        let query = sqlx::query("UPDATE events SET due_at = $1 WHERE id = $2 AND claim_id = $3 AND state = 1");
        let query = query.bind(millis(until)).bind(claimed.event.id.to_string()).bind(claimed.claim.0);
        Ok(query.execute(self.write()).await.map_err(during("renew a claim"))?.rows_affected() > 0)
    }

    /// Ends a claim; false, and nothing changed, where it is no longer ours.
    pub async fn finish_claim(
        &self,
        event: EventId,
        claim: ClaimId,
        disposition: Disposition,
        now: SystemTime,
    ) -> Result<bool, Error> {
        let end = End::of(disposition, now);
        let query = sqlx::query(
            "UPDATE events SET state = $1, due_at = COALESCE($2, due_at), finished_at = $3,
                 reason = COALESCE($4, reason), error = COALESCE($5, error), attempt = attempt - $6, claim_id = NULL
             WHERE id = $7 AND claim_id = $8 AND state = 1",
        );
        let query = query.bind(end.state).bind(end.due_at).bind(end.finished_at).bind(end.reason).bind(end.error);
        let query = query.bind(end.attempts_returned).bind(event.to_string()).bind(claim.0);
        Ok(query.execute(self.write()).await.map_err(during("finish a claim"))?.rows_affected() > 0)
    }

    /// Whether the event is there: one that is claimed is deleted with its app only.
    pub async fn has_event(&self, event: EventId) -> Result<bool, Error> {
        let query = sqlx::query_scalar("SELECT COUNT(*) FROM events WHERE id = $1").bind(event.to_string());
        let found: i64 = query.fetch_one(self.read()).await.map_err(during("look for an event"))?;
        Ok(found > 0)
    }

    /// At start-up of a single node: nobody runs what says RUNNING. The attempts count, so that an event which brings the
    /// service down runs out of them.
    pub async fn release_claims(&self) -> Result<u64, Error> {
        // They were due once, so they are due now; their old age puts them first.
        let sql = "UPDATE events SET state = 0, claim_id = NULL, due_at = enqueued_at WHERE state = 1";
        let released = sqlx::query(sql).execute(self.write()).await.map_err(during("release claims"))?;
        Ok(released.rows_affected())
    }

    pub async fn queue_figures(&self, app: &AppId) -> Result<QueueFigures, Error> {
        let sql =
            "SELECT state, COUNT(*) AS events FROM events WHERE app_id = $1 AND state IN (0, 1, 4) GROUP BY state";
        let query = sqlx::query(sql).bind(app.as_str());
        let mut figures = QueueFigures::default();
        for row in query.fetch_all(self.read()).await.map_err(during("count events"))? {
            let events = get_unsigned(&row, "events")?;
            match get::<i64>(&row, "state")? {
                0 => figures.queued = events,
                1 => figures.running = events,
                _ => figures.dead = events,
            }
        }
        Ok(figures)
    }

    /// When there is something to claim next: the earliest due time, or end of a claim. It may have passed.
    pub async fn next_due(&self) -> Result<Option<SystemTime>, Error> {
        let due: Option<i64> =
            sqlx::query_scalar(NEXT_DUE).fetch_optional(self.read()).await.map_err(during("read the next due time"))?;
        due.map(|ms| time(ms).ok_or_else(|| corrupt("due_at", ms))).transpose()
    }

    /// Deletes up to `limit` DONE and SKIPPED events that ended longer ago than their app keeps its history, but none that
    /// ended within `keep_min`: until then their idempotency keys count. Returns how many.
    pub async fn purge_events(
        &self,
        now: SystemTime,
        default_retention: Duration,
        keep_min: Duration,
        limit: u32,
    ) -> Result<u64, Error> {
        let query = sqlx::query(
            "DELETE FROM events WHERE seq IN (
                 SELECT e.seq FROM apps a CROSS JOIN events e WHERE e.app_id = a.id AND e.state < 4
                 AND e.finished_at < $1 - CASE WHEN COALESCE(a.history_retention_ms, $2) > $3
                     THEN COALESCE(a.history_retention_ms, $2) ELSE $3 END LIMIT $4)",
        );
        let query = query.bind(millis(now)).bind(span_millis(default_retention)).bind(span_millis(keep_min));
        let query = query.bind(i64::from(limit));
        Ok(query.execute(self.write()).await.map_err(during("purge events"))?.rows_affected())
    }
}

/// The columns that a [`Disposition`] sets.
struct End {
    state: i64,
    due_at: Option<i64>,
    finished_at: Option<i64>,
    reason: Option<String>,
    error: Option<String>,
    attempts_returned: i64,
}

impl End {
    fn of(disposition: Disposition, now: SystemTime) -> Self {
        let again = |due_at, error, attempts_returned| Self {
            state: 0,
            due_at: Some(millis(due_at)),
            finished_at: None,
            reason: None,
            error,
            attempts_returned,
        };
        let ended = |state, reason, error| Self {
            state,
            due_at: None,
            finished_at: Some(millis(now)),
            reason,
            error,
            attempts_returned: 0,
        };
        match disposition {
            Disposition::Done => ended(2, None, None),
            Disposition::Skipped { reason } => ended(3, Some(reason), None),
            Disposition::Retry { due_at, error } => again(due_at, Some(error), 0),
            Disposition::Release { due_at } => again(due_at, None, 1),
            Disposition::Dead { reason, error } => ended(4, Some(reason), Some(error)),
        }
    }
}

fn decode(row: &Row) -> Result<Event, Error> {
    Ok(Event {
        id: get_parsed(row, "id")?,
        app: get_parsed(row, "app_id")?,
        trigger_type: TriggerType::stored(get(row, "trigger_type")?),
        version: get_version(row, "version")?,
        payload: RawJson::trusted(get(row, "payload_json")?),
        ordering_key: get(row, "ordering_key")?,
        enqueued_at: get_time(row, "enqueued_at")?,
        attempt: get_u32(row, "attempt")?,
    })
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;

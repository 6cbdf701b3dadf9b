//! The queue of non-blocking events: what was accepted is delivered at least once, and in order where a key asks for it.
//!
//! An event is QUEUED, or RUNNING under a claim that ends at a time unless it is renewed. Both keep in `due_at` when the next may
//! claim them, so that one index, app by app, holds all that has to be done. Whoever claims an event gets a fence with it; when
//! somebody else has claimed it since, the late one changes nothing. Events with an ordering key stand in [lines](mod@line), of which only
//! the head is QUEUED or RUNNING. What enqueues and what finishes goes through the [`writer`], many to a transaction.
//!
//! `state` in the table: 0 QUEUED, 1 RUNNING, 2 DONE, 3 SKIPPED, 4 DEAD; in a line also 5 WAITING for its head, 6 SCHEDULED to join it
//! later, 7 TAKEN along by the head that runs (see [`batch`]).

mod backlog;
mod batch;
mod dead_letters;
mod insert;
mod line;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use super::codec::{
    corrupt, get, get_parsed, get_time, get_u32, get_unsigned, get_version, json, millis, span_millis, time,
};
use super::db::{self, Builder, Row, Tx};
use super::{Error, Store, during};
use crate::metrics::{self, series};
use crate::model::{
    AppId, Batch, Event, EventId, FailureKind, FunctionFailure, InvocationId, RawJson, TraceContext, TriggerType,
    VersionNumber,
};

pub use backlog::{Backlog, Limits as QueueLimits};
pub use dead_letters::{AttemptRecord, EventRecord, Letters, Moved};
pub use writer::Writer;

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
    /// Later than `enqueued_at`: it joins the queue, and its line, only then.
    pub due_at: SystemTime,
    /// With an ordering key: it may run together with others of its line.
    pub batch: Option<Batch>,
    pub enqueued_at: SystemTime,
    /// Functions that led to it, one by another's doing.
    pub hops: u32,
    /// What its attempts go on with.
    pub trace: Option<TraceContext>,
    /// It must not run: a dead letter from the start, for this reason.
    pub dead: Option<DeadReason>,
}

/// Why an event became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadReason {
    AttemptsExhausted,
    TooOld,
    /// Functions kept triggering functions.
    Loop,
    /// Its row does not decode.
    Damaged,
}

impl DeadReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "ATTEMPTS_EXHAUSTED",
            Self::TooOld => "TOO_OLD",
            Self::Loop => "LOOP",
            Self::Damaged => "DAMAGED",
        }
    }
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
    /// Those behind it in its line that are to run together with it.
    pub others: Vec<Event>,
    pub claim: ClaimId,
    /// When it was claimed.
    pub at: SystemTime,
    /// Until then nobody else claims it.
    pub until: SystemTime,
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
    },
    /// Our own fault, not the function's: the attempt does not count.
    Release {
        due_at: SystemTime,
    },
    /// A dead letter.
    Dead {
        reason: DeadReason,
    },
}

/// How an attempt ended, to be kept with its event.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptEnd {
    /// `None`: nothing was invoked.
    pub invocation: Option<InvocationId>,
    /// `None`: it went well.
    pub failure: Option<FunctionFailure>,
}

/// What is read of an event, by name: with `*` a statement that PostgreSQL has prepared fails once a migration adds a column.
macro_rules! event_columns {
    () => {
        "seq, id, app_id, trigger_type, version, payload_json, ordering_key, state, attempt, attempts_before, due_at, since,
         enqueued_at, finished_at, hops, reason, batch_max, traceparent, tracestate"
    };
}
use event_columns;

/// How much waits and runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueFigures {
    pub queued: u64,
    pub running: u64,
    pub dead: u64,
    /// Of those that wait or run; not of those that are scheduled, until their time has come.
    pub oldest_enqueued_at: Option<SystemTime>,
}

/// What there is to do, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Of each app with events that may be claimed, or whose claim may be taken over: when the first may.
    pub apps: Vec<(AppId, SystemTime)>,
    /// When the next scheduled event joins its line.
    pub scheduled: Option<SystemTime>,
}

/// Jumps from app to app: the costs grow with the number of apps that have something queued, not with what they have.
const DUE: &str = "WITH RECURSIVE due (app_id, due_at) AS (
         SELECT app_id, due_at FROM (SELECT app_id, due_at FROM events WHERE state < 2 ORDER BY app_id, due_at LIMIT 1) AS first
         UNION ALL
         SELECT next.app_id, next.due_at FROM due JOIN events next ON next.seq = (
             SELECT e.seq FROM events e WHERE e.state < 2 AND e.app_id > due.app_id ORDER BY e.app_id, e.due_at LIMIT 1)
     ) SELECT app_id, due_at FROM due";

/// The term on `state` is written as in the partial index, else SQLite would not use it.
const CLAIM: &str = concat!(
    "WITH due AS MATERIALIZED (
         SELECT e.seq FROM events e WHERE e.app_id = $4 AND e.state < 2 AND e.due_at <= $3 ORDER BY e.due_at, e.seq LIMIT $5
         /*pg FOR UPDATE SKIP LOCKED */
     ) UPDATE events SET state = 1, attempt = attempt + 1, due_at = $1, claim_id = $2, claimed_at = $3, replica = $6
     WHERE seq IN (SELECT seq FROM due) RETURNING ",
    event_columns!()
);

impl Store {
    /// Queues an event; on return it is on disk.
    ///
    /// # Errors
    /// `QueueFull`: as many wait as may.
    ///
    /// # Cancel safety
    /// An event whose future is dropped may be queued or not.
    pub async fn enqueue(&self, event: NewEvent) -> Result<Enqueued, Error> {
        self.inner.queue.enqueue(event).await
    }

    /// The event that was queued under an idempotency key.
    pub async fn enqueued(
        &self,
        app: &AppId,
        trigger: &TriggerType,
        idempotency_key: &str,
    ) -> Result<Option<Enqueued>, Error> {
        let sql = "SELECT id, version FROM events WHERE app_id = $1 AND trigger_type = $2 AND idempotency_key = $3";
        let query = db::query(sql).bind(app.as_str()).bind(trigger.as_str()).bind(idempotency_key);
        let row = query.fetch_optional(self.read()).await.map_err(during("look an idempotency key up"))?;
        row.map(|row| {
            Ok(Enqueued { event_id: get_parsed(&row, "id")?, version: get_version(&row, "version")?, duplicate: true })
        })
        .transpose()
    }

    /// What there is to claim and when. Times may have passed.
    pub async fn due(&self) -> Result<Due, Error> {
        let verb = "read what is due";
        let rows = db::query(DUE).fetch_all(self.read()).await.map_err(during(verb))?;
        let apps = rows.iter().map(|row| Ok((get_parsed(row, "app_id")?, get_time(row, "due_at")?)));
        let scheduled = "SELECT due_at FROM events WHERE state = 6 ORDER BY due_at LIMIT 1";
        let scheduled: Option<i64> =
            db::query_scalar(scheduled).fetch_optional(self.read()).await.map_err(during(verb))?;
        let scheduled = scheduled.map(|ms| time(ms).ok_or_else(|| corrupt("due_at", ms))).transpose()?;
        Ok(Due { apps: apps.collect::<Result<_, Error>>()?, scheduled })
    }

    /// Claims of each app up to so many events that are due, and those whose claim has expired, until `until`. Each app's come in
    /// the order of their arrival. A row that does not decode becomes a dead letter: it must not keep the others from running.
    pub async fn claim(
        &self,
        shares: &[(AppId, u32)],
        until: SystemTime,
        now: SystemTime,
    ) -> Result<Vec<ClaimedEvent>, Error> {
        self.give_back().await?;
        let claim = ClaimId(rand::random());
        let claimed = self.claim_as(claim, shares, until, now).await;
        if claimed.is_err() {
            // The database may have committed it all the same, and then nobody knows what was claimed.
            self.inner.doubtful_claim.lock().unwrap_or_else(PoisonError::into_inner).replace(claim);
        }
        claimed
    }

    /// What was claimed by a claim of ours that nobody heard the outcome of: without this it would wait for the claim to expire. No
    /// attempt was begun.
    async fn give_back(&self) -> Result<(), Error> {
        let doubtful = || self.inner.doubtful_claim.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(claim) = *doubtful() else { return Ok(()) };
        let sql = "UPDATE events SET due_at = CASE WHEN state = 1 THEN since ELSE due_at END, attempt = attempt - 1, claim_id = NULL,
                       state = CASE WHEN state = 1 THEN 0 ELSE 5 END WHERE claim_id = $1 AND state IN (1, 7)";
        let given_back = db::query(sql).bind(claim.0).execute(self.write()).await;
        given_back.map_err(during("give a claim back"))?;
        *doubtful() = None;
        Ok(())
    }

    async fn claim_as(
        &self,
        claim: ClaimId,
        shares: &[(AppId, u32)],
        until: SystemTime,
        now: SystemTime,
    ) -> Result<Vec<ClaimedEvent>, Error> {
        const VERB: &str = "claim events";
        let mut tx = self.begin(VERB).await?;
        let mut claimed = Vec::new();
        for (app, limit) in shares {
            let query = db::query(CLAIM).bind(millis(until)).bind(claim.0).bind(millis(now));
            let query = query.bind(app.as_str()).bind(i64::from(*limit)).bind(self.replica());
            let mut rows = query.fetch_all(&mut tx).await.map_err(during(VERB))?;
            rows.sort_by_cached_key(|row| get::<i64>(row, "seq").unwrap_or(i64::MAX)); // RETURNING has no order.
            for row in &rows {
                match decode(row) {
                    Ok(event) => {
                        note_unseen_end(&mut tx, row, &event, now).await?;
                        let others = batch::take_along(&mut tx, row, claim, now).await?;
                        claimed.push(ClaimedEvent { event, others, claim, at: now, until });
                    }
                    Err(err) => self.bury(&mut tx, row, &err, now).await?,
                }
            }
        }
        tx.commit().await.map_err(during(VERB))?;
        Ok(claimed)
    }

    /// How the database finds what is claimed, step by step: for those who measure it.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn claim_plan(&self) -> Result<Vec<String>, Error> {
        let (explain, column) = if self.write().is_postgres() { ("EXPLAIN", 0) } else { ("EXPLAIN QUERY PLAN", 3) };
        let plan = Builder::new(format!("{explain} {CLAIM}"));
        let query = plan.build().bind(0).bind(0).bind(0).bind("").bind(1).bind(0);
        let rows = query.fetch_all(self.write()).await.map_err(during("explain a claim"))?;
        rows.iter().map(|row| row.try_get(column).map_err(during("explain a claim"))).collect()
    }

    async fn bury(&self, tx: &mut Tx, row: &Row, err: &Error, now: SystemTime) -> Result<(), Error> {
        let seq: i64 = get(row, "seq")?;
        tracing::error!(%err, seq, "an event's row is damaged; it becomes a dead letter");
        let sql =
            "UPDATE events SET state = 4, reason = $1, error = $2, finished_at = $3, claim_id = NULL WHERE seq = $4";
        let query = db::query(sql).bind(DeadReason::Damaged.as_str()).bind(err.to_string()).bind(millis(now)).bind(seq);
        query.execute(&mut *tx).await.map_err(during("bury an event"))?;
        if let Ok(app) = get_parsed::<AppId>(row, "app_id") {
            self.inner.queue.backlog.left(&app, 1);
            let of_app = metrics::app(&app);
            of_app.finished("dead");
            of_app.died(DeadReason::Damaged.as_str());
        }
        tx.lock(line::lock_of_row(row)?.into_iter().collect()).await.map_err(during("bury an event"))?;
        line::advance(tx, seq, now).await
    }

    /// Prolongs a claim; false where it is no longer ours.
    pub async fn renew_claim(&self, claimed: &ClaimedEvent, until: SystemTime) -> Result<bool, Error> {
        let query = db::query("UPDATE events SET due_at = $1 WHERE id = $2 AND claim_id = $3 AND state = 1");
        let query = query.bind(millis(until)).bind(claimed.event.id.to_string()).bind(claimed.claim.0);
        Ok(query.execute(self.write()).await.map_err(during("renew a claim"))? > 0)
    }

    /// Ends a claim, and keeps how the attempt ended; false, and nothing changed, where it is no longer ours. On return it is on disk,
    /// and so is that the next of its line may run. `others`: of those that ran together with the event, in their order.
    pub async fn finish_claim(
        &self,
        claimed: &ClaimedEvent,
        disposition: Disposition,
        others: Vec<Disposition>,
        attempt: Option<AttemptEnd>,
        now: SystemTime,
    ) -> Result<bool, Error> {
        let claimed = claimed.clone();
        self.inner.queue.finish(writer::Finish { claimed, disposition, others, attempt, now }).await
    }

    /// Lets the scheduled events whose time has come join their lines.
    pub async fn join_lines(&self, now: SystemTime) -> Result<(), Error> {
        let mut tx = self.begin("schedule events").await?;
        line::join(&mut tx, now).await?;
        tx.commit().await.map_err(during("schedule events"))
    }

    /// Whether the event is there: one that is claimed is deleted with its app only.
    pub async fn has_event(&self, event: EventId) -> Result<bool, Error> {
        let query = db::query_scalar("SELECT COUNT(*) FROM events WHERE id = $1").bind(event.to_string());
        let found: i64 = query.fetch_one(self.read()).await.map_err(during("look for an event"))?;
        Ok(found > 0)
    }

    pub async fn queue_figures(&self, app: &AppId, now: SystemTime) -> Result<QueueFigures, Error> {
        let sql = "SELECT state, COUNT(*) AS events,
                 (SELECT f.enqueued_at FROM events f
                     WHERE f.app_id = $1 AND f.state = e.state AND f.state IN (0, 1, 5, 7) AND f.since <= $2
                     ORDER BY f.seq LIMIT 1) AS oldest
             FROM events e WHERE app_id = $1 AND state IN (0, 1, 4, 5, 6, 7) GROUP BY state";
        let query = db::query(sql).bind(app.as_str()).bind(millis(now));
        let mut figures = QueueFigures::default();
        for row in query.fetch_all(self.read()).await.map_err(during("count events"))? {
            let events = get_unsigned(&row, "events")?;
            // Damaged: told where it is claimed.
            let oldest = get::<Option<i64>>(&row, "oldest").ok().flatten().and_then(time);
            match get::<i64>(&row, "state")? {
                1 | 7 => figures.running += events,
                4 => figures.dead = events,
                _ => figures.queued += events,
            }
            figures.oldest_enqueued_at = figures.oldest_enqueued_at.into_iter().chain(oldest).min();
        }
        Ok(figures)
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
        let query = db::query(
            "DELETE FROM events WHERE seq IN (
                 SELECT e.seq FROM apps a CROSS JOIN events e WHERE e.app_id = a.id AND e.state < 4
                 AND e.finished_at < $1 - CASE WHEN COALESCE(a.history_retention_ms, $2) > $3
                     THEN COALESCE(a.history_retention_ms, $2) ELSE $3 END LIMIT $4 /*pg FOR UPDATE OF e SKIP LOCKED */)",
        );
        let query = query.bind(millis(now)).bind(span_millis(default_retention)).bind(span_millis(keep_min));
        let query = query.bind(i64::from(limit));
        query.execute(self.write()).await.map_err(during("purge events"))
    }
}

/// The attempt before this one has no end if nobody saw it: the service was killed, or the claim expired.
async fn note_unseen_end(tx: &mut Tx, row: &Row, event: &Event, now: SystemTime) -> Result<(), Error> {
    if event.attempt <= 1 {
        return Ok(());
    }
    let message = "the service ended while it ran, or could not say how it ended";
    let failure = json(&FunctionFailure::new(FailureKind::Collateral, "EndUnknown", message.to_owned()))?;
    let query = db::query(
        "INSERT INTO attempts (event_seq, number, error_json, started_at, finished_at) VALUES ($1, $2, $3, $4, $4)
         ON CONFLICT DO NOTHING",
    );
    let query = query.bind(get::<i64>(row, "seq")?).bind(i64::from(event.attempt - 1)).bind(failure).bind(millis(now));
    let recorded = query.execute(&mut *tx).await.map_err(during("record an attempt"))?;
    series().claims_taken_over.increment(recorded);
    Ok(())
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
        attempts_before: get_u32(row, "attempts_before")?,
        since: get_time(row, "since")?,
        hops: get_u32(row, "hops")?,
        trace: trace(row)?,
    })
}

/// One that does not read loses nobody's event.
fn trace(row: &Row) -> Result<Option<TraceContext>, Error> {
    let (parent, state): (Option<&str>, Option<&str>) = (get(row, "traceparent")?, get(row, "tracestate")?);
    Ok(parent.and_then(|parent| TraceContext::parse(parent, state)))
}

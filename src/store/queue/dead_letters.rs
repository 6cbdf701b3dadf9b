//! Looking at events one by one, and what becomes of dead letters: they stay until somebody sends them off again or throws them away,
//! or until they are too old.

use std::time::SystemTime;

use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::super::codec::{
    Row, corrupt, get, get_json, get_parsed, get_time, get_u32, get_version, millis, signed, time,
};
use super::super::{Error, Store, during};
use super::line;
use crate::model::{AppId, EventId, EventState, FunctionFailure, InvocationId, RawJson, TriggerType, VersionNumber};

/// An event as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// Its place among all: where the next page begins.
    pub seq: i64,
    pub id: EventId,
    pub app: AppId,
    pub trigger_type: TriggerType,
    pub version: VersionNumber,
    pub payload: RawJson,
    pub ordering_key: Option<String>,
    pub state: EventState,
    /// When it was, or may be, claimed next.
    pub due_at: SystemTime,
    pub enqueued_at: SystemTime,
    pub finished_at: Option<SystemTime>,
    pub hops: u32,
    /// Why it was skipped, or is a dead letter: UPPER_SNAKE.
    pub reason: Option<String>,
    /// In the order of their numbers.
    pub attempts: Vec<AttemptRecord>,
}

/// An attempt that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    pub number: u32,
    pub invocation: Option<InvocationId>,
    pub failure: Option<FunctionFailure>,
    pub started_at: SystemTime,
    pub finished_at: SystemTime,
}

impl Store {
    /// One event of an app, with its attempts.
    pub async fn event(&self, app: &AppId, id: EventId) -> Result<Option<EventRecord>, Error> {
        let query = sqlx::query("SELECT * FROM events WHERE id = $1 AND app_id = $2");
        let query = query.bind(id.to_string()).bind(app.as_str());
        let row = query.fetch_optional(self.read()).await.map_err(during("read an event"))?;
        match row {
            Some(row) => Ok(Some(self.with_attempts(&row).await?)),
            None => Ok(None),
        }
    }

    /// Dead letters of an app, the oldest first, after the one with this `seq`.
    pub async fn dead_letters(&self, app: &AppId, after: Option<i64>, limit: u32) -> Result<Vec<EventRecord>, Error> {
        let sql = "SELECT * FROM events WHERE app_id = $1 AND state = 4 AND seq > $2 ORDER BY seq LIMIT $3";
        let query = sqlx::query(sql).bind(app.as_str()).bind(after.unwrap_or(i64::MIN)).bind(i64::from(limit));
        let rows = query.fetch_all(self.read()).await.map_err(during("list dead letters"))?;
        let mut letters = Vec::with_capacity(rows.len());
        for row in &rows {
            match self.with_attempts(row).await {
                Ok(letter) => letters.push(letter),
                // It must not hide the others. What is in it, only the file itself can tell.
                Err(err @ Error::Corrupt(_)) => tracing::error!(%err, "a dead letter cannot be shown"),
                Err(err) => return Err(err),
            }
        }
        Ok(letters)
    }

    async fn with_attempts(&self, row: &Row) -> Result<EventRecord, Error> {
        let mut record = decode(row)?;
        let query = sqlx::query("SELECT * FROM attempts WHERE event_seq = $1 ORDER BY number").bind(record.seq);
        let rows = query.fetch_all(self.read()).await.map_err(during("read an event's attempts"))?;
        record.attempts = rows.iter().map(decode_attempt).collect::<Result<_, Error>>()?;
        Ok(record)
    }

    /// Queues up to `limit` dead letters again, those with these ids or all: onto the active version, with all their attempts before
    /// them, and at their old places in their lines. Returns which; ids that name no dead letter of the app are none of them.
    pub async fn redrive(
        &self,
        app: &AppId,
        ids: Option<&[EventId]>,
        limit: u32,
        now: SystemTime,
    ) -> Result<Vec<EventId>, Error> {
        const VERB: &str = "redrive dead letters";
        let mut tx = self.begin(VERB).await?;
        let mut redriven = Vec::new();
        for row in select_dead(&mut tx, app, ids, limit, VERB).await? {
            let (seq, id): (i64, EventId) = (get(&row, "seq")?, get_parsed(&row, "id")?);
            let query = sqlx::query(
                "UPDATE events SET state = CASE WHEN ordering_key IS NULL THEN 0 ELSE 5 END, due_at = $1, since = $1,
                     version = COALESCE((SELECT active_version FROM apps WHERE id = app_id), version),
                     attempts_before = attempt, hops = 0, finished_at = NULL, reason = NULL, error = NULL
                 WHERE seq = $2",
            );
            query.bind(millis(now)).bind(seq).execute(&mut *tx).await.map_err(during(VERB))?;
            line::advance(&mut tx, seq, now).await?;
            redriven.push(id);
        }
        tx.commit().await.map_err(during(VERB))?;
        self.inner.queue.backlog.came(app, redriven.len() as u64);
        Ok(redriven)
    }

    /// Deletes up to `limit` dead letters, those with these ids or all. Returns which.
    pub async fn purge_dead_letters(
        &self,
        app: &AppId,
        ids: Option<&[EventId]>,
        limit: u32,
    ) -> Result<Vec<EventId>, Error> {
        const VERB: &str = "purge dead letters";
        let mut tx = self.begin(VERB).await?;
        let mut purged = Vec::new();
        for row in select_dead(&mut tx, app, ids, limit, VERB).await? {
            let query = sqlx::query("DELETE FROM events WHERE seq = $1").bind(get::<i64>(&row, "seq")?);
            query.execute(&mut *tx).await.map_err(during(VERB))?;
            purged.push(get_parsed(&row, "id")?);
        }
        tx.commit().await.map_err(during(VERB))?;
        Ok(purged)
    }

    /// Deletes up to `limit` dead letters of any app that became so before this time. Returns how many.
    pub async fn purge_old_dead_letters(&self, before: SystemTime, limit: u32) -> Result<u64, Error> {
        let sql =
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE state = 4 AND finished_at < $1 LIMIT $2)";
        let query = sqlx::query(sql).bind(millis(before)).bind(i64::from(limit));
        Ok(query.execute(self.write()).await.map_err(during("purge dead letters"))?.rows_affected())
    }
}

async fn select_dead(
    tx: &mut Transaction<'static, Sqlite>,
    app: &AppId,
    ids: Option<&[EventId]>,
    limit: u32,
    verb: &'static str,
) -> Result<Vec<Row>, Error> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT seq, id FROM events WHERE state = 4 AND app_id = ");
    query.push_bind(app.as_str());
    if let Some(ids) = ids {
        query.push(" AND id IN (");
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind(id.to_string());
        }
        query.push(")");
    }
    query.push(" ORDER BY seq LIMIT ").push_bind(signed(limit.into()));
    query.build().fetch_all(&mut **tx).await.map_err(during(verb))
}

fn decode(row: &Row) -> Result<EventRecord, Error> {
    let finished_at: Option<i64> = get(row, "finished_at")?;
    Ok(EventRecord {
        seq: get(row, "seq")?,
        id: get_parsed(row, "id")?,
        app: get_parsed(row, "app_id")?,
        trigger_type: TriggerType::stored(get(row, "trigger_type")?),
        version: get_version(row, "version")?,
        payload: RawJson::trusted(get(row, "payload_json")?),
        ordering_key: get(row, "ordering_key")?,
        state: match get::<i64>(row, "state")? {
            0 | 5 | 6 => EventState::Queued,
            1 | 7 => EventState::Running,
            2 => EventState::Done,
            3 => EventState::Skipped,
            4 => EventState::Dead,
            other => return Err(corrupt("state", other)),
        },
        due_at: get_time(row, "due_at")?,
        enqueued_at: get_time(row, "enqueued_at")?,
        finished_at: finished_at.map(|ms| time(ms).ok_or_else(|| corrupt("finished_at", ms))).transpose()?,
        hops: get_u32(row, "hops")?,
        reason: get(row, "reason")?,
        attempts: Vec::new(),
    })
}

fn decode_attempt(row: &Row) -> Result<AttemptRecord, Error> {
    let has = |column: &str| Ok::<_, Error>(get::<Option<&str>>(row, column)?.is_some());
    Ok(AttemptRecord {
        number: get_u32(row, "number")?,
        invocation: has("invocation_id")?.then(|| get_parsed(row, "invocation_id")).transpose()?,
        failure: has("error_json")?.then(|| get_json(row, "error_json")).transpose()?,
        started_at: get_time(row, "started_at")?,
        finished_at: get_time(row, "finished_at")?,
    })
}

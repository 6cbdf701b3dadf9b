//! Looking at events one by one, and what becomes of dead letters: they stay until somebody sends them off again or throws them away,
//! or until they are too old.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::super::audit::Record;
use super::super::codec::{corrupt, get, get_json, get_parsed, get_time, get_u32, get_version, millis, signed, time};
use super::super::db::{self, Builder, Row, Tx};
use super::super::{Error, Store, during};
use super::{event_columns, line};
use crate::model::{
    Actor, AppId, AuditAction, EventId, EventState, FunctionFailure, InvocationId, RawJson, TriggerType, VersionNumber,
};

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
    /// When it could first run, or was sent off again.
    pub since: SystemTime,
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

/// What a dead letter's JSON takes, without reading it, and about what its attempts take besides.
const SIZES: &str = "SELECT seq, CAST(OCTET_LENGTH(payload_json) + COALESCE((
         SELECT SUM(200 + COALESCE(OCTET_LENGTH(error_json), 0)) FROM attempts WHERE event_seq = e.seq), 0) AS BIGINT) AS bytes
     FROM events e WHERE app_id = $1 AND state = 4 AND seq > $2 ORDER BY seq LIMIT $3";

/// Which dead letters of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letters {
    /// All after the one with this `seq`.
    After(i64),
    /// Those with these ids; one that names no dead letter of the app names nothing.
    Named(Vec<EventId>),
}

impl Letters {
    pub const ALL: Self = Self::After(i64::MIN);
}

/// Dead letters that were sent off or thrown away in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// In the order of their `seq`.
    pub ids: Vec<EventId>,
    /// Of all, rows whose id does not decode included; the next batch begins after it. `None`: there were none.
    pub last: Option<i64>,
}

impl Store {
    /// One event of an app, with its attempts.
    pub async fn event(&self, app: &AppId, id: EventId) -> Result<Option<EventRecord>, Error> {
        let query = db::query(concat!("SELECT ", event_columns!(), " FROM events WHERE id = $1 AND app_id = $2"));
        let query = query.bind(id.to_string()).bind(app.as_str());
        let row = query.fetch_optional(self.read()).await.map_err(during("read an event"))?;
        match row {
            Some(row) => Ok(Some(self.with_attempts(&row).await?)),
            None => Ok(None),
        }
    }

    /// Dead letters of an app, the oldest first, after the one with this `seq`: up to `limit`, and up to about `bytes_max` of JSON
    /// unless the first alone is larger. With them, if there are more, what those come after.
    pub async fn dead_letters(
        &self,
        app: &AppId,
        after: Option<i64>,
        limit: u32,
        bytes_max: u64,
    ) -> Result<(Vec<EventRecord>, Option<i64>), Error> {
        const VERB: &str = "list dead letters";
        let query = db::query(SIZES).bind(app.as_str()).bind(after.unwrap_or(i64::MIN));
        let query = query.bind(i64::from(limit.saturating_add(1)));
        let sizes = query.fetch_all(self.read()).await.map_err(during(VERB))?;
        let sizes = sizes.iter().map(|row| Ok((get(row, "seq")?, get(row, "bytes")?)));
        let sizes = sizes.collect::<Result<Vec<(i64, i64)>, Error>>()?;
        let mut bytes_left = bytes_max;
        let fits = |(n, (_, bytes)): &(usize, &(i64, i64))| {
            let left = bytes_left.checked_sub(bytes.cast_unsigned());
            bytes_left = left.unwrap_or(0);
            *n == 0 || left.is_some()
        };
        let page = sizes.iter().take(limit as usize).enumerate().take_while(fits).count();
        let mut letters = Vec::with_capacity(page);
        for (seq, _) in &sizes[..page] {
            let query =
                db::query(concat!("SELECT ", event_columns!(), " FROM events WHERE seq = $1 AND state = 4")).bind(*seq);
            let Some(row) = query.fetch_optional(self.read()).await.map_err(during(VERB))? else { continue };
            match self.with_attempts(&row).await {
                Ok(letter) => letters.push(letter),
                // The others can be shown all the same.
                Err(err @ Error::Corrupt(_)) => tracing::error!(%err, seq, "a dead letter cannot be shown"),
                Err(err) => return Err(err),
            }
        }
        let next = sizes[..page].last().map(|(seq, _)| *seq).filter(|_| page < sizes.len());
        Ok((letters, next))
    }

    async fn with_attempts(&self, row: &Row) -> Result<EventRecord, Error> {
        match self.whole(row).await {
            Err(Error::Corrupt(_)) if get::<i64>(row, "state")? == 4 => remains(row),
            read => read,
        }
    }

    async fn whole(&self, row: &Row) -> Result<EventRecord, Error> {
        let mut record = decode(row)?;
        let query = db::query("SELECT number, invocation_id, error_json, started_at, finished_at FROM attempts WHERE event_seq = $1 ORDER BY number").bind(record.seq);
        let rows = query.fetch_all(self.read()).await.map_err(during("read an event's attempts"))?;
        record.attempts = rows.iter().map(decode_attempt).collect::<Result<_, Error>>()?;
        Ok(record)
    }

    /// Queues up to `limit` dead letters again: onto the active version, with all their attempts before them, and at their old places
    /// in their lines. They may be more than may wait: they were accepted.
    ///
    /// # Cancel safety
    /// Not safe to drop: the count of what waits would be wrong.
    pub async fn redrive(
        &self,
        app: &AppId,
        letters: &Letters,
        limit: u32,
        now: SystemTime,
        actor: &Actor,
    ) -> Result<Moved, Error> {
        const VERB: &str = "redrive dead letters";
        let mut tx = self.begin(VERB).await?;
        let mut moved = Moved::default();
        let dead = select_dead(&mut tx, app, letters, limit, VERB).await?;
        let lines = dead.iter().filter_map(|row| line::lock_of_row(row).transpose()).collect::<Result<_, _>>()?;
        tx.lock(lines).await.map_err(during(VERB))?;
        for row in dead {
            let seq: i64 = get(&row, "seq")?;
            moved.last = Some(seq);
            let Ok(id) = get_parsed(&row, "id") else { continue }; // It could never run.
            let query = db::query(
                "UPDATE events SET state = CASE WHEN ordering_key IS NULL THEN 0 ELSE 5 END, due_at = $1, since = $1,
                     version = COALESCE((SELECT active_version FROM apps WHERE id = app_id), version),
                     attempts_before = attempt, hops = 0, finished_at = NULL, reason = NULL, error = NULL
                 WHERE seq = $2",
            );
            query.bind(millis(now)).bind(seq).execute(&mut tx).await.map_err(during(VERB))?;
            line::advance(&mut tx, seq, now).await?;
            moved.ids.push(id);
        }
        record(&mut tx, app, AuditAction::DeadLettersRedrive, &moved, actor).await?;
        // Before the commit: from then on they may end, and be counted as gone.
        self.inner.queue.backlog.came(app, moved.ids.len() as u64);
        if let Err(err) = tx.commit().await {
            self.inner.queue.backlog.left(app, moved.ids.len() as u64);
            return Err(during(VERB)(err));
        }
        Ok(moved)
    }

    /// Deletes up to `limit` dead letters.
    pub async fn purge_dead_letters(
        &self,
        app: &AppId,
        letters: &Letters,
        limit: u32,
        actor: &Actor,
    ) -> Result<Moved, Error> {
        const VERB: &str = "purge dead letters";
        let mut tx = self.begin(VERB).await?;
        let mut moved = Moved::default();
        for row in select_dead(&mut tx, app, letters, limit, VERB).await? {
            let seq: i64 = get(&row, "seq")?;
            let query = db::query("DELETE FROM events WHERE seq = $1").bind(seq);
            query.execute(&mut tx).await.map_err(during(VERB))?;
            moved.last = Some(seq);
            moved.ids.extend(get_parsed::<EventId>(&row, "id").ok());
        }
        record(&mut tx, app, AuditAction::DeadLettersPurge, &moved, actor).await?;
        tx.commit().await.map_err(during(VERB))?;
        Ok(moved)
    }

    /// Deletes up to `limit` dead letters of any app that became so before this time. Returns how many.
    pub async fn purge_old_dead_letters(&self, before: SystemTime, limit: u32) -> Result<u64, Error> {
        let sql =
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE state = 4 AND finished_at < $1 LIMIT $2
             /*pg FOR UPDATE SKIP LOCKED */)";
        let query = db::query(sql).bind(millis(before)).bind(i64::from(limit));
        query.execute(self.write()).await.map_err(during("purge dead letters"))
    }
}

async fn record(tx: &mut Tx, app: &AppId, action: AuditAction, moved: &Moved, actor: &Actor) -> Result<(), Error> {
    if moved.last.is_none() {
        return Ok(());
    }
    Record::new(actor, app, action).details(json!({ "count": moved.ids.len() })).write(tx).await
}

async fn select_dead(
    tx: &mut Tx,
    app: &AppId,
    letters: &Letters,
    limit: u32,
    verb: &'static str,
) -> Result<Vec<Row>, Error> {
    let mut query =
        Builder::new("SELECT seq, id, app_id, trigger_type, ordering_key FROM events WHERE state = 4 AND app_id = ");
    query.push_bind(app.as_str());
    match letters {
        Letters::After(seq) => {
            query.push(" AND seq > ").push_bind(*seq);
        }
        Letters::Named(ids) => {
            query.push(" AND id IN (").push_list(ids.iter().map(ToString::to_string)).push(")");
        }
    }
    query.push(" ORDER BY seq LIMIT ").push_bind(signed(limit.into())).push(" /*pg FOR UPDATE */");
    query.build().fetch_all(&mut *tx).await.map_err(during(verb))
}

/// As much of a dead letter as its row still tells: somebody has to see it to throw it away.
fn remains(row: &Row) -> Result<EventRecord, Error> {
    let time_of = |column| get_time(row, column).unwrap_or(UNIX_EPOCH);
    Ok(EventRecord {
        seq: get(row, "seq")?,
        id: get_parsed(row, "id")?,
        app: get_parsed(row, "app_id")?,
        trigger_type: TriggerType::stored(get(row, "trigger_type").unwrap_or_default()),
        version: get_version(row, "version").unwrap_or(VersionNumber(0)),
        payload: RawJson::trusted(get(row, "payload_json").unwrap_or("null")),
        ordering_key: get(row, "ordering_key").unwrap_or_default(),
        state: EventState::Dead,
        due_at: time_of("due_at"),
        enqueued_at: time_of("enqueued_at"),
        since: time_of("since"),
        finished_at: get_time(row, "finished_at").ok(),
        hops: get_u32(row, "hops").unwrap_or_default(),
        reason: get(row, "reason").unwrap_or_default(),
        attempts: Vec::new(),
    })
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
        since: get_time(row, "since")?,
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

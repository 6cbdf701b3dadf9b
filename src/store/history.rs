//! The history: what ran, how it ended and what it wrote, as long as its app keeps it.

use std::time::{Duration, SystemTime};

use super::codec::{millis, signed, span_millis};
use super::db::{self, Builder, Query, Value};
use super::invocation_row::{
    decode_invocation, decode_log, insert_log, insert_started, invocation_columns, level_code, log_columns,
    status_code, upsert_finished,
};
use super::{Error, Store, during};
use crate::model::{
    AppId, EventId, Invocation, InvocationId, InvocationStatus, LogLevel, LogLine, TriggerType, VersionNumber,
};

/// No function runs for so long: what says RUNNING for longer has lost its end.
const RUNNING_MARGIN: Duration = Duration::from_secs(24 * 3600);

/// One thing to remember.
#[derive(Debug, Clone, PartialEq)]
pub enum HistoryItem {
    Started(Invocation),
    /// Complete in itself: may come without, or before, its `Started`.
    Finished(Invocation),
    Log(LogLine),
}

/// Which invocations to list; `None`: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvocationFilter {
    pub trigger_type: Option<TriggerType>,
    pub status: Option<InvocationStatus>,
    pub version: Option<VersionNumber>,
    pub event_id: Option<EventId>,
}

/// Which log lines to list; `None`: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    pub trigger_type: Option<TriggerType>,
    pub invocation: Option<InvocationId>,
    pub min_level: Option<LogLevel>,
    pub version: Option<VersionNumber>,
    /// Nothing that was written later.
    pub until: Option<LogPosition>,
}

/// A place in the log of all apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition(i64);

/// What an invocation's JSON takes, without reading it.
pub(super) const JSON_BYTES: &str = "CAST(OCTET_LENGTH(event_json) + COALESCE(OCTET_LENGTH(result_json), 0)
    + COALESCE(OCTET_LENGTH(error_json), 0) + COALESCE(OCTET_LENGTH(denied_json), 0)
    + COALESCE(OCTET_LENGTH(denied_reason), 0) AS BIGINT)";

impl InvocationFilter {
    fn select(&self, columns: &str, app: &AppId, before: Option<InvocationId>) -> Select {
        let mut sql = Select::of(columns, "invocations", app);
        sql.and("trigger_type = ", self.trigger_type.as_ref().map(ToString::to_string));
        sql.and("status = ", self.status.map(status_code));
        sql.and("version = ", self.version.map(|v| signed(v.0)));
        sql.and("event_id = ", self.event_id.map(|id| id.to_string()));
        sql.and("id < ", before.map(|id| id.to_string()));
        sql
    }
}

impl Store {
    /// Records all items in one transaction. Those of an app that is gone are left out.
    pub async fn record(&self, items: &[HistoryItem]) -> Result<(), Error> {
        if items.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin("record history").await?;
        for item in items {
            match item {
                HistoryItem::Started(invocation) => insert_started(&mut tx, invocation, self.replica()).await?,
                HistoryItem::Finished(invocation) => upsert_finished(&mut tx, invocation, self.replica()).await?,
                HistoryItem::Log(line) => insert_log(&mut tx, line).await?,
            }
        }
        tx.commit().await.map_err(during("record history"))
    }

    pub async fn invocation(&self, app: &AppId, id: InvocationId) -> Result<Option<Invocation>, Error> {
        let query =
            db::query(concat!("SELECT ", invocation_columns!(), " FROM invocations WHERE id = $1 AND app_id = $2"));
        let query = query.bind(id.to_string()).bind(app.as_str());
        let row = query.fetch_optional(self.read()).await.map_err(during("read an invocation"))?;
        row.as_ref().map(decode_invocation).transpose()
    }

    /// In the order they were written. Look the invocation up first: this does not ask whose it is.
    pub async fn invocation_logs(&self, id: InvocationId) -> Result<Vec<LogLine>, Error> {
        let query = db::query(concat!("SELECT ", log_columns!(), " FROM logs WHERE invocation_id = $1 ORDER BY seq"))
            .bind(id.to_string());
        let rows = query.fetch_all(self.read()).await.map_err(during("read an invocation's logs"))?;
        rows.iter().map(decode_log).collect()
    }

    /// Newest first: up to `limit`, and up to about `bytes_max` of JSON unless the first alone is larger. Says whether there are more.
    pub async fn list_invocations(
        &self,
        app: &AppId,
        filter: InvocationFilter,
        before: Option<InvocationId>,
        limit: u32,
        bytes_max: u64,
    ) -> Result<(Vec<Invocation>, bool), Error> {
        let verb = "list invocations";
        let mut tx = self.read().begin_read().await.map_err(during(verb))?; // Both statements see the same rows.
        let sizes = filter.select(JSON_BYTES, app, before).newest("id", limit.saturating_add(1));
        let sizes: Vec<i64> = sizes.scalar().fetch_all(&mut tx).await.map_err(during(verb))?;
        let mut bytes_left = bytes_max;
        let fits = |(n, bytes): &(usize, &i64)| {
            let left = bytes_left.checked_sub(bytes.cast_unsigned());
            bytes_left = left.unwrap_or(0);
            *n == 0 || left.is_some()
        };
        let count = sizes.iter().take(limit as usize).enumerate().take_while(fits).count();
        let rows = filter.select(invocation_columns!(), app, before).newest("id", count as u32);
        let rows = rows.fetch_all(&mut tx).await.map_err(during(verb))?;
        let invocations = rows.iter().map(decode_invocation).collect::<Result<_, _>>()?;
        Ok((invocations, count < sizes.len()))
    }

    /// The newest `last` lines, oldest first.
    pub async fn logs(&self, app: &AppId, filter: LogFilter, last: u32) -> Result<Vec<LogLine>, Error> {
        let mut sql = Select::of(log_columns!(), "logs", app);
        sql.and("trigger_type = ", filter.trigger_type.map(|t| t.to_string()));
        sql.and("invocation_id = ", filter.invocation.map(|id| id.to_string()));
        sql.and("level >= ", filter.min_level.map(level_code));
        sql.and("version = ", filter.version.map(|v| signed(v.0)));
        sql.and("seq <= ", filter.until.map(|position| position.0));
        let rows = sql.newest("seq", last).fetch_all(self.read()).await;
        rows.map_err(during("list logs"))?.iter().rev().map(decode_log).collect()
    }

    /// The newest line's.
    pub async fn log_position(&self) -> Result<LogPosition, Error> {
        let query = db::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM logs").fetch_one(self.read());
        query.await.map(LogPosition).map_err(during("read the log's end"))
    }

    /// Deletes up to `limit` invocations and up to `limit` log lines that are older than their app keeps them; returns how
    /// many rows went. Call it until that is 0. Of one that says RUNNING for so long the end was lost.
    pub async fn purge_history(&self, now: SystemTime, default_retention: Duration, limit: u32) -> Result<u64, Error> {
        // CROSS JOIN: app by app, each with its own bound on an index.
        let invocations = db::query(
            "DELETE FROM invocations WHERE id IN (
                 SELECT i.id FROM apps a CROSS JOIN invocations i WHERE i.app_id = a.id
                 AND i.created_at < $1 - COALESCE(a.history_retention_ms, $2)
                 AND (i.status <> 0 OR i.created_at < $1 - COALESCE(a.history_retention_ms, $2) - $4) LIMIT $3
                 /*pg FOR UPDATE OF i SKIP LOCKED */)",
        );
        let logs = db::query(
            "DELETE FROM logs WHERE seq IN (
                 SELECT l.seq FROM apps a CROSS JOIN logs l WHERE l.app_id = a.id
                 AND l.at < $1 - COALESCE(a.history_retention_ms, $2) LIMIT $3 /*pg FOR UPDATE OF l SKIP LOCKED */)",
        );
        let mut purged = 0;
        for (batch, margin) in [(invocations, Some(RUNNING_MARGIN)), (logs, None)] {
            let mut query = batch.bind(millis(now)).bind(span_millis(default_retention)).bind(i64::from(limit));
            if let Some(margin) = margin {
                query = query.bind(span_millis(margin));
            }
            purged += query.execute(self.write()).await.map_err(during("purge history"))?;
        }
        Ok(purged)
    }
}

/// A list with the conditions that were asked for. Optional ones in a fixed text (`$1 IS NULL OR …`) would use no index.
struct Select(Builder<'static>);

impl Select {
    fn of(columns: &str, table: &str, app: &AppId) -> Self {
        let mut sql = Builder::new(format!("SELECT {columns} FROM {table} WHERE app_id = "));
        sql.push_bind(app.to_string());
        Self(sql)
    }

    fn and(&mut self, condition: &str, value: Option<impl Into<Value<'static>>>) {
        if let Some(value) = value {
            self.0.push(" AND ").push(condition).push_bind(value);
        }
    }

    fn newest(mut self, order: &str, limit: u32) -> Query<'static> {
        self.0.push(&format!(" ORDER BY {order} DESC LIMIT ")).push_bind(i64::from(limit));
        self.0.build()
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
pub mod tests;

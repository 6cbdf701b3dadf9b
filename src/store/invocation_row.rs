//! An invocation and a log line as rows.

use super::codec::{
    corrupt, get, get_micros, get_parsed, get_time, get_u32, get_unsigned, get_version, json, micros, millis, signed,
    time,
};
use super::db::{self, Query, Row, Tx};
use super::{Error, during};
use crate::model::{
    Denial, FunctionFailure, Invocation, InvocationStatus, LogLevel, LogLine, LogSource, Outcome, RawJson, Timings,
    TraceId, TriggerType,
};

/// What is read of a row, by name: with `*` a statement that PostgreSQL has prepared fails once a migration adds a column.
macro_rules! invocation_columns {
    () => {
        "id, app_id, trigger_type, version, attempt, event_id, event_json, status, result_json, denied_reason, denied_code,
         denied_json, error_json, created_at, finished_at, cold_start, queue_us, init_us, run_us, cpu_us, peak_memory_bytes,
         trace_id"
    };
}
pub(super) use invocation_columns;

macro_rules! log_columns {
    () => {
        "seq, app_id, version, trigger_type, invocation_id, at, level, source, text"
    };
}
pub(super) use log_columns;

/// The app may have been deleted while its function ran: then there is nothing to record.
macro_rules! insert_invocation {
    () => {
        "INSERT INTO invocations (id, app_id, trigger_type, version, attempt, event_id, event_json, created_at,
             status, result_json, denied_reason, denied_code, denied_json, error_json, finished_at, cold_start,
             queue_us, init_us, run_us, cpu_us, peak_memory_bytes, replica, trace_id)
         SELECT $1, id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
             $23
         FROM apps WHERE id = $2 /*pg FOR KEY SHARE */ ON CONFLICT (id) DO "
    };
}

/// What it says may already have arrived with the end.
const INSERT_STARTED: &str = concat!(insert_invocation!(), "NOTHING");

/// The end says everything, so its start need not have been recorded.
const UPSERT_FINISHED: &str = concat!(
    insert_invocation!(),
    "UPDATE SET status = excluded.status, result_json = excluded.result_json, denied_reason = excluded.denied_reason,
         denied_code = excluded.denied_code, denied_json = excluded.denied_json, error_json = excluded.error_json,
         finished_at = excluded.finished_at, cold_start = excluded.cold_start, queue_us = excluded.queue_us,
         init_us = excluded.init_us, run_us = excluded.run_us, cpu_us = excluded.cpu_us,
         peak_memory_bytes = excluded.peak_memory_bytes"
);

pub async fn insert_started(tx: &mut Tx, invocation: &Invocation, replica: i64) -> Result<(), Error> {
    insert(tx, INSERT_STARTED, invocation, replica).await
}

pub async fn upsert_finished(tx: &mut Tx, invocation: &Invocation, replica: i64) -> Result<(), Error> {
    insert(tx, UPSERT_FINISHED, invocation, replica).await
}

async fn insert(tx: &mut Tx, sql: &'static str, i: &Invocation, replica: i64) -> Result<(), Error> {
    let query = db::query(sql).bind(i.id.to_string()).bind(i.app.as_str()).bind(i.trigger_type.as_str());
    let query = query.bind(signed(i.version.0)).bind(i64::from(i.attempt)).bind(i.event_id.map(|id| id.to_string()));
    let query = query.bind(i.event.as_str()).bind(millis(i.created_at)).bind(status_code(i.status()));
    let query = bind_outcome(query, i.outcome.as_ref())?;
    let query = query.bind(i.finished_at.map(millis)).bind(i.cold_start).bind(micros(i.timings.queue));
    let query = query.bind(micros(i.timings.init)).bind(micros(i.timings.run)).bind(micros(i.cpu_time));
    let query = query.bind(signed(i.peak_memory_bytes)).bind(replica);
    let query = query.bind(i.trace_id.map(|id| id.to_string()));
    query.execute(tx).await.map(|_| ()).map_err(during("record an invocation"))
}

/// Result, the three columns of a denial, error.
fn bind_outcome<'q>(query: Query<'q>, outcome: Option<&'q Outcome>) -> Result<Query<'q>, Error> {
    let (result, denial, error) = match outcome {
        None => (None, None, None),
        Some(Outcome::Result(result)) => (Some(result.as_str()), None, None),
        Some(Outcome::Denied(denial)) => (None, Some(denial), None),
        Some(Outcome::Failed(failure)) => (None, None, Some(json(failure)?)),
    };
    let query = query.bind(result).bind(denial.map(|d| d.reason.as_str())).bind(denial.map(|d| d.code.as_str()));
    Ok(query.bind(denial.and_then(|d| d.data.as_ref()).map(RawJson::as_str)).bind(error))
}

pub async fn insert_log(tx: &mut Tx, line: &LogLine) -> Result<(), Error> {
    let query = db::query(
        "INSERT INTO logs (app_id, version, trigger_type, invocation_id, at, level, source, text)
         SELECT id, $2, $3, $4, $5, $6, $7, $8 FROM apps WHERE id = $1 /*pg FOR KEY SHARE */",
    );
    let query = query.bind(line.app.as_str()).bind(signed(line.version.0));
    let query = query.bind(line.trigger_type.as_ref().map(TriggerType::as_str));
    let query = query.bind(line.invocation.map(|id| id.to_string())).bind(millis(line.at));
    let query = query.bind(level_code(line.level)).bind(source_code(line.source)).bind(&line.text);
    query.execute(tx).await.map(|_| ()).map_err(during("record a log line"))
}

pub fn decode_invocation(row: &Row) -> Result<Invocation, Error> {
    let event_id: Option<&str> = get(row, "event_id")?;
    let finished_at: Option<i64> = get(row, "finished_at")?;
    Ok(Invocation {
        id: get_parsed(row, "id")?,
        app: get_parsed(row, "app_id")?,
        trigger_type: TriggerType::stored(get(row, "trigger_type")?),
        version: get_version(row, "version")?,
        attempt: get_u32(row, "attempt")?,
        event_id: event_id.map(|_| get_parsed(row, "event_id")).transpose()?,
        event: RawJson::trusted(get(row, "event_json")?),
        created_at: get_time(row, "created_at")?,
        finished_at: finished_at.map(|ms| time(ms).ok_or_else(|| corrupt("finished_at", ms))).transpose()?,
        outcome: decode_outcome(row)?,
        cold_start: get(row, "cold_start")?,
        timings: Timings {
            queue: get_micros(row, "queue_us")?,
            init: get_micros(row, "init_us")?,
            run: get_micros(row, "run_us")?,
        },
        cpu_time: get_micros(row, "cpu_us")?,
        peak_memory_bytes: get_unsigned(row, "peak_memory_bytes")?,
        trace_id: get::<Option<&str>>(row, "trace_id")?.and_then(TraceId::stored),
    })
}

fn decode_outcome(row: &Row) -> Result<Option<Outcome>, Error> {
    if let Some(error) = get::<Option<&str>>(row, "error_json")? {
        let failure: FunctionFailure = serde_json::from_str(error).map_err(|err| corrupt("error_json", err))?;
        return Ok(Some(Outcome::Failed(failure)));
    }
    if let Some(reason) = get::<Option<String>>(row, "denied_reason")? {
        let code = get::<Option<String>>(row, "denied_code")?.unwrap_or_default();
        let data = get::<Option<&str>>(row, "denied_json")?.map(RawJson::trusted);
        return Ok(Some(Outcome::Denied(Denial { reason, code, data })));
    }
    let result: Option<&str> = get(row, "result_json")?;
    Ok(result.map(|json| Outcome::Result(RawJson::trusted(json))))
}

pub fn decode_log(row: &Row) -> Result<LogLine, Error> {
    let trigger_type: Option<String> = get(row, "trigger_type")?;
    let invocation: Option<&str> = get(row, "invocation_id")?;
    Ok(LogLine {
        app: get_parsed(row, "app_id")?,
        version: get_version(row, "version")?,
        trigger_type: trigger_type.map(TriggerType::stored),
        invocation: invocation.map(|_| get_parsed(row, "invocation_id")).transpose()?,
        at: get_time(row, "at")?,
        level: match get::<i64>(row, "level")? {
            0 => LogLevel::Debug,
            1 => LogLevel::Info,
            2 => LogLevel::Warn,
            3 => LogLevel::Error,
            other => return Err(corrupt("level", other)),
        },
        source: match get::<i64>(row, "source")? {
            0 => LogSource::Console,
            1 => LogSource::Stdout,
            2 => LogSource::Stderr,
            3 => LogSource::System,
            other => return Err(corrupt("source", other)),
        },
        text: get(row, "text")?,
    })
}

pub fn status_code(status: InvocationStatus) -> i64 {
    match status {
        InvocationStatus::Running => 0,
        InvocationStatus::Succeeded => 1,
        InvocationStatus::Failed => 2,
    }
}

/// In the order of severity.
pub fn level_code(level: LogLevel) -> i64 {
    match level {
        LogLevel::Debug => 0,
        LogLevel::Info => 1,
        LogLevel::Warn => 2,
        LogLevel::Error => 3,
    }
}

fn source_code(source: LogSource) -> i64 {
    match source {
        LogSource::Console => 0,
        LogSource::Stdout => 1,
        LogSource::Stderr => 2,
        LogSource::System => 3,
    }
}

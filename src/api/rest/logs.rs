//! `/v1/runtimes/nodejs/logs`: log lines as server-sent events, the newest first few and then those that come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use url::form_urlencoded;

use super::error::ApiError;
use super::hal::time;
use super::request::Reader;
use crate::api::Services;
use crate::model::{LogLevel, LogLine, LogSource};
use crate::store::LogFilter;

const TAIL: u32 = 100;
const TAIL_MAX: u32 = 1000;

struct Wanted {
    filter: LogFilter,
    tail: u32,
    follow: bool,
}

/// Ends when the service drains, or the caller's credential is revoked.
pub async fn stream(
    State(services): State<Arc<Services>>,
    reader: Reader,
    RawQuery(query): RawQuery,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>, ApiError> {
    let wanted = wanted(&services, query.as_deref().unwrap_or_default())?;
    services.known_app(&reader.app).await?;
    let place = place(&services)?;
    // Before the first line, so that no revocation is missed.
    let revoked = services.auth.revoked(&reader.caller);
    let lines = services.lines(&reader.app, wanted.filter, wanted.tail, wanted.follow).await?;
    let events = lines.map(move |line| {
        let _held = &place;
        Ok(Event::default().event("log").data(shown(&line).to_string()))
    });
    // The comments in between find out who has gone.
    Ok(Sse::new(events.take_until(Box::pin(revoked))).keep_alive(KeepAlive::default()))
}

/// HTTP/1.1 has a connection for each stream: they are counted.
fn place(services: &Services) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(&services.log_streams).try_acquire_owned().map_err(|_| {
        let message = "too many clients read logs: try again later";
        ApiError::new(axum::http::StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_STREAMS", message)
    })
}

fn wanted(services: &Services, query: &str) -> Result<Wanted, ApiError> {
    let mut wanted = Wanted { filter: LogFilter::default(), tail: TAIL, follow: true };
    let bad = |message: String| ApiError::bad_request("INVALID_FILTER", message);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "type" => {
                let found = services.catalogue.find(&value).map(|trigger| trigger.trigger_type.clone());
                wanted.filter.trigger_type = Some(found.ok_or_else(|| bad("type is no trigger type".to_owned()))?);
            }
            "level" => wanted.filter.min_level = Some(level(&value).ok_or_else(|| bad(LEVELS.to_owned()))?),
            "invocationId" => wanted.filter.invocation = Some(value.parse()?),
            "tail" => {
                let tail = value.parse().ok().filter(|tail| (1..=TAIL_MAX).contains(tail));
                wanted.tail = tail.ok_or_else(|| bad(format!("tail must be 1 to {TAIL_MAX}")))?;
            }
            "follow" => {
                wanted.follow = value.parse().map_err(|_| bad("follow must be true or false".to_owned()))?;
            }
            _ => {}
        }
    }
    Ok(wanted)
}

const LEVELS: &str = "level must be DEBUG, INFO, WARN or ERROR";

fn level(name: &str) -> Option<LogLevel> {
    match name {
        "DEBUG" => Some(LogLevel::Debug),
        "INFO" => Some(LogLevel::Info),
        "WARN" => Some(LogLevel::Warn),
        "ERROR" => Some(LogLevel::Error),
        _ => None,
    }
}

pub fn shown(line: &LogLine) -> Value {
    let level = match line.level {
        LogLevel::Debug => "DEBUG",
        LogLevel::Info => "INFO",
        LogLevel::Warn => "WARN",
        LogLevel::Error => "ERROR",
    };
    let source = match line.source {
        LogSource::Console => "console",
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
        LogSource::System => "system",
    };
    json!({
        "time": time(line.at),
        "level": level,
        "source": source,
        "text": line.text,
        "type": line.trigger_type.as_ref().map(|trigger| trigger.as_str()),
        "invocationId": line.invocation.map(|id| id.to_string()),
        "runtimeVersionNumber": line.version.0,
    })
}

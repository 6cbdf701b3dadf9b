//! `/v1/dead-letters`: events that failed for good.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::error::ApiError;
use super::hal::{self, Paging, link, time};
use super::invocations::error;
use super::request::{Body, Manager};
use crate::api::Services;
use crate::store::{AttemptRecord, EventRecord};

const PATH: &str = "/v1/dead-letters";
/// Of JSON on one page.
const PAGE_BYTES_MAX: u64 = 16 << 20;

/// What to send off: those that are named, or all.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    #[serde(default)]
    event_ids: Vec<String>,
    #[serde(default)]
    all: bool,
}

/// The oldest first. They come and go, so there are no numbered pages: `next` says what is behind these.
pub async fn list(
    State(services): State<Arc<Services>>,
    Manager { app, .. }: Manager,
    paging: Paging,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let after = after(query.as_deref().unwrap_or_default())?;
    let app = services.known_app(&app).await?;
    let (letters, next) = services.store.dead_letters(&app.id, after, paging.size, PAGE_BYTES_MAX).await?;
    let at = |after: Option<i64>| {
        let after = after.map(|seq| format!("&after={seq}")).unwrap_or_default();
        link(&format!("{PATH}?size={}{after}", paging.size))
    };
    let mut links = Map::from_iter([("self".to_owned(), at(after))]);
    if next.is_some() {
        links.insert("next".to_owned(), at(next));
    }
    let letters: Vec<_> = letters.into_iter().map(resource).collect();
    Ok(Json(json!({ "_embedded": { "deadLetters": letters }, "_links": links })))
}

pub async fn redrive(
    State(services): State<Arc<Services>>,
    Manager { app, actor, .. }: Manager,
    Body(selection): Body<Selection>,
) -> Result<Json<Value>, ApiError> {
    let total = services.redrive(&app, &selection.event_ids, selection.all, actor).await?;
    Ok(Json(json!({ "eventIds": total.event_ids, "count": total.count })))
}

fn after(query: &str) -> Result<Option<i64>, ApiError> {
    let after = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "after");
    let wrong = |_| ApiError::bad_request("INVALID_PAGE", "after is not one that a page gave out");
    after.map(|(_, seq)| seq.parse().map_err(wrong)).transpose()
}

fn resource(letter: EventRecord) -> Value {
    json!({
        "id": letter.id.to_string(),
        "type": letter.trigger_type.as_str(),
        "event": hal::value(&letter.payload),
        "orderingKey": letter.ordering_key,
        "runtimeVersionNumber": letter.version.0,
        "enqueuedTime": time(letter.enqueued_at),
        "finishedTime": letter.finished_at.map(time),
        "reason": letter.reason,
        "attempts": letter.attempts.into_iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn attempt(attempt: AttemptRecord) -> Value {
    json!({
        "number": attempt.number,
        "invocationId": attempt.invocation.map(|id| id.to_string()),
        "error": attempt.failure.as_ref().map(error),
        "startedTime": time(attempt.started_at),
        "finishedTime": time(attempt.finished_at),
    })
}

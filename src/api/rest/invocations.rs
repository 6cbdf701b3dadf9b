//! `/v1/functions/{id}/invocations`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::ApiError;
use super::hal::{self, Paging, links, time};
use super::request::{Id, Reader};
use crate::api::Services;
use crate::model::{FunctionFailure, Outcome, VersionNumber};
use crate::store::PagedInvocation;

/// Of JSON on one page.
const PAGE_BYTES_MAX: u64 = 16 << 20;

pub async fn list(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    Id(id): Id,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let newest_first = paging.descending(&["id", "createdTime"], true)?;
    let function = services.function(&app, id).await?;
    services.history.flush().await;
    let at = (paging.offset(), paging.size);
    let rows = services.store.invocation_page(&app, &function.trigger_type, newest_first, at, PAGE_BYTES_MAX);
    let (rows, total) = rows.await?;
    let mut numbers: HashMap<VersionNumber, u64> = HashMap::new();
    for row in &rows {
        let app_version = row.invocation.version;
        if let Entry::Vacant(number) = numbers.entry(app_version) {
            let version = services.store.function_version_in(id, app_version).await?;
            number.insert(version.map_or(0, |version| version.number));
        }
    }
    let resource = |row: &PagedInvocation| resource(row, id, numbers.get(&row.invocation.version).copied());
    let page = rows.iter().map(resource).collect();
    Ok(Json(paging.wrap(&format!("/v1/functions/{id}/invocations"), "invocations", page, total)))
}

/// `ChatFunctionInvocationResource`, whose `args` and `result` are objects.
fn resource(row: &PagedInvocation, function_id: u64, number: Option<u64>) -> Value {
    let invocation = &row.invocation;
    let status = match row.status {
        0 => "RUNNING",
        1 => "SUCCEEDED",
        _ => "FAILED",
    };
    json!({
        "id": row.seq,
        "invocationId": invocation.id.to_string(),
        "args": object(hal::value(&invocation.event), "events"),
        "createdTime": time(invocation.created_at),
        "finishedTime": invocation.finished_at.map(time),
        "result": invocation.outcome.as_ref().map_or_else(|| json!({}), result),
        "status": status,
        "versionNumber": number.unwrap_or_default(),
        "truncated": row.bare,
        "traceId": invocation.trace_id.map(|id| id.to_string()),
        "_links": links([("function", format!("/v1/functions/{function_id}"))]),
    })
}

fn result(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Result(json) => object(hal::value(json), "value"),
        denied_or_failed => self::outcome(denied_or_failed),
    }
}

/// What is no object goes into one.
fn object(value: Value, name: &str) -> Value {
    if value.is_object() { value } else { json!({ name: value }) }
}

/// How a function ended, by the name of its kind.
pub fn outcome(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Result(json) => json!({ "result": hal::value(json) }),
        Outcome::Denied(denial) => {
            let data = denial.data.as_ref().map(hal::value);
            json!({ "denied": { "reason": denial.reason, "code": denial.code, "data": data } })
        }
        Outcome::Failed(failure) => json!({ "error": error(failure) }),
    }
}

pub fn error(failure: &FunctionFailure) -> Value {
    let FunctionFailure { kind, name, message, stack, code } = failure;
    json!({ "kind": kind, "name": name, "message": message, "stack": stack, "code": code })
}

//! `/v1/audit-entries`: who changed what of an app.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::error::ApiError;
use super::hal::{self, Paging, link, time};
use super::request::Manager;
use crate::api::Services;
use crate::model::{AuditEntry, AuditId};
use crate::store::AuditFilter;

const PATH: &str = "/v1/audit-entries";

/// What is asked for beside the size of a page, and how a link says it again.
struct Wanted {
    filter: AuditFilter,
    before: Option<AuditId>,
    said: String,
}

/// The newest first. They keep coming, so there are no numbered pages: `next` says what is behind these.
pub async fn list(
    State(services): State<Arc<Services>>,
    Manager { app, caller, .. }: Manager,
    paging: Paging,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let mut wanted = wanted(query.as_deref().unwrap_or_default())?;
    wanted.filter.own = !caller.is_operator();
    if wanted.filter.own {
        services.known_app(&app).await?; // Of an app that is gone operators alone see what was.
    }
    wanted.filter.app = Some(app);
    let mut entries = services.store.audit_entries(&wanted.filter, wanted.before, paging.size + 1).await?;
    let more = entries.len() > paging.size as usize;
    entries.truncate(paging.size as usize);
    let at = |before: Option<AuditId>| {
        let before = before.map(|id| format!("&before={id}")).unwrap_or_default();
        link(&format!("{PATH}?size={}{}{before}", paging.size, wanted.said))
    };
    let mut links = Map::from_iter([("self".to_owned(), at(wanted.before))]);
    if let Some(last) = entries.last().filter(|_| more) {
        links.insert("next".to_owned(), at(Some(last.id)));
    }
    let entries: Vec<_> = entries.into_iter().map(resource).collect();
    Ok(Json(json!({ "_embedded": { "auditEntries": entries }, "_links": links })))
}

fn wanted(query: &str) -> Result<Wanted, ApiError> {
    let mut wanted = Wanted { filter: AuditFilter::default(), before: None, said: String::new() };
    let bad = |message: &str| ApiError::bad_request("INVALID_FILTER", message);
    let moment = |text: &str| {
        humantime::parse_rfc3339(text).map_err(|_| bad("from and until are times as 2026-11-27T09:30:00Z"))
    };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let filter = &mut wanted.filter;
        match &*name {
            "action" => filter.action = Some(value.parse()?),
            "actorKind" => filter.actor_kind = Some(value.parse()?),
            "actorId" => filter.actor_id = Some(value.clone().into_owned()),
            "from" => filter.from = Some(moment(&value)?),
            "until" => filter.until = Some(moment(&value)?),
            "before" => {
                let before = value.parse();
                wanted.before =
                    Some(before.map_err(|_| {
                        ApiError::bad_request("INVALID_PAGE", "before is not one that a page gave out")
                    })?);
                continue;
            }
            _ => continue,
        }
        let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
        wanted.said.push_str(&format!("&{name}={value}"));
    }
    Ok(wanted)
}

fn resource(entry: AuditEntry) -> Value {
    json!({
        "id": entry.id.to_string(),
        "time": time(entry.at()),
        "actor": { "kind": entry.actor_kind, "id": entry.actor_id, "issuer": entry.actor_issuer },
        "action": entry.action,
        "target": entry.target,
        "details": hal::value(&entry.details),
        "requestId": entry.request_id,
        "outcome": if entry.failure.is_some() { "FAILED" } else { "SUCCEEDED" },
        "reason": entry.failure,
    })
}

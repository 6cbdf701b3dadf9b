//! The versions of the whole runtime, and which of them serves: `/v1/runtimes/nodejs/versions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::error::ApiError;
use super::hal::{Paging, links, time};
use super::request::{Id, Publisher, Reader};
use super::runtime;
use crate::api::Services;
use crate::model::{Version, VersionNumber, VersionState};

pub async fn list(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let newest_first = paging.descending(&["number"], true)?;
    let app = services.known_app(&app).await?;
    let (versions, total) = services.store.version_page(&app.id, newest_first, (paging.offset(), paging.size)).await?;
    let page = versions.iter().map(|version| resource(version, app.active)).collect();
    Ok(Json(paging.wrap(&format!("{}/versions", runtime::PATH), "versions", page, total)))
}

pub async fn activate(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
    Id(number): Id,
) -> Result<Json<Value>, ApiError> {
    services.open()?;
    let version = services.publisher.activate(&app, VersionNumber(number), actor).await?;
    let active = services.known_app(&app).await?.active;
    Ok(Json(resource(&version, active)))
}

/// Back to the newest READY version before the active one.
pub async fn rollback(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
) -> Result<Json<Value>, ApiError> {
    services.open()?;
    let app = services.known_app(&app).await?;
    let before = match app.active {
        Some(active) => services.store.ready_version_before(&app.id, active).await?,
        None => None,
    };
    let before = before.ok_or_else(|| {
        let message = "there is no READY version before the active one: activate another by its number";
        ApiError::new(StatusCode::CONFLICT, "NO_EARLIER_VERSION", message)
    })?;
    let version = services.publisher.activate(&app.id, before, actor).await?;
    let active = services.known_app(&app.id).await?.active;
    Ok(Json(resource(&version, active)))
}

fn resource(version: &Version, active: Option<VersionNumber>) -> Value {
    let state = match version.state {
        VersionState::Building => "BUILDING",
        VersionState::Ready => "READY",
        VersionState::Failed => "FAILED",
    };
    let types: Vec<_> = version.functions.iter().map(|function| function.trigger_type.as_str()).collect();
    let path = format!("{}/versions", runtime::PATH);
    json!({
        "number": version.number.0,
        "version": format!("1.0.{}", version.number.0),
        "state": state,
        "active": active == Some(version.number),
        "functionTypes": types,
        "dependencies": version.dependencies,
        "digest": version.digest,
        "failure": version.failure,
        "createdTime": time(version.created_at),
        "_links": links([("versions", path.clone()), ("activate", format!("{path}/{}/activate", version.number))]),
    })
}

//! A function's own versions: `/v1/functions/{id}/versions` and `/v1/function-versions/{id}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::hal::{Paging, links, time};
use super::request::{Body, Id, Publisher, Reader};
use crate::api::Services;
use crate::model::AppId;
use crate::publish::{Changes, FunctionDecl};
use crate::store::{FunctionRecord, FunctionVersionRecord};

/// Of sources on one page. What comes after is left out, and says so.
const SOURCES_BYTES_MAX: usize = 16 << 20;

/// `CreateChatFunctionVersionResource`, and in which language it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Create {
    handler_script: String,
    #[serde(default)]
    language: String,
}

pub async fn create(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
    Id(id): Id,
    Body(wanted): Body<Create>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let function = services.function(&app, id).await?;
    let changes = changes(&function, &wanted)?;
    let version = services.save(&app, changes, actor).await?;
    let created = services.store.function_version_in(id, version.number).await?;
    // It was deleted again meanwhile.
    let created = created.ok_or_else(unknown)?;
    Ok((StatusCode::CREATED, Json(resource(&created, Some(wanted.handler_script)))))
}

/// As a file: what else is declared about the function stays.
fn changes(function: &FunctionRecord, wanted: &Create) -> Result<Changes, ApiError> {
    let extension = match wanted.language.as_str() {
        "" | "typescript" => "ts",
        "javascript" => "js",
        other => {
            let message = format!("language {other:?}: use typescript (default) or javascript");
            return Err(ApiError::bad_request("INVALID_FUNCTION", message));
        }
    };
    if wanted.handler_script.trim().is_empty() {
        return Err(ApiError::bad_request("INVALID_FUNCTION", "handlerScript is empty: it is what the function runs"));
    }
    let path = format!("functions/{}.{extension}", function.trigger_type);
    let source = Bytes::copy_from_slice(wanted.handler_script.as_bytes());
    let described = function.current.is_none().then(|| FunctionDecl {
        trigger_type: function.trigger_type.to_string(),
        name: function.name.clone(),
        description: function.description.clone(),
        ..FunctionDecl::default()
    });
    let functions = described.into_iter().collect();
    Ok(Changes { files: BTreeMap::from([(path, source)]), functions, ..Changes::default() })
}

pub async fn list(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    Id(id): Id,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let newest_first = paging.descending(&["id", "versionNumber"], true)?;
    services.function(&app, id).await?;
    let (versions, total) = services.store.function_versions(id, newest_first, (paging.offset(), paging.size)).await?;
    let (mut page, mut bytes) = (Vec::with_capacity(versions.len()), 0);
    for version in versions {
        let script = if bytes < SOURCES_BYTES_MAX { Some(services.script(&app, &version).await?) } else { None };
        bytes += script.as_ref().map_or(0, String::len);
        page.push(resource(&version, script));
    }
    Ok(Json(paging.wrap(&format!("/v1/functions/{id}/versions"), "versions", page, total)))
}

pub async fn current(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    Id(id): Id,
) -> Result<Json<Value>, ApiError> {
    let function = services.function(&app, id).await?;
    let current = function.current.ok_or_else(|| {
        let message =
            format!("function {id} has no current version: post one, or activate a version of the app with it");
        ApiError::not_found("VERSION_NOT_FOUND", message)
    })?;
    let script = services.script(&app, &current).await?;
    Ok(Json(resource(&current, Some(script))))
}

pub async fn retrieve(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    Id(id): Id,
) -> Result<Json<Value>, ApiError> {
    let version = services.store.function_version(&app, id).await?.ok_or_else(unknown)?;
    let script = services.script(&app, &version).await?;
    Ok(Json(resource(&version, Some(script))))
}

fn unknown() -> ApiError {
    ApiError::not_found("VERSION_NOT_FOUND", "there is no such version of a function")
}

impl Services {
    /// Empty where the sources were not kept.
    async fn script(&self, app: &AppId, of: &FunctionVersionRecord) -> Result<String, ApiError> {
        let Some(version) = self.store.version(app, of.app_version).await? else { return Ok(String::new()) };
        let Some(function) = version.function(&of.trigger_type) else { return Ok(String::new()) };
        let spec = self.kept_spec(&version).await?;
        Ok(spec.and_then(|spec| spec.source(function, &self.catalogue)).unwrap_or_default())
    }
}

/// `ChatFunctionVersionResource`. Without a script: it was left out.
fn resource(version: &FunctionVersionRecord, script: Option<String>) -> Value {
    json!({
        "id": version.id,
        "versionNumber": version.number,
        "truncated": script.is_none(),
        "handlerScript": script.unwrap_or_default(),
        "createdTime": time(version.created_at),
        "_links": links([
            ("self", format!("/v1/function-versions/{}", version.id)),
            ("function", format!("/v1/functions/{}", version.function_id)),
        ]),
    })
}

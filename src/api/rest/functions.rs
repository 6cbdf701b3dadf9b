//! Functions: `/v1/runtimes/nodejs/functions` and `/v1/functions/{id}`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::hal::{Paging, links};
use super::request::{Body, Id, Publisher, Reader};
use super::runtime::{self, properties};
use crate::api::Services;
use crate::model::{AppId, Version};
use crate::store::FunctionRecord;

const NAME_CHARS_MAX: usize = 200;
const DESCRIPTION_CHARS_MAX: usize = 4_000;

/// `CreateChatFunctionResource`. Initialization is always awaited, so `initializeAsynchronously` says nothing here.
#[derive(Deserialize)]
pub struct Create {
    #[serde(rename = "type")]
    trigger_type: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: Option<String>,
}

pub async fn list(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let descending = paging.descending(&["id"], false)?;
    services.known_app(&app).await?;
    let current = services.current(&app).await?;
    let mut functions = services.store.functions(&app).await?;
    if descending {
        functions.reverse();
    }
    let total = functions.len() as u64;
    let start = usize::try_from(paging.offset()).unwrap_or(usize::MAX);
    let page = functions.iter().skip(start).take(paging.size as usize);
    let page = page.map(|function| resource(&app, function, current.as_ref())).collect();
    Ok(Json(paging.wrap(&format!("{}/functions", runtime::PATH), "functions", page, total)))
}

/// It begins to run with its first version.
pub async fn create(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
    Body(wanted): Body<Create>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    services.open()?;
    let trigger = services.catalogue.find(&wanted.trigger_type).ok_or_else(|| {
        let known: Vec<_> = services.catalogue.iter().map(|trigger| trigger.trigger_type.as_str()).collect();
        let message = format!("type {:?} is no trigger type: use one of {}", wanted.trigger_type, known.join(", "));
        ApiError::bad_request("UNKNOWN_TRIGGER_TYPE", message)
    })?;
    let description = wanted.description.unwrap_or_default();
    for (what, text, max) in
        [("name", &wanted.name, NAME_CHARS_MAX), ("description", &description, DESCRIPTION_CHARS_MAX)]
    {
        if text.chars().count() > max {
            return Err(ApiError::bad_request("INVALID_FUNCTION", format!("{what} has more than {max} characters")));
        }
    }
    services.publisher.check_only_app(&app).await?;
    let trigger_type = &trigger.trigger_type;
    let name = if wanted.name.trim().is_empty() { trigger_type.as_str() } else { wanted.name.as_str() };
    let texts = (name, description.as_str());
    let created = services.store.create_function(&app, trigger_type, texts, SystemTime::now(), &actor).await?;
    let function = created.ok_or_else(|| {
        let message = format!("there is a function {trigger_type} already: post a version to it");
        ApiError::new(StatusCode::CONFLICT, "FUNCTION_EXISTS", message)
    })?;
    let current = services.current(&app).await?;
    Ok((StatusCode::CREATED, Json(resource(&app, &function, current.as_ref()))))
}

pub async fn retrieve(
    State(services): State<Arc<Services>>,
    Reader { app, .. }: Reader,
    Id(id): Id,
) -> Result<Json<Value>, ApiError> {
    let function = services.function(&app, id).await?;
    let current = services.current(&app).await?;
    Ok(Json(resource(&app, &function, current.as_ref())))
}

impl Services {
    /// Another app's is not there either.
    pub(super) async fn function(&self, app: &AppId, id: u64) -> Result<FunctionRecord, ApiError> {
        let function = self.store.function(app, id).await?;
        function.ok_or_else(|| ApiError::not_found("FUNCTION_NOT_FOUND", format!("there is no function {id}")))
    }
}

/// `ChatFunctionResource`.
fn resource(app: &AppId, function: &FunctionRecord, current: Option<&Version>) -> Value {
    let runs = current.and_then(|version| version.function(&function.trigger_type));
    let path = format!("/v1/functions/{}", function.id);
    json!({
        "type": function.trigger_type.as_str(),
        "id": function.id,
        "name": runs.map_or(&function.name, |runs| &runs.name),
        "description": runs.map_or(&function.description, |runs| &runs.description),
        "currentVersionNumber": function.current.as_ref().map_or(0, |version| version.number),
        "enabled": runs.is_some_and(|runs| !runs.disabled),
        "runtime": properties(app, current),
        "_links": links([
            ("self", path.clone()),
            ("currentVersion", format!("{path}/current-version")),
            ("versions", format!("{path}/versions")),
            ("invocations", format!("{path}/invocations")),
            ("runtime", runtime::PATH.to_owned()),
        ]),
    })
}

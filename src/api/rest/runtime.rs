//! `/v1/runtimes/nodejs`: an app's dependencies, environment variables and initialization script.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::hal::links;
use super::request::{Body, Publisher, Reader};
use crate::api::Services;
use crate::api::status::draining;
use crate::model::{Actor, AppId, Version};
use crate::publish::{self, Changes, Content, Edit, ProjectSpec};
use crate::store;

pub const PATH: &str = "/v1/runtimes/nodejs";
/// In place of a value, which nobody gets back. Sent back, it stands for the value that there is.
pub const MASK: &str = "********";

/// `ChatRuntimeDependencyProperties`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    name: String,
    version: String,
    #[serde(default)]
    default_dependency: bool,
}

/// `ChatRuntimeScriptProperties`.
#[derive(Deserialize)]
pub struct Script {
    script: String,
}

type Answer = Result<Json<Value>, ApiError>;

pub async fn retrieve(State(services): State<Arc<Services>>, reader: Reader) -> Answer {
    services.known_app(&reader.app).await?;
    services.runtime(&reader.app).await.map(Json)
}

pub async fn put_dependencies(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
    Body(dependencies): Body<Vec<Dependency>>,
) -> Answer {
    let defaults = services.publisher.default_dependencies();
    // A default that was sent back as it came is still a default.
    let own = dependencies.into_iter().filter(|dependency| {
        !dependency.default_dependency || defaults.get(&dependency.name) != Some(&dependency.version)
    });
    let mut set = BTreeMap::new();
    for dependency in own {
        if let Some(twice) = set.insert(dependency.name.clone(), dependency.version) {
            let message = format!("{:?} is there twice, once as {twice:?}", dependency.name);
            return Err(ApiError::bad_request("INVALID_DEPENDENCY", message));
        }
    }
    let dependencies = Edit { set, removed: Vec::new(), replace: true };
    services.save(&app, Changes { dependencies, ..Changes::default() }, actor).await?;
    services.runtime(&app).await.map(Json)
}

pub async fn put_environment(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
    Body(variables): Body<BTreeMap<String, String>>,
) -> Answer {
    let current = services.current(&app).await?;
    let stored: BTreeSet<String> = current.map(|version| version.environment_names).into_iter().flatten().collect();
    if let Some((name, _)) = variables.iter().find(|(name, value)| *value == MASK && !stored.contains(*name)) {
        let message = format!("{name:?}: {MASK} stands for a value that is kept, and none is: send the value");
        return Err(ApiError::bad_request("MASKED_VALUE", message));
    }
    // Where nothing is active a publish starts from the newest version, and nothing of that is kept.
    let replace = stored.is_empty();
    let removed = stored.into_iter().filter(|name| !variables.contains_key(name)).collect();
    let set = variables.into_iter().filter(|(_, value)| value != MASK).collect();
    let environment = Edit { set, removed, replace };
    services.save(&app, Changes { environment, ..Changes::default() }, actor).await?;
    services.runtime(&app).await.map(Json)
}

pub async fn put_initialization_script(
    State(services): State<Arc<Services>>,
    Publisher { app, actor }: Publisher,
    Body(Script { script }): Body<Script>,
) -> Answer {
    services.save(&app, Changes { initialization_script: Some(script), ..Changes::default() }, actor).await?;
    services.runtime(&app).await.map(Json)
}

impl Services {
    /// New work is refused once the service drains, but for what came by a connection of before.
    pub(super) fn open(&self) -> Result<(), ApiError> {
        if self.refuses { Err(draining().into()) } else { Ok(()) }
    }

    pub(super) async fn known_app(&self, app: &AppId) -> Result<store::App, ApiError> {
        let found = self.store.app(app).await?;
        Ok(found.ok_or_else(|| store::Error::UnknownApp(app.clone()))?)
    }

    /// What the app runs.
    pub(super) async fn current(&self, app: &AppId) -> Result<Option<Version>, store::Error> {
        match self.store.app(app).await?.and_then(|app| app.active) {
            Some(active) => self.store.version(app, active).await,
            None => Ok(None),
        }
    }

    /// Publishes what the app runs with these changes, and lets it serve. It goes on when its caller hangs up.
    pub(super) async fn save(&self, app: &AppId, changes: Changes, actor: Actor) -> Result<Version, ApiError> {
        self.open()?;
        let (_steps, task) = self.publisher.publish(publish::Request {
            app: app.clone(),
            content: Content::Changes(changes),
            activate: true,
            base: None,
            key: None,
            typecheck: publish::TypeCheck::Off,
            verification: None,
            actor,
        });
        Ok(task.await.map_err(|_| publish::Error::Internal)??)
    }

    async fn runtime(&self, app: &AppId) -> Result<Value, ApiError> {
        let current = self.current(app).await?;
        let spec = match &current {
            Some(version) => self.kept_spec(version).await?,
            None => Some(ProjectSpec::default()),
        };
        let mut runtime = properties(app, current.as_ref());
        runtime["dependencies"] = self.dependencies(current.as_ref(), spec.as_ref())?.into();
        let names = current.as_ref().map(|version| version.environment_names.as_slice()).unwrap_or_default();
        runtime["environmentVariables"] = names.iter().map(|name| (name.clone(), Value::from(MASK))).collect();
        if let Some(script) = spec.as_ref().and_then(ProjectSpec::initialization) {
            runtime["initializationScript"] = json!({ "script": script });
        }
        runtime["_links"] = links([
            ("self", PATH.to_owned()),
            ("functions", format!("{PATH}/functions")),
            ("versions", format!("{PATH}/versions")),
        ]);
        Ok(runtime)
    }

    /// `None` where a version's sources were not kept.
    pub(super) async fn kept_spec(&self, version: &Version) -> Result<Option<ProjectSpec>, publish::Error> {
        match self.publisher.spec(&version.app, version.number).await {
            Ok(spec) => Ok(Some(spec)),
            Err(publish::Error::NoSources(_)) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// As they were asked for – of what was not kept, as they were installed – and the service's own.
    fn dependencies(&self, current: Option<&Version>, spec: Option<&ProjectSpec>) -> Result<Vec<Value>, ApiError> {
        let installed = current.map(|version| version.dependencies.clone()).unwrap_or_default();
        let defaults = self.publisher.default_dependencies();
        let own = match spec {
            Some(spec) => spec.asked_dependencies().map_err(publish::Error::from)?,
            None => installed.clone().into_iter().filter(|(name, _)| !defaults.contains_key(name)).collect(),
        };
        let inherited = defaults.iter().filter(|(name, _)| !own.contains_key(*name)).map(|named| (named, true));
        let all: BTreeMap<_, _> = own.iter().map(|named| (named, false)).chain(inherited).collect();
        let shown = all.into_iter().map(|((name, version), default)| {
            let resolved = installed.get(name);
            json!({ "name": name, "version": version, "defaultDependency": default, "resolvedVersion": resolved })
        });
        Ok(shown.collect())
    }
}

/// `ChatFunctionChatRuntimeProperties`: what a function says of its runtime.
pub fn properties(app: &AppId, current: Option<&Version>) -> Value {
    // One per app, for as long as the app has its name. No more bits than JavaScript's numbers have.
    let hash = blake3::hash(app.as_str().as_bytes());
    let id = hash.as_bytes().iter().take(6).fold(1_u64, |id, byte| id << 8 | u64::from(*byte));
    let number = current.map_or(0, |version| version.number.0);
    json!({ "type": "NODEJS", "id": id, "version": format!("1.0.{number}") })
}

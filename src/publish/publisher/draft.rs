//! What a version is before and after its build: its row, and the manifest of its artifact.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::artifacts::{self, Manifest};
use crate::model::{AppId, Catalogue, FunctionModule, Module, Version, VersionNumber, VersionState};
use crate::publish::layer::Installed;
use crate::publish::{Built, Project};
use crate::store::Sources;

/// In whole milliseconds, as the store keeps it: the same version is always told with the same time.
fn now_as_stored() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn draft(app: &AppId, project: &Project, node_version: &str) -> Version {
    Version {
        app: app.clone(),
        number: VersionNumber(0),
        state: VersionState::Building,
        digest: String::new(),
        functions: project.functions.clone(),
        dependencies: BTreeMap::new(),
        environment_names: project.environment.keys().cloned().collect(),
        limits: project.limits.clone(),
        node_version: node_version.to_owned(),
        layer: String::new(),
        layer_size_bytes: 0,
        size_bytes: 0,
        has_initialization_script: project.init.is_some(),
        created_at: now_as_stored(),
        failure: String::new(),
    }
}

/// Each function's source as the tenant wrote it, digested: what it is told from its version before by.
pub(super) fn sources(project: &Project) -> Sources {
    let digest = |entry: &str| project.files.get(entry).map(|source| blake3::hash(source).to_hex().to_string());
    let functions = project.functions.iter();
    functions.filter_map(|function| Some((function.trigger_type.clone(), digest(&function.entry)?))).collect()
}

pub(super) fn manifest(
    catalogue: &Catalogue,
    project: &Project,
    built: &Built,
    layer: Option<&Installed>,
    node_version: &str,
    spec: &[u8],
) -> Manifest {
    let module = |source: &str| {
        let unit = built.units.iter().find(|unit| unit.source == source);
        unit.map(|unit| Module { file: unit.emitted.clone(), kind: unit.kind.as_str().to_owned() })
    };
    let functions = project.functions.iter().filter_map(|function| {
        Some(FunctionModule {
            trigger_type: function.trigger_type.to_string(),
            blocking: catalogue.find(function.trigger_type.as_str()).is_some_and(|trigger| trigger.blocking),
            name: function.name.clone(),
            module: module(&function.entry)?,
        })
    });
    let renamed =
        built.units.iter().filter(|unit| unit.source != unit.emitted || unit.map.is_some() || unit.prefix > 0);
    let settings = (&project.functions, &project.limits);
    Manifest {
        files: built
            .files
            .iter()
            .map(|(path, content)| (path.clone(), blake3::hash(content).to_hex().to_string()))
            .collect(),
        units: renamed
            .map(|unit| artifacts::Unit {
                source: unit.source.clone(),
                emitted: unit.emitted.clone(),
                map: unit.map.clone(),
                prefix: unit.prefix,
            })
            .collect(),
        init: project.init.as_deref().and_then(module),
        functions: functions.collect(),
        settings: serde_json::to_string(&settings).expect("plain data serializes"),
        layer: layer.map(|layer| layer.key.clone()),
        node_version: node_version.to_owned(),
        spec: blake3::hash(spec).to_hex().to_string(),
    }
}

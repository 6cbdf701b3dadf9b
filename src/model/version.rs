//! Versions and the functions in them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{AppId, Limits, TriggerType, VersionNumber};

/// Where a version stands. It never leaves READY or FAILED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    Building,
    Ready,
    Failed,
}

/// An immutable closure of an app, as the store keeps it (the environment's values apart).
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    pub app: AppId,
    pub number: VersionNumber,
    pub state: VersionState,
    /// `blake3:<hex>` of the artifact's manifest; empty unless READY.
    pub digest: String,
    pub functions: Vec<Function>,
    /// Resolved: name → exact version.
    pub dependencies: BTreeMap<String, String>,
    pub environment_names: Vec<String>,
    pub limits: Limits,
    pub node_version: String,
    /// The layer's key; empty where the version has no dependencies.
    pub layer: String,
    pub layer_size_bytes: u64,
    pub size_bytes: u64,
    pub has_initialization_script: bool,
    pub created_at: SystemTime,
    /// Why it FAILED; else empty.
    pub failure: String,
}

impl Version {
    /// The function that an event of this type runs, disabled or not.
    pub fn function(&self, trigger: &TriggerType) -> Option<&Function> {
        self.functions.iter().find(|f| f.trigger_type == *trigger)
    }
}

/// The handler for one trigger type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    pub trigger_type: TriggerType,
    pub name: String,
    pub description: String,
    /// Relative path of the source as the tenant wrote it.
    pub entry: String,
    pub disabled: bool,
    pub timeout: Duration,
    pub retry: RetryPolicy,
    pub failure_policy: FailurePolicy,
    /// It is given the events of one ordering key together, as an array. Versions from before there were batches have none.
    #[serde(default)]
    pub batch: Option<Batch>,
}

/// How many events a non-blocking function is given at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// At most.
    pub max_size: u32,
    /// No event waits longer for others.
    pub max_wait: Duration,
}

/// How a non-blocking function's event is retried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    pub max_attempts: u32,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// Since enqueue.
    pub max_age: Duration,
}

impl Default for RetryPolicy {
    /// Five attempts: waits of up to 4, 8, 16 and 32 minutes, an hour in all.
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_backoff: Duration::from_secs(4 * 60),
            max_backoff: Duration::from_secs(60 * 60),
            max_age: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What a caller is told where a blocking function gives no verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailurePolicy {
    pub on_error: FailureAction,
    pub on_timeout: FailureAction,
    /// `None`: overload is the caller's RESOURCE_EXHAUSTED.
    pub on_overload: Option<FailureAction>,
    /// With ALLOW: the result in place of the function's.
    pub default_json: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    #[default]
    Deny,
    Allow,
}

/// A file to load, relative to the version's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    pub file: String,
    /// `cjs`, `cjs-async` or `esm`.
    pub kind: String,
}

/// A function and the file it is loaded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionModule {
    pub trigger_type: String,
    pub blocking: bool,
    pub name: String,
    #[serde(flatten)]
    pub module: Module,
}

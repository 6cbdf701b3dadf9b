//! Finds a project's functions among its files and merges them with what the request declares about them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::{InvalidSpec, short};
use super::sources::{is_code, is_declaration};
use crate::model::{
    Batch, Catalogue, FailureAction, FailurePolicy, Function, RawJson, RetryPolicy, Trigger, TriggerType,
};

/// What a request says about one function.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionDecl {
    /// In any spelling the catalogue knows.
    pub trigger_type: String,
    /// `None`: describes the function found among the files.
    pub code: Option<Code>,
    /// Of inline source: `typescript` (default) or `javascript`.
    pub language: String,
    pub name: String,
    pub description: String,
    pub disabled: bool,
    pub timeout: Option<Duration>,
    pub retry: Option<RetrySpec>,
    pub failure_policy: Option<FailurePolicySpec>,
    pub batch: Option<BatchSpec>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// A path among the files.
    Entry(String),
    /// The code itself.
    Source(String),
}

/// `None`: the default of [`RetryPolicy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrySpec {
    pub max_attempts: Option<u32>,
    pub initial_backoff: Option<Duration>,
    pub max_backoff: Option<Duration>,
    pub max_age: Option<Duration>,
}

/// `None`: the default, 100 events and 1 s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSpec {
    pub max_size: Option<u32>,
    pub max_wait: Option<Duration>,
}

/// `None`: DENY, or for `on_overload` the gRPC error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailurePolicySpec {
    pub on_error: Option<FailureAction>,
    pub on_timeout: Option<FailureAction>,
    pub on_overload: Option<FailureAction>,
    pub default_json: Option<String>,
}

const TIMEOUT_BLOCKING: Duration = Duration::from_secs(5);
const TIMEOUT_NON_BLOCKING: Duration = Duration::from_secs(30);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const NAME_CHARS_MAX: usize = 200;
const DESCRIPTION_CHARS_MAX: usize = 4_000;
const DEFAULT_JSON_BYTES_MAX: usize = 64 << 10;

/// Adds inline sources to `files` and resolves every function, sorted by trigger type.
pub(super) fn resolve(
    files: &mut BTreeMap<String, Bytes>,
    declared: Vec<FunctionDecl>,
    catalogue: &Catalogue,
) -> Result<Vec<Function>, InvalidSpec> {
    let mut found = discover(files, &declared, catalogue)?;
    let mut functions: BTreeMap<TriggerType, Function> = BTreeMap::new();
    for declaration in declared {
        let trigger = lookup(catalogue, "function", &declaration.trigger_type, "")?;
        let entry = match (&declaration.code, found.remove(&trigger.trigger_type)) {
            (Some(Code::Entry(entry)), beside) => {
                let entry = check_entry(trigger, entry, files)?;
                match beside {
                    Some(file) if file != entry => return duplicate(trigger, file, entry),
                    _ => entry,
                }
            }
            (Some(Code::Source(_)), Some(file)) => return duplicate(trigger, file, "its inline source".to_owned()),
            (Some(Code::Source(source)), None) => add_inline(trigger, source, &declaration.language, files)?,
            (None, Some(file)) => file,
            (None, None) => {
                let name = &trigger.trigger_type;
                let problem = format!("give it a source or an entry, or add functions/{name}.ts (or .js) to the files");
                return Err(InvalidSpec::EntryNotFound { trigger_type: name.to_string(), problem });
            }
        };
        let function = describe(trigger, entry, declaration)?;
        if let Some(first) = functions.get(&trigger.trigger_type) {
            return duplicate(trigger, first.entry.clone(), function.entry);
        }
        functions.insert(trigger.trigger_type.clone(), function);
    }
    for (trigger_type, entry) in found {
        let trigger = lookup(catalogue, "function", trigger_type.as_str(), "")?;
        functions.insert(trigger_type, describe(trigger, entry, FunctionDecl::default())?);
    }
    Ok(functions.into_values().collect())
}

/// `functions/<TriggerType>.<extension>`, by trigger type.
fn discover(
    files: &BTreeMap<String, Bytes>,
    declared: &[FunctionDecl],
    catalogue: &Catalogue,
) -> Result<BTreeMap<TriggerType, String>, InvalidSpec> {
    const HINT: &str = ". A file that is no function belongs in another folder, or begins its name with _";
    let entries: Vec<&str> = declared
        .iter()
        .filter_map(|declaration| match &declaration.code {
            Some(Code::Entry(entry)) => Some(entry.strip_prefix("./").unwrap_or(entry)),
            _ => None,
        })
        .collect();
    let mut found: BTreeMap<TriggerType, String> = BTreeMap::new();
    for path in files.keys() {
        let Some(spelling) = function_name(path) else { continue };
        if catalogue.find(spelling).is_none() && entries.contains(&path.as_str()) {
            continue; // A declaration says whose it is.
        }
        let trigger = lookup(catalogue, &format!("file {:?}", short(path)), spelling, HINT)?;
        if let Some(first) = found.insert(trigger.trigger_type.clone(), path.clone()) {
            return duplicate(trigger, first, path.clone());
        }
    }
    Ok(found)
}

/// The trigger type that a path names, if it is meant to be a function.
pub(super) fn function_name(path: &str) -> Option<&str> {
    let name = path.strip_prefix("functions/")?;
    let helper = name.starts_with(['_', '.']) || name.contains(".test.") || name.contains(".spec.");
    if name.contains('/') || helper || !is_code(path) {
        return None;
    }
    name.rsplit_once('.').map(|(stem, _)| stem)
}

pub(super) fn lookup<'c>(
    catalogue: &'c Catalogue,
    place: &str,
    spelling: &str,
    hint: &'static str,
) -> Result<&'c Trigger, InvalidSpec> {
    catalogue.find(spelling).ok_or_else(|| InvalidSpec::UnknownTriggerType {
        place: place.to_owned(),
        name: short(spelling),
        known: catalogue.iter().map(|trigger| trigger.trigger_type.as_str()).collect::<Vec<_>>().join(", "),
        hint,
    })
}

fn duplicate<T>(trigger: &Trigger, first: String, second: String) -> Result<T, InvalidSpec> {
    let trigger_type = trigger.trigger_type.to_string();
    Err(InvalidSpec::DuplicateFunction { trigger_type, first: short(&first), second: short(&second) })
}

fn check_entry(trigger: &Trigger, entry: &str, files: &BTreeMap<String, Bytes>) -> Result<String, InvalidSpec> {
    let entry = entry.strip_prefix("./").unwrap_or(entry);
    let problem = if !files.contains_key(entry) {
        format!("its entry {:?} is not among the files", short(entry))
    } else if !is_code(entry) {
        let what =
            if is_declaration(entry) { "holds declarations only" } else { "is neither TypeScript nor JavaScript" };
        format!("its entry {:?} {what}", short(entry))
    } else {
        return Ok(entry.to_owned());
    };
    Err(InvalidSpec::EntryNotFound { trigger_type: trigger.trigger_type.to_string(), problem })
}

fn add_inline(
    trigger: &Trigger,
    source: &str,
    language: &str,
    files: &mut BTreeMap<String, Bytes>,
) -> Result<String, InvalidSpec> {
    let extension = match language.to_ascii_lowercase().as_str() {
        "" | "typescript" | "ts" => "ts",
        "javascript" | "js" => "js",
        _ => {
            return invalid(
                trigger,
                format!("language {:?} is not known: use typescript or javascript", short(language)),
            );
        }
    };
    let path = format!("functions/{}.{extension}", trigger.trigger_type);
    files.insert(path.clone(), Bytes::copy_from_slice(source.as_bytes()));
    Ok(path)
}

fn invalid<T>(trigger: &Trigger, problem: impl Into<String>) -> Result<T, InvalidSpec> {
    Err(InvalidSpec::Function { trigger_type: trigger.trigger_type.to_string(), problem: problem.into() })
}

fn describe(trigger: &Trigger, entry: String, declaration: FunctionDecl) -> Result<Function, InvalidSpec> {
    let FunctionDecl { name, description, disabled, timeout, retry, failure_policy, batch, .. } = declaration;
    if name.chars().count() > NAME_CHARS_MAX || description.chars().count() > DESCRIPTION_CHARS_MAX {
        return invalid(trigger, "a name has at most 200 characters, a description 4000");
    }
    if name.chars().any(char::is_control) {
        return invalid(trigger, "a name cannot hold control characters");
    }
    let default = if trigger.blocking { TIMEOUT_BLOCKING } else { TIMEOUT_NON_BLOCKING };
    let timeout = timeout.unwrap_or(default);
    if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout) {
        return invalid(trigger, "timeout: use 10 ms to 15 min");
    }
    if trigger.blocking && retry.is_some() {
        return invalid(trigger, "a blocking trigger is never retried: remove retry");
    }
    if !trigger.blocking && failure_policy.is_some() {
        return invalid(trigger, "only a blocking trigger has a verdict: remove failure_policy");
    }
    if trigger.blocking && batch.is_some() {
        return invalid(trigger, "the events of a blocking trigger run one by one: remove batch");
    }
    Ok(Function {
        trigger_type: trigger.trigger_type.clone(),
        name: if name.is_empty() { trigger.trigger_type.to_string() } else { name },
        description,
        entry,
        disabled,
        timeout,
        retry: retry_policy(trigger, retry.unwrap_or_default())?,
        failure_policy: verdict_policy(trigger, failure_policy.unwrap_or_default())?,
        batch: batch.map(|spec| batch_of(trigger, spec)).transpose()?,
    })
}

fn retry_policy(trigger: &Trigger, spec: RetrySpec) -> Result<RetryPolicy, InvalidSpec> {
    let default = RetryPolicy::default();
    let max_attempts = spec.max_attempts.unwrap_or(default.max_attempts);
    // One that is given moves the other's default rather than contradict it.
    let given_max = spec.max_backoff.unwrap_or(DAY);
    let initial_backoff = spec.initial_backoff.unwrap_or(default.initial_backoff.min(given_max));
    let max_backoff = spec.max_backoff.unwrap_or(default.max_backoff.max(initial_backoff));
    let max_age = spec.max_age.unwrap_or(default.max_age);
    if !(1..=100).contains(&max_attempts) {
        return invalid(trigger, "retry.max_attempts: use 1 to 100");
    }
    if !(Duration::from_millis(1)..=DAY).contains(&initial_backoff) {
        return invalid(trigger, "retry.initial_backoff: use 1 ms to 24 h");
    }
    if !(initial_backoff..=DAY).contains(&max_backoff) {
        return invalid(trigger, "retry.max_backoff: use initial_backoff to 24 h");
    }
    if !(Duration::from_secs(1)..=30 * DAY).contains(&max_age) {
        return invalid(trigger, "retry.max_age: use 1 s to 30 days");
    }
    Ok(RetryPolicy { max_attempts, initial_backoff, max_backoff, max_age })
}

fn batch_of(trigger: &Trigger, spec: BatchSpec) -> Result<Batch, InvalidSpec> {
    let max_size = spec.max_size.unwrap_or(100);
    let max_wait = spec.max_wait.unwrap_or(Duration::from_secs(1));
    if !(2..=1000).contains(&max_size) {
        return invalid(trigger, "batch.max_size: use 2 to 1000");
    }
    if !(Duration::from_millis(1)..=HOUR).contains(&max_wait) {
        return invalid(trigger, "batch.max_wait: use 1 ms to 1 h");
    }
    Ok(Batch { max_size, max_wait })
}

fn verdict_policy(trigger: &Trigger, spec: FailurePolicySpec) -> Result<FailurePolicy, InvalidSpec> {
    let policy = FailurePolicy {
        on_error: spec.on_error.unwrap_or_default(),
        on_timeout: spec.on_timeout.unwrap_or_default(),
        on_overload: spec.on_overload,
        default_json: spec.default_json.filter(|json| !json.is_empty()),
    };
    if let Some(json) = &policy.default_json {
        if json.len() > DEFAULT_JSON_BYTES_MAX || RawJson::parse(json).is_err() {
            return invalid(trigger, "failure_policy.default_json must be JSON of at most 64 KiB");
        }
        let actions = [Some(policy.on_error), Some(policy.on_timeout), policy.on_overload];
        if !actions.contains(&Some(FailureAction::Allow)) {
            return invalid(trigger, "failure_policy.default_json is never used: set one of the actions to ALLOW");
        }
    }
    Ok(policy)
}

#[cfg(test)]
mod tests;

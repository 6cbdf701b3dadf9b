//! What `--json` prints: the protos' fields and names. Enums go without their prefixes, times as RFC 3339, spans as protobuf's JSON has
//! them (`1.5s`), and the tenants' JSON as it is.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::output::{json_line, moment, span};
use super::show;
use crate::proto;
use crate::proto::invoke_response::Outcome;

pub(super) type Json<'a> = Option<&'a RawValue>;

pub(super) fn json(bytes: &[u8]) -> Json<'_> {
    serde_json::from_slice(bytes).ok()
}

#[derive(Serialize)]
pub struct FunctionError<'a> {
    kind: &'a str,
    name: &'a str,
    message: &'a str,
    stack: &'a str,
    code: &'a str,
    retryable: bool,
}

impl<'a> From<&'a proto::FunctionError> for FunctionError<'a> {
    fn from(error: &'a proto::FunctionError) -> Self {
        let proto::FunctionError { name, message, stack, code, retryable, .. } = error;
        Self { kind: show::kind(error), name, message, stack, code, retryable: *retryable }
    }
}

#[derive(Serialize)]
pub(super) struct Denied<'a> {
    reason: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Json<'a>,
}

impl<'a> From<&'a proto::Denied> for Denied<'a> {
    fn from(denied: &'a proto::Denied) -> Self {
        Self { reason: &denied.reason, code: &denied.code, data: json(&denied.data_json) }
    }
}

#[derive(Serialize)]
pub(super) struct Timings {
    queue: Option<String>,
    init: Option<String>,
    run: Option<String>,
}

impl From<proto::Timings> for Timings {
    fn from(timings: proto::Timings) -> Self {
        Self { queue: span(timings.queue), init: span(timings.init), run: span(timings.run) }
    }
}

#[derive(Serialize)]
struct Accepted<'a> {
    event_id: &'a str,
    duplicate: bool,
}

#[derive(Serialize)]
pub(super) struct Skipped<'a> {
    pub reason: &'a str,
}

/// One of the outcomes is there.
#[derive(Serialize)]
struct Answer<'a> {
    invocation_id: &'a str,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Json<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denied: Option<Denied<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FunctionError<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<Accepted<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<Skipped<'a>>,
    verdict: Option<&'a str>,
    decided_by: Option<&'a str>,
    cold_start: bool,
    timings: Option<Timings>,
}

/// # Errors
/// Never, for what a service sends.
pub fn answer(answer: &proto::InvokeResponse) -> anyhow::Result<String> {
    let decided = answer.verdict != 0;
    let mut shown = Answer {
        invocation_id: &answer.invocation_id,
        version: answer.version,
        result: None,
        denied: None,
        error: None,
        accepted: None,
        skipped: None,
        verdict: decided.then(|| show::verdict(answer)),
        decided_by: decided.then(|| show::decided_by(answer)),
        cold_start: answer.cold_start,
        timings: answer.timings.map(Timings::from),
    };
    match &answer.outcome {
        Some(Outcome::Result(result)) => shown.result = json(&result.json),
        Some(Outcome::Denied(denied)) => shown.denied = Some(denied.into()),
        Some(Outcome::Error(error)) => shown.error = Some(error.into()),
        Some(Outcome::Accepted(accepted)) => {
            shown.accepted = Some(Accepted { event_id: &accepted.event_id, duplicate: accepted.duplicate });
        }
        Some(Outcome::Skipped(skipped)) => shown.skipped = Some(Skipped { reason: &skipped.reason }),
        None => {}
    }
    json_line(&shown)
}

#[derive(Serialize)]
struct Invocation<'a> {
    invocation_id: &'a str,
    app_id: &'a str,
    trigger_type: &'a str,
    version: u64,
    status: &'a str,
    attempt: u32,
    event_id: &'a str,
    event: Json<'a>,
    result: Json<'a>,
    denied: Option<Denied<'a>>,
    error: Option<FunctionError<'a>>,
    created_at: Option<String>,
    finished_at: Option<String>,
    cold_start: bool,
    timings: Option<Timings>,
    cpu_time: Option<String>,
    peak_memory_bytes: u64,
    trace_id: &'a str,
    /// Of one in full.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<LogEntry<'a>>,
}

/// # Errors
/// Never, for what a service sends.
pub fn invocation(invocation: &proto::Invocation) -> anyhow::Result<String> {
    json_line(&Invocation {
        invocation_id: &invocation.invocation_id,
        app_id: &invocation.app_id,
        trigger_type: &invocation.trigger_type,
        version: invocation.version,
        status: show::status(invocation),
        attempt: invocation.attempt,
        event_id: &invocation.event_id,
        event: json(&invocation.event_json),
        result: json(&invocation.result_json),
        denied: invocation.denied.as_ref().map(Denied::from),
        error: invocation.error.as_ref().map(FunctionError::from),
        created_at: moment(invocation.created_at),
        finished_at: moment(invocation.finished_at),
        cold_start: invocation.cold_start,
        timings: invocation.timings.map(Timings::from),
        cpu_time: span(invocation.cpu_time),
        peak_memory_bytes: invocation.peak_memory_bytes,
        trace_id: &invocation.trace_id,
        logs: invocation.logs.iter().map(LogEntry::from).collect(),
    })
}

#[derive(Serialize)]
pub(super) struct LogEntry<'a> {
    at: Option<String>,
    level: &'a str,
    app_id: &'a str,
    version: u64,
    trigger_type: &'a str,
    invocation_id: &'a str,
    source: &'a str,
    text: &'a str,
}

impl<'a> From<&'a proto::LogEntry> for LogEntry<'a> {
    fn from(entry: &'a proto::LogEntry) -> Self {
        Self {
            at: moment(entry.at),
            level: show::level(entry),
            app_id: &entry.app_id,
            version: entry.version,
            trigger_type: &entry.trigger_type,
            invocation_id: &entry.invocation_id,
            source: &entry.source,
            text: &entry.text,
        }
    }
}

/// # Errors
/// Never, for what a service sends.
pub fn log(entry: &proto::LogEntry) -> anyhow::Result<String> {
    json_line(&LogEntry::from(entry))
}

#[derive(Serialize)]
struct Version<'a> {
    app_id: &'a str,
    number: u64,
    state: &'a str,
    active: bool,
    digest: &'a str,
    created_at: Option<String>,
    functions: Vec<Function<'a>>,
    dependencies: &'a BTreeMap<String, String>,
    environment_names: &'a [String],
    has_initialization_script: bool,
    node_version: &'a str,
    size_bytes: u64,
    layer: &'a str,
    layer_size_bytes: u64,
    failure: &'a str,
}

#[derive(Serialize)]
struct Function<'a> {
    trigger_type: &'a str,
    name: &'a str,
    description: &'a str,
    entry: &'a str,
    language: &'a str,
    disabled: bool,
    timeout: Option<String>,
}

impl<'a> From<&'a proto::FunctionSpec> for Function<'a> {
    fn from(function: &'a proto::FunctionSpec) -> Self {
        Self {
            trigger_type: &function.trigger_type,
            name: &function.name,
            description: &function.description,
            entry: show::entry(function),
            language: &function.language,
            disabled: function.disabled,
            timeout: span(function.timeout),
        }
    }
}

/// # Errors
/// Never, for what a service sends.
pub fn version(version: &proto::Version) -> anyhow::Result<String> {
    json_line(&Version {
        app_id: &version.app_id,
        number: version.number,
        state: show::version_state(version),
        active: version.active,
        digest: &version.digest,
        created_at: moment(version.created_at),
        functions: version.functions.iter().map(Function::from).collect(),
        dependencies: &version.dependencies,
        environment_names: &version.environment_names,
        has_initialization_script: version.has_initialization_script,
        node_version: &version.node_version,
        size_bytes: version.size_bytes,
        layer: &version.layer,
        layer_size_bytes: version.layer_size_bytes,
        failure: &version.failure,
    })
}

#[derive(Serialize)]
struct App<'a> {
    app_id: &'a str,
    active_version: Option<u64>,
    created_at: Option<String>,
    description: &'a str,
    history_retention: Option<String>,
    rate_per_second: Option<u32>,
    rate_burst: Option<u32>,
    quota_per_day: Option<u64>,
    quota: Option<Quota>,
    pool: Pool,
    queue: Queue,
}

#[derive(Serialize)]
struct Quota {
    used: u64,
    limit: u64,
}

#[derive(Serialize)]
struct Pool {
    workers_starting: u32,
    workers_idle: u32,
    workers_busy: u32,
    workers_retiring: u32,
    waiting: u32,
    workers_started_total: u64,
    workers_failed_total: u64,
    workers_from_reserve_total: u64,
}

#[derive(Serialize)]
struct Queue {
    queued: u64,
    running: u64,
    dead: u64,
    oldest_enqueued_at: Option<String>,
    claims_total: u64,
    retries_total: u64,
    dead_letters_total: u64,
}

/// # Errors
/// Never, for what a service sends.
pub fn app(app: &proto::App) -> anyhow::Result<String> {
    let (pool, queue) = (app.pool.clone().unwrap_or_default(), app.queue.unwrap_or_default());
    let settings = app.settings.clone().unwrap_or_default();
    json_line(&App {
        app_id: &app.app_id,
        active_version: (app.active_version != 0).then_some(app.active_version),
        created_at: moment(app.created_at),
        description: &settings.description,
        history_retention: span(settings.history_retention),
        rate_per_second: settings.rate_per_second,
        rate_burst: settings.rate_burst,
        quota_per_day: settings.quota_per_day,
        quota: app.quota.map(|quota| Quota { used: quota.used, limit: quota.limit }),
        pool: Pool {
            workers_starting: pool.workers_starting,
            workers_idle: pool.workers_idle,
            workers_busy: pool.workers_busy,
            workers_retiring: pool.workers_retiring,
            waiting: pool.waiting,
            workers_started_total: pool.workers_started_total,
            workers_failed_total: pool.workers_failed_total,
            workers_from_reserve_total: pool.workers_from_reserve_total,
        },
        queue: Queue {
            queued: queue.queued,
            running: queue.running,
            dead: queue.dead,
            oldest_enqueued_at: moment(queue.oldest_enqueued_at),
            claims_total: queue.claims_total,
            retries_total: queue.retries_total,
            dead_letters_total: queue.dead_letters_total,
        },
    })
}

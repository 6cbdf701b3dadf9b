//! Proto ↔ model. Requests are checked here as far as their form goes; what they mean is checked further in.

mod audit;
mod spec;
mod trial;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tonic::Status;

use crate::dispatch::DeliveryFigures;
use crate::invoke::{Answer, Ran};
use crate::model::{
    Credential, DecidedBy, Denial, EventState, FailureAction, FailureKind, Function, FunctionFailure, Invocation,
    InvocationStatus, Limits, LogLevel, LogLine, LogSource, Outcome, RawJson, Report, Timings, Verdict, Version,
    VersionNumber, VersionState,
};
use crate::pool::Figures;
use crate::proto;
use crate::publish::{Step, TypeCheck, TypeDiagnostic};
use crate::store::{App, AttemptRecord, EventRecord, QueueFigures};

use super::status::invalid;

pub(super) use audit::audit_entry;
pub(super) use spec::{changes, project_spec, project_spec_to};
pub(super) use trial::{rehearsed, replay_summary, replayed};

const PAGE_SIZE: u32 = 50;
const PAGE_SIZE_MAX: u32 = 1000;

/// 0 means the default.
pub(super) fn page_size(asked: u32) -> Result<u32, Status> {
    match asked {
        0 => Ok(PAGE_SIZE),
        1..=PAGE_SIZE_MAX => Ok(asked),
        _ => Err(invalid("INVALID_PAGE_SIZE", format!("page_size is {asked}: use 1 to {PAGE_SIZE_MAX}"))),
    }
}

/// A token is the last row's key; an empty one starts at the top.
pub(super) fn page_token<T: std::str::FromStr>(token: &str) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    token
        .parse()
        .map(Some)
        .map_err(|_| invalid("INVALID_PAGE_TOKEN", "page_token is not one that this method gave out"))
}

/// Cuts a page out of one row more than it holds; says whether there are more.
pub(super) fn page<T>(mut rows: Vec<T>, size: u32, key: impl Fn(&T) -> String) -> (Vec<T>, String) {
    if rows.len() <= size as usize {
        return (rows, String::new());
    }
    rows.truncate(size as usize);
    let token = rows.last().map(key).unwrap_or_default();
    (rows, token)
}

pub(super) fn version_number(number: u64) -> Result<VersionNumber, Status> {
    if number == 0 {
        return Err(invalid("INVALID_VERSION", "version is 0: versions are numbered from 1"));
    }
    Ok(VersionNumber(number))
}

pub(super) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

fn span(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

pub(super) fn duration(name: &str, value: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let convert =
        |value| Duration::try_from(value).map_err(|_| invalid("INVALID_DURATION", format!("{name} is negative")));
    value.map(convert).transpose()
}

/// # Errors
/// No such time.
pub(super) fn time(name: &str, value: prost_types::Timestamp) -> Result<SystemTime, Status> {
    SystemTime::try_from(value).map_err(|_| invalid("INVALID_TIME", format!("{name} is not a time")))
}

fn limits_to(limits: &Limits) -> proto::Limits {
    proto::Limits {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        pids_max: limits.pids_max,
        tmp_bytes: limits.tmp_bytes,
        concurrency: limits.concurrency,
        workers_max: limits.workers_max,
        workers_min: limits.workers_min,
        subprocesses: limits.subprocesses,
        egress: limits.egress.clone(),
    }
}

pub(super) fn version(version: Version, active: Option<VersionNumber>) -> proto::Version {
    proto::Version {
        app_id: version.app.to_string(),
        number: version.number.0,
        state: match version.state {
            VersionState::Building => proto::VersionState::Building,
            VersionState::Ready => proto::VersionState::Ready,
            VersionState::Failed => proto::VersionState::Failed,
        }
        .into(),
        digest: version.digest,
        functions: version.functions.into_iter().map(function).collect(),
        dependencies: version.dependencies,
        created_at: Some(timestamp(version.created_at)),
        size_bytes: version.size_bytes,
        environment_names: version.environment_names,
        limits: Some(limits_to(&version.limits)),
        node_version: version.node_version,
        failure: version.failure,
        active: active == Some(version.number),
        layer: version.layer,
        layer_size_bytes: version.layer_size_bytes,
        has_initialization_script: version.has_initialization_script,
    }
}

fn function(function: Function) -> proto::FunctionSpec {
    let action = failure_action_to;
    let policy = function.failure_policy;
    let retry = function.retry;
    let typescript = function.entry.ends_with("ts");
    proto::FunctionSpec {
        trigger_type: function.trigger_type.to_string(),
        language: if typescript { "typescript" } else { "javascript" }.to_owned(),
        code: Some(proto::function_spec::Code::Entry(function.entry)),
        name: function.name,
        description: function.description,
        disabled: function.disabled,
        timeout: Some(span(function.timeout)),
        retry: Some(proto::RetryPolicy {
            max_attempts: retry.max_attempts,
            initial_backoff: Some(span(retry.initial_backoff)),
            max_backoff: Some(span(retry.max_backoff)),
            max_age: Some(span(retry.max_age)),
        }),
        failure_policy: Some(proto::FailurePolicy {
            on_error: action(policy.on_error),
            on_timeout: action(policy.on_timeout),
            on_overload: policy.on_overload.map_or(0, action),
            default_json: policy.default_json.unwrap_or_default().into(),
        }),
        batch: function
            .batch
            .map(|batch| proto::Batch { max_size: batch.max_size, max_wait: Some(span(batch.max_wait)) }),
    }
}

fn failure_action_to(action: FailureAction) -> i32 {
    match action {
        FailureAction::Deny => proto::FailureAction::Deny.into(),
        FailureAction::Allow => proto::FailureAction::Allow.into(),
    }
}

/// # Errors
/// A number that is none of the enum's.
pub(super) fn type_check(number: i32) -> Result<TypeCheck, Status> {
    match proto::TypeCheck::try_from(number) {
        Ok(proto::TypeCheck::Unspecified | proto::TypeCheck::Off) => Ok(TypeCheck::Off),
        Ok(proto::TypeCheck::Warn) => Ok(TypeCheck::Warn),
        Ok(proto::TypeCheck::Error) => Ok(TypeCheck::Error),
        Err(_) => Err(invalid("INVALID_TYPE_CHECK", format!("typecheck {number} is unknown: use OFF, WARN or ERROR"))),
    }
}

pub(super) fn progress(step: Step) -> proto::PublishVersionResponse {
    let progress = proto::Progress {
        phase: step.phase.to_owned(),
        message: step.message,
        at: Some(timestamp(step.at)),
        diagnostics: step.diagnostics.into_iter().map(diagnostic).collect(),
    };
    proto::PublishVersionResponse { event: Some(proto::publish_version_response::Event::Progress(progress)) }
}

pub(super) fn diagnostic(diagnostic: TypeDiagnostic) -> proto::Diagnostic {
    let TypeDiagnostic { code, file, line, column, message, frame } = diagnostic;
    proto::Diagnostic { file, line, column, code, message, frame }
}

pub(super) fn answer(answer: Answer) -> proto::InvokeResponse {
    use proto::invoke_response::Outcome as Wire;
    match answer {
        Answer::Ran(ran) => ran_response(ran),
        Answer::Accepted { event_id, version, duplicate } => proto::InvokeResponse {
            version: version.0,
            outcome: Some(Wire::Accepted(proto::Accepted { event_id: event_id.to_string(), duplicate })),
            ..proto::InvokeResponse::default()
        },
        Answer::Skipped { reason, version } => proto::InvokeResponse {
            version: version.map_or(0, |version| version.0),
            outcome: Some(Wire::Skipped(proto::Skipped { reason: reason.as_str().to_owned() })),
            verdict: proto::Verdict::Allow.into(),
            decided_by: proto::DecidedBy::Policy.into(),
            ..proto::InvokeResponse::default()
        },
    }
}

fn ran_response(ran: Ran) -> proto::InvokeResponse {
    use proto::invoke_response::Outcome as Wire;
    let outcome = match ran.outcome {
        Outcome::Result(json) => Wire::Result(proto::Result { json: raw(&json) }),
        Outcome::Denied(denial) => Wire::Denied(denied(denial)),
        Outcome::Failed(failure) => Wire::Error(function_error(failure)),
    };
    proto::InvokeResponse {
        invocation_id: ran.invocation_id.to_string(),
        version: ran.version.0,
        outcome: Some(outcome),
        verdict: verdict(ran.verdict).into(),
        decided_by: decided_by(ran.decided_by).into(),
        cold_start: ran.cold_start,
        timings: Some(timings(ran.timings)),
    }
}

fn verdict(verdict: Verdict) -> proto::Verdict {
    match verdict {
        Verdict::Allow => proto::Verdict::Allow,
        Verdict::Deny => proto::Verdict::Deny,
    }
}

fn decided_by(decided_by: DecidedBy) -> proto::DecidedBy {
    match decided_by {
        DecidedBy::Function => proto::DecidedBy::Function,
        DecidedBy::Policy => proto::DecidedBy::Policy,
    }
}

fn raw(json: &RawJson) -> Bytes {
    Bytes::copy_from_slice(json.as_str().as_bytes())
}

fn denied(denial: Denial) -> proto::Denied {
    let data_json = denial.data.as_ref().map(raw).unwrap_or_default();
    proto::Denied { reason: denial.reason, code: denial.code, data_json }
}

fn function_error(failure: FunctionFailure) -> proto::FunctionError {
    let kind = match failure.kind {
        FailureKind::Thrown => proto::ErrorKind::Thrown,
        FailureKind::TimedOut => proto::ErrorKind::TimedOut,
        FailureKind::OutOfMemory => proto::ErrorKind::OutOfMemory,
        FailureKind::Crashed => proto::ErrorKind::Crashed,
        FailureKind::InitFailed => proto::ErrorKind::InitFailed,
        FailureKind::BadResult => proto::ErrorKind::BadResult,
        FailureKind::Collateral => proto::ErrorKind::Collateral,
        FailureKind::Overloaded => proto::ErrorKind::Overloaded,
    };
    proto::FunctionError {
        kind: kind.into(),
        name: failure.name,
        message: failure.message,
        stack: failure.stack,
        code: failure.code,
        retryable: failure.kind.is_retryable(),
    }
}

fn timings(timings: Timings) -> proto::Timings {
    proto::Timings { queue: Some(span(timings.queue)), init: Some(span(timings.init)), run: Some(span(timings.run)) }
}

pub(super) fn invocation(invocation: Invocation, logs: Vec<LogLine>) -> proto::Invocation {
    let status = match invocation.status() {
        InvocationStatus::Running => proto::InvocationStatus::Running,
        InvocationStatus::Succeeded => proto::InvocationStatus::Succeeded,
        InvocationStatus::Failed => proto::InvocationStatus::Failed,
    };
    let mut wire = proto::Invocation {
        invocation_id: invocation.id.to_string(),
        app_id: invocation.app.to_string(),
        trigger_type: invocation.trigger_type.to_string(),
        version: invocation.version.0,
        status: status.into(),
        attempt: invocation.attempt,
        event_id: invocation.event_id.map(|id| id.to_string()).unwrap_or_default(),
        event_json: raw(&invocation.event),
        created_at: Some(timestamp(invocation.created_at)),
        finished_at: invocation.finished_at.map(timestamp),
        cold_start: invocation.cold_start,
        timings: Some(timings(invocation.timings)),
        cpu_time: Some(span(invocation.cpu_time)),
        peak_memory_bytes: invocation.peak_memory_bytes,
        trace_id: invocation.trace_id.map(|id| id.to_string()).unwrap_or_default(),
        logs: logs.into_iter().map(log_entry).collect(),
        ..proto::Invocation::default()
    };
    match invocation.outcome {
        Some(Outcome::Result(json)) => wire.result_json = raw(&json),
        Some(Outcome::Denied(denial)) => wire.denied = Some(denied(denial)),
        Some(Outcome::Failed(failure)) => wire.error = Some(function_error(failure)),
        None => {}
    }
    wire
}

pub(super) fn status_filter(value: i32) -> Result<Option<InvocationStatus>, Status> {
    match proto::InvocationStatus::try_from(value) {
        Ok(proto::InvocationStatus::Unspecified) => Ok(None),
        Ok(proto::InvocationStatus::Running) => Ok(Some(InvocationStatus::Running)),
        Ok(proto::InvocationStatus::Succeeded) => Ok(Some(InvocationStatus::Succeeded)),
        Ok(proto::InvocationStatus::Failed) => Ok(Some(InvocationStatus::Failed)),
        Err(_) => Err(invalid("INVALID_FILTER", format!("{value} is not an InvocationStatus"))),
    }
}

pub(super) fn level_filter(value: i32) -> Result<Option<LogLevel>, Status> {
    match proto::LogLevel::try_from(value) {
        Ok(proto::LogLevel::Unspecified) => Ok(None),
        Ok(proto::LogLevel::Debug) => Ok(Some(LogLevel::Debug)),
        Ok(proto::LogLevel::Info) => Ok(Some(LogLevel::Info)),
        Ok(proto::LogLevel::Warn) => Ok(Some(LogLevel::Warn)),
        Ok(proto::LogLevel::Error) => Ok(Some(LogLevel::Error)),
        Err(_) => Err(invalid("INVALID_FILTER", format!("{value} is not a LogLevel"))),
    }
}

pub(super) fn log_entry(line: LogLine) -> proto::LogEntry {
    let level = match line.level {
        LogLevel::Debug => proto::LogLevel::Debug,
        LogLevel::Info => proto::LogLevel::Info,
        LogLevel::Warn => proto::LogLevel::Warn,
        LogLevel::Error => proto::LogLevel::Error,
    };
    let source = match line.source {
        LogSource::Console => "console",
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
        LogSource::System => "system",
    };
    proto::LogEntry {
        app_id: line.app.to_string(),
        version: line.version.0,
        trigger_type: line.trigger_type.map(|trigger| trigger.to_string()).unwrap_or_default(),
        invocation_id: line.invocation.map(|id| id.to_string()).unwrap_or_default(),
        at: Some(timestamp(line.at)),
        level: level.into(),
        text: line.text,
        source: source.to_owned(),
    }
}

pub(super) fn event(event: EventRecord) -> proto::Event {
    let state = match event.state {
        EventState::Queued => proto::EventState::Queued,
        EventState::Running => proto::EventState::Running,
        EventState::Done => proto::EventState::Done,
        EventState::Skipped => proto::EventState::Skipped,
        EventState::Dead => proto::EventState::Dead,
    };
    let next_attempt_at = (event.state == EventState::Queued).then(|| timestamp(event.due_at));
    proto::Event {
        event_id: event.id.to_string(),
        app_id: event.app.to_string(),
        trigger_type: event.trigger_type.to_string(),
        state: state.into(),
        version: event.version.0,
        deliver_at: Some(timestamp(event.since)),
        attempts: event.attempts.into_iter().map(event_attempt).collect(),
        event_json: raw(&event.payload),
        ordering_key: event.ordering_key.unwrap_or_default(),
        enqueued_at: Some(timestamp(event.enqueued_at)),
        finished_at: event.finished_at.map(timestamp),
        hops: event.hops,
        reason: event.reason.unwrap_or_default(),
        next_attempt_at,
    }
}

fn event_attempt(attempt: AttemptRecord) -> proto::EventAttempt {
    proto::EventAttempt {
        number: attempt.number,
        invocation_id: attempt.invocation.map(|id| id.to_string()).unwrap_or_default(),
        error: attempt.failure.map(function_error),
        started_at: Some(timestamp(attempt.started_at)),
        finished_at: Some(timestamp(attempt.finished_at)),
    }
}

pub(super) fn credential(credential: Credential) -> proto::Credential {
    proto::Credential {
        client_id: credential.client_id.to_string(),
        app_id: credential.app.map(String::from).unwrap_or_default(),
        scopes: credential.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        description: credential.description,
        created_at: Some(timestamp(credential.created_at)),
    }
}

pub(super) fn isolation(report: &Report) -> proto::GetIsolationResponse {
    let layers = report.layers.iter().map(|layer| proto::IsolationLayer {
        name: layer.name.as_str().to_owned(),
        active: layer.active,
        proof: layer.proof.clone(),
        consequence: if layer.active { String::new() } else { layer.name.consequence().to_owned() },
        advice: if layer.active { String::new() } else { layer.name.advice().to_owned() },
    });
    proto::GetIsolationResponse { mode: report.mode.as_str().to_owned(), layers: layers.collect() }
}

/// `quota`: how much of it is used today, and how much it is.
pub(super) fn app(
    app: App,
    figures: Figures,
    queue: QueueFigures,
    delivery: DeliveryFigures,
    quota: Option<(u64, u64)>,
) -> proto::App {
    let counts = figures.counts;
    proto::App {
        app_id: app.id.to_string(),
        active_version: app.active.map_or(0, |number| number.0),
        created_at: Some(timestamp(app.created_at)),
        pool: Some(proto::PoolFigures {
            workers_starting: counts.starting,
            workers_idle: counts.idle,
            workers_busy: counts.busy,
            workers_retiring: counts.retiring,
            waiting: counts.waiting,
            workers_started_total: figures.started_total,
            workers_failed_total: figures.failed_total,
            worker_pids: figures.pids,
            workers_from_reserve_total: figures.from_reserve_total,
        }),
        queue: Some(proto::QueueFigures {
            queued: queue.queued,
            running: queue.running,
            dead: queue.dead,
            oldest_enqueued_at: queue.oldest_enqueued_at.map(timestamp),
            claims_total: delivery.claims_total,
            retries_total: delivery.retries_total,
            dead_letters_total: delivery.dead_letters_total,
        }),
        settings: Some(proto::AppSettings {
            description: app.description,
            history_retention: app.history_retention.map(span),
            rate_per_second: app.rate.per_second,
            rate_burst: app.rate.burst,
            quota_per_day: app.rate.quota_per_day,
        }),
        quota: quota.map(|(used, limit)| proto::QuotaFigures { used, limit }),
    }
}

//! What is published, as it travels: whole, or as changes.

use tonic::Status;

use super::{duration, failure_action_to, limits_to, non_empty, span};
use crate::api::status::invalid;
use crate::model::{FailureAction, Limits, VersionNumber};
use crate::proto;
use crate::publish::{BatchSpec, Changes, Code, Edit, FailurePolicySpec, FunctionDecl, ProjectSpec, RetrySpec};

/// # Errors
/// A duration is negative, or an enum has no such value.
pub(in crate::api) fn project_spec(spec: proto::VersionSpec) -> Result<ProjectSpec, Status> {
    Ok(ProjectSpec {
        files: spec.files,
        functions: spec.functions.into_iter().map(function_decl).collect::<Result<_, _>>()?,
        dependencies: spec.dependencies,
        environment: spec.environment,
        initialization_script: spec.initialization_script,
        limits: limits_from(spec.limits.unwrap_or_default()),
        scripts_allowed: spec.scripts_allowed,
    })
}

fn function_decl(spec: proto::FunctionSpec) -> Result<FunctionDecl, Status> {
    use proto::function_spec::Code as Wire;
    let retry = spec.retry.map(|retry| -> Result<_, Status> {
        Ok(RetrySpec {
            max_attempts: (retry.max_attempts != 0).then_some(retry.max_attempts),
            initial_backoff: duration("retry.initial_backoff", retry.initial_backoff)?,
            max_backoff: duration("retry.max_backoff", retry.max_backoff)?,
            max_age: duration("retry.max_age", retry.max_age)?,
        })
    });
    let failure_policy = spec.failure_policy.map(|policy| -> Result<_, Status> {
        let default_json = String::from_utf8(policy.default_json.to_vec())
            .map_err(|_| invalid("INVALID_FUNCTION", "failure_policy.default_json is not UTF-8"))?;
        Ok(FailurePolicySpec {
            on_error: failure_action(policy.on_error)?,
            on_timeout: failure_action(policy.on_timeout)?,
            on_overload: failure_action(policy.on_overload)?,
            default_json: non_empty(default_json),
        })
    });
    let batch = spec.batch.map(|batch| -> Result<_, Status> {
        let max_size = (batch.max_size != 0).then_some(batch.max_size);
        Ok(BatchSpec { max_size, max_wait: duration("batch.max_wait", batch.max_wait)? })
    });
    Ok(FunctionDecl {
        trigger_type: spec.trigger_type,
        code: spec.code.map(|code| match code {
            Wire::Entry(path) => Code::Entry(path),
            Wire::Source(source) => Code::Source(source),
        }),
        language: spec.language,
        name: spec.name,
        description: spec.description,
        disabled: spec.disabled,
        timeout: duration("timeout", spec.timeout)?,
        retry: retry.transpose()?,
        failure_policy: failure_policy.transpose()?,
        batch: batch.transpose()?,
    })
}

fn failure_action(value: i32) -> Result<Option<FailureAction>, Status> {
    match proto::FailureAction::try_from(value) {
        Ok(proto::FailureAction::Unspecified) => Ok(None),
        Ok(proto::FailureAction::Deny) => Ok(Some(FailureAction::Deny)),
        Ok(proto::FailureAction::Allow) => Ok(Some(FailureAction::Allow)),
        Err(_) => Err(invalid("INVALID_FUNCTION", format!("{value} is not a FailureAction"))),
    }
}

/// What is to differ. An absent version is the active one.
///
/// # Errors
/// As [`project_spec`].
pub(in crate::api) fn changes(changes: proto::VersionChanges) -> Result<Changes, Status> {
    Ok(Changes {
        version: (changes.version != 0).then_some(VersionNumber(changes.version)),
        files: changes.files,
        files_removed: changes.files_removed,
        functions: changes.functions.into_iter().map(function_decl).collect::<Result<_, _>>()?,
        functions_removed: changes.functions_removed,
        dependencies: Edit {
            set: changes.dependencies,
            removed: changes.dependencies_removed,
            replace: changes.replace_dependencies,
        },
        environment: Edit {
            set: changes.environment,
            removed: changes.environment_removed,
            replace: changes.replace_environment,
        },
        initialization_script: changes.initialization_script,
        limits: changes.limits.map(limits_from),
        scripts_allowed: changes.scripts_allowed,
    })
}

/// As it was published.
pub(in crate::api) fn project_spec_to(spec: ProjectSpec) -> proto::VersionSpec {
    proto::VersionSpec {
        files: spec.files,
        functions: spec.functions.into_iter().map(function_decl_to).collect(),
        dependencies: spec.dependencies,
        environment: spec.environment,
        initialization_script: spec.initialization_script,
        limits: Some(limits_to(&spec.limits)),
        scripts_allowed: spec.scripts_allowed,
    }
}

fn function_decl_to(function: FunctionDecl) -> proto::FunctionSpec {
    use proto::function_spec::Code as Wire;
    let action = |action: Option<FailureAction>| action.map_or(0, failure_action_to);
    proto::FunctionSpec {
        trigger_type: function.trigger_type,
        code: function.code.map(|code| match code {
            Code::Entry(path) => Wire::Entry(path),
            Code::Source(source) => Wire::Source(source),
        }),
        language: function.language,
        name: function.name,
        description: function.description,
        disabled: function.disabled,
        timeout: function.timeout.map(span),
        retry: function.retry.map(|retry| proto::RetryPolicy {
            max_attempts: retry.max_attempts.unwrap_or_default(),
            initial_backoff: retry.initial_backoff.map(span),
            max_backoff: retry.max_backoff.map(span),
            max_age: retry.max_age.map(span),
        }),
        failure_policy: function.failure_policy.map(|policy| proto::FailurePolicy {
            on_error: action(policy.on_error),
            on_timeout: action(policy.on_timeout),
            on_overload: action(policy.on_overload),
            default_json: policy.default_json.unwrap_or_default().into(),
        }),
        batch: function.batch.map(|batch| proto::Batch {
            max_size: batch.max_size.unwrap_or_default(),
            max_wait: batch.max_wait.map(span),
        }),
    }
}

/// 0 and empty mean the default.
fn limits_from(wire: proto::Limits) -> Limits {
    let default = Limits::default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let or_bytes = |value: u64, default: u64| if value == 0 { default } else { value };
    let workers_min = wire.workers_min;
    Limits {
        memory_bytes: or_bytes(wire.memory_bytes, default.memory_bytes),
        cpu_millis: wire.cpu_millis,
        pids_max: or(wire.pids_max, default.pids_max),
        tmp_bytes: or_bytes(wire.tmp_bytes, default.tmp_bytes),
        concurrency: or(wire.concurrency, default.concurrency),
        workers_max: or(wire.workers_max, default.workers_max),
        workers_min,
        subprocesses: wire.subprocesses,
        egress: non_empty(wire.egress).unwrap_or(default.egress),
    }
}

//! Invocations, how they end, and the queued events that cause some of them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{AppId, EventId, InvocationId, TraceContext, TraceId, TriggerType, VersionNumber};

/// JSON text that was checked to be one value, passed through as it came. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawJson(Arc<str>);

impl RawJson {
    /// # Errors
    /// The text is not exactly one JSON value.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&serde_json::value::RawValue>(text)?;
        Ok(Self(text.into()))
    }

    /// For text that `serde_json` wrote or that went through [`RawJson::parse`] before.
    pub fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a tenant's function failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureKind {
    Thrown,
    TimedOut,
    OutOfMemory,
    Crashed,
    InitFailed,
    BadResult,
    Collateral,
    Overloaded,
}

impl FailureKind {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Thrown => "THROWN",
            Self::TimedOut => "TIMED_OUT",
            Self::OutOfMemory => "OUT_OF_MEMORY",
            Self::Crashed => "CRASHED",
            Self::InitFailed => "INIT_FAILED",
            Self::BadResult => "BAD_RESULT",
            Self::Collateral => "COLLATERAL",
            Self::Overloaded => "OVERLOADED",
        }
    }

    /// Whether the same request may well succeed at once elsewhere: the function itself did nothing wrong.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Collateral | Self::Overloaded)
    }
}

/// A tenant's failure: part of a normal reply, never an `Err`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionFailure {
    pub kind: FailureKind,
    pub name: String,
    pub message: String,
    pub stack: String,
    pub code: String,
}

impl FunctionFailure {
    /// A failure that we state, not the tenant's code: it has no stack.
    pub fn new(kind: FailureKind, name: &str, message: impl Into<String>) -> Self {
        Self { kind, name: name.to_owned(), message: message.into(), stack: String::new(), code: String::new() }
    }
}

impl fmt::Display for FunctionFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stack.is_empty() { write!(f, "{}: {}", self.name, self.message) } else { f.write_str(&self.stack) }
    }
}

/// `context.deny(reason, {code, data})`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub reason: String,
    pub code: String,
    pub data: Option<RawJson>,
}

/// How an invocation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Result(RawJson),
    Denied(Denial),
    Failed(FunctionFailure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecidedBy {
    Function,
    Policy,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Waiting for a worker, `init` included.
    pub queue: Duration,
    pub init: Duration,
    pub run: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationStatus {
    Running,
    Succeeded,
    Failed,
}

/// A row of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    pub id: InvocationId,
    pub app: AppId,
    pub trigger_type: TriggerType,
    pub version: VersionNumber,
    pub attempt: u32,
    /// The queued event this is an attempt at.
    pub event_id: Option<EventId>,
    pub event: RawJson,
    pub created_at: SystemTime,
    /// `None` while it runs.
    pub finished_at: Option<SystemTime>,
    /// `None` while it runs.
    pub outcome: Option<Outcome>,
    pub cold_start: bool,
    pub timings: Timings,
    pub cpu_time: Duration,
    pub peak_memory_bytes: u64,
    /// Where others know its trace.
    pub trace_id: Option<TraceId>,
}

impl Invocation {
    pub fn status(&self) -> InvocationStatus {
        match &self.outcome {
            None => InvocationStatus::Running,
            Some(Outcome::Result(_) | Outcome::Denied(_)) => InvocationStatus::Succeeded,
            Some(Outcome::Failed(_)) => InvocationStatus::Failed,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSource {
    /// `console.*` and `context.log`.
    Console,
    /// Written to descriptor 1 or 2.
    Stdout,
    Stderr,
    /// The runtime's own remark, e.g. that lines were left out.
    System,
}

/// One line that a function, or the runtime about it, wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub app: AppId,
    pub version: VersionNumber,
    /// `None` for lines outside of any invocation.
    pub trigger_type: Option<TriggerType>,
    pub invocation: Option<InvocationId>,
    pub at: SystemTime,
    pub level: LogLevel,
    pub source: LogSource,
    pub text: String,
}

/// Where a queued event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventState {
    /// Waits for its due time, its turn and a claim.
    Queued,
    /// Claimed.
    Running,
    Done,
    /// Its function is gone or disabled.
    Skipped,
    /// A dead letter.
    Dead,
}

/// A durable entry in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: EventId,
    pub app: AppId,
    pub trigger_type: TriggerType,
    /// Resolved at enqueue; retries stay on it while it exists.
    pub version: VersionNumber,
    pub payload: RawJson,
    pub ordering_key: Option<String>,
    pub enqueued_at: SystemTime,
    /// Of the claim: 1 for the first.
    pub attempt: u32,
    /// Those before it was sent off again: they do not count against its function's policy.
    pub attempts_before: u32,
    /// When it could first run, or was sent off again: what its age is counted from.
    pub since: SystemTime,
    /// Functions that led to it, one by another's doing.
    pub hops: u32,
    /// Of whoever reported it.
    pub trace: Option<TraceContext>,
}

//! The words of the domain as plain types: ids, triggers, versions, invocations, outcomes.
//!
//! No I/O, no async, no proto: everybody may use this module, and it uses nobody.

mod audit;
mod blob;
mod credential;
mod ids;
mod invocation;
mod isolation;
mod limits;
mod sdk;
mod trace;
mod trigger;
mod verdict;
mod version;

pub use audit::{Actor, ActorKind, AuditAction, AuditEntry, UnknownAuditWord};
pub use blob::{Blob, FilesKind, FilesName};
pub use credential::{ClientId, Credential, NoClientId, Scope, Scopes, UnknownScope};
pub use ids::{AppId, AuditId, EventId, IdError, InvocationId, VersionNumber};
pub use invocation::{
    DecidedBy, Denial, Event, EventState, FailureKind, FunctionFailure, Invocation, InvocationStatus, LogLevel,
    LogLine, LogSource, Outcome, RawJson, Timings, Verdict,
};
pub use isolation::{Layer, LayerName, Mode, Report};
pub use limits::{Limits, LimitsError};
pub use sdk::Sdk;
pub use trace::{SpanId, TraceContext, TraceId};
pub use trigger::{Catalogue, CatalogueError, Trigger, TriggerDeclaration, TriggerType};
pub use verdict::{Decision, decide};
pub use version::{
    Batch, FailureAction, FailurePolicy, Function, FunctionModule, Module, RetryPolicy, Version, VersionState,
};

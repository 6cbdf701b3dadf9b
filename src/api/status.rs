//! Errors → gRPC status. One match per enum and no catch-all: a new variant has to choose its code here.
//!
//! Clients branch on the code and the reason; messages are for people.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::auth::{Denied, Refused};
use crate::artifacts::BlobsError;
use crate::model::{IdError, NoClientId, UnknownScope};
use crate::publish::{InstallError, TypeCheckError};
use crate::{invoke, publish, secrets, serving, store};

const DOMAIN: &str = "chatfn";
/// Of a message as it travels. Proxies refuse more than 8 KiB of metadata, and clients silently lose the reason beyond 16 KiB.
const ENCODED_BYTES_MAX: usize = 7 << 10;
/// When to ask again after AT_CAPACITY.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A status with `google.rpc.ErrorInfo`.
pub(super) fn with_reason(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, short(message.into()), details)
}

fn with_retry(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(code, short(message.into()), details)
}

/// More came than may. `wait`: until one may come again.
pub(super) fn rate_limited(reason: &str, message: impl Into<String>, wait: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(wait));
    Status::with_error_details(Code::ResourceExhausted, short(message.into()), details)
}

/// A stack may be long, and it goes out twice: percent-encoded as the message, and in base64 within the details.
fn short(mut message: String) -> String {
    let mut thirds_left = ENCODED_BYTES_MAX * 3;
    let too_much = |c: &(usize, char)| {
        let bytes = c.1.len_utf8();
        let plain = c.1.is_ascii_graphic() && !"\"#%<>`?{}".contains(c.1);
        let cost = bytes * (if plain { 3 } else { 9 } + 4);
        let fits = cost <= thirds_left;
        thirds_left = thirds_left.saturating_sub(cost);
        !fits
    };
    if let Some((end, _)) = message.char_indices().find(too_much) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Logged where it is consumed: the caller learns that it was ours, not what it was.
pub(super) fn internal(err: &dyn std::fmt::Display) -> Status {
    tracing::error!(%err, "failed to serve a request");
    with_reason(Code::Internal, "INTERNAL", "internal error; the service's log has the details")
}

pub(super) fn invalid(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::InvalidArgument, reason, message)
}

pub(super) fn draining() -> Status {
    with_retry(Code::Unavailable, "DRAINING", "the service is shutting down: ask another replica, or later")
}

impl From<IdError> for Status {
    fn from(err: IdError) -> Self {
        let reason = match &err {
            IdError::App(_) => "INVALID_APP_ID",
            IdError::Uuid(_) => "INVALID_ID",
        };
        invalid(reason, err.to_string())
    }
}

impl From<NoClientId> for Status {
    fn from(err: NoClientId) -> Self {
        invalid("INVALID_CLIENT_ID", err.to_string())
    }
}

impl From<UnknownScope> for Status {
    fn from(err: UnknownScope) -> Self {
        invalid("INVALID_SCOPE", err.to_string())
    }
}

impl From<Refused> for Status {
    fn from(err: Refused) -> Self {
        match err {
            Refused::NoToken | Refused::Invalid | Refused::Expired | Refused::TokenExpired => {
                with_reason(Code::Unauthenticated, "UNAUTHENTICATED", err.to_string())
            }
            Refused::IssuerAway => with_retry(Code::Unavailable, "ISSUER_UNAVAILABLE", err.to_string()),
            Refused::TooMany(wait) => rate_limited("TOO_MANY_FAILURES", err.to_string(), wait),
            Refused::Store(err) => err.into(),
        }
    }
}

impl From<Denied> for Status {
    fn from(err: Denied) -> Self {
        match &err {
            Denied::Scope { .. } | Denied::OtherApp { .. } | Denied::Escalation { .. } => {
                with_reason(Code::PermissionDenied, "PERMISSION_DENIED", err.to_string())
            }
        }
    }
}

impl From<store::Error> for Status {
    fn from(err: store::Error) -> Self {
        match &err {
            store::Error::UnknownApp(_) => with_reason(Code::NotFound, "APP_NOT_FOUND", err.to_string()),
            store::Error::Closed => draining(),
            store::Error::QueueFull { .. } => with_retry(Code::ResourceExhausted, "QUEUE_FULL", err.to_string()),
            store::Error::Secret(secret) => {
                tracing::error!(%err, "failed to encrypt or open a secret");
                match secret {
                    // Whose app it is may know: it names a variable of theirs, and an operator's key by its id.
                    secrets::Error::UnknownKey { .. }
                    | secrets::Error::NoKeys { .. }
                    | secrets::Error::Tampered { .. }
                    | secrets::Error::Malformed { .. } => {
                        with_reason(Code::Internal, "SECRET_UNREADABLE", err.to_string())
                    }
                    secrets::Error::Read { .. } | secrets::Error::File { .. } | secrets::Error::NoRandom(_) => {
                        with_reason(Code::Internal, "INTERNAL", "internal error; the service's log has the details")
                    }
                }
            }
            store::Error::Database { .. } | store::Error::Unreachable { .. } => {
                tracing::error!(%err, "failed to use the store");
                with_retry(Code::Unavailable, "STORE_UNAVAILABLE", "the store cannot be used right now")
            }
            store::Error::File { .. }
            | store::Error::NotADatabase(_)
            | store::Error::Newer { .. }
            | store::Error::OldReplicas { .. }
            | store::Error::Migration { .. }
            | store::Error::Corrupt(_) => internal(&err),
        }
    }
}

impl From<serving::Error> for Status {
    fn from(err: serving::Error) -> Self {
        match err {
            serving::Error::UnknownApp(_) => with_reason(Code::NotFound, "APP_NOT_FOUND", err.to_string()),
            serving::Error::UnknownVersion { .. } => with_reason(Code::NotFound, "VERSION_NOT_FOUND", err.to_string()),
            serving::Error::NotReady { .. } => {
                with_reason(Code::FailedPrecondition, "VERSION_NOT_READY", err.to_string())
            }
            serving::Error::Store(err) => err.into(),
            serving::Error::Artifact(err) => internal(&err),
            serving::Error::Blobs(err) => err.into(),
        }
    }
}

impl From<BlobsError> for Status {
    fn from(err: BlobsError) -> Self {
        // What happened at the artifact store was logged there.
        let message = err.to_string();
        match err {
            BlobsError::Away { .. } => with_retry(Code::Unavailable, "ARTIFACT_STORE_UNAVAILABLE", message),
            BlobsError::Contended(_) => with_retry(Code::Unavailable, "ARTIFACT_STORE_CONTENDED", message),
            BlobsError::Damaged { .. } => with_reason(Code::Internal, "ARTIFACT_DAMAGED", message),
            BlobsError::Missing { .. } => with_reason(Code::Internal, "ARTIFACT_MISSING", message),
            BlobsError::Store(err) => err.into(),
            BlobsError::Local(_) | BlobsError::Panicked => internal(&message),
        }
    }
}

impl From<invoke::Error> for Status {
    fn from(err: invoke::Error) -> Self {
        let message = err.to_string();
        match err {
            invoke::Error::UnknownTrigger { .. } => invalid("UNKNOWN_TRIGGER_TYPE", message),
            invoke::Error::NotJson(_) => invalid("INVALID_JSON", message),
            invoke::Error::SchemaMismatch { .. } => invalid("SCHEMA_MISMATCH", message),
            invoke::Error::EventTooLarge { .. } => invalid("EVENT_TOO_LARGE", message),
            invoke::Error::KeyTooLong { .. } => invalid("KEY_TOO_LONG", message),
            invoke::Error::ScheduledBlocking { .. } => invalid("DELIVER_AT_BLOCKING", message),
            invoke::Error::TooFarAhead { .. } => invalid("DELIVER_AT_TOO_FAR", message),
            invoke::Error::Loop { .. } => with_reason(Code::FailedPrecondition, "LOOP", message),
            invoke::Error::Version(err) => err.into(),
            invoke::Error::AtCapacity(_) => with_retry(Code::ResourceExhausted, "AT_CAPACITY", message),
            invoke::Error::NoWorker(_) => {
                tracing::error!(%message, "failed to start a worker for an invocation");
                with_retry(Code::Unavailable, "WORKER_UNAVAILABLE", message)
            }
            invoke::Error::Draining => draining(),
            invoke::Error::Store(err) => err.into(),
            invoke::Error::Internal => internal(&message),
        }
    }
}

impl From<publish::Error> for Status {
    fn from(err: publish::Error) -> Self {
        let message = err.to_string();
        let failed = |reason| with_reason(Code::FailedPrecondition, reason, message.clone());
        match err {
            publish::Error::Invalid(err) => invalid(err.reason(), message),
            publish::Error::BaseMoved { .. } => failed("BASE_VERSION_MOVED"),
            publish::Error::KeyReused(_) => failed("IDEMPOTENCY_KEY_REUSED"),
            publish::Error::SingleTenant { .. } => failed("SINGLE_TENANT"),
            publish::Error::Install(err) => install_status(&err, message),
            publish::Error::TypeCheck(err) => type_check_status(&err, message),
            publish::Error::Verify(_) => failed("VERIFICATION_FAILED"),
            publish::Error::AtCapacity(_) => with_retry(Code::ResourceExhausted, "AT_CAPACITY", message),
            publish::Error::NoWorker(_) => with_retry(Code::Unavailable, "WORKER_UNAVAILABLE", message),
            publish::Error::Closed => with_retry(Code::Unavailable, "VERSION_UNLOADED", message),
            publish::Error::ReplayChanged { .. } => failed("REPLAY_CHANGED"),
            publish::Error::EgressNotConfined => failed("EGRESS_NOT_CONFINED"),
            publish::Error::ActiveMoved => failed("ACTIVE_VERSION_MOVED"),
            publish::Error::NoSources(_) => failed("VERSION_HAS_NO_SOURCES"),
            publish::Error::ChangesOvertaken { .. } => with_retry(Code::Unavailable, "CHANGES_OVERTAKEN", message),
            publish::Error::AppDeleted(_) => failed("APP_DELETED"),
            publish::Error::Active(_) => failed("VERSION_ACTIVE"),
            publish::Error::Building(_) => failed("VERSION_BUILDING"),
            publish::Error::StillRunning(_) => failed("VERSION_STILL_RUNNING"),
            publish::Error::NeededByEvents { .. } => failed("VERSION_NEEDED_BY_EVENTS"),
            publish::Error::Version(err) => err.into(),
            publish::Error::TooMany => with_retry(Code::ResourceExhausted, "TOO_MANY_PUBLISHES", message),
            publish::Error::Draining => draining(),
            publish::Error::DiskFull(_) => failed("DISK_FULL"),
            publish::Error::Store(err) => err.into(),
            publish::Error::Blobs(err) => err.into(),
            publish::Error::Artifact(_) | publish::Error::Internal => internal(&message),
        }
    }
}

fn type_check_status(err: &TypeCheckError, message: String) -> Status {
    let failed = |reason| with_reason(Code::FailedPrecondition, reason, message.clone());
    match err {
        TypeCheckError::Types(_) => invalid("TYPE_ERRORS", message),
        TypeCheckError::Tool(InstallError::DiskFull(_)) => failed("DISK_FULL"),
        // Whatever kept it from being installed, it is nothing of the caller's.
        TypeCheckError::Tool(InstallError::RegistryAway { .. }) => {
            with_retry(Code::Unavailable, "REGISTRY_UNAVAILABLE", message)
        }
        TypeCheckError::Tool(_) => with_retry(Code::Unavailable, "TYPE_CHECKER_UNAVAILABLE", message),
        TypeCheckError::TimedOut(_) => failed("TYPE_CHECK_TIMED_OUT"),
        TypeCheckError::OutOfMemory => failed("TYPE_CHECK_OUT_OF_MEMORY"),
        TypeCheckError::Failed(_) => failed("TYPE_CHECK_FAILED"),
        TypeCheckError::Broken(_) => internal(&message),
    }
}

fn install_status(err: &InstallError, message: String) -> Status {
    let failed = |reason| with_reason(Code::FailedPrecondition, reason, message.clone());
    match err {
        InstallError::Failed { .. } => failed("INSTALL_FAILED"),
        InstallError::RegistryAway { .. } => with_retry(Code::Unavailable, "REGISTRY_UNAVAILABLE", message),
        InstallError::TimedOut(_) => failed("INSTALL_TIMED_OUT"),
        InstallError::TooLarge(_) => failed("INSTALL_TOO_LARGE"),
        InstallError::DiskFull(_) => failed("DISK_FULL"),
        InstallError::Broken(_) => internal(&message),
    }
}

/// tonic refuses a message beyond the limit before any code of ours sees it, with a code that clients take for a bug of theirs in
/// paging, and without a reason. It is the caller's mistake like any other.
pub(super) async fn explain_too_large(response: axum::response::Response) -> axum::response::Response {
    let refused = Status::from_header_map(response.headers());
    match refused.filter(|status| status.code() == Code::OutOfRange && status.details().is_empty()) {
        Some(status) => invalid("REQUEST_TOO_LARGE", status.message()).into_http(),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_by_what_it_costs_on_the_wire() {
        for (text, kept) in [("x", 3072), ("ä", 827), ("💥", 413), (" ", 1654), ("%", 1654)] {
            let fits = text.repeat(kept);
            assert_eq!(short(fits.clone()), fits, "{text}");
            assert_eq!(short(format!("{fits}{text}")), format!("{fits}…"), "{text}");
        }
    }
}

//! Errors → gRPC status. One match per enum and no catch-all: a new variant has to choose its code here.
//!
//! Clients branch on the code and the reason; messages are for people.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::auth::{Denied, Refused};
use crate::artifacts::BlobsError;
use crate::model::{IdError, NoClientId, UnknownAuditWord, UnknownScope};
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

impl From<UnknownAuditWord> for Status {
    fn from(err: UnknownAuditWord) -> Self {
        let reason = match &err {
            UnknownAuditWord::Action(_) => "UNKNOWN_ACTION",
            UnknownAuditWord::ActorKind(_) => "UNKNOWN_ACTOR_KIND",
        };
        invalid(reason, err.to_string())
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
            store::Error::UnknownApp(_) => with_reason(Code::NotFound, err.reason(), err.to_string()),
            store::Error::Closed => draining(),
            store::Error::QueueFull { .. } => with_retry(Code::ResourceExhausted, err.reason(), err.to_string()),
            store::Error::Secret(secret) => {
                tracing::error!(%err, "failed to encrypt or open a secret");
                match secret {
                    // Whose app it is may know: it names a variable of theirs, and an operator's key by its id.
                    secrets::Error::UnknownKey { .. }
                    | secrets::Error::NoKeys { .. }
                    | secrets::Error::Tampered { .. }
                    | secrets::Error::Malformed { .. } => with_reason(Code::Internal, err.reason(), err.to_string()),
                    secrets::Error::Read { .. } | secrets::Error::File { .. } | secrets::Error::NoRandom(_) => {
                        with_reason(Code::Internal, "INTERNAL", "internal error; the service's log has the details")
                    }
                }
            }
            store::Error::Database { .. } | store::Error::Unreachable { .. } => {
                tracing::error!(%err, "failed to use the store");
                with_retry(Code::Unavailable, err.reason(), "the store cannot be used right now")
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
        let (message, reason) = (err.to_string(), err.reason());
        match err {
            serving::Error::UnknownApp(_) | serving::Error::UnknownVersion { .. } => {
                with_reason(Code::NotFound, reason, message)
            }
            serving::Error::NotReady { .. } => with_reason(Code::FailedPrecondition, reason, message),
            serving::Error::Store(err) => err.into(),
            serving::Error::Artifact(err) => internal(&err),
            serving::Error::Blobs(err) => err.into(),
        }
    }
}

impl From<BlobsError> for Status {
    fn from(err: BlobsError) -> Self {
        // What happened at the artifact store was logged there.
        let (message, reason) = (err.to_string(), err.reason());
        match err {
            BlobsError::Away { .. } | BlobsError::Contended(_) => with_retry(Code::Unavailable, reason, message),
            BlobsError::Damaged { .. } | BlobsError::Missing { .. } => with_reason(Code::Internal, reason, message),
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
        let (message, reason) = (err.to_string(), err.reason());
        match err {
            publish::Error::Invalid(_) => invalid(reason, message),
            publish::Error::BaseMoved { .. }
            | publish::Error::KeyReused(_)
            | publish::Error::SingleTenant { .. }
            | publish::Error::Verify(_)
            | publish::Error::ReplayChanged { .. }
            | publish::Error::EgressNotConfined
            | publish::Error::ActiveMoved
            | publish::Error::NoSources(_)
            | publish::Error::AppDeleted(_)
            | publish::Error::Active(_)
            | publish::Error::Building(_)
            | publish::Error::StillRunning(_)
            | publish::Error::NeededByEvents { .. }
            | publish::Error::DiskFull(_) => with_reason(Code::FailedPrecondition, reason, message),
            publish::Error::AtCapacity(_) | publish::Error::TooMany => {
                with_retry(Code::ResourceExhausted, reason, message)
            }
            publish::Error::NoWorker(_) | publish::Error::Closed | publish::Error::ChangesOvertaken { .. } => {
                with_retry(Code::Unavailable, reason, message)
            }
            publish::Error::Install(err) => install_status(&err, message),
            publish::Error::TypeCheck(err) => type_check_status(&err, message),
            publish::Error::Version(err) => err.into(),
            publish::Error::Draining => draining(),
            publish::Error::Store(err) => err.into(),
            publish::Error::Blobs(err) => err.into(),
            publish::Error::Artifact(_) | publish::Error::Internal => internal(&message),
        }
    }
}

fn type_check_status(err: &TypeCheckError, message: String) -> Status {
    match err {
        TypeCheckError::Types(_) => invalid(err.reason(), message),
        TypeCheckError::Tool(InstallError::DiskFull(_))
        | TypeCheckError::TimedOut(_)
        | TypeCheckError::OutOfMemory
        | TypeCheckError::Failed(_) => with_reason(Code::FailedPrecondition, err.reason(), message),
        TypeCheckError::Tool(_) => with_retry(Code::Unavailable, err.reason(), message),
        TypeCheckError::Broken(_) => internal(&message),
    }
}

fn install_status(err: &InstallError, message: String) -> Status {
    match err {
        InstallError::RegistryAway { .. } => with_retry(Code::Unavailable, err.reason(), message),
        InstallError::Failed { .. }
        | InstallError::TimedOut(_)
        | InstallError::TooLarge(_)
        | InstallError::DiskFull(_) => with_reason(Code::FailedPrecondition, err.reason(), message),
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
    fn a_callers_reason_is_the_one_in_the_audit_log() {
        let text = || "x".to_owned();
        let number = crate::model::VersionNumber(1);
        let errors = [
            publish::Error::BaseMoved { newest: number },
            publish::Error::Install(InstallError::Failed { code: text(), reason: text() }),
            publish::Error::Install(InstallError::RegistryAway { code: text(), reason: text() }),
            publish::Error::Install(InstallError::Broken(text())),
            publish::Error::TypeCheck(TypeCheckError::Tool(InstallError::RegistryAway {
                code: text(),
                reason: text(),
            })),
            publish::Error::TypeCheck(TypeCheckError::Tool(InstallError::TooLarge(text()))),
            publish::Error::TypeCheck(TypeCheckError::OutOfMemory),
            publish::Error::Version(serving::Error::UnknownApp(text())),
            publish::Error::Version(serving::Error::Store(store::Error::Closed)),
            publish::Error::Store(store::Error::Corrupt(text())),
            publish::Error::Blobs(BlobsError::Away { detail: text() }),
            publish::Error::Blobs(BlobsError::Panicked),
            publish::Error::TooMany,
            publish::Error::Draining,
            publish::Error::DiskFull(text()),
            publish::Error::Internal,
        ];
        for err in errors {
            let (told, recorded) = (Status::from(err.clone()), err.reason());
            let told = told.get_error_details().error_info().map(|info| info.reason.clone());
            assert_eq!(told.as_deref(), Some(recorded), "{err:?}");
        }
    }

    #[test]
    fn a_message_is_cut_by_what_it_costs_on_the_wire() {
        for (text, kept) in [("x", 3072), ("ä", 827), ("💥", 413), (" ", 1654), ("%", 1654)] {
            let fits = text.repeat(kept);
            assert_eq!(short(fits.clone()), fits, "{text}");
            assert_eq!(short(format!("{fits}{text}")), format!("{fits}…"), "{text}");
        }
    }
}

//! The audit log's entries.

use bytes::Bytes;

use super::timestamp;
use crate::model::AuditEntry;
use crate::proto;

pub fn audit_entry(entry: AuditEntry) -> proto::AuditEntry {
    let outcome = match &entry.failure {
        None => proto::AuditOutcome::Succeeded,
        Some(_) => proto::AuditOutcome::Failed,
    };
    proto::AuditEntry {
        entry_id: entry.id.to_string(),
        at: Some(timestamp(entry.at())),
        app_id: entry.app.map(String::from).unwrap_or_default(),
        actor: Some(proto::AuditActor { kind: entry.actor_kind, id: entry.actor_id, issuer: entry.actor_issuer }),
        action: entry.action,
        target: entry.target,
        details_json: Bytes::copy_from_slice(entry.details.as_str().as_bytes()),
        request_id: entry.request_id,
        outcome: outcome.into(),
        reason: entry.failure.unwrap_or_default(),
    }
}

//! Who changed what. An entry is written in the transaction of the change that it tells of, so that neither is there without the other.
//!
//! What changes something takes an [`Actor`] and calls [`Record::write`] before its commit. Entries are not changed – but for that of a
//! rotation of keys, which grows until it ends – and those that are older than they are kept go.

use std::fmt::Display;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::codec::{get, get_parsed, millis};
use super::db::{self, Builder, Row, Tx};
use super::{Error, Store, during};
use crate::model::{Actor, ActorKind, AppId, AuditAction, AuditEntry, AuditId, RawJson};

const RECORD: &str = "record who did it";
/// Of an entry's details. What we write stays far below.
const DETAILS_BYTES_MAX: usize = 4096;
const TARGET_CHARS_MAX: usize = 256;

/// An entry to be.
#[derive(Debug, Clone)]
pub(super) struct Record<'a> {
    actor: &'a Actor,
    app: Option<&'a AppId>,
    action: AuditAction,
    target: String,
    details: Value,
    failure: Option<&'a str>,
}

/// Which entries to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// `None`: of all apps, and of the service.
    pub app: Option<AppId>,
    /// Only since the app began to exist: another one may have had its name before.
    pub own: bool,
    pub action: Option<AuditAction>,
    pub actor_kind: Option<ActorKind>,
    pub actor_id: Option<String>,
    /// This moment or later, to the millisecond.
    pub from: Option<SystemTime>,
    /// Before this moment.
    pub until: Option<SystemTime>,
}

impl<'a> Record<'a> {
    /// Of something that was done. `app`: `None` for what concerns the whole service.
    pub fn new(actor: &'a Actor, app: impl Into<Option<&'a AppId>>, action: AuditAction) -> Self {
        Self { actor, app: app.into(), action, target: String::new(), details: json!({}), failure: None }
    }

    pub fn target(mut self, target: impl Display) -> Self {
        self.target = target.to_string().chars().take(TARGET_CHARS_MAX).collect();
        self
    }

    /// An object, without secrets and without texts that somebody wrote.
    pub fn details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// It failed, for this stable reason.
    pub fn failed(mut self, reason: &'a str) -> Self {
        self.failure = Some(reason);
        self
    }

    pub async fn write(self, tx: &mut Tx) -> Result<(), Error> {
        write_all(tx, vec![self]).await
    }

    fn row(self, id: AuditId) -> Vec<db::Value<'a>> {
        let mut details = self.details.to_string();
        if details.len() > DETAILS_BYTES_MAX {
            details = json!({ "too_long": true }).to_string();
        }
        vec![
            id.to_string().into(),
            millis(id.at()).into(),
            self.app.map(AppId::as_str).into(),
            self.actor.kind.as_str().into(),
            (&self.actor.id).into(),
            (&self.actor.issuer).into(),
            (&self.actor.request_id).into(),
            self.action.as_str().into(),
            self.target.into(),
            details.into(),
            self.failure.into(),
        ]
    }
}

/// In this order.
pub(super) async fn write_all(tx: &mut Tx, records: Vec<Record<'_>>) -> Result<(), Error> {
    write_as(tx, records.into_iter().map(|record| (AuditId::new(), record)).collect()).await
}

/// An entry that is there already gets the new details: for work that takes more than one transaction.
pub(super) async fn write_as(tx: &mut Tx, records: Vec<(AuditId, Record<'_>)>) -> Result<(), Error> {
    if records.is_empty() {
        return Ok(());
    }
    let mut sql = Builder::new(
        "INSERT INTO audit_entries (id, at, app_id, actor_kind, actor_id, actor_issuer, request_id, action, target,
             details_json, failure) VALUES ",
    );
    sql.push_rows(records.into_iter().map(|(id, record)| record.row(id)));
    sql.push(" ON CONFLICT (id) DO UPDATE SET details_json = excluded.details_json");
    sql.build().execute(tx).await.map(|_| ()).map_err(during(RECORD))
}

impl Store {
    /// A publish that failed before there was a version: nothing changed, so the entry stands alone. `left_out`: so many like it have
    /// no entry.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn record_refused_publish(
        &self,
        app: &AppId,
        reason: &str,
        left_out: u64,
        actor: &Actor,
    ) -> Result<(), Error> {
        let mut tx = self.begin(RECORD).await?;
        let record = Record::new(actor, app, AuditAction::VersionPublish).failed(reason);
        let details = if left_out > 0 { json!({ "left_out": left_out }) } else { json!({}) };
        record.details(details).write(&mut tx).await?;
        tx.commit().await.map_err(during(RECORD))
    }

    /// The newest first, older than `before`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn audit_entries(
        &self,
        filter: &AuditFilter,
        before: Option<AuditId>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Error> {
        const VERB: &str = "list the audit log";
        let beginning = match &filter.app {
            Some(app) if filter.own => {
                // `None`: it is older than the log, or than the log is kept.
                let sql = "SELECT MAX(id) FROM audit_entries WHERE app_id = $1 AND action = 'app.create'";
                let found = db::query_scalar(sql).bind(app.as_str()).fetch_one(self.read());
                found.await.map_err(during(VERB))?
            }
            _ => None::<String>,
        };
        let first_of = |at: Option<SystemTime>| at.map(|at| AuditId::first_of(at).to_string());
        let mut sql = Builder::new(
            "SELECT id, app_id, actor_kind, actor_id, actor_issuer, request_id, action, target, details_json, failure
             FROM audit_entries WHERE id < ",
        );
        // Beyond every id.
        sql.push_bind(before.map_or_else(|| "g".to_owned(), |id| id.to_string()));
        for (condition, value) in [
            ("app_id = ", filter.app.as_ref().map(ToString::to_string)),
            ("id >= ", beginning),
            ("id >= ", first_of(filter.from)),
            ("id < ", first_of(filter.until)),
            ("action = ", filter.action.map(|action| action.to_string())),
            ("actor_kind = ", filter.actor_kind.map(|kind| kind.to_string())),
            ("actor_id = ", filter.actor_id.clone()),
        ] {
            if let Some(value) = value {
                sql.push(" AND ").push(condition).push_bind(value);
            }
        }
        sql.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        sql.build().fetch_all(self.read()).await.map_err(during(VERB))?.iter().map(decode).collect()
    }

    /// Deletes up to `limit` entries from before this time. Returns how many: call it until that is 0.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn purge_audit(&self, before: SystemTime, limit: u32) -> Result<u64, Error> {
        let query = db::query(
            "DELETE FROM audit_entries WHERE id IN (
                 SELECT id FROM audit_entries WHERE id < $1 ORDER BY id LIMIT $2 /*pg FOR UPDATE SKIP LOCKED */)",
        );
        let query = query.bind(AuditId::first_of(before).to_string()).bind(i64::from(limit));
        query.execute(self.write()).await.map_err(during("purge the audit log"))
    }
}

fn decode(row: &Row) -> Result<AuditEntry, Error> {
    let app: Option<&str> = get(row, "app_id")?;
    Ok(AuditEntry {
        id: get_parsed(row, "id")?,
        app: app.map(|_| get_parsed(row, "app_id")).transpose()?,
        actor_kind: get(row, "actor_kind")?,
        actor_id: get(row, "actor_id")?,
        actor_issuer: get(row, "actor_issuer")?,
        request_id: get(row, "request_id")?,
        action: get(row, "action")?,
        target: get(row, "target")?,
        details: RawJson::trusted(get(row, "details_json")?),
        failure: get(row, "failure")?,
    })
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;

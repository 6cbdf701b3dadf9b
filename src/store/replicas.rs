//! The processes that share the store: each says every now and then that it lives, and what belongs to one that no longer says so is
//! taken over by the others.
//!
//! A claim outlasts the function's timeout, so without this a killed replica's events would wait for as long. One that was only stopped
//! for a while finds its row gone, and counts as another from then on; what it finishes late of what was taken over changes nothing, as
//! each claim has a fence.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::audit::Record;
use super::codec::{get, get_parsed, get_version, json, millis, span_millis};
use super::db::{self, Tx, each};
use super::running_keys::forget_keys;
use super::{Error, Store, during};
use crate::model::{Actor, AppId, AuditAction, FailureKind, FunctionFailure, VersionNumber};

const VERB: &str = "see to the replicas";
/// Only one at a time takes over.
const REAPING: i64 = 0x6368_6174_666e_0001;

/// What belonged to replicas that are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TakenOver {
    pub replicas: u64,
    pub events: u64,
    pub invocations: u64,
    pub builds: u64,
}

impl Store {
    /// Says that we live. False where we were given up meanwhile, or never said so: we are a new replica from now on.
    pub async fn heartbeat(&self, now: SystemTime) -> Result<bool, Error> {
        let clock = each(
            "UPDATE replicas SET seen_at = $2 WHERE id = $1",
            "UPDATE replicas SET seen_at = CASE WHEN $2 > 0 THEN CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) END
             WHERE id = $1",
        );
        let seen = db::query(clock).bind(self.replica()).bind(millis(now));
        if seen.execute(self.write()).await.map_err(during(VERB))? > 0 {
            return Ok(true);
        }
        let register = each(
            "INSERT INTO replicas (started_at, seen_at, migration) VALUES ($1, $1, $2) RETURNING id",
            "INSERT INTO replicas (started_at, seen_at, migration)
             VALUES ($1, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT), $2) RETURNING id",
        );
        let known = self.inner.schema.known;
        let rows =
            db::query(register).bind(millis(now)).bind(known).fetch_all(self.write()).await.map_err(during(VERB))?;
        let row = rows.first().ok_or(Error::Closed)?;
        self.inner.replica.store(get(row, "id")?, Ordering::Release);
        Ok(false)
    }

    /// Takes over from those that have not been seen for so long, and from those that left without a word: their events are claimed
    /// anew (the attempts count, so that an event which brings the service down runs out of them), what they ran has failed, and so
    /// has what they built.
    pub async fn take_over(&self, unseen_for: Duration, now: SystemTime) -> Result<TakenOver, Error> {
        let mut tx = self.begin(VERB).await?;
        tx.lock(vec![REAPING]).await.map_err(during(VERB))?;
        let gone = each(
            "DELETE FROM replicas WHERE id <> $1 AND seen_at <= $2 - $3",
            "DELETE FROM replicas WHERE id <> $1 AND $2 > 0
             AND seen_at <= CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) - $3",
        );
        let gone = db::query(gone).bind(self.replica()).bind(millis(now)).bind(span_millis(unseen_for));
        let taken = TakenOver {
            replicas: gone.execute(&mut tx).await.map_err(during(VERB))?,
            events: release_claims(&mut tx).await?,
            invocations: abandon_invocations(&mut tx, now).await?,
            builds: abandon_builds(&mut tx).await?,
        };
        forget_keys(&mut tx).await?;
        tx.commit().await.map_err(during(VERB))?;
        Ok(taken)
    }

    /// At the end: what we leave may be taken over at once.
    pub async fn sign_off(&self) -> Result<(), Error> {
        let query = db::query("DELETE FROM replicas WHERE id = $1").bind(self.replica());
        query.execute(self.write()).await.map(|_| ()).map_err(during(VERB))
    }

    /// Our number among the replicas; 0 before the first heartbeat.
    pub(super) fn replica(&self) -> i64 {
        self.inner.replica.load(Ordering::Acquire)
    }
}

/// They were due once, so they are due now; their old age puts them first. The first term is the partial index's: what waits and what is
/// finished, which is most of the table, is not looked at.
pub(super) const RELEASE: &str =
    "UPDATE events SET due_at = CASE WHEN state = 1 THEN since ELSE due_at END, claim_id = NULL,
         state = CASE WHEN state = 1 THEN 0 ELSE 5 END
     WHERE state IN (1, 7) AND (replica IS NULL OR replica NOT IN (SELECT id FROM replicas))";

async fn release_claims(tx: &mut Tx) -> Result<u64, Error> {
    db::query(RELEASE).execute(tx).await.map_err(during("release claims"))
}

async fn abandon_invocations(tx: &mut Tx, now: SystemTime) -> Result<u64, Error> {
    let message = "the service stopped while this invocation ran";
    let failure = FunctionFailure::new(FailureKind::Crashed, "ServiceStopped", message);
    let sql = "UPDATE invocations SET status = 2, error_json = $1, finished_at = $2 WHERE status = 0
               AND (replica IS NULL OR replica NOT IN (SELECT id FROM replicas))";
    let query = db::query(sql).bind(json(&failure)?).bind(millis(now));
    query.execute(tx).await.map_err(during("abandon invocations"))
}

async fn abandon_builds(tx: &mut Tx) -> Result<u64, Error> {
    const VERB: &str = "abandon builds";
    let sql = "UPDATE versions SET state = 2, failure = $1 WHERE state = 0
               AND (replica IS NULL OR replica NOT IN (SELECT id FROM replicas)) RETURNING app_id, number, published_by";
    let query = db::query(sql).bind("the service stopped while this version was being built");
    let abandoned = query.fetch_all(&mut *tx).await.map_err(during(VERB))?;
    for row in &abandoned {
        let published_by: Option<&str> = get(row, "published_by")?;
        let actor = published_by.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_else(Actor::service);
        let (app, number): (AppId, VersionNumber) = (get_parsed(row, "app_id")?, get_version(row, "number")?);
        let record = Record::new(&actor, &app, AuditAction::VersionPublish).target(number);
        record.failed("SERVICE_STOPPED").write(tx).await?;
    }
    if !abandoned.is_empty() {
        // Their secrets go with them.
        let secrets =
            "DELETE FROM environments WHERE EXISTS (SELECT 1 FROM versions v WHERE v.app_id = environments.app_id
                       AND v.number = environments.version AND v.state = 2)";
        db::query(secrets).execute(&mut *tx).await.map_err(during(VERB))?;
    }
    Ok(abandoned.len() as u64)
}

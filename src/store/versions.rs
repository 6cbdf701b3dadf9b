//! Versions: numbered when their build begins, immutable when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::apps::{self, Activation};
use super::audit::{self, Record};
use super::codec::{
    corrupt, get, get_json, get_parsed, get_time, get_unsigned, get_version, json as text, millis, signed,
};
use super::db::{self, Row, Tx};
use super::functions::{self, Sources};
use super::{Error, Store, during};
use crate::model::{Actor, AppId, AuditAction, Version, VersionNumber, VersionState};

/// Disabled functions that the audit log names of a publish.
const DISABLED_NAMED_MAX: usize = 20;

/// A version whose build begins.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// BUILDING; its number is ignored.
    pub version: Version,
    pub environment: BTreeMap<String, String>,
    /// What its layer is found by again.
    pub deps_digest: String,
    pub publish_key: Option<PublishKey>,
    /// What the publisher believes to be the newest READY version; 0: there is none.
    pub base: Option<VersionNumber>,
}

/// The publisher's idempotency key, and what it was first used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishKey {
    pub key: String,
    /// Of the request.
    pub digest: String,
}

/// Why a build cannot begin or end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BeginError {
    #[error("version {newest} was published since (0: none is left)")]
    BaseMoved { newest: VersionNumber },
    /// The app or the version was deleted meanwhile, or the build was given up.
    #[error("version {0} is not being built")]
    NotBuilding(VersionNumber),
    #[error(transparent)]
    Store(#[from] Error),
}

/// How a delete ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteVersion {
    Deleted,
    NotFound,
    /// It serves.
    Active,
    Building,
    /// So many queued or running events are bound to it.
    NeededByEvents(u64),
}

/// What is read of a row, by name: with `*` a statement that PostgreSQL has prepared fails once a migration adds a column.
macro_rules! columns {
    () => {
        "app_id, number, state, digest, functions_json, dependencies_json, environment_names_json, limits_json, node_version,
         layer, layer_size_bytes, size_bytes, has_initialization_script, created_at, failure, publish_digest"
    };
}

impl Store {
    /// Numbers a version and keeps it as BUILDING; the app begins to exist if it did not.
    ///
    /// # Errors
    /// `base` is not the newest READY version.
    pub async fn begin_version(&self, new: NewVersion, actor: &Actor) -> Result<VersionNumber, BeginError> {
        const VERB: &str = "begin a version";
        let app = &new.version.app;
        let mut tx = self.begin(VERB).await?;
        apps::ensure(&mut tx, app, new.version.created_at, actor).await?;
        tx.lock_app(app.as_str()).await.map_err(during(VERB))?;
        check_base(&mut tx, app, new.base, VersionNumber(0)).await?;
        let count = "UPDATE apps SET last_version = last_version + 1 WHERE id = $1 RETURNING last_version";
        let row = db::query(count).bind(app.as_str()).fetch_one(&mut tx).await.map_err(during(VERB))?;
        let number = get_version(&row, "last_version")?;
        insert(&mut tx, &new, number, self.replica(), actor).await?;
        self.insert_environment(&mut tx, app, number, &new.environment).await?;
        tx.commit().await.map_err(during(VERB))?;
        Ok(number)
    }

    /// Makes a BUILDING version READY, with all its fields but `created_at`, and lets it serve from now if `activate` says when that is.
    /// Its functions whose settings or sources are new get versions of their own.
    ///
    /// # Errors
    /// `base` is not the newest READY version beside this one; then it stays BUILDING, to be failed by the caller.
    pub async fn finish_version(
        &self,
        version: &Version,
        sources: &Sources,
        activate: Option<SystemTime>,
        base: Option<VersionNumber>,
        actor: &Actor,
    ) -> Result<Option<Activation>, BeginError> {
        const VERB: &str = "finish a version";
        let mut tx = self.begin(VERB).await?;
        tx.lock_app(version.app.as_str()).await.map_err(during(VERB))?;
        check_base(&mut tx, &version.app, base, version.number).await?;
        if !set_ready(&mut tx, version).await? {
            return Err(BeginError::NotBuilding(version.number));
        }
        functions::record(&mut tx, version, sources).await?;
        let before = apps::active(&mut tx, &version.app).await?;
        let published = Record::new(actor, &version.app, AuditAction::VersionPublish).target(version.number);
        let mut records = vec![published.details(told_of(version, before))];
        records.extend(self.environment_changes(&mut tx, version, before, actor).await?);
        audit::write_all(&mut tx, records).await?;
        let activation = match activate {
            Some(now) => apps::activate(&mut tx, &version.app, version.number, now, actor).await?,
            None => None,
        };
        tx.commit().await.map_err(during(VERB))?;
        Ok(activation)
    }

    /// Marks a BUILDING version as FAILED, and forgets its secrets; any other stays as it is. `failure`: what happened, for people, and
    /// the stable reason.
    pub async fn fail_version(
        &self,
        app: &AppId,
        number: VersionNumber,
        (failure, reason): (&str, &str),
        actor: &Actor,
    ) -> Result<(), Error> {
        const VERB: &str = "fail a version";
        let mut tx = self.begin(VERB).await?;
        let sql = "UPDATE versions SET state = 2, failure = $3 WHERE app_id = $1 AND number = $2 AND state = 0";
        let query = db::query(sql).bind(app.as_str()).bind(signed(number.0)).bind(failure);
        let failed = query.execute(&mut tx).await.map_err(during(VERB))?;
        if failed > 0 {
            let query = db::query("DELETE FROM environments WHERE app_id = $1 AND version = $2");
            let query = query.bind(app.as_str()).bind(signed(number.0));
            query.execute(&mut tx).await.map_err(during(VERB))?;
            let record = Record::new(actor, app, AuditAction::VersionPublish).target(number);
            record.failed(reason).write(&mut tx).await?;
        }
        tx.commit().await.map_err(during(VERB))
    }

    /// Lets a version serve; `None` where it is not READY.
    pub async fn activate_version(
        &self,
        app: &AppId,
        number: VersionNumber,
        now: SystemTime,
        actor: &Actor,
    ) -> Result<Option<Activation>, Error> {
        const VERB: &str = "activate a version";
        let mut tx = self.begin(VERB).await?;
        tx.lock_app(app.as_str()).await.map_err(during(VERB))?; // Else it could be deleted meanwhile.
        let activation = apps::activate(&mut tx, app, number, now, actor).await?;
        tx.commit().await.map_err(during(VERB))?;
        Ok(activation)
    }

    pub async fn version(&self, app: &AppId, number: VersionNumber) -> Result<Option<Version>, Error> {
        let query = db::query(concat!("SELECT ", columns!(), " FROM versions WHERE app_id = $1 AND number = $2"));
        let query = query.bind(app.as_str()).bind(signed(number.0));
        let row = query.fetch_optional(self.read()).await.map_err(during("read a version"))?;
        row.as_ref().map(decode).transpose()
    }

    /// The newest READY one; 0: there is none.
    pub async fn newest_version(&self, app: &AppId) -> Result<VersionNumber, Error> {
        let sql = "SELECT COALESCE(MAX(number), 0) AS newest FROM versions WHERE app_id = $1 AND state = 1";
        let query = db::query(sql).bind(app.as_str());
        get_version(&query.fetch_one(self.read()).await.map_err(during("find the newest version"))?, "newest")
    }

    /// Newest first, in every state.
    pub async fn list_versions(
        &self,
        app: &AppId,
        before: Option<VersionNumber>,
        limit: u32,
    ) -> Result<Vec<Version>, Error> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE app_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3"
        );
        let before = before.map_or(i64::MAX, |number| signed(number.0));
        let query = db::query(sql).bind(app.as_str()).bind(before).bind(i64::from(limit));
        query.fetch_all(self.read()).await.map_err(during("list versions"))?.iter().map(decode).collect()
    }

    /// A page of the versions in every state, and how many there are.
    pub async fn version_page(
        &self,
        app: &AppId,
        newest_first: bool,
        (offset, limit): (u64, u32),
    ) -> Result<(Vec<Version>, u64), Error> {
        const VERB: &str = "page through versions";
        let count = db::query("SELECT COUNT(*) AS total FROM versions WHERE app_id = $1").bind(app.as_str());
        let total = count.fetch_one(self.read()).await.map_err(during(VERB))?;
        let sql = if newest_first {
            concat!("SELECT ", columns!(), " FROM versions WHERE app_id = $1 ORDER BY number DESC LIMIT $2 OFFSET $3")
        } else {
            concat!("SELECT ", columns!(), " FROM versions WHERE app_id = $1 ORDER BY number LIMIT $2 OFFSET $3")
        };
        let query = db::query(sql).bind(app.as_str()).bind(i64::from(limit)).bind(signed(offset));
        let rows = query.fetch_all(self.read()).await.map_err(during(VERB))?;
        Ok((rows.iter().map(decode).collect::<Result<_, _>>()?, get_unsigned(&total, "total")?))
    }

    /// The newest READY version with a lower number.
    pub async fn ready_version_before(
        &self,
        app: &AppId,
        number: VersionNumber,
    ) -> Result<Option<VersionNumber>, Error> {
        let sql = "SELECT number FROM versions WHERE app_id = $1 AND number < $2 AND state = 1
                   ORDER BY number DESC LIMIT 1";
        let query = db::query(sql).bind(app.as_str()).bind(signed(number.0));
        let row = query.fetch_optional(self.read()).await.map_err(during("find the version before"))?;
        row.map(|row| get_version(&row, "number")).transpose()
    }

    /// The newest READY version that was published with this key, and the digest of what was published.
    pub async fn version_by_publish_key(&self, app: &AppId, key: &str) -> Result<Option<(Version, String)>, Error> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE app_id = $1 AND publish_key = $2 AND state = 1
                   ORDER BY number DESC LIMIT 1"
        );
        let row = self.newest(sql, app, key).await?;
        row.map(|row| Ok((decode(&row)?, get(&row, "publish_digest")?))).transpose()
    }

    /// The newest READY version with these dependencies: its layer can be used again (none is needed where it is empty).
    pub async fn layer_for(&self, app: &AppId, deps_digest: &str) -> Result<Option<Version>, Error> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE app_id = $1 AND deps_digest = $2 AND state = 1
                   ORDER BY number DESC LIMIT 1"
        );
        self.newest(sql, app, deps_digest).await?.as_ref().map(decode).transpose()
    }

    /// Deletes a version that nothing needs any more. Finished events and dead letters do not need theirs.
    pub async fn delete_version(
        &self,
        app: &AppId,
        number: VersionNumber,
        actor: &Actor,
    ) -> Result<DeleteVersion, Error> {
        let mut tx = self.begin(DELETE).await?;
        tx.lock_app(app.as_str()).await.map_err(during(DELETE))?;
        if let Some(kept) = kept_by(&mut tx, app, number).await? {
            return Ok(kept);
        }
        let query = db::query("DELETE FROM versions WHERE app_id = $1 AND number = $2");
        let query = query.bind(app.as_str()).bind(signed(number.0));
        query.execute(&mut tx).await.map_err(during(DELETE))?;
        functions::forget_unused(&mut tx, app).await?;
        Record::new(actor, app, AuditAction::VersionDelete).target(number).write(&mut tx).await?;
        tx.commit().await.map_err(during(DELETE))?;
        Ok(DeleteVersion::Deleted)
    }

    /// What would keep [`Store::delete_version`] from it now. `None`: nothing.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn version_kept_by(&self, app: &AppId, number: VersionNumber) -> Result<Option<DeleteVersion>, Error> {
        let mut tx = self.begin(DELETE).await?;
        kept_by(&mut tx, app, number).await
    }

    /// The layers that versions of this app use.
    pub async fn layers_in_use(&self, app: &AppId) -> Result<BTreeSet<String>, Error> {
        self.in_use("SELECT DISTINCT layer FROM versions WHERE app_id = $1 AND state < 2 AND layer <> ''", app).await
    }

    /// The artifacts that versions of this app use.
    pub async fn digests_in_use(&self, app: &AppId) -> Result<BTreeSet<String>, Error> {
        self.in_use("SELECT DISTINCT digest FROM versions WHERE app_id = $1 AND state < 2 AND digest <> ''", app).await
    }

    async fn newest(&self, sql: &'static str, app: &AppId, key: &str) -> Result<Option<Row>, Error> {
        let query = db::query(sql).bind(app.as_str()).bind(key);
        query.fetch_optional(self.read()).await.map_err(during("find a version"))
    }

    async fn in_use(&self, sql: &'static str, app: &AppId) -> Result<BTreeSet<String>, Error> {
        let names: Vec<String> = db::query_scalar(sql)
            .bind(app.as_str())
            .fetch_all(self.read())
            .await
            .map_err(during("list what versions use"))?;
        Ok(names.into_iter().collect())
    }
}

const DELETE: &str = "delete a version";

async fn kept_by(tx: &mut Tx, app: &AppId, number: VersionNumber) -> Result<Option<DeleteVersion>, Error> {
    let query = db::query(
        "SELECT v.state, COALESCE(a.active_version = v.number, FALSE) AS active, (
             SELECT COUNT(*) FROM events e WHERE e.app_id = v.app_id AND e.state IN (0, 1, 5, 6, 7) AND e.version = v.number
         ) AS events
         FROM versions v JOIN apps a ON a.id = v.app_id WHERE v.app_id = $1 AND v.number = $2",
    );
    let query = query.bind(app.as_str()).bind(signed(number.0));
    let Some(row) = query.fetch_optional(&mut *tx).await.map_err(during(DELETE))? else {
        return Ok(Some(DeleteVersion::NotFound));
    };
    if get::<bool>(&row, "active")? {
        return Ok(Some(DeleteVersion::Active));
    }
    if decode_state(&row)? == VersionState::Building {
        return Ok(Some(DeleteVersion::Building));
    }
    Ok(Some(get_unsigned(&row, "events")?).filter(|events| *events > 0).map(DeleteVersion::NeededByEvents))
}

async fn check_base(
    tx: &mut Tx,
    app: &AppId,
    base: Option<VersionNumber>,
    except: VersionNumber,
) -> Result<(), BeginError> {
    let Some(base) = base else { return Ok(()) };
    let query = db::query(
        "SELECT COALESCE(MAX(number), 0) AS newest FROM versions WHERE app_id = $1 AND state = 1 AND number <> $2",
    );
    let query = query.bind(app.as_str()).bind(signed(except.0));
    let row = query.fetch_one(&mut *tx).await.map_err(during("check the base version"))?;
    let newest = get_version(&row, "newest")?;
    if newest == base { Ok(()) } else { Err(BeginError::BaseMoved { newest }) }
}

async fn insert(
    tx: &mut Tx,
    new: &NewVersion,
    number: VersionNumber,
    replica: i64,
    actor: &Actor,
) -> Result<(), Error> {
    let v = &new.version;
    let query = db::query(
        "INSERT INTO versions (app_id, number, state, digest, functions_json, dependencies_json,
             environment_names_json, limits_json, node_version, layer, layer_size_bytes, size_bytes,
             has_initialization_script, created_at, failure, deps_digest, publish_key, publish_digest, replica,
             published_by)
         VALUES ($1, $2, 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, '', $14, $15, $16, $17, $18)",
    );
    let query = query.bind(v.app.as_str()).bind(signed(number.0)).bind(&v.digest);
    let query = query.bind(text(&v.functions)?).bind(text(&v.dependencies)?).bind(text(&v.environment_names)?);
    let query = query.bind(text(&v.limits)?).bind(&v.node_version);
    let query = query.bind(&v.layer).bind(signed(v.layer_size_bytes)).bind(signed(v.size_bytes));
    let query = query.bind(v.has_initialization_script).bind(millis(v.created_at));
    let key = new.publish_key.as_ref();
    let query =
        query.bind(&new.deps_digest).bind(key.map(|key| &key.key)).bind(key.map(|key| &key.digest)).bind(replica);
    let query = query.bind(text(actor)?);
    query.execute(&mut *tx).await.map_err(during("insert a version"))?;
    Ok(())
}

/// What the audit log tells of a publish beside its number.
fn told_of(version: &Version, before: Option<VersionNumber>) -> Value {
    let disabled = version.functions.iter().filter(|function| function.disabled).map(|f| f.trigger_type.as_str());
    json!({
        "digest": version.digest,
        "active_before": before.map(|before| before.0),
        "functions": version.functions.len(),
        "disabled": disabled.take(DISABLED_NAMED_MAX).collect::<Vec<_>>(),
        "dependencies": version.dependencies.len(),
        "egress": version.limits.egress,
    })
}

/// False where the version is not BUILDING.
async fn set_ready(tx: &mut Tx, v: &Version) -> Result<bool, Error> {
    let query = db::query(
        "UPDATE versions SET state = 1, digest = $3, functions_json = $4, dependencies_json = $5,
             environment_names_json = $6, limits_json = $7, node_version = $8, layer = $9, layer_size_bytes = $10,
             size_bytes = $11, has_initialization_script = $12
         WHERE app_id = $1 AND number = $2 AND state = 0",
    );
    let query = query.bind(v.app.as_str()).bind(signed(v.number.0)).bind(&v.digest);
    let query = query.bind(text(&v.functions)?).bind(text(&v.dependencies)?).bind(text(&v.environment_names)?);
    let query = query.bind(text(&v.limits)?).bind(&v.node_version);
    let query = query.bind(&v.layer).bind(signed(v.layer_size_bytes)).bind(signed(v.size_bytes));
    let query = query.bind(v.has_initialization_script);
    let changed = query.execute(&mut *tx).await.map_err(during("make a version ready"))?;
    Ok(changed > 0)
}

fn decode(row: &Row) -> Result<Version, Error> {
    Ok(Version {
        app: get_parsed(row, "app_id")?,
        number: get_version(row, "number")?,
        state: decode_state(row)?,
        digest: get(row, "digest")?,
        functions: get_json(row, "functions_json")?,
        dependencies: get_json(row, "dependencies_json")?,
        environment_names: get_json(row, "environment_names_json")?,
        limits: get_json(row, "limits_json")?,
        node_version: get(row, "node_version")?,
        layer: get(row, "layer")?,
        layer_size_bytes: get_unsigned(row, "layer_size_bytes")?,
        size_bytes: get_unsigned(row, "size_bytes")?,
        has_initialization_script: get(row, "has_initialization_script")?,
        created_at: get_time(row, "created_at")?,
        failure: get(row, "failure")?,
    })
}

fn decode_state(row: &Row) -> Result<VersionState, Error> {
    match get::<i64>(row, "state")? {
        0 => Ok(VersionState::Building),
        1 => Ok(VersionState::Ready),
        2 => Ok(VersionState::Failed),
        other => Err(corrupt("state", other)),
    }
}

#[cfg(test)]
#[path = "versions_tests.rs"]
mod tests;

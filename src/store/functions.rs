//! An app's functions, each with versions of its own. The app's versions say which of these they run.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::apps;
use super::audit::Record;
use super::codec::{get, get_time, get_unsigned, get_version, json, millis, signed};
use super::db::{self, Builder, Row, Tx};
use super::{Error, Store, during};
use crate::model::{Actor, AppId, AuditAction, Function, TriggerType, Version, VersionNumber};

/// A digest of each function's source.
pub type Sources = BTreeMap<TriggerType, String>;

/// A function of an app, whether or not it has a version yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRecord {
    pub id: u64,
    pub trigger_type: TriggerType,
    /// As it was created, or last published.
    pub name: String,
    pub description: String,
    /// Which of its versions the active version of the app runs; `None`: it has no such function.
    pub current: Option<FunctionVersionRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionVersionRecord {
    pub id: u64,
    pub function_id: u64,
    /// Counts the function's versions from 1.
    pub number: u64,
    pub trigger_type: TriggerType,
    /// The newest version of the app that runs it.
    pub app_version: VersionNumber,
    pub created_at: SystemTime,
}

const FUNCTIONS: &str = "SELECT f.id, f.trigger_type, f.name, f.description, fv.id AS version_id, fv.number, fv.created_at AS published_at, a.active_version
    FROM functions f JOIN apps a ON a.id = f.app_id
    LEFT JOIN function_bindings b ON b.app_id = f.app_id AND b.app_version = a.active_version AND b.function_id = f.id
    LEFT JOIN function_versions fv ON fv.id = b.function_version_id WHERE f.app_id = ";

const VERSIONS: &str = "SELECT fv.id, fv.function_id, fv.number, fv.created_at, f.trigger_type, (
        SELECT MAX(b.app_version) FROM function_bindings b WHERE b.function_version_id = fv.id) AS app_version
    FROM function_versions fv JOIN functions f ON f.id = fv.function_id WHERE ";

impl Store {
    /// `None`: the app has a function of this trigger type already. The app begins to exist if it did not.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn create_function(
        &self,
        app: &AppId,
        trigger_type: &TriggerType,
        (name, description): (&str, &str),
        now: SystemTime,
        actor: &Actor,
    ) -> Result<Option<FunctionRecord>, Error> {
        const VERB: &str = "create a function";
        let mut tx = self.begin(VERB).await?;
        apps::ensure(&mut tx, app, now, actor).await?;
        let query = db::query_scalar(
            "INSERT INTO functions (app_id, trigger_type, name, description, last_number, created_at)
             VALUES ($1, $2, $3, $4, 0, $5) ON CONFLICT (app_id, trigger_type) DO NOTHING RETURNING id",
        );
        let query = query.bind(app.as_str()).bind(trigger_type.as_str()).bind(name).bind(description).bind(millis(now));
        let ids: Vec<i64> = query.fetch_all(&mut tx).await.map_err(during(VERB))?;
        if !ids.is_empty() {
            Record::new(actor, app, AuditAction::FunctionCreate).target(trigger_type).write(&mut tx).await?;
        }
        tx.commit().await.map_err(during(VERB))?;
        Ok(ids.first().map(|id| FunctionRecord {
            id: id.unsigned_abs(),
            trigger_type: trigger_type.clone(),
            name: name.to_owned(),
            description: description.to_owned(),
            current: None,
        }))
    }

    /// In the order of their ids. There are no more than trigger types.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn functions(&self, app: &AppId) -> Result<Vec<FunctionRecord>, Error> {
        let mut sql = Builder::new(FUNCTIONS);
        sql.push_bind(app.as_str()).push(" ORDER BY f.id");
        let rows = sql.build().fetch_all(self.read()).await.map_err(during("list functions"))?;
        rows.iter().map(decode).collect()
    }

    /// # Errors
    /// The store cannot be read.
    pub async fn function(&self, app: &AppId, id: u64) -> Result<Option<FunctionRecord>, Error> {
        let mut sql = Builder::new(FUNCTIONS);
        sql.push_bind(app.as_str()).push(" AND f.id = ").push_bind(signed(id));
        let row = sql.build().fetch_optional(self.read()).await.map_err(during("read a function"))?;
        row.as_ref().map(decode).transpose()
    }

    /// A page of a function's versions, and how many there are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn function_versions(
        &self,
        function_id: u64,
        newest_first: bool,
        (offset, limit): (u64, u32),
    ) -> Result<(Vec<FunctionVersionRecord>, u64), Error> {
        const VERB: &str = "list a function's versions";
        let count = "SELECT COUNT(*) AS total FROM function_versions WHERE function_id = $1";
        let total = db::query(count).bind(signed(function_id)).fetch_one(self.read()).await.map_err(during(VERB))?;
        let mut sql = Builder::new(VERSIONS);
        sql.push("fv.function_id = ").push_bind(signed(function_id));
        sql.push(if newest_first { " ORDER BY fv.number DESC" } else { " ORDER BY fv.number" });
        sql.push(" LIMIT ").push_bind(i64::from(limit)).push(" OFFSET ").push_bind(signed(offset));
        let rows = sql.build().fetch_all(self.read()).await.map_err(during(VERB))?;
        Ok((rows.iter().map(decode_version).collect::<Result<_, _>>()?, get_unsigned(&total, "total")?))
    }

    /// # Errors
    /// The store cannot be read.
    pub async fn function_version(&self, app: &AppId, id: u64) -> Result<Option<FunctionVersionRecord>, Error> {
        let mut sql = Builder::new(VERSIONS);
        sql.push("fv.app_id = ").push_bind(app.as_str()).push(" AND fv.id = ").push_bind(signed(id));
        let row = sql.build().fetch_optional(self.read()).await.map_err(during("read a function's version"))?;
        row.as_ref().map(decode_version).transpose()
    }

    /// Which version of the function this version of its app runs. `None`: none, or the app's version is gone.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn function_version_in(
        &self,
        function_id: u64,
        app_version: VersionNumber,
    ) -> Result<Option<FunctionVersionRecord>, Error> {
        let mut sql = Builder::new(VERSIONS);
        sql.push("fv.id = (SELECT function_version_id FROM function_bindings WHERE function_id = ");
        sql.push_bind(signed(function_id)).push(" AND app_version = ").push_bind(signed(app_version.0)).push(")");
        let row = sql.build().fetch_optional(self.read()).await.map_err(during("find a function's version"))?;
        row.as_ref().map(decode_version).transpose()
    }
}

/// For a version that becomes READY: a function that differs from its newest version gets another.
pub(super) async fn record(tx: &mut Tx, version: &Version, sources: &Sources) -> Result<(), Error> {
    const VERB: &str = "record a version's functions";
    let app = version.app.as_str();
    for function in &version.functions {
        let query = db::query(
            "INSERT INTO functions (app_id, trigger_type, name, description, last_number, created_at)
             VALUES ($1, $2, $3, $4, 0, $5)
             ON CONFLICT (app_id, trigger_type) DO UPDATE SET name = excluded.name, description = excluded.description
             RETURNING id, last_number",
        );
        let query = query.bind(app).bind(function.trigger_type.as_str()).bind(&function.name);
        let query = query.bind(&function.description).bind(millis(version.created_at));
        let row = query.fetch_one(&mut *tx).await.map_err(during(VERB))?;
        let (id, last): (i64, i64) = (get(&row, "id")?, get(&row, "last_number")?);
        let fingerprint = fingerprint(function, sources.get(&function.trigger_type))?;
        let newest =
            "SELECT id, fingerprint FROM function_versions WHERE function_id = $1 ORDER BY number DESC LIMIT 1";
        let newest = db::query(newest).bind(id).fetch_optional(&mut *tx).await.map_err(during(VERB))?;
        let bound = match newest {
            Some(newest) if get::<&str>(&newest, "fingerprint")? == fingerprint => get(&newest, "id")?,
            _ => add_version(tx, version, id, last + 1, &fingerprint).await.map_err(during(VERB))?,
        };
        let query = "INSERT INTO function_bindings (app_id, app_version, function_id, function_version_id)
                     VALUES ($1, $2, $3, $4)";
        let query = db::query(query).bind(app).bind(signed(version.number.0)).bind(id).bind(bound);
        query.execute(&mut *tx).await.map_err(during(VERB))?;
    }
    Ok(())
}

async fn add_version(
    tx: &mut Tx,
    version: &Version,
    function_id: i64,
    number: i64,
    fingerprint: &str,
) -> Result<i64, sqlx::Error> {
    let query = db::query("UPDATE functions SET last_number = $2 WHERE id = $1").bind(function_id).bind(number);
    query.execute(&mut *tx).await?;
    let query = db::query_scalar(
        "INSERT INTO function_versions (app_id, function_id, number, fingerprint, created_at)
         VALUES ($1, $2, $3, $4, $5) RETURNING id",
    );
    let query = query.bind(version.app.as_str()).bind(function_id).bind(number).bind(fingerprint);
    query.bind(millis(version.created_at)).fetch_one(&mut *tx).await
}

/// After versions of the app are gone: what no version runs any more has no source either.
pub(super) async fn forget_unused(tx: &mut Tx, app: &AppId) -> Result<(), Error> {
    let query = db::query(
        "DELETE FROM function_versions WHERE app_id = $1
         AND NOT EXISTS (SELECT 1 FROM function_bindings b WHERE b.function_version_id = function_versions.id)",
    );
    let deleted = query.bind(app.as_str()).execute(&mut *tx).await;
    deleted.map(|_| ()).map_err(during("forget unused versions of functions"))
}

fn fingerprint(function: &Function, source: Option<&String>) -> Result<String, Error> {
    let text = json(&(function, source))?;
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

fn decode(row: &Row) -> Result<FunctionRecord, Error> {
    let trigger_type = TriggerType::stored(get(row, "trigger_type")?);
    let id = get_unsigned(row, "id")?;
    let current = match get::<Option<i64>>(row, "version_id")? {
        None => None,
        Some(version_id) => Some(FunctionVersionRecord {
            id: version_id.unsigned_abs(),
            function_id: id,
            number: get_unsigned(row, "number")?,
            trigger_type: trigger_type.clone(),
            app_version: get_version(row, "active_version")?,
            created_at: get_time(row, "published_at")?,
        }),
    };
    Ok(FunctionRecord { id, trigger_type, name: get(row, "name")?, description: get(row, "description")?, current })
}

fn decode_version(row: &Row) -> Result<FunctionVersionRecord, Error> {
    Ok(FunctionVersionRecord {
        id: get_unsigned(row, "id")?,
        function_id: get_unsigned(row, "function_id")?,
        number: get_unsigned(row, "number")?,
        trigger_type: TriggerType::stored(get(row, "trigger_type")?),
        app_version: get_version(row, "app_version")?,
        created_at: get_time(row, "created_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::DeleteVersion;
    use super::super::testing::{actor, app, at, building, built, ready_version, sqlite_store, store, trigger};
    use super::*;

    async fn publish(store: &Store, source: &str) -> VersionNumber {
        let new = building("shop");
        let number = store.begin_version(new.clone(), actor()).await.expect("begin");
        let sources = Sources::from([(trigger(), source.to_owned())]);
        store.finish_version(&built(&new, number), &sources, Some(at(0)), None, actor()).await.expect("finish");
        number
    }

    async fn only(store: &Store) -> FunctionRecord {
        let mut functions = store.functions(&app("shop")).await.expect("functions");
        assert_eq!(functions.len(), 1);
        functions.remove(0)
    }

    #[tokio::test]
    async fn a_function_counts_its_own_versions_and_the_active_one_is_its_current() {
        let (_dir, store) = store().await;
        let one = publish(&store, "a").await;
        let first = only(&store).await.current.expect("runs");
        assert_eq!((first.number, first.app_version), (1, one));
        let same = publish(&store, "a").await;
        let current = only(&store).await.current.expect("runs");
        assert_eq!((current.id, current.number, current.app_version), (first.id, 1, same));
        publish(&store, "b").await;
        assert_eq!(only(&store).await.current.expect("runs").number, 2);
        assert!(store.activate_version(&app("shop"), one, at(0), actor()).await.expect("activate").is_some());
        let function = only(&store).await;
        assert_eq!(function.current.expect("runs").id, first.id);
        let (versions, total) = store.function_versions(function.id, true, (0, 1)).await.expect("versions");
        assert_eq!((versions[0].number, total), (2, 2));
        let (versions, _) = store.function_versions(function.id, false, (1, 5)).await.expect("versions");
        assert_eq!(versions.iter().map(|version| version.number).collect::<Vec<_>>(), [2]);
        assert_eq!(store.function(&app("other"), function.id).await.expect("read"), None);
        assert_eq!(store.function_version(&app("other"), first.id).await.expect("read"), None);
    }

    #[tokio::test]
    async fn what_no_version_runs_goes_and_its_number_never_comes_back() {
        let (_dir, store) = store().await;
        let one = publish(&store, "a").await;
        let first = only(&store).await.current.expect("runs");
        let two = publish(&store, "b").await;
        publish(&store, "a").await;
        assert_eq!(only(&store).await.current.expect("runs").number, 3, "it differs from the newest");
        for number in [one, two] {
            assert_eq!(
                store.delete_version(&app("shop"), number, actor()).await.expect("delete"),
                DeleteVersion::Deleted
            );
        }
        assert_eq!(store.function_version(&app("shop"), first.id).await.expect("read"), None);
        let function = only(&store).await;
        assert_eq!(store.function_version_in(function.id, one).await.expect("read"), None);
        publish(&store, "b").await;
        assert_eq!(only(&store).await.current.expect("runs").number, 4);
    }

    #[tokio::test]
    async fn a_function_may_exist_before_its_first_version() {
        let (_dir, store) = store().await;
        let create = async || store.create_function(&app("shop"), &trigger(), ("Greet", "hi"), at(1), actor()).await;
        let created = create().await.expect("create").expect("new");
        assert_eq!(only(&store).await, created);
        assert_eq!(create().await.expect("create"), None);
        ready_version(&store, "shop").await;
        let published = only(&store).await;
        assert_eq!((published.id, published.current.expect("runs").number), (created.id, 1));
    }

    #[tokio::test]
    async fn what_was_published_before_there_were_functions_gets_them() {
        let (_dir, store) = sqlite_store().await; // Older than our use of PostgreSQL.
        for id in ["shop", "other", "shop"] {
            ready_version(&store, id).await;
        }
        let again = "DROP TABLE function_bindings; DROP TABLE function_versions; DROP TABLE functions;
                     DROP INDEX invocations_by_function;";
        for sql in [again, include_str!("../../migrations/sqlite/0007_functions.sql")] {
            store.write().run_script(sql).await.expect("migrates");
        }
        let function = only(&store).await;
        let current = function.current.expect("runs");
        assert_eq!((current.number, current.app_version, function.name.as_str()), (2, VersionNumber(2), "Greet"));
        let (versions, total) = store.function_versions(function.id, false, (0, 9)).await.expect("versions");
        assert_eq!((versions[0].number, versions[0].app_version, total), (1, VersionNumber(1), 2));
        publish(&store, "a").await;
        assert_eq!(only(&store).await.current.expect("runs").number, 3);
        assert_eq!(store.functions(&app("other")).await.expect("functions").len(), 1);
    }
}

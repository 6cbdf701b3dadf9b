//! Values that are encrypted, and the keys that they take. How is [`crate::secrets`]' business.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::audit::{self, Record};
use super::codec::{get, get_unsigned, signed};
use super::db::{self, On, Row, Tx};
use super::{Error, Secret256, Store, during};
use crate::model::{Actor, AppId, AuditAction, AuditId, Version, VersionNumber};
use crate::secrets::{self, DataKey, Keyring, Variable, What};

/// Rows that one transaction of a rotation changes: others wait for the writer meanwhile.
const BATCH: i64 = 100;
const ROTATE: &str = "rotate keys";

/// What a rotation did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// The key that everything takes now.
    pub key_id: String,
    /// Data keys that were encrypted anew.
    pub data_keys: u64,
    /// Values that lay there as they are, and do no more.
    pub values: u64,
    /// Keys of the service's own.
    pub service_keys: u64,
    /// What could not be opened, and so stays as it is.
    pub failed: Vec<String>,
}

impl Store {
    /// Encrypts what is written from now on, and opens what was. Call it before anything else; only the first call counts.
    pub fn use_keys(&self, keys: Keyring) {
        let _ = self.inner.keys.set(keys);
    }

    fn keys(&self) -> Option<&Keyring> {
        self.inner.keys.get()
    }

    pub(super) async fn insert_environment(
        &self,
        tx: &mut Tx,
        app: &AppId,
        number: VersionNumber,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        if environment.is_empty() {
            return Ok(());
        }
        let key = match self.keys() {
            Some(keys) => Some(data_key(tx, keys, app.as_str()).await?),
            None => None,
        };
        for (name, value) in environment {
            let sql =
                "INSERT INTO environments (app_id, version, name, value, data_key_id) VALUES ($1, $2, $3, $4, $5)";
            let query = db::query(sql).bind(app.as_str()).bind(signed(number.0)).bind(name);
            let query = match &key {
                Some(key) => query.bind(key.seal(Variable { version: number.0, name }, value)?).bind(Some(key.id())),
                None => query.bind(value.clone()).bind(None::<&str>),
            };
            query.execute(&mut *tx).await.map_err(during("insert an environment"))?;
        }
        Ok(())
    }

    /// Secrets, by name; empty where there is no such version.
    ///
    /// # Errors
    /// One cannot be opened: its key is missing, or it was changed.
    pub async fn environment(&self, app: &AppId, number: VersionNumber) -> Result<BTreeMap<String, String>, Error> {
        let rows = environment_rows(self.read(), app, number).await?;
        self.opened(&rows, app, number)
    }

    fn opened(&self, rows: &[Row], app: &AppId, number: VersionNumber) -> Result<BTreeMap<String, String>, Error> {
        let mut key = None;
        let mut environment = BTreeMap::new();
        for row in rows {
            let (name, value): (String, String) = (get(row, "name")?, get(row, "value")?);
            let value = match get::<Option<String>>(row, "data_key_id")? {
                None => value,
                Some(id) => {
                    let of = Variable { version: number.0, name: &name };
                    if key.is_none() {
                        key = Some(self.data_key_of(row, app, of, id)?);
                    }
                    key.as_ref().map_or(Ok(String::new()), |key: &DataKey| key.open(of, &value))?
                }
            };
            environment.insert(name, value);
        }
        Ok(environment)
    }

    /// For the audit log: which variables of a version are new, differ, or are gone, against the version that served when it was
    /// published. Where one of the two cannot be opened (its key is missing) all of them count as set.
    pub(super) async fn environment_changes<'a>(
        &self,
        tx: &mut Tx,
        version: &'a Version,
        before: Option<VersionNumber>,
        actor: &'a Actor,
    ) -> Result<Vec<Record<'a>>, Error> {
        let (app, number) = (&version.app, version.number);
        let rows = environment_rows(&mut *tx, app, number).await?;
        let old_rows = match before {
            Some(before) => environment_rows(&mut *tx, app, before).await?,
            None => Vec::new(),
        };
        let compared = before.map(|before| self.opened(&old_rows, app, before)).transpose().ok().flatten();
        let compared = compared.zip(self.opened(&rows, app, number).ok());
        let names = |rows: &[Row]| rows.iter().map(|row| get(row, "name")).collect::<Result<BTreeSet<String>, Error>>();
        let (new, old) = (names(&rows)?, names(&old_rows)?);
        let same = |name: &&String| compared.as_ref().is_some_and(|(old, new)| old.get(*name) == new.get(*name));
        let record = |action, name: &String| {
            Record::new(actor, app, action).target(name).details(json!({ "version": number.0 }))
        };
        let set = new.iter().filter(|name| !same(name)).map(|name| record(AuditAction::EnvSet, name));
        let unset = old.difference(&new).map(|name| record(AuditAction::EnvUnset, name));
        Ok(set.chain(unset).collect())
    }

    /// The app's data key, from a row that was joined with it. `id`: of the one that the value takes.
    fn data_key_of(&self, row: &Row, app: &AppId, of: Variable<'_>, id: String) -> Result<DataKey, Error> {
        let what = || What::Variable { app: app.to_string(), version: of.version, name: of.name.to_owned() };
        let (Some(own), Some(wrapped)) = (get::<Option<String>>(row, "id")?, get::<Option<String>>(row, "wrapped")?)
        else {
            return Err(secrets::Error::UnknownKey { what: what(), key_id: id }.into());
        };
        let Some(keys) = self.keys() else {
            let key_id = wrapped.split(':').nth(1).unwrap_or_default().to_owned();
            return Err(secrets::Error::NoKeys { what: what(), key_id }.into());
        };
        Ok(DataKey::unwrap(app.as_str(), &own, &wrapped, keys)?)
    }

    /// The service's key of this name: `fresh` if there was none.
    pub async fn service_key(&self, name: &str, fresh: Secret256) -> Result<Secret256, Error> {
        const VERB: &str = "read a key of the service";
        let what = What::ServiceKey { name: name.to_owned() };
        let wrapped = self.keys().map(|keys| keys.wrap(&what, &fresh)).transpose()?.map(|(wrapped, _)| wrapped);
        let value = if wrapped.is_some() { &[][..] } else { &fresh[..] };
        let insert = db::query(
            "INSERT INTO service_keys (name, value, wrapped) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        );
        insert.bind(name).bind(value).bind(wrapped).execute(self.write()).await.map_err(during(VERB))?;
        let query = db::query("SELECT value, wrapped FROM service_keys WHERE name = $1").bind(name);
        let row = query.fetch_one(self.read()).await.map_err(during(VERB))?;
        match get::<Option<String>>(&row, "wrapped")? {
            None => get_256(&row, "value"),
            Some(wrapped) => match self.keys() {
                Some(keys) => Ok(*keys.unwrap(&what, &wrapped)?),
                None => {
                    let key_id = wrapped.split(':').nth(1).unwrap_or_default().to_owned();
                    Err(secrets::Error::NoKeys { what, key_id }.into())
                }
            },
        }
    }

    /// Encrypts every data key with the current one of the operator's, and what lies there as it is. In small transactions, so a
    /// service may run meanwhile; a rotation that was cut off is ended by the next one.
    ///
    /// # Errors
    /// No keys are in use, or the database refuses. What cannot be opened is no error: it is in [`Rotation::failed`].
    pub async fn rotate_keys(&self, actor: &Actor, mut progress: impl FnMut(&Rotation)) -> Result<Rotation, Error> {
        let Some(keys) = self.keys() else { return Ok(Rotation::default()) };
        let mut done = Rotation { key_id: keys.current_id(), ..Rotation::default() };
        let entry = Entry { id: AuditId::new(), actor };
        self.forget_on_write().await?;
        let mut after = String::new();
        while let Some(last) = self.rotate_data_keys(keys, &after, &mut done, entry).await? {
            after = last;
            progress(&done);
        }
        let mut after = (String::new(), 0, String::new());
        while let Some(last) = self.encrypt_values(keys, &after, &mut done, entry).await? {
            after = last;
            progress(&done);
        }
        self.rotate_service_keys(keys, &mut done, entry).await?;
        progress(&done);
        Ok(done)
    }

    /// One batch. The last app of it; `None`: there was nothing left.
    async fn rotate_data_keys(
        &self,
        keys: &Keyring,
        after: &str,
        done: &mut Rotation,
        entry: Entry<'_>,
    ) -> Result<Option<String>, Error> {
        let mut tx = self.begin(ROTATE).await?;
        let query = db::query(
            "SELECT app_id, id, wrapped FROM data_keys WHERE master_key_id <> $1 AND app_id > $2 ORDER BY app_id LIMIT $3",
        );
        let query = query.bind(done.key_id.clone()).bind(after).bind(BATCH);
        let rows = query.fetch_all(&mut tx).await.map_err(during(ROTATE))?;
        let mut last = None;
        for row in &rows {
            let (app, id, old): (String, String, String) = (get(row, "app_id")?, get(row, "id")?, get(row, "wrapped")?);
            let wrapped = DataKey::unwrap(&app, &id, &old, keys).and_then(|key| key.wrap(keys));
            match wrapped {
                Ok((wrapped, master)) => {
                    let sql = "UPDATE data_keys SET wrapped = $3, master_key_id = $4 WHERE app_id = $1 AND id = $2";
                    let query = db::query(sql).bind(app.clone()).bind(id).bind(wrapped).bind(master);
                    query.execute(&mut tx).await.map_err(during(ROTATE))?;
                    done.data_keys += 1;
                }
                Err(err) => done.failed.push(err.to_string()),
            }
            last = Some(app);
        }
        if last.is_some() {
            entry.write(&mut tx, done, false).await?;
        }
        tx.commit().await.map_err(during(ROTATE))?;
        Ok(last)
    }

    /// One batch of values that lie there as they are. The last of them; `None`: there was nothing left.
    async fn encrypt_values(
        &self,
        keys: &Keyring,
        (app, version, name): &(String, u64, String),
        done: &mut Rotation,
        entry: Entry<'_>,
    ) -> Result<Option<(String, u64, String)>, Error> {
        let mut tx = self.begin(ROTATE).await?;
        let query = db::query(
            "SELECT app_id, version, name, value FROM environments WHERE data_key_id IS NULL
                 AND (app_id, version, name) > ($1, $2, $3) ORDER BY app_id, version, name LIMIT $4",
        );
        let query = query.bind(app).bind(signed(*version)).bind(name).bind(BATCH);
        let rows = query.fetch_all(&mut tx).await.map_err(during(ROTATE))?;
        let mut last = None;
        for row in &rows {
            let (app, version, name): (String, u64, String) =
                (get(row, "app_id")?, get_unsigned(row, "version")?, get(row, "name")?);
            let value = zeroize::Zeroizing::new(get::<String>(row, "value")?);
            match data_key(&mut tx, keys, &app).await {
                Ok(key) => {
                    let sealed = key.seal(Variable { version, name: &name }, &value)?;
                    let sql = "UPDATE environments SET value = $4, data_key_id = $5
                               WHERE app_id = $1 AND version = $2 AND name = $3";
                    let query = db::query(sql).bind(app.clone()).bind(signed(version)).bind(name.clone());
                    let query = query.bind(sealed).bind(key.id());
                    query.execute(&mut tx).await.map_err(during(ROTATE))?;
                    done.values += 1;
                }
                Err(Error::Secret(err)) => done.failed.push(err.to_string()),
                Err(err) => return Err(err),
            }
            last = Some((app, version, name));
        }
        if last.is_some() {
            entry.write(&mut tx, done, false).await?;
        }
        tx.commit().await.map_err(during(ROTATE))?;
        Ok(last)
    }

    /// There are a handful.
    async fn rotate_service_keys(&self, keys: &Keyring, done: &mut Rotation, entry: Entry<'_>) -> Result<(), Error> {
        let mut tx = self.begin(ROTATE).await?;
        let query = db::query("SELECT name, value, wrapped FROM service_keys ORDER BY name");
        for row in &query.fetch_all(&mut tx).await.map_err(during(ROTATE))? {
            let name: String = get(row, "name")?;
            let what = What::ServiceKey { name: name.clone() };
            let key = match get::<Option<String>>(row, "wrapped")? {
                Some(wrapped) if wrapped.split(':').nth(1) == Some(done.key_id.as_str()) => continue,
                Some(wrapped) => match keys.unwrap(&what, &wrapped) {
                    Ok(key) => *key,
                    Err(err) => {
                        done.failed.push(err.to_string());
                        continue;
                    }
                },
                None => get_256(row, "value")?,
            };
            let (wrapped, _) = keys.wrap(&what, &key)?;
            let query = db::query("UPDATE service_keys SET wrapped = $2, value = $3 WHERE name = $1");
            let query = query.bind(name).bind(wrapped).bind(Vec::<u8>::new());
            query.execute(&mut tx).await.map_err(during(ROTATE))?;
            done.service_keys += 1;
        }
        entry.write(&mut tx, done, true).await?;
        tx.commit().await.map_err(during(ROTATE))
    }

    /// SQLite leaves what it replaces in its pages until something else is written there: from now on it writes zeros over it.
    async fn forget_on_write(&self) -> Result<(), Error> {
        if self.write().is_postgres() {
            return Ok(()); // VACUUM and the end of its write-ahead log do that, in their time.
        }
        db::query("PRAGMA secure_delete = ON").execute(self.write()).await.map(|_| ()).map_err(during(ROTATE))
    }

    /// Empties SQLite's write-ahead log, which keeps what was written before as well. False: others read from it just now.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn empty_log(&self) -> Result<bool, Error> {
        if self.write().is_postgres() {
            return Ok(true);
        }
        let query = db::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)");
        let busy: i64 = query.fetch_one(self.write()).await.map_err(during("empty the write-ahead log"))?;
        Ok(busy == 0)
    }
}

/// A rotation in the audit log: one entry, which each of its transactions brings up to date.
#[derive(Clone, Copy)]
struct Entry<'a> {
    id: AuditId,
    actor: &'a Actor,
}

impl Entry<'_> {
    async fn write(self, tx: &mut Tx, done: &Rotation, ended: bool) -> Result<(), Error> {
        let Rotation { key_id, data_keys, values, service_keys, failed } = done;
        let details = json!({
            "data_keys": data_keys,
            "values": values,
            "service_keys": service_keys,
            "failed": failed.len(),
            "ended": ended,
        });
        let record = Record::new(self.actor, None, AuditAction::KeysRotate).target(key_id).details(details);
        audit::write_as(tx, vec![(self.id, record)]).await
    }
}

async fn environment_rows(on: impl Into<On<'_>>, app: &AppId, number: VersionNumber) -> Result<Vec<Row>, Error> {
    let query = db::query(
        "SELECT e.name, e.value, e.data_key_id, k.id, k.wrapped FROM environments e
         LEFT JOIN data_keys k ON k.app_id = e.app_id WHERE e.app_id = $1 AND e.version = $2",
    );
    let query = query.bind(app.as_str()).bind(signed(number.0));
    query.fetch_all(on).await.map_err(during("read an environment"))
}

/// The app's, made if there is none yet.
async fn data_key(tx: &mut Tx, keys: &Keyring, app: &str) -> Result<DataKey, Error> {
    const VERB: &str = "read a data key";
    let find = "SELECT id, wrapped FROM data_keys WHERE app_id = $1";
    let row = db::query(find).bind(app).fetch_optional(&mut *tx).await.map_err(during(VERB))?;
    if let Some(row) = row {
        return Ok(DataKey::unwrap(app, get(&row, "id")?, get(&row, "wrapped")?, keys)?);
    }
    let key = DataKey::generate(app)?;
    let (wrapped, master) = key.wrap(keys)?;
    // Two replicas may be at this: the one that comes second takes the first one's.
    let query = db::query(
        "INSERT INTO data_keys (app_id, id, master_key_id, wrapped) VALUES ($1, $2, $3, $4)
         ON CONFLICT (app_id) DO NOTHING",
    );
    let query = query.bind(app).bind(key.id()).bind(master).bind(wrapped);
    query.execute(&mut *tx).await.map_err(during("insert a data key"))?;
    let row = db::query(find).bind(app).fetch_one(&mut *tx).await.map_err(during(VERB))?;
    Ok(DataKey::unwrap(app, get(&row, "id")?, get(&row, "wrapped")?, keys)?)
}

fn get_256(row: &Row, column: &str) -> Result<Secret256, Error> {
    get::<&[u8]>(row, column)?.try_into().map_err(|err| super::codec::corrupt(column, err))
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;

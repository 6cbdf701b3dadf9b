//! Apps: their settings and which version serves.

use std::time::{Duration, SystemTime};

use serde_json::{Map, json};

use super::audit::{self, Record};
use super::codec::{corrupt, get, get_parsed, get_time, get_version, millis, signed, span_millis};
use super::db::{self, Row, Tx};
use super::{Error, Store, during};
use crate::model::{Actor, AppId, AuditAction, VersionNumber};

/// Rows that one transaction of a delete removes: others wait for the writer meanwhile.
const DELETE_BATCH: i64 = 2000;

/// A tenant as the store knows it. It begins to exist with its first version or credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub id: AppId,
    /// The version that serves.
    pub active: Option<VersionNumber>,
    pub created_at: SystemTime,
    pub description: String,
    /// `None`: the service's default.
    pub history_retention: Option<Duration>,
    pub rate: AppRate,
}

/// How often it may be called. `None`: the service's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppRate {
    pub per_second: Option<u32>,
    pub burst: Option<u32>,
    /// Over all replicas; days are of UTC.
    pub quota_per_day: Option<u64>,
}

/// When a version was made the active one: a higher one came later, whichever replica did it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Activation(i64);

/// The version that serves, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveVersion {
    pub number: VersionNumber,
    pub activation: Activation,
}

/// What to change; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppChange {
    pub description: Option<String>,
    /// `Some(None)` returns to the service's default.
    pub history_retention: Option<Option<Duration>>,
    /// As above.
    pub rate_per_second: Option<Option<u32>>,
    pub rate_burst: Option<Option<u32>>,
    pub quota_per_day: Option<Option<u64>>,
}

/// What is read of a row, by name: with `*` a statement that PostgreSQL has prepared fails once a migration adds a column.
macro_rules! columns {
    () => {
        "id, active_version, created_at, description, history_retention_ms, rate_per_second, rate_burst, quota_per_day"
    };
}

impl Store {
    pub async fn app(&self, id: &AppId) -> Result<Option<App>, Error> {
        let query = db::query(concat!("SELECT ", columns!(), " FROM apps WHERE id = $1")).bind(id.as_str());
        let row = query.fetch_optional(self.read()).await.map_err(during("read an app"))?;
        row.as_ref().map(decode).transpose()
    }

    /// In the order of their ids.
    pub async fn list_apps(&self, after: Option<&AppId>, limit: u32) -> Result<Vec<App>, Error> {
        let query = db::query(concat!("SELECT ", columns!(), " FROM apps WHERE id > $1 ORDER BY id LIMIT $2"))
            .bind(after.map_or("", AppId::as_str)) // No id is empty.
            .bind(i64::from(limit));
        query.fetch_all(self.read()).await.map_err(during("list apps"))?.iter().map(decode).collect()
    }

    /// The app after the change; `None` where it does not exist.
    pub async fn update_app(&self, id: &AppId, change: AppChange, actor: &Actor) -> Result<Option<App>, Error> {
        const VERB: &str = "update an app";
        let unchanged = change == AppChange::default();
        let record = Record::new(actor, id, AuditAction::AppUpdate).details(change.told().into());
        let mut tx = self.begin(VERB).await?;
        let query = db::query(concat!(
            "UPDATE apps SET description = COALESCE($2, description),
                 history_retention_ms = CASE WHEN $3 THEN $4 ELSE history_retention_ms END,
                 rate_per_second = CASE WHEN $5 THEN $6 ELSE rate_per_second END,
                 rate_burst = CASE WHEN $7 THEN $8 ELSE rate_burst END,
                 quota_per_day = CASE WHEN $9 THEN $10 ELSE quota_per_day END
             WHERE id = $1 RETURNING ",
            columns!()
        ))
        .bind(id.as_str())
        .bind(change.description)
        .bind(change.history_retention.is_some())
        .bind(change.history_retention.flatten().map(span_millis))
        .bind(change.rate_per_second.is_some())
        .bind(change.rate_per_second.flatten().map(i64::from))
        .bind(change.rate_burst.is_some())
        .bind(change.rate_burst.flatten().map(i64::from))
        .bind(change.quota_per_day.is_some())
        .bind(change.quota_per_day.flatten().map(signed));
        let rows = query.fetch_all(&mut tx).await.map_err(during(VERB))?;
        let app = rows.first().map(decode).transpose()?;
        if app.is_some() && !unchanged {
            record.write(&mut tx).await?;
        }
        tx.commit().await.map_err(during(VERB))?;
        Ok(app)
    }

    /// Removes everything of the app; false where there was none. Its version numbers begin at 1 again.
    pub async fn delete_app(&self, id: &AppId, actor: &Actor) -> Result<bool, Error> {
        // What can be much goes first and in small transactions. If we die in between, the app still exists with less
        // history, and the next delete ends the work.
        for batch in [
            "DELETE FROM logs WHERE seq IN (SELECT seq FROM logs WHERE app_id = $1 LIMIT $2)",
            "DELETE FROM invocations WHERE id IN (SELECT id FROM invocations WHERE app_id = $1 LIMIT $2)",
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE app_id = $1 LIMIT $2)",
        ] {
            loop {
                let query = db::query(batch).bind(id.as_str()).bind(DELETE_BATCH);
                let deleted = query.execute(self.write()).await.map_err(during("delete an app's history"))?;
                if deleted < DELETE_BATCH.unsigned_abs() {
                    break;
                }
            }
        }
        // Everything else, and what came meanwhile, goes by cascade.
        const VERB: &str = "delete an app";
        let mut tx = self.begin(VERB).await?;
        tx.lock_app(id.as_str()).await.map_err(during(VERB))?; // No credential comes after the look at them.
        record_delete(&mut tx, id, actor).await?;
        let query = db::query("DELETE FROM apps WHERE id = $1").bind(id.as_str());
        let deleted = query.execute(&mut tx).await.map_err(during(VERB))?;
        tx.tell_of_app(id).await.map_err(during(VERB))?;
        tx.commit().await.map_err(during(VERB))?;
        self.inner.queue.forget(id);
        Ok(deleted > 0)
    }

    /// Which version serves, of every app that has one.
    pub async fn active_versions(&self) -> Result<Vec<(AppId, ActiveVersion)>, Error> {
        let sql = "SELECT id, active_version, activation FROM apps WHERE active_version IS NOT NULL ORDER BY id";
        let rows = db::query(sql).fetch_all(self.read()).await.map_err(during("list active versions"))?;
        rows.iter().map(|row| Ok((get_parsed(row, "id")?, decode_active(row)?))).collect()
    }

    /// Which version of the app serves; `None`: none does.
    pub async fn active_version(&self, id: &AppId) -> Result<Option<ActiveVersion>, Error> {
        let sql = "SELECT active_version, activation FROM apps WHERE id = $1 AND active_version IS NOT NULL";
        let row = db::query(sql).bind(id.as_str()).fetch_optional(self.read()).await;
        row.map_err(during("read which version is active"))?.as_ref().map(decode_active).transpose()
    }
}

impl AppChange {
    /// What the audit log tells of it; not the description, in which somebody may have written anything.
    fn told(&self) -> Map<String, serde_json::Value> {
        let retention = self.history_retention.map(|span| json!(span.map(span_millis)));
        let all = [
            ("description", self.description.is_some().then(|| json!("changed"))),
            ("history_retention_ms", retention),
            ("rate_per_second", self.rate_per_second.map(|rate| json!(rate))),
            ("rate_burst", self.rate_burst.map(|rate| json!(rate))),
            ("quota_per_day", self.quota_per_day.map(|quota| json!(quota))),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// The app begins to exist if it did not.
pub(super) async fn ensure(tx: &mut Tx, app: &AppId, now: SystemTime, actor: &Actor) -> Result<(), Error> {
    const VERB: &str = "make an app";
    let query = db::query(
        "INSERT INTO apps (id, last_version, created_at, description) VALUES ($1, 0, $2, '')
         ON CONFLICT (id) DO NOTHING",
    );
    let made = query.bind(app.as_str()).bind(millis(now)).execute(&mut *tx).await.map_err(during(VERB))?;
    if made > 0 {
        Record::new(actor, app, AuditAction::AppCreate).write(tx).await?;
    }
    Ok(())
}

/// Nothing where there is no such app. Its credentials end with it, and each is told of.
async fn record_delete(tx: &mut Tx, app: &AppId, actor: &Actor) -> Result<(), Error> {
    const VERB: &str = "read what goes with an app";
    let query =
        db::query("SELECT (SELECT COUNT(*) FROM versions WHERE app_id = id) AS versions FROM apps WHERE id = $1");
    let Some(row) = query.bind(app.as_str()).fetch_optional(&mut *tx).await.map_err(during(VERB))? else {
        return Ok(());
    };
    let versions: i64 = get(&row, "versions")?;
    let query = db::query_scalar("SELECT client_id FROM credentials WHERE app_id = $1 ORDER BY seq");
    let credentials: Vec<String> = query.bind(app.as_str()).fetch_all(&mut *tx).await.map_err(during(VERB))?;
    let details = json!({ "versions": versions, "credentials": credentials.len() });
    let mut records = vec![Record::new(actor, app, AuditAction::AppDelete).details(details)];
    let ended = |id| Record::new(actor, app, AuditAction::CredentialRevoke).target(id);
    records.extend(credentials.into_iter().map(|id| ended(id).details(json!({ "with": "app.delete" }))));
    audit::write_all(tx, records).await
}

/// The version that serves.
pub(super) async fn active(tx: &mut Tx, app: &AppId) -> Result<Option<VersionNumber>, Error> {
    let query = db::query("SELECT active_version FROM apps WHERE id = $1 AND active_version IS NOT NULL");
    let row = query.bind(app.as_str()).fetch_optional(tx).await.map_err(during("read which version is active"))?;
    row.map(|row| get_version(&row, "active_version")).transpose()
}

/// Lets the version serve. `None`: it is not READY.
pub(super) async fn activate(
    tx: &mut Tx,
    app: &AppId,
    number: VersionNumber,
    now: SystemTime,
    actor: &Actor,
) -> Result<Option<Activation>, Error> {
    const VERB: &str = "activate a version";
    let before = active(tx, app).await?;
    let query = db::query(
        "UPDATE apps SET active_version = $2, activation = CASE WHEN activation < $3 THEN $3 ELSE activation + 1 END
         WHERE id = $1 AND EXISTS (SELECT 1 FROM versions WHERE app_id = $1 AND number = $2 AND state = 1)
         RETURNING activation",
    );
    let query = query.bind(app.as_str()).bind(signed(number.0)).bind(millis(now));
    let rows = query.fetch_all(&mut *tx).await.map_err(during(VERB))?;
    let Some(row) = rows.first() else { return Ok(None) };
    let record = Record::new(actor, app, AuditAction::VersionActivate).target(number);
    record.details(json!({ "active_before": before.map(|before| before.0) })).write(tx).await?;
    tx.tell_of_app(app).await.map_err(during(VERB))?;
    Ok(Some(Activation(get(row, "activation")?)))
}

fn decode_active(row: &Row) -> Result<ActiveVersion, Error> {
    Ok(ActiveVersion { number: get_version(row, "active_version")?, activation: Activation(get(row, "activation")?) })
}

fn decode(row: &Row) -> Result<App, Error> {
    let retention: Option<i64> = get(row, "history_retention_ms")?;
    let active: Option<i64> = get(row, "active_version")?;
    Ok(App {
        id: get_parsed(row, "id")?,
        active: active.map(|_| get_version(row, "active_version")).transpose()?,
        created_at: get_time(row, "created_at")?,
        description: get(row, "description")?,
        history_retention: retention.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        rate: AppRate {
            per_second: number(row, "rate_per_second")?,
            burst: number(row, "rate_burst")?,
            quota_per_day: number(row, "quota_per_day")?,
        },
    })
}

fn number<N: TryFrom<i64, Error = std::num::TryFromIntError>>(row: &Row, column: &str) -> Result<Option<N>, Error> {
    get::<Option<i64>>(row, column)?.map(N::try_from).transpose().map_err(|err| corrupt(column, err))
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{line, started};
    use super::super::testing::{actor, app, at, event, ready_version, row_counts, store, trigger};
    use super::super::{AttemptEnd, Day, DayUsage, Disposition, HistoryItem};
    use super::*;
    use crate::model::{Blob, ClientId, Credential, FilesName, Scope};

    #[tokio::test]
    async fn an_app_begins_with_its_first_version_and_keeps_its_settings() {
        let (_dir, store) = store().await;
        assert_eq!(store.app(&app("shop")).await.expect("app"), None);
        assert_eq!(store.update_app(&app("shop"), AppChange::default(), actor()).await.expect("update"), None);

        ready_version(&store, "shop").await;
        let fresh = store.app(&app("shop")).await.expect("app").expect("exists");
        let active = Some(VersionNumber(1));
        let expected = App {
            id: app("shop"),
            active,
            created_at: at(0),
            description: String::new(),
            history_retention: None,
            rate: AppRate::default(),
        };
        assert_eq!(fresh, expected);

        let day = Duration::from_secs(86_400);
        let change = AppChange {
            description: Some("a shop".to_owned()),
            history_retention: Some(Some(day)),
            rate_per_second: Some(Some(7)),
            quota_per_day: Some(Some(1000)),
            ..AppChange::default()
        };
        let changed = store.update_app(&app("shop"), change, actor()).await.expect("update").expect("exists");
        assert_eq!((changed.description.as_str(), changed.history_retention), ("a shop", Some(day)));
        assert_eq!(changed.rate, AppRate { per_second: Some(7), burst: None, quota_per_day: Some(1000) });

        let same = store.update_app(&app("shop"), AppChange::default(), actor()).await.expect("update");
        assert_eq!(same.as_ref(), Some(&changed));
        let change = AppChange {
            history_retention: Some(None),
            rate_per_second: Some(None),
            rate_burst: Some(Some(9)),
            quota_per_day: Some(None),
            ..AppChange::default()
        };
        let reset = store.update_app(&app("shop"), change, actor()).await.expect("update").expect("exists");
        assert_eq!((reset.description.as_str(), reset.history_retention), ("a shop", None));
        assert_eq!(reset.rate, AppRate { burst: Some(9), ..AppRate::default() });
        assert_eq!(store.app(&app("shop")).await.expect("app"), Some(reset));
    }

    #[tokio::test]
    async fn apps_are_listed_page_by_page() {
        let (_dir, store) = store().await;
        for id in ["b", "a", "C", "d"] {
            ready_version(&store, id).await;
        }
        let ids = |apps: Vec<App>| apps.into_iter().map(|a| a.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(store.list_apps(None, 3).await.expect("list")), ["C", "a", "b"]);
        assert_eq!(ids(store.list_apps(Some(&app("b")), 3).await.expect("list")), ["d"]);
        assert_eq!(store.active_versions().await.expect("active").len(), 4);
    }

    #[tokio::test]
    async fn a_deleted_app_leaves_nothing_behind() {
        let (_dir, store) = store().await;
        for id in ["shop", "other"] {
            ready_version(&store, id).await;
            store.enqueue(event(id)).await.expect("enqueue");
            let claimed = store.claim(&[(app(id), 1)], at(60), at(1)).await.expect("claim").remove(0);
            let (retry, ended) = (Disposition::Retry { due_at: at(2) }, AttemptEnd { invocation: None, failure: None });
            assert!(store.finish_claim(&claimed, retry, Vec::new(), Some(ended), at(1)).await.expect("finish"));
            let invocation = started(id);
            let items = [HistoryItem::Log(line(id, Some(invocation.id), at(1))), HistoryItem::Started(invocation)];
            store.record(&items).await.expect("record");
            store.record_reply(&app(id), &trigger(), "k", "{}", at(1), at(0)).await.expect("reply");
            let credential = Credential {
                client_id: ClientId::new(),
                app: Some(app(id)),
                scopes: [Scope::Invoke].into_iter().collect(),
                description: String::new(),
                created_at: at(0),
            };
            let blob = Blob { hash: format!("hash-{id}"), size_bytes: 1, unpacked_bytes: 1, entries: 1 };
            store.begin_blob(&FilesName::layer(&app(id), "layer-1"), &blob, false, at(0)).await.expect("blob");
            let usage = DayUsage { app: app(id), day: Day(1), invocations: 1 };
            store.add_usage(vec![usage]).await.expect("usage");
            store.take_key(&app(id), &trigger(), "k").await.expect("key");
            let secret = *blake3::hash(id.as_bytes()).as_bytes();
            store.create_credential(&credential, &secret, 1, false, actor()).await.expect("credential");
        }
        let before = row_counts(&store).await;
        assert!(before.len() >= 8 && before.iter().all(|(_, rows)| *rows == 2), "{before:?}");

        assert!(store.delete_app(&app("shop"), actor()).await.expect("delete"));
        assert!(!store.delete_app(&app("shop"), actor()).await.expect("delete again"));
        let after = row_counts(&store).await;
        assert!(after.iter().all(|(_, rows)| *rows == 1), "{after:?}");

        // What still ran for it is not recorded either.
        let late = [HistoryItem::Log(line("shop", None, at(2))), HistoryItem::Finished(started("shop"))];
        store.record(&late).await.expect("record");
        assert!(!store.record_reply(&app("shop"), &trigger(), "k", "{}", at(1), at(0)).await.expect("reply"));
        assert!(matches!(store.enqueue(event("shop")).await, Err(Error::UnknownApp(id)) if id == app("shop")));
        assert_eq!(row_counts(&store).await, after);
    }

    #[tokio::test]
    async fn a_row_that_does_not_decode_is_named() {
        let (_dir, store) = store().await;
        ready_version(&store, "shop").await;
        db::query("UPDATE apps SET active_version = -1").execute(store.write()).await.expect("update");
        let err = store.app(&app("shop")).await.expect_err("a negative version").to_string();
        assert!(err.starts_with("the store holds a row that does not decode: active_version"), "{err}");
    }
}

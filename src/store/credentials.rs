//! Credentials: of a secret only the hash is kept, and a revoked credential's row is gone.

use std::time::SystemTime;

use serde_json::json;

use super::apps;
use super::audit::Record;
use super::codec::{corrupt, get, get_parsed, get_time, millis};
use super::db::{self, Row, Tx};
use super::{Error, Store, during};
use crate::model::{Actor, AppId, AuditAction, ClientId, Credential, Scopes};

/// A SHA-256, or a key as long as one.
pub type Secret256 = [u8; 32];

/// Of the operators' credentials one is counted and made at a time.
const OPERATORS: i64 = 0x6368_6174_666e_0002;

/// How a creation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateCredential {
    Created,
    /// The app (or the operators) has as many as it may have.
    TooMany,
    /// The app does not exist, and was not to be made.
    UnknownApp,
}

/// What is read of a row, by name: with `*` a statement that PostgreSQL has prepared fails once a migration adds a column.
macro_rules! columns {
    () => {
        "seq, client_id, app_id, scopes, secret_sha256, description, created_at"
    };
}

impl Store {
    /// Keeps a credential; with `make_app` its app begins to exist if it did not.
    pub async fn create_credential(
        &self,
        credential: &Credential,
        secret_sha256: &Secret256,
        count_max: u32,
        make_app: bool,
        actor: &Actor,
    ) -> Result<CreateCredential, Error> {
        const VERB: &str = "create a credential";
        let Credential { client_id, app, scopes, description, created_at } = credential;
        let mut tx = self.begin(VERB).await?;
        if let Some(app) = app
            && !ensure_app(&mut tx, app, *created_at, make_app.then_some(actor)).await?
        {
            return Ok(CreateCredential::UnknownApp);
        }
        let record = Record::new(actor, app, AuditAction::CredentialCreate).target(client_id);
        let record = record.details(json!({ "scopes": scopes.to_string() }));
        let app = app.as_ref().map(AppId::as_str);
        match app {
            Some(app) => tx.lock_app(app).await.map_err(during(VERB))?,
            None => tx.lock(vec![OPERATORS]).await.map_err(during(VERB))?,
        }
        let count = db::query_scalar("SELECT COUNT(*) FROM credentials WHERE app_id IS NOT DISTINCT FROM $1").bind(app);
        let count: i64 = count.fetch_one(&mut tx).await.map_err(during(VERB))?;
        if count >= i64::from(count_max) {
            return Ok(CreateCredential::TooMany);
        }
        let query = db::query(
            "INSERT INTO credentials (client_id, app_id, scopes, secret_sha256, description, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(client_id.to_string())
        .bind(app)
        .bind(scopes.to_string())
        .bind(secret_sha256.as_slice())
        .bind(description)
        .bind(millis(*created_at));
        query.execute(&mut tx).await.map_err(during(VERB))?;
        record.write(&mut tx).await?;
        tx.commit().await.map_err(during(VERB))?;
        Ok(CreateCredential::Created)
    }

    /// Those of an app, or the operators', in the order of their creation, each with its place in it.
    pub async fn list_credentials(
        &self,
        app: Option<&AppId>,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<(i64, Credential)>, Error> {
        let query = db::query(concat!(
            "SELECT ",
            columns!(),
            " FROM credentials WHERE app_id IS NOT DISTINCT FROM $1 AND seq > $2 ORDER BY seq LIMIT $3"
        ))
        .bind(app.map(AppId::as_str))
        .bind(after.unwrap_or(0))
        .bind(i64::from(limit));
        let rows = query.fetch_all(self.read()).await.map_err(during("list credentials"))?;
        rows.iter().map(|row| Ok((get(row, "seq")?, decode(row)?))).collect()
    }

    /// With its secret's hash.
    pub async fn credential(&self, id: ClientId) -> Result<Option<(Credential, Secret256)>, Error> {
        let query =
            db::query(concat!("SELECT ", columns!(), " FROM credentials WHERE client_id = $1")).bind(id.to_string());
        let row = query.fetch_optional(self.read()).await.map_err(during("read a credential"))?;
        row.as_ref().map(decode_with_hash).transpose()
    }

    /// The one with this secret's hash.
    pub async fn credential_by_secret(&self, sha256: &Secret256) -> Result<Option<(Credential, Secret256)>, Error> {
        let query = db::query(concat!("SELECT ", columns!(), " FROM credentials WHERE secret_sha256 = $1"))
            .bind(sha256.as_slice());
        let row = query.fetch_optional(self.read()).await.map_err(during("read a credential"))?;
        row.as_ref().map(decode_with_hash).transpose()
    }

    /// False where there is none, or (with `app`) none of that app.
    pub async fn revoke_credential(&self, id: ClientId, app: Option<&AppId>, actor: &Actor) -> Result<bool, Error> {
        const VERB: &str = "revoke a credential";
        let mut tx = self.begin(VERB).await?;
        let query = db::query(concat!(
            "DELETE FROM credentials WHERE client_id = $1 AND ($2 IS NULL OR app_id = $2) RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(app.map(AppId::as_str));
        let deleted = query.fetch_all(&mut tx).await.map_err(during(VERB))?;
        for row in &deleted {
            let Credential { app, scopes, .. } = decode(row)?;
            let record = Record::new(actor, &app, AuditAction::CredentialRevoke).target(id);
            record.details(json!({ "scopes": scopes.to_string() })).write(&mut tx).await?;
        }
        tx.tell_of_credentials().await.map_err(during(VERB))?;
        tx.commit().await.map_err(during(VERB))?;
        Ok(!deleted.is_empty())
    }
}

/// Whether the app exists now. `by`: who makes it if it does not; `None`: nobody.
async fn ensure_app(tx: &mut Tx, app: &AppId, now: SystemTime, by: Option<&Actor>) -> Result<bool, Error> {
    const VERB: &str = "look for a credential's app";
    if let Some(actor) = by {
        return apps::ensure(tx, app, now, actor).await.map(|()| true);
    }
    let query = db::query_scalar("SELECT COUNT(*) FROM apps WHERE id = $1").bind(app.as_str());
    let found: i64 = query.fetch_one(&mut *tx).await.map_err(during(VERB))?;
    Ok(found > 0)
}

fn decode_with_hash(row: &Row) -> Result<(Credential, Secret256), Error> {
    Ok((decode(row)?, get_256(row, "secret_sha256")?))
}

fn decode(row: &Row) -> Result<Credential, Error> {
    let app: Option<&str> = get(row, "app_id")?;
    Ok(Credential {
        client_id: get_parsed(row, "client_id")?,
        app: app.map(|_| get_parsed(row, "app_id")).transpose()?,
        scopes: get_parsed::<Scopes>(row, "scopes")?,
        description: get(row, "description")?,
        created_at: get_time(row, "created_at")?,
    })
}

fn get_256(row: &Row, column: &str) -> Result<Secret256, Error> {
    get::<&[u8]>(row, column)?.try_into().map_err(|err| corrupt(column, err))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{actor, app, at, store};
    use super::*;
    use crate::model::Scope;

    fn credential(of: Option<&str>, scopes: &[Scope]) -> Credential {
        Credential {
            client_id: ClientId::new(),
            app: of.map(app),
            scopes: scopes.iter().copied().collect(),
            description: "for tests".to_owned(),
            created_at: at(0),
        }
    }

    #[tokio::test]
    async fn a_credential_is_found_by_id_and_by_secret_until_it_is_revoked() {
        let (_dir, store) = store().await;
        let shop = credential(Some("shop"), &[Scope::Invoke, Scope::Publish]);
        let refused = store.create_credential(&shop, &[1; 32], 2, false, actor()).await.expect("create");
        assert_eq!(refused, CreateCredential::UnknownApp);
        let created = store.create_credential(&shop, &[1; 32], 2, true, actor()).await.expect("create");
        assert_eq!(created, CreateCredential::Created);
        assert_eq!(store.app(&app("shop")).await.expect("app").expect("made").active, None);

        let found = Some((shop.clone(), [1; 32]));
        assert_eq!(store.credential(shop.client_id).await.expect("read"), found);
        assert_eq!(store.credential_by_secret(&[1; 32]).await.expect("read"), found);
        assert_eq!(store.credential_by_secret(&[2; 32]).await.expect("read"), None);
        assert_eq!(store.credential(ClientId::new()).await.expect("read"), None);

        let other = app("other");
        assert!(!store.revoke_credential(shop.client_id, Some(&other), actor()).await.expect("another's"));
        assert!(store.revoke_credential(shop.client_id, Some(&app("shop")), actor()).await.expect("revoke"));
        assert!(!store.revoke_credential(shop.client_id, None, actor()).await.expect("again"));
        assert_eq!(store.credential_by_secret(&[1; 32]).await.expect("read"), None);
    }

    #[tokio::test]
    async fn each_app_has_its_own_list_and_its_own_limit_and_so_have_the_operators() {
        let (_dir, store) = store().await;
        let mut ids = Vec::new();
        for (n, of) in [Some("shop"), None, Some("shop"), Some("other"), None].into_iter().enumerate() {
            let new = credential(of, &[if of.is_some() { Scope::Manage } else { Scope::Operator }]);
            let secret = [u8::try_from(n).expect("small"); 32];
            let created = store.create_credential(&new, &secret, 2, true, actor()).await.expect("create");
            assert_eq!(created, CreateCredential::Created, "{n}");
            ids.push(new.client_id);
        }
        for of in [Some("shop"), None] {
            let more = credential(of, &[Scope::Manage]);
            let refused = store.create_credential(&more, &[9; 32], 2, true, actor()).await.expect("create");
            assert_eq!(refused, CreateCredential::TooMany, "{of:?}");
        }
        let shop = app("shop");
        let list = async |of, after, limit| {
            let rows = store.list_credentials(of, after, limit).await.expect("list");
            rows.into_iter().map(|(seq, row)| (seq, row.client_id)).collect::<Vec<_>>()
        };
        let first = list(Some(&shop), None, 1).await;
        assert_eq!(first.iter().map(|row| row.1).collect::<Vec<_>>(), [ids[0]]);
        let rest = list(Some(&shop), Some(first[0].0), 9).await;
        assert_eq!(rest.iter().map(|row| row.1).collect::<Vec<_>>(), [ids[2]]);
        let operators = list(None, None, 9).await;
        assert_eq!(operators.iter().map(|row| row.1).collect::<Vec<_>>(), [ids[1], ids[4]]);
    }

    #[tokio::test]
    async fn a_key_of_the_service_stays_what_it_first_was() {
        let (_dir, store) = store().await;
        assert_eq!(store.service_key("a", [1; 32]).await.expect("key"), [1; 32]);
        assert_eq!(store.service_key("a", [2; 32]).await.expect("key"), [1; 32]);
        assert_eq!(store.service_key("b", [2; 32]).await.expect("key"), [2; 32]);
    }
}

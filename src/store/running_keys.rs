//! Who runs a call under an idempotency key, where many replicas might.

use super::db::{self, Tx};
use super::{Error, Store, during};
use crate::model::{AppId, TriggerType};

const VERB: &str = "see who runs under an idempotency key";

/// Who may run a call under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHolder {
    /// We, until [`Store::release_key`]; also where we did before.
    Ours(Holder),
    /// A replica that lives.
    Other,
    /// There is no such app.
    NoApp,
}

/// The replica that we were when we took a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(i64);

impl Store {
    /// Takes the key, unless another replica that lives has it.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn take_key(&self, app: &AppId, trigger: &TriggerType, key: &str) -> Result<KeyHolder, Error> {
        let holder = self.replica();
        let query = db::query(
            "INSERT INTO running_keys (app_id, trigger_type, idempotency_key, replica)
             SELECT id, $2, $3, $4 FROM apps WHERE id = $1 /*pg FOR KEY SHARE */
             ON CONFLICT (app_id, trigger_type, idempotency_key) DO UPDATE SET replica = excluded.replica
             WHERE running_keys.replica = $4 OR running_keys.replica NOT IN (SELECT id FROM replicas)",
        );
        let query = query.bind(app.as_str()).bind(trigger.as_str()).bind(key).bind(holder);
        if query.execute(self.write()).await.map_err(during(VERB))? > 0 {
            return Ok(KeyHolder::Ours(Holder(holder)));
        }
        let there = db::query("SELECT 1 FROM apps WHERE id = $1").bind(app.as_str()).fetch_optional(self.read()).await;
        Ok(if there.map_err(during(VERB))?.is_some() { KeyHolder::Other } else { KeyHolder::NoApp })
    }

    /// Others may have it. Nothing happens where somebody else has taken it over.
    ///
    /// # Errors
    /// The database refuses: the key is ours until this replica ends.
    pub async fn release_key(
        &self,
        app: &AppId,
        trigger: &TriggerType,
        key: &str,
        holder: Holder,
    ) -> Result<(), Error> {
        let query = db::query(
            "DELETE FROM running_keys
             WHERE app_id = $1 AND trigger_type = $2 AND idempotency_key = $3 AND replica = $4",
        );
        let query = query.bind(app.as_str()).bind(trigger.as_str()).bind(key).bind(holder.0);
        query.execute(self.write()).await.map(drop).map_err(during(VERB))
    }
}

/// Those of replicas that are gone.
pub(super) async fn forget_keys(tx: &mut Tx) -> Result<(), Error> {
    let sql = "DELETE FROM running_keys WHERE replica NOT IN (SELECT id FROM replicas)";
    db::query(sql).execute(tx).await.map(drop).map_err(during(VERB))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{app, at, ready_version, store, trigger};
    use super::*;

    #[tokio::test]
    async fn one_replica_has_a_key_until_it_gives_it_back_or_is_gone() {
        let (_dir, store) = store().await;
        ready_version(&store, "shop").await;
        store.heartbeat(at(0)).await.expect("registered");
        let take = async |id: &str| store.take_key(&app(id), &trigger(), "k").await.expect("an answer");
        assert_eq!(take("gone").await, KeyHolder::NoApp);
        let KeyHolder::Ours(holder) = take("shop").await else { panic!("nobody has it") };
        assert_eq!(take("shop").await, KeyHolder::Ours(holder));

        let others = async |sql: &'static str| db::query(sql).execute(store.write()).await.expect("done");
        others("INSERT INTO replicas (started_at, seen_at) VALUES (0, 99999999999999)").await;
        others("UPDATE running_keys SET replica = (SELECT MAX(id) FROM replicas)").await;
        assert_eq!(take("shop").await, KeyHolder::Other);
        store.release_key(&app("shop"), &trigger(), "k", holder).await.expect("nothing happens");
        assert_eq!(take("shop").await, KeyHolder::Other);

        others("DELETE FROM replicas WHERE id = (SELECT MAX(id) FROM replicas)").await;
        assert_eq!(take("shop").await, KeyHolder::Ours(holder), "its replica is gone");
        store.release_key(&app("shop"), &trigger(), "k", holder).await.expect("released");
        others(
            "INSERT INTO running_keys (app_id, trigger_type, idempotency_key, replica)
             SELECT id, 'UserSentMessage', 'k', 99 FROM apps",
        )
        .await;
        store.take_over(Duration::from_secs(60), at(1)).await.expect("taken over");
        assert_eq!(others("DELETE FROM running_keys").await, 0, "what a dead replica held is gone");
    }
}

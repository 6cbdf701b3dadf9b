//! Replies that were given under an idempotency key, to be given again.

use std::time::SystemTime;

use super::codec::millis;
use super::db;
use super::{Error, Store, during};
use crate::model::{AppId, TriggerType};

impl Store {
    /// The reply recorded under this key at `since` or later.
    pub async fn recorded_reply(
        &self,
        app: &AppId,
        trigger: &TriggerType,
        key: &str,
        since: SystemTime,
    ) -> Result<Option<String>, Error> {
        let sql = "SELECT reply FROM replies
                   WHERE app_id = $1 AND trigger_type = $2 AND idempotency_key = $3 AND recorded_at >= $4";
        let query = db::query_scalar(sql).bind(app.as_str()).bind(trigger.as_str()).bind(key).bind(millis(since));
        query.fetch_optional(self.read()).await.map_err(during("read a recorded reply"))
    }

    /// Records a reply. False where one was recorded at `since` or later: the first wins. Also false where the app is gone.
    pub async fn record_reply(
        &self,
        app: &AppId,
        trigger: &TriggerType,
        key: &str,
        reply: &str,
        now: SystemTime,
        since: SystemTime,
    ) -> Result<bool, Error> {
        let query = db::query(
            "INSERT INTO replies (app_id, trigger_type, idempotency_key, reply, recorded_at)
             SELECT id, $2, $3, $4, $5 FROM apps WHERE id = $1 /*pg FOR KEY SHARE */
             ON CONFLICT (app_id, trigger_type, idempotency_key) DO UPDATE
             SET reply = excluded.reply, recorded_at = excluded.recorded_at WHERE replies.recorded_at < $6",
        );
        let query = query.bind(app.as_str()).bind(trigger.as_str()).bind(key);
        let query = query.bind(reply).bind(millis(now)).bind(millis(since));
        let done = query.execute(self.write()).await.map_err(during("record a reply"))?;
        Ok(done > 0)
    }

    /// Deletes up to `limit` replies recorded before; returns how many.
    pub async fn purge_replies(&self, before: SystemTime, limit: u32) -> Result<u64, Error> {
        let query = db::query(
            "DELETE FROM replies WHERE (app_id, trigger_type, idempotency_key) IN (
                 SELECT app_id, trigger_type, idempotency_key FROM replies
                 WHERE recorded_at < $1 ORDER BY recorded_at LIMIT $2 /*pg FOR UPDATE SKIP LOCKED */)",
        );
        let query = query.bind(millis(before)).bind(i64::from(limit));
        query.execute(self.write()).await.map_err(during("purge replies"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{app, at, ready_version, store, trigger};
    use super::*;

    #[tokio::test]
    async fn the_first_reply_wins_until_it_expires() {
        let (_dir, store) = store().await;
        ready_version(&store, "shop").await;
        let record = async |reply: &str, now, since| {
            store.record_reply(&app("shop"), &trigger(), "k", reply, at(now), at(since)).await.expect("record")
        };
        let read = async |since| store.recorded_reply(&app("shop"), &trigger(), "k", at(since)).await.expect("read");

        assert_eq!(read(0).await, None);
        assert!(record("first", 10, 0).await);
        assert!(!record("second", 11, 10).await, "not expired");
        assert_eq!((read(10).await.as_deref(), read(11).await), (Some("first"), None));
        assert!(record("third", 20, 11).await, "expired");
        assert_eq!(read(11).await.as_deref(), Some("third"));

        let other = TriggerType::stored("UserReadMessage".to_owned());
        let elsewhere = store.recorded_reply(&app("shop"), &other, "k", at(0)).await.expect("read");
        assert_eq!(elsewhere, None, "keys belong to one trigger type");
    }

    #[tokio::test]
    async fn old_replies_are_purged_in_batches() {
        let (_dir, store) = store().await;
        ready_version(&store, "shop").await;
        for n in 0..5 {
            let key = n.to_string();
            let recorded = store.record_reply(&app("shop"), &trigger(), &key, "{}", at(n), at(0)).await;
            assert!(recorded.expect("record"));
        }
        assert_eq!(store.purge_replies(at(3), 2).await.expect("purge"), 2);
        assert_eq!(store.purge_replies(at(3), 2).await.expect("purge"), 1);
        assert_eq!(store.purge_replies(at(3), 2).await.expect("purge"), 0);
        let kept = store.recorded_reply(&app("shop"), &trigger(), "3", at(0)).await.expect("read");
        assert_eq!(kept.as_deref(), Some("{}"));
    }
}

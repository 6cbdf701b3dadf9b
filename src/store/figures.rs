//! What an operator wants to know of the store as a whole.

use std::time::SystemTime;

use super::db::{self, Pool};
use super::{Error, Store, during};

/// Of all apps' events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Those that wait, are scheduled or run.
    pub queued: u64,
    pub dead: u64,
    /// Since when the event that waits longest may be claimed. A time to come: none waits.
    pub oldest_due: Option<SystemTime>,
}

/// Of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    pub pool: &'static str,
    pub idle: u32,
    pub busy: u32,
}

/// Each state by its own index, which holds nothing else: what has ended, most of the table, is not looked at.
const QUEUED: &str =
    "SELECT (SELECT COUNT(*) FROM events WHERE state < 2) + (SELECT COUNT(*) FROM events WHERE state = 5)
     + (SELECT COUNT(*) FROM events WHERE state = 6) + (SELECT COUNT(*) FROM events WHERE state = 7)";
const DEAD: &str = "SELECT COUNT(*) FROM events WHERE state = 4";

impl Store {
    /// Costs a walk over the indexes of what waits: not for every call.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn queue_totals(&self) -> Result<QueueTotals, Error> {
        const VERB: &str = "count all events";
        let count = async |sql: &'static str| -> Result<u64, Error> {
            let count: i64 = db::query_scalar(sql).fetch_one(self.read()).await.map_err(during(VERB))?;
            Ok(count.unsigned_abs())
        };
        let (queued, dead) = (count(QUEUED).await?, count(DEAD).await?);
        let oldest_due = self.due().await?.apps.into_iter().map(|(_, due_at)| due_at).min();
        Ok(QueueTotals { queued, dead, oldest_due })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), Error> {
        let answer = db::query("SELECT 1").fetch_one(self.read()).await;
        answer.map(|_| ()).map_err(during("ask the store whether it is there"))
    }

    /// Of PostgreSQL twice the same: what reads and what writes share them.
    pub fn connections(&self) -> [Connections; 2] {
        let of = |name, pool: &Pool| {
            let (size, idle) = pool.size();
            Connections { pool: name, idle, busy: size.saturating_sub(idle) }
        };
        [of("read", self.read()), of("write", self.write())]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{app, at, event, ready_version, sqlite_store, store};
    use super::super::{Disposition, NewEvent};
    use super::*;

    #[tokio::test]
    async fn totals_are_of_all_apps_and_leave_out_what_has_ended() {
        let (_dir, store) = store().await;
        for id in ["shop", "other"] {
            ready_version(&store, id).await;
        }
        assert_eq!(store.queue_totals().await.expect("totals"), QueueTotals::default());
        for id in ["shop", "shop", "other"] {
            store.enqueue(NewEvent { due_at: at(5), ..event(id) }).await.expect("queued");
        }
        let key = || Some("k".to_owned());
        store.enqueue(NewEvent { ordering_key: key(), due_at: at(9), ..event("shop") }).await.expect("queued");
        let totals = store.queue_totals().await.expect("totals");
        assert_eq!((totals.queued, totals.dead, totals.oldest_due), (4, 0, Some(at(5))));
        let claimed = store.claim(&[(app("shop"), 2)], at(60), at(6)).await.expect("claimed");
        let reason = super::super::DeadReason::TooOld;
        for (claimed, end) in claimed.iter().zip([Disposition::Done, Disposition::Dead { reason }]) {
            assert!(store.finish_claim(claimed, end, Vec::new(), None, at(7)).await.expect("finished"));
        }
        let totals = store.queue_totals().await.expect("totals");
        assert_eq!((totals.queued, totals.dead, totals.oldest_due), (2, 1, Some(at(5))));
        store.ping().await.expect("there");
        let [read, write] = store.connections();
        assert_eq!((read.pool, write.pool), ("read", "write"));
        assert!((1..=4).contains(&(write.idle + write.busy)));
        store.close().await;
        assert!(store.ping().await.is_err());
    }

    #[tokio::test]
    async fn nothing_that_has_ended_is_looked_at() {
        let (_dir, store) = sqlite_store().await;
        for sql in [QUEUED, DEAD] {
            let explain = db::Builder::new(format!("EXPLAIN QUERY PLAN {sql}")).build();
            let plan = explain.fetch_all(store.read()).await.expect("a plan");
            let plan: Vec<String> = plan.iter().map(|step| step.try_get("detail").expect("text")).collect();
            let scans: Vec<_> = plan.iter().filter(|step| step.contains(" events")).collect();
            assert!(!scans.is_empty());
            assert!(scans.iter().all(|step| step.contains("USING COVERING INDEX")), "{scans:?}");
        }
    }
}

//! How often apps with a quota were called in a day.

use super::codec::{get, get_parsed, signed};
use super::db::{self, Value};
use super::{Error, Store, during};
use crate::model::AppId;

/// Apps whose counts are added in one statement.
const APPS_MAX: usize = 1000;

/// A day by UTC, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub i64);

/// Invocations of an app in a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayUsage {
    pub app: AppId,
    pub day: Day,
    pub invocations: u64,
}

impl Store {
    /// Of all replicas, as far as they have told.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn usage(&self, app: &AppId, day: Day) -> Result<u64, Error> {
        const VERB: &str = "read how often an app was called";
        let sql = "SELECT invocations FROM app_usage WHERE app_id = $1 AND day = $2";
        let row = db::query(sql).bind(app.as_str()).bind(day.0).fetch_optional(self.read()).await;
        let row = row.map_err(during(VERB))?;
        row.map_or(Ok(0), |row| Ok(get::<i64>(&row, "invocations")?.unsigned_abs()))
    }

    /// Adds these, and tells what it comes to for each. Apps that are gone are left out.
    ///
    /// # Errors
    /// The database refuses; then some may have been added.
    pub async fn add_usage(&self, mut counts: Vec<DayUsage>) -> Result<Vec<DayUsage>, Error> {
        // In one order, so that no two replicas wait for each other.
        counts.sort_by(|a, b| (&a.app, a.day).cmp(&(&b.app, b.day)));
        let mut totals = Vec::with_capacity(counts.len());
        for counts in counts.chunks(APPS_MAX) {
            totals.extend(self.add_some(counts).await?);
        }
        Ok(totals)
    }

    async fn add_some(&self, counts: &[DayUsage]) -> Result<Vec<DayUsage>, Error> {
        const VERB: &str = "count how often apps were called";
        let mut sql = db::Builder::new(
            "INSERT INTO app_usage (app_id, day, invocations) SELECT column1, column2, column3 FROM (VALUES ",
        );
        sql.push_rows(counts.iter().map(row));
        sql.push(
            ") AS counts CROSS JOIN apps a WHERE a.id = column1 /*pg FOR KEY SHARE OF a */
             ON CONFLICT (app_id, day) DO UPDATE SET invocations = app_usage.invocations + excluded.invocations
             RETURNING app_id, day, invocations",
        );
        let rows = sql.build().fetch_all(self.write()).await.map_err(during(VERB))?;
        let decode = |row| -> Result<DayUsage, Error> {
            let invocations: i64 = get(row, "invocations")?;
            let (app, day) = (get_parsed(row, "app_id")?, Day(get(row, "day")?));
            Ok(DayUsage { app, day, invocations: invocations.unsigned_abs() })
        };
        rows.iter().map(decode).collect()
    }

    /// Removes what days before this one came to, at most `limit` rows. How many it were.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn purge_usage(&self, before: Day, limit: u32) -> Result<u64, Error> {
        let query = db::query(
            "DELETE FROM app_usage WHERE (app_id, day) IN (SELECT app_id, day FROM app_usage WHERE day < $1 LIMIT $2)",
        );
        let query = query.bind(before.0).bind(i64::from(limit));
        query.execute(self.write()).await.map_err(during("purge how often apps were called"))
    }
}

fn row(count: &DayUsage) -> Vec<Value<'_>> {
    vec![count.app.as_str().into(), count.day.0.into(), signed(count.invocations).into()]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{actor, app, ready_version, store};
    use super::*;

    fn count(id: &str, day: i64, invocations: u64) -> DayUsage {
        DayUsage { app: app(id), day: Day(day), invocations }
    }

    #[tokio::test]
    async fn counts_add_up_by_app_and_day_and_old_days_go() {
        let (_dir, store) = store().await;
        for id in ["shop", "other"] {
            ready_version(&store, id).await;
        }
        assert_eq!(store.usage(&app("shop"), Day(7)).await.expect("usage"), 0);
        let counts = vec![count("shop", 7, 3), count("other", 7, 1), count("gone", 7, 9), count("shop", 6, 8)];
        let mut totals = store.add_usage(counts).await.expect("added");
        totals.sort_by_key(|total| total.invocations);
        assert_eq!(totals, [count("other", 7, 1), count("shop", 7, 3), count("shop", 6, 8)]);
        assert_eq!(store.add_usage(vec![count("shop", 7, 4)]).await.expect("added"), [count("shop", 7, 7)]);
        assert_eq!(store.add_usage(Vec::new()).await.expect("nothing to add"), []);

        assert_eq!(store.purge_usage(Day(7), 10).await.expect("purged"), 1);
        assert_eq!(store.usage(&app("shop"), Day(6)).await.expect("usage"), 0);
        assert_eq!(store.usage(&app("shop"), Day(7)).await.expect("usage"), 7);
        store.delete_app(&app("shop"), actor()).await.expect("deleted");
        ready_version(&store, "shop").await;
        assert_eq!(store.usage(&app("shop"), Day(7)).await.expect("usage"), 0, "another app of this name");
    }

    #[tokio::test]
    async fn replicas_that_count_at_the_same_time_lose_nothing() {
        let (_dir, store) = store().await;
        let ids: Vec<String> = (0..20).map(|n| format!("app-{n}")).collect();
        for id in &ids {
            ready_version(&store, id).await;
        }
        let turns = (0..8).map(|turn| {
            let mut counts: Vec<_> = ids.iter().map(|id| count(id, 1, 1)).collect();
            counts.rotate_left(turn);
            store.add_usage(counts)
        });
        futures_util::future::try_join_all(turns).await.expect("all are added");
        for id in &ids {
            assert_eq!(store.usage(&app(id), Day(1)).await.expect("usage"), 8);
        }
    }
}

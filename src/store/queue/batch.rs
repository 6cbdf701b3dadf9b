//! Batches: a function may want the events of a line together. Whoever claims the head takes along those that wait behind it.

use std::time::SystemTime;

use super::super::codec::{get, millis};
use super::super::db::{self, Row, Tx};
use super::super::{Error, during};
use super::{ClaimId, decode, event_columns, note_unseen_end};
use crate::model::Event;

/// Of the payloads that are taken along. The head's own is limited as every event's is.
const BYTES_MAX: usize = 1 << 20;
const VERB: &str = "claim a batch";

/// Events of this head's line: those that waited, from the first.
macro_rules! in_line_of {
    ($columns:literal, $state:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM events h JOIN events w ON w.app_id = h.app_id AND w.trigger_type = h.trigger_type
                 AND w.ordering_key = h.ordering_key AND w.state = ",
            $state,
            " WHERE h.seq = $1"
        )
    };
}

/// Makes the head of a line due if as many as it wants stand behind it. Not after a failure: then it waits for its retry.
pub async fn hasten(tx: &mut Tx, head: i64, batch_max: i64, now: SystemTime) -> Result<(), Error> {
    const FULL: &str = concat!(
        "UPDATE events SET due_at = $2 WHERE seq = $1 AND state = 0 AND attempt = attempts_before AND due_at > $2
             AND (SELECT COUNT(*) FROM (",
        in_line_of!("1", "5"),
        " LIMIT $3) AS behind) >= $3"
    );
    let query = db::query(FULL).bind(head).bind(millis(now)).bind(batch_max - 1);
    query.execute(&mut *tx).await.map(|_| ()).map_err(during(VERB))
}

/// The same for the line in which this event waits.
pub async fn hasten_line(tx: &mut Tx, waiting: i64, batch_max: i64, now: SystemTime) -> Result<(), Error> {
    let head = db::query(in_line_of!("w.seq", "0")).bind(waiting);
    match head.fetch_all(&mut *tx).await.map_err(during(VERB))?.first() {
        Some(head) => hasten(tx, get(head, "seq")?, batch_max, now).await,
        None => Ok(()),
    }
}

/// Claims those behind the head that it wants with it: in their order, up to one of another version.
pub async fn take_along(tx: &mut Tx, head: &Row, claim: ClaimId, now: SystemTime) -> Result<Vec<Event>, Error> {
    let Some(batch_max) = get::<Option<i64>>(head, "batch_max")? else { return Ok(Vec::new()) };
    let (seq, version): (i64, i64) = (get(head, "seq")?, get(head, "version")?);
    // Of a claim that expired.
    const LEFT: &str =
        concat!("UPDATE events SET state = 5, claim_id = NULL WHERE seq IN (", in_line_of!("w.seq", "7"), ")");
    db::query(LEFT).bind(seq).execute(&mut *tx).await.map_err(during(VERB))?;
    const BEHIND: &str = concat!(
        in_line_of!("w.seq, w.version, CAST(OCTET_LENGTH(w.payload_json) AS BIGINT) AS bytes", "5"),
        " ORDER BY w.place, w.seq LIMIT $2"
    );
    let behind = db::query(BEHIND).bind(seq).bind(batch_max - 1);
    let mut taken = Vec::new();
    let mut bytes = 0;
    for row in behind.fetch_all(&mut *tx).await.map_err(during(VERB))? {
        bytes += usize::try_from(get::<i64>(&row, "bytes")?).unwrap_or(usize::MAX);
        if get::<i64>(&row, "version")? != version || bytes > BYTES_MAX {
            break;
        }
        let take = concat!(
            "UPDATE events SET state = 7, attempt = attempt + 1, claim_id = $1, claimed_at = $2,
                        replica = (SELECT h.replica FROM events h WHERE h.seq = $4) WHERE seq = $3 RETURNING ",
            event_columns!()
        );
        let query = db::query(take).bind(claim.0).bind(millis(now)).bind(get::<i64>(&row, "seq")?).bind(seq);
        for row in &query.fetch_all(&mut *tx).await.map_err(during(VERB))? {
            let Ok(event) = decode(row) else {
                leave_behind(tx, get(row, "seq")?).await?;
                return Ok(taken);
            };
            note_unseen_end(tx, row, &event, now).await?;
            taken.push(event);
        }
    }
    Ok(taken)
}

/// A row that is damaged: it becomes a dead letter once it is at the head.
async fn leave_behind(tx: &mut Tx, seq: i64) -> Result<(), Error> {
    let sql = "UPDATE events SET state = 5, attempt = attempt - 1, claim_id = NULL WHERE seq = $1";
    db::query(sql).bind(seq).execute(&mut *tx).await.map(|_| ()).map_err(during(VERB))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::testing::{app, at, event};
    use super::super::tests::{
        add, claim, dead, figures, finish, keyed, next_due, payloads, retry, store_with_app, take_over,
    };
    use super::super::{ClaimedEvent, Disposition, NewEvent};
    use crate::model::{Batch, VersionNumber};
    use crate::store::{Store, db};

    const WAIT: u64 = 10;

    /// At `now`, for a function that takes three at a time and waits ten seconds for them.
    fn batched(payload: u64, now: u64) -> NewEvent {
        let batch = Batch { max_size: 3, max_wait: Duration::from_secs(WAIT) };
        NewEvent { batch: Some(batch), due_at: at(now), enqueued_at: at(now), ..keyed("a", payload) }
    }

    fn all(claimed: &ClaimedEvent) -> Vec<&str> {
        [&claimed.event].into_iter().chain(&claimed.others).map(|event| event.payload.as_str()).collect()
    }

    async fn end(store: &Store, claimed: &ClaimedEvent, head: Disposition, others: &[Disposition]) {
        assert!(store.finish_claim(claimed, head, others.to_vec(), None, at(1)).await.expect("finish"));
    }

    #[tokio::test]
    async fn events_wait_for_others_but_no_longer_than_they_may() {
        let (_dir, store) = store_with_app().await;
        add(&store, batched(1, 0)).await;
        add(&store, batched(2, 4)).await;
        assert_eq!(next_due(&store).await, Some(at(WAIT)));
        assert!(claim(&store, 9, WAIT - 1).await.is_empty());
        let claimed = claim(&store, 9, WAIT).await;
        assert_eq!((claimed.len(), all(&claimed[0])), (1, vec!["1", "2"]));
        assert_eq!(figures(&store).await, (0, 2, 0));
        end(&store, &claimed[0], Disposition::Done, &[Disposition::Done]).await;
        assert_eq!((figures(&store).await, store.inner.queue.backlog.of(&app("shop"))), ((0, 0, 0), 0));
    }

    #[tokio::test]
    async fn a_full_batch_runs_at_once_and_the_rest_is_the_next() {
        let (_dir, store) = store_with_app().await;
        for n in 1..=7 {
            add(&store, batched(n, 0)).await;
            assert_eq!(next_due(&store).await, Some(at(if n < 3 { WAIT } else { 0 })), "{n}");
        }
        let first = claim(&store, 9, 0).await;
        assert_eq!((first.len(), all(&first[0])), (1, vec!["1", "2", "3"]));
        assert!(claim(&store, 9, 50).await.is_empty(), "one batch of a line at a time");
        end(&store, &first[0], Disposition::Done, &[Disposition::Done, Disposition::Done]).await;
        let second = claim(&store, 9, 1).await;
        assert_eq!(all(&second[0]), ["4", "5", "6"], "it is full already");
        end(&store, &second[0], Disposition::Done, &[Disposition::Done, Disposition::Done]).await;
        assert!(claim(&store, 9, WAIT - 1).await.is_empty());
        assert_eq!(all(&claim(&store, 9, WAIT).await[0]), ["7"]);
    }

    #[tokio::test]
    async fn a_batch_that_failed_comes_back_in_order_and_without_those_that_died() {
        let (_dir, store) = store_with_app().await;
        for n in 1..=3 {
            add(&store, batched(n, 0)).await;
        }
        let first = claim(&store, 9, 0).await;
        end(&store, &first[0], retry(20), &[retry(20), dead()]).await;
        add(&store, batched(4, 1)).await;
        add(&store, batched(5, 1)).await;
        assert!(claim(&store, 9, 19).await.is_empty(), "a retry waits, however many stand behind it");
        let second = claim(&store, 9, 20).await;
        assert_eq!(all(&second[0]), ["1", "2", "4"]);
        let attempts: Vec<_> = second[0].others.iter().map(|other| other.attempt).collect();
        assert_eq!((second[0].event.attempt, attempts), (2, vec![2, 1]));
        end(&store, &second[0], dead(), &[retry(30), retry(30)]).await;
        assert_eq!(figures(&store).await, (3, 0, 2));
        assert_eq!(all(&claim(&store, 9, 21).await[0]), ["2", "4", "5"]);
    }

    #[tokio::test]
    async fn whoever_takes_a_batch_over_has_all_of_it_and_the_late_one_nothing() {
        let (_dir, store) = store_with_app().await;
        for n in 1..=3 {
            add(&store, batched(n, 0)).await;
        }
        let late = claim(&store, 9, 0).await.remove(0);
        let taken_over = claim(&store, 9, 60).await.remove(0);
        assert_eq!(all(&taken_over), ["1", "2", "3"]);
        let done = || vec![Disposition::Done, Disposition::Done];
        assert!(!store.finish_claim(&late, Disposition::Done, done(), None, at(61)).await.expect("finish"));
        assert_eq!(figures(&store).await, (0, 3, 0));
        assert_eq!(take_over(&store).await, 3);
        assert!(!store.finish_claim(&taken_over, Disposition::Done, done(), None, at(61)).await.expect("finish"));
        let again = claim(&store, 9, 62).await.remove(0);
        assert_eq!((all(&again), again.event.attempt), (vec!["1", "2", "3"], 3));
    }

    #[tokio::test]
    async fn a_batch_has_one_version_and_a_damaged_row_ends_it() {
        let (_dir, store) = store_with_app().await;
        add(&store, batched(1, 0)).await;
        add(&store, batched(2, 0)).await;
        add(&store, NewEvent { version: VersionNumber(2), ..batched(3, 0) }).await;
        let first = claim(&store, 9, 0).await;
        assert_eq!(all(&first[0]), ["1", "2"]);
        end(&store, &first[0], Disposition::Done, &[Disposition::Done]).await;
        add(&store, NewEvent { version: VersionNumber(2), ..batched(4, 0) }).await;
        let damage = "UPDATE events SET hops = -1 WHERE payload_json = '4'";
        db::query(damage).execute(store.write()).await.expect("damage");
        let second = claim(&store, 9, WAIT).await;
        assert_eq!(all(&second[0]), ["3"]);
        end(&store, &second[0], Disposition::Done, &[]).await;
        assert!(claim(&store, 9, WAIT).await.is_empty());
        assert_eq!(figures(&store).await, (0, 0, 1));
    }

    #[tokio::test]
    async fn without_a_key_and_without_batches_events_run_alone() {
        let (_dir, store) = store_with_app().await;
        add(&store, NewEvent { ordering_key: None, ..batched(1, 0) }).await;
        add(&store, NewEvent { batch: None, ..batched(2, 0) }).await;
        add(&store, NewEvent { batch: None, ..batched(3, 0) }).await;
        add(&store, event("shop")).await;
        let claimed = claim(&store, 9, 0).await;
        assert_eq!(payloads(&claimed), ["1", "2", r#"{"n": 1}"#]);
        assert!(claimed.iter().all(|claimed| claimed.others.is_empty()));
        assert!(finish(&store, &claimed[1], Disposition::Done).await);
    }
}

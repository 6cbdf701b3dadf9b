//! Lines: the events of one (app, trigger type, ordering key), in the order of their places.
//!
//! At most one is at the head, QUEUED or RUNNING, which an index makes certain; the others are WAITING. Whatever ends a head lets the
//! next one advance in the same transaction, so a line costs the same however long it is.

use std::time::SystemTime;

use super::super::codec::{get, millis};
use super::super::db::{self, Row, Tx};
use super::super::{Error, during};
use super::batch;

/// Scheduled events join their lines so many at a time.
const JOINING_MAX: i64 = 256;

/// Whoever waits longest, if nobody is at the head.
pub(super) const ADVANCE: &str = "UPDATE events SET state = 0 WHERE seq = (
         SELECT w.seq FROM events k JOIN events w
             ON w.app_id = k.app_id AND w.trigger_type = k.trigger_type AND w.ordering_key = k.ordering_key AND w.state = 5
         WHERE k.seq = $1 ORDER BY w.place, w.seq LIMIT 1)
     AND NOT EXISTS (
         SELECT 1 FROM events k JOIN events h
             ON h.app_id = k.app_id AND h.trigger_type = k.trigger_type AND h.ordering_key = k.ordering_key AND h.state < 2
         WHERE k.seq = $1)
     RETURNING seq, batch_max";

/// What keeps two transactions from changing the same line at once: else one that ends its head and one that joins it would each see
/// the line without the other, and nobody would advance. To be taken, all at once, before the first statement that touches the lines.
pub fn lock_key(app: &str, trigger: &str, ordering_key: &str) -> i64 {
    let mut hash = blake3::Hasher::new();
    for part in [app, trigger, ordering_key] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let mut key = [0; 8];
    key.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    i64::from_le_bytes(key)
}

/// `None`: it stands in no line.
pub fn lock_of_row(row: &Row) -> Result<Option<i64>, Error> {
    let Some(ordering_key) = get::<Option<&str>>(row, "ordering_key")? else { return Ok(None) };
    Ok(Some(lock_key(get(row, "app_id")?, get(row, "trigger_type")?, ordering_key)))
}

/// Lets the next in this event's line come to its head, if there is none. Without a line: nothing.
pub async fn advance(tx: &mut Tx, seq: i64, now: SystemTime) -> Result<(), Error> {
    let heads = db::query(ADVANCE).bind(seq).fetch_all(&mut *tx).await.map_err(during("advance a line"))?;
    for head in &heads {
        if let Some(batch_max) = get::<Option<i64>>(head, "batch_max")? {
            batch::hasten(tx, get(head, "seq")?, batch_max, now).await?;
        }
    }
    Ok(())
}

/// Gives the scheduled events whose time has come the last places of their lines.
pub async fn join(tx: &mut Tx, now: SystemTime) -> Result<(), Error> {
    const VERB: &str = "schedule events";
    let sql = "SELECT seq, app_id, trigger_type, ordering_key FROM events WHERE state = 6 AND due_at <= $1
               ORDER BY due_at, seq LIMIT $2 /*pg FOR UPDATE SKIP LOCKED */";
    let due = db::query(sql).bind(millis(now)).bind(JOINING_MAX).fetch_all(&mut *tx).await.map_err(during(VERB))?;
    let lines = due.iter().filter_map(|row| lock_of_row(row).transpose()).collect::<Result<_, _>>()?;
    tx.lock(lines).await.map_err(during(VERB))?;
    for row in &due {
        let seq: i64 = get(row, "seq")?;
        let sql = "UPDATE events SET state = 5, place = (SELECT MAX(seq) + 1 FROM events),
                 due_at = CASE WHEN batch_wait_ms IS NULL THEN due_at ELSE $2 + batch_wait_ms END WHERE seq = $1";
        db::query(sql).bind(seq).bind(millis(now)).execute(&mut *tx).await.map_err(during(VERB))?;
        advance(tx, seq, now).await?;
    }
    Ok(())
}

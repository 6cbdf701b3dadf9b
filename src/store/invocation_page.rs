//! One function's invocations by page number, as the REST API shows them.

use super::codec::{get, get_unsigned, signed};
use super::db::{self, Builder};
use super::history::JSON_BYTES;
use super::invocation_row::{decode_invocation, invocation_columns};
use super::{Error, Store, during};
use crate::model::{AppId, Invocation, TriggerType};

/// So many of one function are counted, and can be paged through: what a page costs stays bounded.
pub const COUNTED_MAX: u64 = 100_000;

/// What is left of a row whose JSON would make the page too large.
const BARE: &str = "rowid AS seq, id, app_id, trigger_type, version, attempt, event_id, '{}' AS event_json, status,
    CAST(NULL AS TEXT) AS result_json, CAST(NULL AS TEXT) AS denied_reason, CAST(NULL AS TEXT) AS denied_code,
    CAST(NULL AS TEXT) AS denied_json, CAST(NULL AS TEXT) AS error_json, created_at, finished_at, cold_start, queue_us, init_us, run_us, cpu_us, peak_memory_bytes, trace_id";

/// An invocation on a page.
#[derive(Debug, Clone, PartialEq)]
pub struct PagedInvocation {
    /// A number that no other invocation has.
    pub seq: u64,
    pub invocation: Invocation,
    /// Its event and outcome, which may be large, are left out.
    pub bare: bool,
    /// 0 RUNNING, 1 SUCCEEDED, 2 FAILED: a bare one has no outcome to tell it by.
    pub status: u8,
}

impl Store {
    /// A page of a function's invocations, with about `bytes_max` of JSON at most, and how many there are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn invocation_page(
        &self,
        app: &AppId,
        trigger_type: &TriggerType,
        newest_first: bool,
        (offset, limit): (u64, u32),
        bytes_max: u64,
    ) -> Result<(Vec<PagedInvocation>, u64), Error> {
        const VERB: &str = "page through invocations";
        let mut tx = self.read().begin_read().await.map_err(during(VERB))?; // All statements see the same rows.
        let count = "SELECT COUNT(*) AS total FROM (
            SELECT 1 FROM invocations WHERE app_id = $1 AND trigger_type = $2 LIMIT $3) AS counted";
        let count = db::query(count).bind(app.as_str()).bind(trigger_type.as_str()).bind(signed(COUNTED_MAX));
        let total = get_unsigned(&count.fetch_one(&mut tx).await.map_err(during(VERB))?, "total")?;
        if offset >= total {
            return Ok((Vec::new(), total));
        }
        let mut sql = Builder::new("SELECT rowid AS seq, ");
        sql.push(JSON_BYTES).push(" AS bytes FROM invocations WHERE app_id = ").push_bind(app.as_str());
        sql.push(" AND trigger_type = ").push_bind(trigger_type.as_str());
        sql.push(if newest_first { " ORDER BY id DESC" } else { " ORDER BY id" });
        sql.push(" LIMIT ").push_bind(i64::from(limit)).push(" OFFSET ").push_bind(signed(offset));
        let sizes = sql.build().fetch_all(&mut tx).await.map_err(during(VERB))?;
        let (mut bytes_left, mut page) = (bytes_max, Vec::with_capacity(sizes.len()));
        for size in &sizes {
            let seq: i64 = get(size, "seq")?;
            let left = bytes_left.checked_sub(get_unsigned(size, "bytes")?);
            // The first is shown whole: a page of one is how to see a large one.
            let bare = left.is_none() && !page.is_empty();
            bytes_left = left.unwrap_or(0);
            let mut sql = Builder::new("SELECT ");
            sql.push(if bare { BARE } else { invocation_columns!() })
                .push(" FROM invocations WHERE rowid = ")
                .push_bind(seq);
            let row = sql.build().fetch_one(&mut tx).await.map_err(during(VERB))?;
            let status = u8::try_from(get::<i64>(&row, "status")?).unwrap_or_default();
            page.push(PagedInvocation { seq: seq.unsigned_abs(), invocation: decode_invocation(&row)?, bare, status });
        }
        Ok((page, total))
    }
}

//! Which packed files in the artifact store the apps' artifacts and layers are unpacked from, and which of those may go.
//!
//! A publish writes its row first, then the object, then that the object is stored. A collection marks an object as being removed only
//! where no row refers to it. Both lock the object's row in `blob_objects` before they look at what the other wrote, so that one of
//! them sees the other, at any level of isolation.

use std::time::{Duration, SystemTime};

use super::codec::{get, get_parsed, get_unsigned, get_version, millis, signed};
use super::db::{self, Row};
use super::{Error, Store, during};
use crate::model::{AppId, Blob, FilesName, VersionNumber};

/// Whoever was removing an object for longer is gone: a request to remove one takes seconds, and is given up after a minute.
const REMOVAL_MAX: Duration = Duration::from_secs(600);

/// How a blob's row began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginBlob {
    /// Write the object now.
    Begun,
    /// Another replica has stored these files meanwhile.
    Stored(Blob),
    /// An object with these very bytes is just being removed: begin again when it is gone.
    BeingRemoved,
}

/// What a version runs from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionFiles {
    pub app: AppId,
    pub number: VersionNumber,
    pub digest: String,
    /// Empty: it has none.
    pub layer: String,
}

impl Store {
    /// Where these files lie; `None`: they are not in the artifact store.
    ///
    /// # Errors
    /// The store cannot be read. Of the others below: or written.
    pub async fn blob(&self, of: &FilesName) -> Result<Option<Blob>, Error> {
        let sql = "SELECT hash, size_bytes, unpacked_bytes, entries FROM blobs
                   WHERE app_id = $1 AND kind = $2 AND name = $3 AND stored";
        let query = db::query(sql).bind(of.app.as_str()).bind(of.kind.as_str()).bind(&of.name);
        let row = query.fetch_optional(self.read()).await.map_err(during("find a blob"))?;
        row.as_ref().map(decode).transpose()
    }

    /// As [`Store::blob`], and it stays as long as nothing that was touched so recently is collected.
    pub async fn touch_blob(&self, of: &FilesName, now: SystemTime) -> Result<Option<Blob>, Error> {
        let sql = "UPDATE blobs SET touched_at = $4 WHERE app_id = $1 AND kind = $2 AND name = $3 AND stored
                   RETURNING hash, size_bytes, unpacked_bytes, entries";
        let query = db::query(sql).bind(of.app.as_str()).bind(of.kind.as_str()).bind(&of.name).bind(millis(now));
        let rows = query.fetch_all(self.write()).await.map_err(during("touch a blob"))?;
        rows.first().map(decode).transpose()
    }

    /// Before its object is written. `replace`: also where these files are stored already, as their object is lost.
    pub async fn begin_blob(
        &self,
        of: &FilesName,
        blob: &Blob,
        replace: bool,
        now: SystemTime,
    ) -> Result<BeginBlob, Error> {
        const VERB: &str = "begin a blob";
        let mut tx = self.begin(VERB).await?;
        // `hash = excluded.hash` changes nothing, and locks the row.
        let lock = "INSERT INTO blob_objects (hash) VALUES ($1) ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash
                    RETURNING removing_since";
        let row = db::query(lock).bind(&blob.hash).fetch_one(&mut tx).await.map_err(during(VERB))?;
        let removing_since: Option<i64> = get(&row, "removing_since")?;
        if removing_since.is_some_and(|since| since > before(now, REMOVAL_MAX)) {
            return Ok(BeginBlob::BeingRemoved);
        }
        let free = "UPDATE blob_objects SET removing_since = NULL WHERE hash = $1";
        db::query(free).bind(&blob.hash).execute(&mut tx).await.map_err(during(VERB))?;
        let sql = "INSERT INTO blobs (app_id, kind, name, hash, size_bytes, unpacked_bytes, entries, stored, touched_at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, FALSE, $8)
                   ON CONFLICT (app_id, kind, name) DO UPDATE SET hash = excluded.hash, size_bytes = excluded.size_bytes,
                       unpacked_bytes = excluded.unpacked_bytes, entries = excluded.entries,
                       stored = (blobs.stored AND blobs.hash = excluded.hash), touched_at = excluded.touched_at
                   WHERE $9 OR NOT blobs.stored";
        let query = db::query(sql).bind(of.app.as_str()).bind(of.kind.as_str()).bind(&of.name).bind(&blob.hash);
        let query = query.bind(signed(blob.size_bytes)).bind(signed(blob.unpacked_bytes)).bind(signed(blob.entries));
        let written = query.bind(millis(now)).bind(replace).execute(&mut tx).await.map_err(during(VERB))?;
        tx.commit().await.map_err(during(VERB))?;
        if written > 0 {
            return Ok(BeginBlob::Begun);
        }
        // Stored just now by somebody else; or collected since, and then it begins anew.
        Ok(self.touch_blob(of, now).await?.map_or(BeginBlob::BeingRemoved, BeginBlob::Stored))
    }

    /// After its object was written. False: the row tells of another one by now.
    pub async fn finish_blob(&self, of: &FilesName, blob: &Blob, now: SystemTime) -> Result<bool, Error> {
        let sql = "UPDATE blobs SET stored = TRUE, touched_at = $5
                   WHERE app_id = $1 AND kind = $2 AND name = $3 AND hash = $4";
        let query = db::query(sql).bind(of.app.as_str()).bind(of.kind.as_str()).bind(&of.name);
        let query = query.bind(&blob.hash).bind(millis(now));
        let changed = query.execute(self.write()).await.map_err(during("finish a blob"))?;
        Ok(changed > 0)
    }

    /// Forgets what no version uses and nothing has touched since `before`. Returns how many there were.
    pub async fn forget_blobs(&self, before: SystemTime) -> Result<u64, Error> {
        let sql = "DELETE FROM blobs WHERE touched_at < $1 AND NOT EXISTS (
                       SELECT 1 FROM versions v WHERE v.app_id = blobs.app_id AND v.state < 2 AND (
                           (blobs.kind = 'artifact' AND v.digest = 'blake3:' || blobs.name)
                           OR (blobs.kind = 'layer' AND v.layer = blobs.name)))";
        let query = db::query(sql).bind(millis(before));
        let gone = query.execute(self.write()).await.map_err(during("forget blobs"))?;
        Ok(gone)
    }

    /// Marks an object as being removed, if nothing refers to it; false: something does, or somebody else is at it. After the
    /// removal, call [`Store::end_removal`].
    pub async fn begin_removal(&self, hash: &str, now: SystemTime) -> Result<bool, Error> {
        const VERB: &str = "begin to remove a blob";
        let mut tx = self.begin(VERB).await?;
        let sql = "INSERT INTO blob_objects (hash, removing_since) VALUES ($1, $2)
                   ON CONFLICT (hash) DO UPDATE SET removing_since = excluded.removing_since
                   WHERE blob_objects.removing_since IS NULL OR blob_objects.removing_since <= $3";
        let query = db::query(sql).bind(hash).bind(millis(now)).bind(before(now, REMOVAL_MAX));
        if query.execute(&mut tx).await.map_err(during(VERB))? == 0 {
            return Ok(false);
        }
        // After the lock: what a publish wrote before it is seen now.
        let used = "SELECT COUNT(*) AS uses FROM blobs WHERE hash = $1";
        let row = db::query(used).bind(hash).fetch_one(&mut tx).await.map_err(during(VERB))?;
        if get_unsigned(&row, "uses")? > 0 {
            return Ok(false);
        }
        tx.commit().await.map_err(during(VERB))?;
        Ok(true)
    }

    /// The object is gone.
    pub async fn end_removal(&self, hash: &str) -> Result<(), Error> {
        let sql = "DELETE FROM blob_objects WHERE hash = $1 AND removing_since IS NOT NULL";
        let done = db::query(sql).bind(hash).execute(self.write()).await;
        done.map(|_| ()).map_err(during("end a blob's removal"))
    }

    /// The READY versions of all apps, in pages: what comes after this one.
    pub async fn version_files(&self, after: Option<&VersionFiles>, limit: u32) -> Result<Vec<VersionFiles>, Error> {
        let sql = "SELECT app_id, number, digest, layer FROM versions
                   WHERE state = 1 AND (app_id > $1 OR (app_id = $1 AND number > $2))
                   ORDER BY app_id, number LIMIT $3";
        let (app, number) = after.map_or(("", 0), |after| (after.app.as_str(), signed(after.number.0)));
        let query = db::query(sql).bind(app).bind(number).bind(i64::from(limit));
        let rows = query.fetch_all(self.read()).await.map_err(during("list what versions run from"))?;
        let files = |row: &Row| {
            Ok(VersionFiles {
                app: get_parsed(row, "app_id")?,
                number: get_version(row, "number")?,
                digest: get(row, "digest")?,
                layer: get(row, "layer")?,
            })
        };
        rows.iter().map(files).collect()
    }
}

impl VersionFiles {
    /// Its artifact, then its layer.
    pub fn names(&self) -> Vec<FilesName> {
        let layer = (!self.layer.is_empty()).then(|| FilesName::layer(&self.app, &self.layer));
        std::iter::once(FilesName::artifact(&self.app, &self.digest)).chain(layer).collect()
    }
}

fn before(now: SystemTime, span: Duration) -> i64 {
    millis(now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH))
}

fn decode(row: &Row) -> Result<Blob, Error> {
    Ok(Blob {
        hash: get(row, "hash")?,
        size_bytes: get_unsigned(row, "size_bytes")?,
        unpacked_bytes: get_unsigned(row, "unpacked_bytes")?,
        entries: get_unsigned(row, "entries")?,
    })
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;

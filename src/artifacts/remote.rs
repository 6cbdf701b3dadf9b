//! The artifact store itself: objects named by their content, written once, in a bucket or a directory that replicas share.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    WriteMultipart,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::config::artifacts::{Location, Place};
use crate::model::Blob;

// object_store's own timeouts hold for one request: 5 s to connect, 30 s in all, so for `PART_BYTES` at most.
const RETRIES_MAX: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole blob, either way.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// For one of the small requests, its retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const PART_BYTES: u64 = 8 << 20;
/// Parts of one blob under way at a time.
const PARTS_MAX: usize = 4;
/// Of what a store says of an error.
const DETAIL_BYTES_MAX: usize = 500;

#[derive(Debug, Clone)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    location: String,
    /// Of a part that is read; smaller in tests. (Those that are written must be of 5 MiB or more.)
    part_bytes: u64,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    /// It may come back. The detail is the operator's.
    #[error("{verb}: {detail}")]
    Away { verb: &'static str, detail: String },
    #[error("there is no object {0}")]
    Missing(String),
    #[error("object {key} is damaged: {problem}")]
    Damaged { key: String, problem: String },
    #[error("{verb}: {detail}")]
    Disk { verb: &'static str, detail: String },
}

/// One object, as listed.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub hash: String,
    pub size_bytes: u64,
    pub modified: SystemTime,
}

impl Remote {
    /// No request is made yet. Credentials come from the environment: `AWS_…`, `GOOGLE_…`.
    ///
    /// # Errors
    /// The environment holds something that cannot be used, or the directory cannot be made.
    pub fn open(location: &Location) -> anyhow::Result<Self> {
        let shown = location.to_string();
        let fail = |err: StoreError| anyhow::anyhow!("artifacts {shown}: {}", short(&err));
        let store: Arc<dyn ObjectStore> = match &location.place {
            Place::S3 { bucket } => {
                let store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retries()).build();
                Arc::new(PrefixStore::new(store.map_err(fail)?, location.prefix.as_str()))
            }
            Place::Google { bucket } => {
                let store =
                    GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retries()).build();
                Arc::new(PrefixStore::new(store.map_err(fail)?, location.prefix.as_str()))
            }
            Place::Directory(path) => {
                std::fs::create_dir_all(path).map_err(|err| anyhow::anyhow!("artifacts {shown}: {err}"))?;
                Arc::new(LocalFileSystem::new_with_prefix(path).map_err(fail)?.with_fsync(true))
            }
        };
        Ok(Self { store, location: shown, part_bytes: PART_BYTES })
    }

    #[cfg(test)]
    pub(super) fn with(store: Arc<dyn ObjectStore>, part_bytes: u64) -> Self {
        Self { store, location: "s3://chatfn/test".to_owned(), part_bytes }
    }

    pub fn location(&self) -> &str {
        &self.location
    }

    /// Writes, reads, lists and removes something small, so that what is not permitted is known before it is needed.
    ///
    /// # Errors
    /// Says which of them failed, and what to look at.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let key = Key::from(format!("probe/{}", uuid::Uuid::new_v4()));
        let content = Bytes::from_static(b"chatfn");
        let steps = async {
            self.call("write an object", self.store.put(&key, content.clone().into())).await?;
            let read = async { self.store.get(&key).await?.bytes().await };
            let read = self.call("read an object", read).await?;
            if read != content {
                return Err(RemoteError::Away {
                    verb: "read an object",
                    detail: "it is not what was written".to_owned(),
                });
            }
            let list = async { self.store.list(Some(&Key::from("probe"))).take(1).try_collect::<Vec<_>>().await };
            self.call("list objects", list).await?;
            self.call("remove an object", self.store.delete(&key)).await
        };
        steps.await.map_err(|err| {
            anyhow::anyhow!(
                "artifacts {}: cannot {err}. Check that it exists, and the environment: AWS_ENDPOINT, AWS_REGION, AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY or a role (s3://), GOOGLE_SERVICE_ACCOUNT or workload identity (gs://); it takes the rights to \
                 write, read, list and remove objects",
                self.location
            )
        })
    }

    /// Whether it is there, in its full size.
    pub(super) async fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        match self.call("look for an object", self.store.head(&key(&blob.hash))).await {
            Ok(meta) => Ok(meta.size == blob.size_bytes),
            Err(RemoteError::Missing(_)) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Writes a packed file. What is there under its name already is the same: its name is its content's.
    pub(super) async fn put(&self, packed: &Path, blob: &Blob) -> Result<(), RemoteError> {
        let put = async {
            if blob.size_bytes > 2 * PART_BYTES {
                self.put_large(packed, blob).await
            } else {
                self.put_small(packed, blob).await
            }
        };
        timeout(TRANSFER_TIMEOUT, put).await.unwrap_or_else(|_| Err(timed_out("write an object")))
    }

    async fn put_small(&self, packed: &Path, blob: &Blob) -> Result<(), RemoteError> {
        let (key, verb) = (key(&blob.hash), "write an object");
        let payload = PutPayload::from(tokio::fs::read(packed).await.map_err(disk("read a packed file"))?);
        let put = async |mode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            self.store.put_opts(&key, payload.clone(), options).await
        };
        match put(PutMode::Create).await {
            Ok(_) => Ok(()),
            Err(StoreError::AlreadyExists { .. }) if self.has(blob).await? => Ok(()),
            // Half an object, or a store that cannot write on condition: the content is the same whoever writes it.
            Err(
                StoreError::AlreadyExists { .. } | StoreError::NotImplemented { .. } | StoreError::NotSupported { .. },
            ) => put(PutMode::Overwrite).await.map(|_| ()).map_err(|err| classify(verb, &key, &err)),
            Err(err) => Err(classify(verb, &key, &err)),
        }
    }

    async fn put_large(&self, packed: &Path, blob: &Blob) -> Result<(), RemoteError> {
        let (key, verb) = (key(&blob.hash), "write an object in parts");
        if self.has(blob).await? {
            return Ok(());
        }
        let failed = |err: StoreError| classify(verb, &key, &err);
        let upload = self.call(verb, self.store.put_multipart(&key)).await?;
        let part = usize::try_from(PART_BYTES).unwrap_or(usize::MAX);
        let mut upload = WriteMultipart::new_with_chunk_size(upload, part);
        let mut file = tokio::fs::File::open(packed).await.map_err(disk("read a packed file"))?;
        let mut buffer = vec![0; 256 << 10];
        let written = async {
            loop {
                let read = file.read(&mut buffer).await.map_err(disk("read a packed file"))?;
                if read == 0 {
                    return Ok(());
                }
                upload.wait_for_capacity(PARTS_MAX).await.map_err(failed)?;
                upload.write(&buffer[..read]);
            }
        };
        match written.await {
            Ok(()) => upload.finish().await.map(|_| ()).map_err(failed),
            Err(err) => {
                let _ = upload.abort().await; // The first error is the one to tell.
                Err(err)
            }
        }
    }

    /// Reads an object into a file. On return it is there, and its bytes are those that its name says.
    pub(super) async fn fetch(&self, blob: &Blob, into: &Path) -> Result<(), RemoteError> {
        let fetched = async {
            match self.fetch_once(blob, into).await {
                // On the way, or where it lies? The second time it is where it lies.
                Err(RemoteError::Damaged { .. }) => self.fetch_once(blob, into).await,
                fetched => fetched,
            }
        };
        timeout(TRANSFER_TIMEOUT, fetched).await.unwrap_or_else(|_| Err(timed_out("read an object")))
    }

    async fn fetch_once(&self, blob: &Blob, into: &Path) -> Result<(), RemoteError> {
        let key = key(&blob.hash);
        let damaged = |problem: String| RemoteError::Damaged { key: key.to_string(), problem };
        let meta = self.call("look for an object", self.store.head(&key)).await?;
        if meta.size != blob.size_bytes {
            return Err(damaged(format!("it has {} bytes, and had {}", meta.size, blob.size_bytes)));
        }
        let mut file = tokio::fs::File::create(into).await.map_err(disk("write a fetched file"))?;
        let mut hasher = blake3::Hasher::new();
        let mut parts = stream::iter(parts(blob.size_bytes, self.part_bytes))
            .map(|part| self.call("read an object", self.store.get_range(&key, part)))
            .buffered(PARTS_MAX);
        while let Some(part) = parts.try_next().await? {
            hasher.update(&part);
            file.write_all(&part).await.map_err(disk("write a fetched file"))?;
        }
        file.flush().await.map_err(disk("write a fetched file"))?;
        if hasher.finalize().to_hex().as_str() != blob.hash {
            return Err(damaged("its bytes are not those that were written".to_owned()));
        }
        Ok(())
    }

    /// All blobs that are there.
    pub(super) fn list(&self) -> BoxStream<'static, Result<Listed, RemoteError>> {
        let listed = self.store.list(Some(&Key::from(BLOBS)));
        let listed = listed.map_err(|err| classify("list objects", &Key::from(BLOBS), &err));
        let listed = listed.try_filter_map(|meta| async move {
            let hash = meta.location.filename().and_then(hash_of).map(str::to_owned);
            let modified =
                UNIX_EPOCH + Duration::from_millis(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0));
            Ok(hash.map(|hash| Listed { hash, size_bytes: meta.size, modified }))
        });
        listed.boxed()
    }

    pub(super) async fn remove(&self, hash: &str) -> Result<(), RemoteError> {
        match self.call("remove an object", self.store.delete(&key(hash))).await {
            Err(RemoteError::Missing(_)) => Ok(()),
            removed => removed,
        }
    }

    async fn call<T>(
        &self,
        verb: &'static str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, RemoteError> {
        let answer = timeout(CALL_TIMEOUT, request).await.map_err(|_| timed_out(verb))?;
        answer.map_err(|err| classify(verb, &Key::default(), &err))
    }
}

const BLOBS: &str = "blobs";

fn key(hash: &str) -> Key {
    Key::from(format!("{BLOBS}/blake3-{hash}.tar.zst"))
}

/// `None`: it is nothing of ours, and stays.
fn hash_of(file: &str) -> Option<&str> {
    let hash = file.strip_prefix("blake3-")?.strip_suffix(".tar.zst")?;
    (hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(hash)
}

fn parts(bytes: u64, part: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes.div_ceil(part)).map(move |at| at * part..((at + 1) * part).min(bytes))
}

fn retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT }
}

fn timed_out(verb: &'static str) -> RemoteError {
    RemoteError::Away { verb, detail: "it took too long".to_owned() }
}

fn disk(verb: &'static str) -> impl FnOnce(std::io::Error) -> RemoteError {
    move |err| RemoteError::Disk { verb, detail: err.to_string() }
}

fn classify(verb: &'static str, key: &Key, err: &StoreError) -> RemoteError {
    match err {
        StoreError::NotFound { path, .. } => {
            RemoteError::Missing(if key.as_ref().is_empty() { path.clone() } else { key.to_string() })
        }
        err => RemoteError::Away { verb, detail: short(err) },
    }
}

/// A store's answer may be pages long.
fn short(err: &StoreError) -> String {
    let mut text = err.to_string();
    if let Some((end, _)) = text.char_indices().find(|(at, _)| *at >= DETAIL_BYTES_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;

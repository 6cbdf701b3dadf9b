//! Two nodes with a database and an artifact store in common.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, RetryConfig};

use super::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use super::{Artifacts, Blobs, BlobsSettings, Layer, Manifest, Remote};
use crate::model::{AppId, FilesName, Version};
use crate::store::Store;
use crate::store::testing::{Place, actor, building, built, store};

/// Small parts, so that few bytes are many of them.
pub const PART_BYTES: u64 = 16 << 10;

pub fn remote(server: &S3Server, secret: &str) -> Remote {
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(1), ..BackoffConfig::default() };
    let retries = RetryConfig { backoff, max_retries: 1, retry_timeout: Duration::from_secs(5) };
    let builder = AmazonS3Builder::new().with_bucket_name(BUCKET).with_access_key_id(ACCESS_KEY);
    let builder = builder.with_secret_access_key(secret).with_allow_http(true).with_retry(retries);
    let client = builder.with_endpoint(format!("http://{}", server.address)).build().expect("a client");
    Remote::with(Arc::new(client), PART_BYTES)
}

pub struct Fleet {
    pub server: S3Server,
    pub store: Store,
    pub app: AppId,
    _dir: Place,
}

pub struct Node {
    pub blobs: Blobs,
    data: tempfile::TempDir,
}

impl Fleet {
    pub async fn start() -> Self {
        let (dir, store) = store().await;
        Self { server: S3Server::start(), store, app: "shop".parse().expect("id"), _dir: dir }
    }

    pub fn remote(&self) -> Remote {
        remote(&self.server, SECRET_KEY)
    }

    pub fn node(&self, cache_bytes_max: u64, grace: Duration) -> Node {
        let data = tempfile::tempdir().expect("temp dir");
        let artifacts = Artifacts::open(data.path()).expect("open");
        let settings = BlobsSettings { cache_bytes_max, grace };
        Node { blobs: Blobs::new(artifacts, self.store.clone(), Some(self.remote()), settings), data }
    }

    /// A READY version of what was made.
    pub async fn ready(&self, digest: &str, layer: &str) -> Version {
        let new = building(self.app.as_str());
        let number = self.store.begin_version(new.clone(), actor()).await.expect("begin");
        let version = Version { digest: digest.to_owned(), layer: layer.to_owned(), ..built(&new, number) };
        self.store
            .finish_version(&version, &BTreeMap::new(), Some(std::time::SystemTime::now()), None, actor())
            .await
            .expect("finish");
        version
    }

    /// Made by a node, put, and READY.
    pub async fn publish(&self, node: &Node, name: &str, layer: &str) -> Version {
        let digest = node.make(&self.app, name, layer);
        let version = self.ready(&digest, layer).await;
        node.blobs.put(&names(&version)).await.expect("put");
        node.blobs.confirm(&names(&version)).await.expect("confirm");
        version
    }
}

pub fn names(version: &Version) -> Vec<FilesName> {
    vec![FilesName::artifact(&version.app, &version.digest), FilesName::layer(&version.app, &version.layer)]
}

impl Node {
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// An artifact with a layer of some 100 KB that do not compress.
    pub fn make(&self, app: &AppId, name: &str, layer: &str) -> String {
        let artifacts = self.blobs.artifacts();
        let staged = artifacts.stage("layer-").expect("stage");
        let modules = staged.path().join("node_modules");
        fs::create_dir_all(modules.join(".bin")).expect("make");
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().update(layer.as_bytes()).finalize_xof().fill(&mut noise);
        fs::write(modules.join("noise.js"), noise).expect("write");
        symlink("../noise.js", modules.join(".bin/noise")).expect("link");
        let kept = Layer { key: layer.to_owned(), size_bytes: 100_000, files: 3, dependencies: BTreeMap::new() };
        artifacts.keep_layer(app, staged, &kept).expect("keep");
        let files = BTreeMap::from([("a.js".to_owned(), Bytes::from(name.to_owned()))]);
        let hashes = BTreeMap::from([("a.js".to_owned(), blake3::hash(name.as_bytes()).to_hex().to_string())]);
        let manifest = Manifest { files: hashes, layer: Some(layer.to_owned()), ..Manifest::default() };
        artifacts.store(app, &manifest, &files, b"{}").expect("store").digest
    }

    pub fn has(&self, version: &Version) -> (bool, bool) {
        let [artifact, layer] = &names(version)[..] else { panic!("two names") };
        (self.blobs.artifacts().has(artifact), self.blobs.artifacts().has(layer))
    }
}

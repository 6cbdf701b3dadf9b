use std::fs;
use std::path::Path;

use super::super::testing::{Fleet, names};
use super::*;

const PLENTY: u64 = 1 << 30;
const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn what_one_node_made_another_finds() {
    let fleet = Fleet::start().await;
    let (a, b) = (fleet.node(PLENTY, DAY), fleet.node(PLENTY, DAY));
    let version = fleet.publish(&a, "one", "l1").await;
    assert_eq!(b.has(&version), (false, false));
    let held = b.blobs.get(&version.app, &version.digest).await.expect("fetches");
    assert_eq!((b.has(&version), held.names().len()), ((true, true), 2));
    let artifacts = b.blobs.artifacts();
    let tree = artifacts.tree(&version.app, &version.digest);
    assert_eq!(fs::read(tree.join("a.js")).expect("read"), b"one");
    assert_eq!(fs::read(tree.join("node_modules/noise.js")).expect("through the layer").len(), 100_000);
    assert_eq!(fs::read_link(tree.join("node_modules/.bin/noise")).expect("a link"), Path::new("../noise.js"));
    assert_eq!(artifacts.layer(&version.app, "l1"), a.blobs.artifacts().layer(&version.app, "l1"));
    assert_eq!(artifacts.spec(&version.app, &version.digest).expect("reads"), None, "none was kept");
    let mode = fs::metadata(artifacts.layer_directory(&version.app, "l1")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    assert_eq!(fs::read_dir(artifacts.tmp()).expect("tmp").count(), 0);
    // Packed again it is the same object.
    let objects = fleet.server.blobs("");
    b.blobs.put_one(&names(&version)[1], true).await.expect("put");
    assert_eq!(fleet.server.blobs(""), objects);
}

#[tokio::test]
async fn those_who_ask_together_wait_for_one_fetch() {
    let fleet = Fleet::start().await;
    let (a, b) = (fleet.node(PLENTY, DAY), fleet.node(PLENTY, DAY));
    let version = fleet.publish(&a, "one", "l1").await;
    let get = || b.blobs.get_layer(&version.app, "l1");
    let parts = 100_000_usize.div_ceil(16 << 10);
    let (first, second, third) = tokio::join!(get(), get(), get());
    assert!(first.is_ok() && second.is_ok() && third.is_ok());
    assert!((parts..=parts + 1).contains(&fleet.server.reads()), "{} reads", fleet.server.reads());
}

#[tokio::test]
async fn one_who_hangs_up_does_not_end_the_fetch() {
    let fleet = Fleet::start().await;
    let (a, b) = (fleet.node(PLENTY, DAY), fleet.node(PLENTY, DAY));
    let version = fleet.publish(&a, "one", "l1").await;
    let name = names(&version).remove(1);
    let running = {
        let mut get = std::pin::pin!(b.blobs.get_layer(&version.app, "l1"));
        assert!(futures_util::poll!(get.as_mut()).is_pending());
        b.blobs.shared.fetches.lock().expect("fetches").get(&name).cloned().expect("it runs")
    };
    running.await.expect("fetched");
    assert!(b.has(&version).1);
}

#[tokio::test]
async fn what_cannot_be_had_is_told_apart() {
    let mut fleet = Fleet::start().await;
    let (a, b) = (fleet.node(PLENTY, DAY), fleet.node(PLENTY, DAY));
    let version = fleet.publish(&a, "one", "l1").await;
    let never_put = FilesName::layer(&version.app, "elsewhere");
    assert!(
        matches!(b.blobs.get_layer(&version.app, "elsewhere").await, Err(BlobsError::Missing { name }) if name == never_put)
    );
    fleet.server.stop();
    let away = b.blobs.get(&version.app, &version.digest).await.expect_err("away");
    assert!(matches!(away, BlobsError::Away { .. }) && away.is_transient());
    assert!(!away.to_string().contains("127.0.0.1"), "callers are not told where it is");
    a.blobs.get(&version.app, &version.digest).await.expect("what is at hand needs no store");
    fleet.server.restart();
    for object in fleet.server.blobs("") {
        let mut bytes = fs::read(&object).expect("read");
        bytes[20] ^= 1;
        fs::write(&object, bytes).expect("write");
    }
    let damaged = b.blobs.get(&version.app, &version.digest).await.expect_err("damaged");
    assert!(matches!(damaged, BlobsError::Damaged { .. }) && !damaged.is_transient());
    for object in fleet.server.blobs("") {
        fs::remove_file(object).expect("remove");
    }
    assert!(matches!(b.blobs.get(&version.app, &version.digest).await, Err(BlobsError::Missing { .. })));
    assert_eq!((b.has(&version), fs::read_dir(b.blobs.artifacts().tmp()).expect("tmp").count()), ((false, false), 0));
    // The next publish with the same layer puts it there again.
    a.blobs.put(&names(&version)).await.expect("put");
    b.blobs.get(&version.app, &version.digest).await.expect("fetches");
}

#[tokio::test]
async fn an_archive_that_is_no_artifact_is_damaged_though_its_hash_is_right() {
    let fleet = Fleet::start().await;
    let node = fleet.node(PLENTY, DAY);
    let version = fleet.publish(&node, "one", "l1").await;
    let hostile = tempfile::NamedTempFile::new().expect("temp file");
    fs::write(
        hostile.path(),
        zstd::encode_all(&b"no tar at all, and longer than one header needs to be"[..], 1).expect("zstd"),
    )
    .expect("write");
    let bytes = fs::read(hostile.path()).expect("read");
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let blob = Blob { hash, size_bytes: bytes.len() as u64, unpacked_bytes: 10, entries: 1 };
    let name = FilesName::layer(&version.app, "hostile");
    fleet.store.begin_blob(&name, &blob, false, SystemTime::now()).await.expect("begin");
    fleet.remote().put(hostile.path(), &blob).await.expect("put");
    fleet.store.finish_blob(&name, &blob, SystemTime::now()).await.expect("finish");
    assert!(matches!(node.blobs.get_layer(&version.app, "hostile").await, Err(BlobsError::Damaged { .. })));
    assert!(!node.data().join("layers/shop/hostile").exists());
}

#[tokio::test]
async fn without_an_artifact_store_nothing_is_asked_of_anybody() {
    let fleet = Fleet::start().await;
    let data = tempfile::tempdir().expect("temp dir");
    let settings = BlobsSettings { cache_bytes_max: 1, grace: DAY };
    let blobs = Blobs::new(Artifacts::open(data.path()).expect("open"), fleet.store.clone(), None, settings);
    drop(blobs.get(&fleet.app, "blake3:none").await.expect("nothing to do"));
    let names = [FilesName::layer(&fleet.app, "none")];
    blobs.put(&names).await.expect("nothing to do");
    blobs.confirm(&names).await.expect("nothing to do");
    assert_eq!(fleet.server.reads(), 0);
}

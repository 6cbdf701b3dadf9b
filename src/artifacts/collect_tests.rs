use std::fs::{self, File};

use super::super::testing::{Fleet, names};
use super::*;
use crate::model::{FilesName, VersionNumber};
use crate::store::testing::actor;

const PLENTY: u64 = 1 << 30;
const HOUR: Duration = Duration::from_secs(3600);

/// Makes every object an hour older than it is.
fn age(fleet: &Fleet) {
    for object in fleet.server.blobs("") {
        let modified = fs::metadata(&object).and_then(|metadata| metadata.modified()).expect("a time");
        File::options().write(true).open(&object).and_then(|file| file.set_modified(modified - HOUR)).expect("time");
    }
}

#[tokio::test]
async fn what_no_version_uses_is_collected_when_it_is_old_enough() {
    let fleet = Fleet::start().await;
    let node = fleet.node(PLENTY, Duration::from_millis(1));
    let (kept, gone) = (fleet.publish(&node, "one", "l1").await, fleet.publish(&node, "two", "l2").await);
    fleet
        .store
        .activate_version(&kept.app, kept.number, std::time::SystemTime::now(), actor())
        .await
        .expect("activate");
    fleet.store.delete_version(&gone.app, gone.number, actor()).await.expect("delete");
    let foreign = fleet.server.blobs("").remove(0).with_file_name("readme.txt");
    fs::write(&foreign, "not ours").expect("write");
    let patient = fleet.node(PLENTY, 2 * HOUR);
    age(&fleet);
    let remote = fleet.remote();
    assert_eq!(patient.blobs.collect(&remote).await.expect("collects"), Collected::default(), "too young");
    let done = node.blobs.collect(&remote).await.expect("collects");
    assert_eq!(done, Collected { forgotten: 2, removed: 2, restored: 0 });
    assert_eq!(fleet.server.blobs("").len(), 3, "two in use, one that is not ours");
    assert_eq!(node.blobs.collect(&remote).await.expect("collects"), Collected::default());
    let other = fleet.node(PLENTY, HOUR);
    other.blobs.get(&kept.app, &kept.digest).await.expect("fetches");
}

#[tokio::test]
async fn an_object_that_a_publish_begins_to_rely_on_is_not_removed() {
    let fleet = Fleet::start().await;
    let node = fleet.node(PLENTY, Duration::from_millis(1));
    let first = fleet.publish(&node, "one", "l1").await;
    fleet.store.delete_app(&first.app, actor()).await.expect("delete");
    age(&fleet);
    // Published again: the objects are there, old, and nothing refers to them until now.
    let again = fleet.publish(&node, "one", "l1").await;
    age(&fleet);
    assert_eq!(node.blobs.collect(&fleet.remote()).await.expect("collects").removed, 0);
    fleet.node(PLENTY, HOUR).blobs.get(&again.app, &again.digest).await.expect("fetches");
}

#[tokio::test]
async fn what_was_lost_or_never_put_is_put_by_a_node_that_has_it() {
    let fleet = Fleet::start().await;
    let node = fleet.node(PLENTY, HOUR);
    let published = fleet.publish(&node, "one", "l1").await;
    let digest = node.make(&fleet.app, "two", "l2");
    let older = fleet.ready(&digest, "l2").await; // From before there was an artifact store.
    fleet.ready("blake3:elsewhere", "l3").await; // At hand nowhere.
    fs::remove_file(fleet.server.blobs("").remove(0)).expect("remove");
    let remote = fleet.remote();
    assert_eq!(node.blobs.collect(&remote).await.expect("collects").restored, 3);
    assert_eq!(node.blobs.collect(&remote).await.expect("collects").restored, 0);
    let other = fleet.node(PLENTY, HOUR);
    for version in [published, older] {
        other.blobs.get(&version.app, &version.digest).await.expect("fetches");
    }
}

#[tokio::test]
async fn the_data_directory_is_kept_below_its_limit() {
    let fleet = Fleet::start().await;
    let maker = fleet.node(PLENTY, HOUR);
    let mut versions = Vec::new();
    for (name, layer) in [("one", "l1"), ("two", "l2"), ("three", "l3")] {
        versions.push(fleet.publish(&maker, name, layer).await);
    }
    let node = fleet.node(250_000, HOUR);
    let mut held = Vec::new();
    for version in &versions {
        held.push(node.blobs.get(&version.app, &version.digest).await.expect("fetches"));
    }
    node.blobs.evict().await.expect("evicts");
    assert!(versions.iter().all(|version| node.has(version) == (true, true)), "all of them are in use");
    held.truncate(2);
    held.remove(0);
    // The third was used last, the first before it; the second is in use.
    drop(node.blobs.get(&versions[2].app, &versions[2].digest).await.expect("at hand"));
    node.blobs.evict().await.expect("evicts");
    let has: Vec<_> = versions.iter().map(|version| node.has(version).1).collect();
    assert_eq!(has, [false, true, true]);
    drop(node.blobs.get(&versions[0].app, &versions[0].digest).await.expect("fetched again"));
}

#[tokio::test]
async fn what_is_nowhere_else_is_not_evicted() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1, HOUR);
    let digest = node.make(&fleet.app, "one", "l1");
    let version = fleet.ready(&digest, "l1").await;
    node.blobs.artifacts().count_all();
    node.blobs.evict().await.expect("evicts nothing");
    assert_eq!(node.has(&version), (true, true));
    node.blobs.put(&names(&version)).await.expect("put");
    node.blobs.evict().await.expect("evicts");
    assert_eq!(node.has(&version), (false, false));
    assert_eq!(version.number, VersionNumber(1));
    assert!(fleet.store.blob(&FilesName::layer(&version.app, "l1")).await.expect("reads").is_some());
}

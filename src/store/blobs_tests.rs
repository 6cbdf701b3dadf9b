use std::time::Duration;

use super::super::testing::{actor, app, at, ready_version, store};
use super::*;

const HOUR: u64 = 3600;

fn blob(hash: &str) -> Blob {
    Blob { hash: hash.to_owned(), size_bytes: 1, unpacked_bytes: 2, entries: 3 }
}

async fn kept(store: &Store, of: &FilesName, hash: &str, now: SystemTime) {
    assert_eq!(store.begin_blob(of, &blob(hash), false, now).await.expect("begin"), BeginBlob::Begun);
    assert!(store.finish_blob(of, &blob(hash), now).await.expect("finish"));
}

#[tokio::test]
async fn a_blob_is_found_when_its_object_was_written_and_not_before() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let layer = FilesName::layer(&app("shop"), "layer-1");
    assert_eq!(store.begin_blob(&layer, &blob("a"), false, at(0)).await.expect("begin"), BeginBlob::Begun);
    assert_eq!(store.blob(&layer).await.expect("read"), None);
    assert_eq!(store.touch_blob(&layer, at(0)).await.expect("touch"), None);
    assert!(store.finish_blob(&layer, &blob("a"), at(0)).await.expect("finish"));
    assert_eq!(store.blob(&layer).await.expect("read"), Some(blob("a")));
    assert_eq!(store.blob(&FilesName::artifact(&app("shop"), "layer-1")).await.expect("read"), None);
}

#[tokio::test]
async fn of_two_replicas_that_store_the_same_files_the_first_wins() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let layer = FilesName::layer(&app("shop"), "layer-1");
    for hash in ["a", "b"] {
        assert_eq!(store.begin_blob(&layer, &blob(hash), false, at(0)).await.expect("begin"), BeginBlob::Begun);
    }
    assert!(!store.finish_blob(&layer, &blob("a"), at(0)).await.expect("finish"), "b began after it");
    assert!(store.finish_blob(&layer, &blob("b"), at(0)).await.expect("finish"));
    let again = store.begin_blob(&layer, &blob("a"), false, at(1)).await.expect("begin");
    assert_eq!(again, BeginBlob::Stored(blob("b")));
    assert_eq!(store.begin_blob(&layer, &blob("c"), true, at(1)).await.expect("replace"), BeginBlob::Begun);
    assert_eq!(store.blob(&layer).await.expect("read"), None, "until its object is there");
}

#[tokio::test]
async fn what_a_version_uses_or_a_publish_just_touched_is_not_forgotten() {
    let (_dir, store) = store().await;
    let version = ready_version(&store, "shop").await;
    let artifact = FilesName::artifact(&app("shop"), &version.digest);
    let layer = FilesName::layer(&app("shop"), &version.layer);
    let other = FilesName::layer(&app("shop"), "old");
    for (of, hash) in [(&artifact, "a"), (&layer, "l"), (&other, "o")] {
        kept(&store, of, hash, at(0)).await;
    }
    assert_eq!(store.forget_blobs(at(0)).await.expect("forget"), 0, "touched just then");
    store.touch_blob(&other, at(HOUR)).await.expect("touch");
    assert_eq!(store.forget_blobs(at(HOUR)).await.expect("forget"), 0, "touched again");
    assert_eq!(store.forget_blobs(at(HOUR + 1)).await.expect("forget"), 1);
    assert!(store.blob(&other).await.expect("read").is_none());
    assert!(store.blob(&artifact).await.expect("read").is_some() && store.blob(&layer).await.expect("read").is_some());
    store.delete_app(&app("shop"), actor()).await.expect("delete");
    assert!(store.blob(&artifact).await.expect("read").is_none());
}

#[tokio::test]
async fn nothing_is_removed_that_a_publish_relies_on_and_nothing_relied_on_that_is_being_removed() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let layer = FilesName::layer(&app("shop"), "layer-1");
    kept(&store, &layer, "a", at(0)).await;
    assert!(!store.begin_removal("a", at(1)).await.expect("removal"), "in use");
    store.delete_app(&app("shop"), actor()).await.expect("delete");
    assert!(store.begin_removal("a", at(1)).await.expect("removal"));
    assert!(!store.begin_removal("a", at(2)).await.expect("removal"), "one at a time");
    ready_version(&store, "shop").await;
    let begin = async |now| store.begin_blob(&layer, &blob("a"), false, now).await.expect("begin");
    assert_eq!(begin(at(2)).await, BeginBlob::BeingRemoved);
    store.end_removal("a").await.expect("end");
    assert_eq!(begin(at(3)).await, BeginBlob::Begun);
    assert!(!store.begin_removal("a", at(4)).await.expect("removal"), "a publish has begun to rely on it");
    store.end_removal("a").await.expect("nothing to end");
    assert!(!store.begin_removal("a", at(5)).await.expect("removal"));
}

#[tokio::test]
async fn a_removal_that_nobody_ended_is_void_after_a_while() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    assert!(store.begin_removal("a", at(0)).await.expect("removal"));
    let layer = FilesName::layer(&app("shop"), "layer-1");
    let end = REMOVAL_MAX.as_secs();
    let begin = async |now| store.begin_blob(&layer, &blob("a"), false, now).await.expect("begin");
    assert_eq!(begin(at(end) - Duration::from_millis(1)).await, BeginBlob::BeingRemoved);
    assert_eq!(begin(at(end)).await, BeginBlob::Begun);
}

#[tokio::test]
async fn every_ready_version_is_listed_once() {
    let (_dir, store) = store().await;
    let mut expected = Vec::new();
    for id in ["a", "b", "b"] {
        let version = ready_version(&store, id).await;
        expected.push((version.app, version.number));
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = store.version_files(after.as_ref(), 2).await.expect("a page");
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        assert!(page.iter().all(|files| files.names().len() == 2));
        listed.extend(page.into_iter().map(|files| (files.app, files.number)));
    }
    assert_eq!(listed, expected);
}

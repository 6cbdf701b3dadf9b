use std::time::Duration;

use super::super::testing::{actor, app, at, building, built, event, ready_version, store};
use super::super::{Disposition, Store};
use super::*;

async fn begin(store: &Store, new: &NewVersion) -> VersionNumber {
    store.begin_version(new.clone(), actor()).await.expect("begin")
}

async fn state(store: &Store, number: u64) -> VersionState {
    store.version(&app("shop"), VersionNumber(number)).await.expect("version").expect("exists").state
}

async fn active(store: &Store) -> Option<u64> {
    store.app(&app("shop")).await.expect("app").expect("exists").active.map(|number| number.0)
}

#[tokio::test]
async fn a_version_is_kept_from_its_beginning_to_its_end() {
    let (_dir, store) = store().await;
    let new = building("shop");
    let number = begin(&store, &new).await;
    assert_eq!(number, VersionNumber(1));
    let stored = store.version(&app("shop"), number).await.expect("version");
    assert_eq!(stored, Some(Version { number, ..new.version.clone() }));
    assert_eq!(active(&store).await, None);
    assert!(
        store.activate_version(&app("shop"), number, at(0), actor()).await.expect("activate").is_none(),
        "not READY"
    );

    let version = built(&new, number);
    store.finish_version(&version, &Default::default(), None, None, actor()).await.expect("finish");
    assert_eq!(store.version(&app("shop"), number).await.expect("version"), Some(version.clone()));
    assert_eq!(active(&store).await, None, "was not asked to serve");
    assert!(store.activate_version(&app("shop"), number, at(0), actor()).await.expect("activate").is_some());
    assert_eq!(active(&store).await, Some(1));
    assert_eq!(store.environment(&app("shop"), number).await.expect("environment"), new.environment);
    assert!(store.environment(&app("shop"), VersionNumber(2)).await.expect("environment").is_empty());

    let again = store.finish_version(&version, &Default::default(), Some(at(0)), None, actor()).await;
    assert!(matches!(again, Err(BeginError::NotBuilding(VersionNumber(1)))));
    store.fail_version(&app("shop"), number, ("too late", "INSTALL_FAILED"), actor()).await.expect("fail");
    assert_eq!(state(&store, 1).await, VersionState::Ready, "never leaves READY");
    assert!(store.activate_version(&app("shop"), VersionNumber(9), at(0), actor()).await.expect("activate").is_none());
    assert!(store.activate_version(&app("none"), number, at(0), actor()).await.expect("activate").is_none());
}

#[tokio::test]
async fn a_base_that_moved_is_refused_at_both_ends() {
    let (_dir, store) = store().await;
    let on = |base: u64| NewVersion { base: Some(VersionNumber(base)), ..building("shop") };
    let refused = store.begin_version(on(1), actor()).await;
    assert!(matches!(refused, Err(BeginError::BaseMoved { newest: VersionNumber(0) })));
    assert_eq!(store.app(&app("shop")).await.expect("app"), None, "nothing is left of it");

    let first = begin(&store, &on(0)).await;
    let second = begin(&store, &on(0)).await; // The first is not READY yet.
    store
        .finish_version(&built(&on(0), second), &Default::default(), Some(at(0)), Some(VersionNumber(0)), actor())
        .await
        .expect("finish");
    let late = store
        .finish_version(&built(&on(0), first), &Default::default(), Some(at(0)), Some(VersionNumber(0)), actor())
        .await;
    assert!(matches!(late, Err(BeginError::BaseMoved { newest }) if newest == second));
    assert_eq!((state(&store, 1).await, active(&store).await), (VersionState::Building, Some(2)));

    assert!(
        matches!(store.begin_version(on(0), actor()).await, Err(BeginError::BaseMoved { newest }) if newest == second)
    );
    let third = begin(&store, &on(2)).await;
    assert_eq!(third, VersionNumber(3), "refused ones take no number");
    store
        .finish_version(&built(&on(2), third), &Default::default(), Some(at(0)), Some(second), actor())
        .await
        .expect("finish");
}

#[tokio::test]
async fn numbers_are_never_reused() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let failed = begin(&store, &building("shop")).await;
    store.fail_version(&app("shop"), failed, ("npm said no", "INSTALL_FAILED"), actor()).await.expect("fail");
    let stored = store.version(&app("shop"), failed).await.expect("version").expect("exists");
    assert_eq!((stored.state, stored.failure.as_str()), (VersionState::Failed, "npm said no"));
    assert!(store.environment(&app("shop"), failed).await.expect("environment").is_empty(), "no secret outlives it");
    assert!(!store.environment(&app("shop"), VersionNumber(1)).await.expect("environment").is_empty());
    assert_eq!(store.delete_version(&app("shop"), failed, actor()).await.expect("delete"), DeleteVersion::Deleted);
    assert_eq!(begin(&store, &building("shop")).await, VersionNumber(3));
    assert_eq!(begin(&store, &building("other")).await, VersionNumber(1));
}

#[tokio::test]
async fn concurrent_builds_get_different_numbers() {
    let (_dir, store) = store().await;
    let builds = (0..20).map(|_| store.begin_version(building("shop"), actor()));
    let numbers: BTreeSet<u64> =
        futures_util::future::try_join_all(builds).await.expect("begin").into_iter().map(|number| number.0).collect();
    assert_eq!(numbers, (1..=20).collect());
}

#[tokio::test]
async fn a_version_in_use_is_not_deleted() {
    let (_dir, store) = store().await;
    let delete =
        async |number| store.delete_version(&app("shop"), VersionNumber(number), actor()).await.expect("delete");
    ready_version(&store, "shop").await;
    assert_eq!(delete(1).await, DeleteVersion::Active);
    ready_version(&store, "shop").await;
    begin(&store, &building("shop")).await;
    assert_eq!((delete(3).await, delete(4).await), (DeleteVersion::Building, DeleteVersion::NotFound));

    store.enqueue(event("shop")).await.expect("enqueue");
    assert_eq!(delete(1).await, DeleteVersion::NeededByEvents(1));
    let claimed = store.claim(&[(app("shop"), 1)], at(60), at(1)).await.expect("claim").remove(0);
    assert_eq!(delete(1).await, DeleteVersion::NeededByEvents(1), "also while it runs");
    let dead = Disposition::Dead { reason: crate::store::DeadReason::AttemptsExhausted };
    assert!(store.finish_claim(&claimed, dead, Vec::new(), None, at(2)).await.expect("finish"));
    assert_eq!(delete(1).await, DeleteVersion::Deleted);
    assert_eq!(delete(1).await, DeleteVersion::NotFound);
    assert!(store.environment(&app("shop"), VersionNumber(1)).await.expect("environment").is_empty());
}

#[tokio::test]
async fn versions_are_listed_newest_first_page_by_page() {
    let (_dir, store) = store().await;
    for _ in 0..5 {
        ready_version(&store, "shop").await;
    }
    let page = async |before: Option<u64>| {
        let versions = store.list_versions(&app("shop"), before.map(VersionNumber), 2).await.expect("list");
        versions.into_iter().map(|v| v.number.0).collect::<Vec<_>>()
    };
    assert_eq!(page(None).await, [5, 4]);
    assert_eq!(page(Some(4)).await, [3, 2]);
    assert_eq!(page(Some(2)).await, [1]);
    assert!(page(Some(1)).await.is_empty());
}

#[tokio::test]
async fn the_newest_ready_version_is_found_by_key_and_by_dependencies() {
    let (_dir, store) = store().await;
    let keyed = NewVersion {
        publish_key: Some(PublishKey { key: "k".to_owned(), digest: "d".to_owned() }),
        ..building("shop")
    };
    let number = async |found: Option<Version>| found.map(|v| v.number.0);
    let first = begin(&store, &keyed).await;
    let by_key = async |id| store.version_by_publish_key(&app(id), "k").await.expect("find");
    assert_eq!(by_key("shop").await, None);
    assert!(store.layers_in_use(&app("shop")).await.expect("layers").is_empty());
    store.finish_version(&built(&keyed, first), &Default::default(), Some(at(0)), None, actor()).await.expect("finish");
    let second = begin(&store, &keyed).await;
    let no_layer = Version { layer: String::new(), ..built(&keyed, second) };
    store.finish_version(&no_layer, &Default::default(), Some(at(0)), None, actor()).await.expect("finish");
    begin(&store, &keyed).await; // BUILDING does not count.

    let (found, digest) = by_key("shop").await.expect("the second");
    assert_eq!((found.number.0, digest.as_str()), (2, "d"));
    assert_eq!(by_key("other").await, None);
    assert_eq!(number(store.layer_for(&app("shop"), "deps-1").await.expect("find")).await, Some(2));
    assert_eq!(number(store.layer_for(&app("shop"), "deps-2").await.expect("find")).await, None);
    assert_eq!(store.layers_in_use(&app("shop")).await.expect("layers"), BTreeSet::from(["layer-1".to_owned()]));
    assert_eq!(store.digests_in_use(&app("shop")).await.expect("digests").len(), 2);
}

#[tokio::test]
async fn builds_of_a_stopped_service_are_given_up() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    begin(&store, &building("shop")).await;
    assert_eq!(store.take_over(Duration::ZERO, at(9)).await.expect("take over").builds, 1);
    assert_eq!(store.take_over(Duration::ZERO, at(9)).await.expect("take over").builds, 0);
    assert_eq!((state(&store, 1).await, state(&store, 2).await), (VersionState::Ready, VersionState::Failed));
    assert!(store.environment(&app("shop"), VersionNumber(2)).await.expect("environment").is_empty());
    assert!(!store.environment(&app("shop"), VersionNumber(1)).await.expect("environment").is_empty());
    let failure = store.version(&app("shop"), VersionNumber(2)).await.expect("version").expect("exists").failure;
    assert_eq!(failure, "the service stopped while this version was being built");
}

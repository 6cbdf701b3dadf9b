//! Encrypted values on a real file.

use std::path::Path;

use super::super::testing::{Place, actor, app, building, plain_store, ready_version, store};
use super::*;
use crate::secrets::generate;
use crate::store::NewVersion;

const SECRET: &str = "hunter2-hunter2";

fn with_secret(app: &str) -> NewVersion {
    NewVersion { environment: BTreeMap::from([("TOKEN".to_owned(), SECRET.to_owned())]), ..building(app) }
}

/// Keys of these names, the first one first, each the same whenever it comes again.
fn keyring(directory: &Path, ids: &[&str]) -> Keyring {
    use std::os::unix::fs::PermissionsExt;
    let line = |id: &&str| {
        let path = directory.join(format!("key-{id}"));
        if !path.exists() {
            std::fs::write(&path, generate(id).expect("a line").as_bytes()).expect("write");
        }
        std::fs::read_to_string(&path).expect("read")
    };
    let path = directory.join("keys");
    std::fs::write(&path, ids.iter().map(line).collect::<Vec<_>>().join("\n")).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    Keyring::open(&path).expect("opens")
}

async fn opened(directory: &Place, keys: Option<Keyring>) -> Store {
    let store = directory.open().await;
    keys.into_iter().for_each(|keys| store.use_keys(keys));
    store
}

async fn read(store: &Store, of: &str, number: u64) -> Result<Option<String>, Error> {
    Ok(store.environment(&app(of), VersionNumber(number)).await?.remove("TOKEN"))
}

/// `None`: the files are PostgreSQL's.
fn lies_open(directory: &Place) -> Option<bool> {
    directory.file()?;
    let files = ["store.db", "store.db-wal"];
    let content = |name: &&str| std::fs::read(directory.path().join(name)).unwrap_or_default();
    Some(files.iter().map(content).any(|bytes| bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())))
}

async fn change(store: &Store, sql: &'static str) {
    db::query(sql).execute(store.write()).await.expect("changes");
}

#[tokio::test]
async fn a_value_lies_encrypted_and_opens_at_its_own_place_alone() {
    let (directory, store) = store().await;
    for of in ["shop", "shop", "other"] {
        store.begin_version(with_secret(of), actor()).await.expect("begins");
    }
    assert_eq!(read(&store, "shop", 2).await.expect("opens").as_deref(), Some(SECRET));
    assert_ne!(lies_open(&directory), Some(true));
    // Another version's, another name's, another app's.
    for (swap, of, number) in [
        (
            "UPDATE environments SET value = (SELECT value FROM environments WHERE app_id = 'shop' AND version = 1)
          WHERE app_id = 'shop' AND version = 2",
            "shop",
            2,
        ),
        ("UPDATE environments SET name = 'OTHER' WHERE app_id = 'shop' AND version = 1", "shop", 1),
        (
            "UPDATE environments SET (value, data_key_id) =
          (SELECT value, data_key_id FROM environments WHERE app_id = 'shop' AND version = 1)
          WHERE app_id = 'other'",
            "other",
            1,
        ),
    ] {
        change(&store, swap).await;
        let err = read(&store, of, number).await.expect_err("refused");
        assert!(matches!(err, Error::Secret(_)) && !err.to_string().contains(SECRET), "{err}");
    }
    // The keys of two apps, exchanged.
    store.begin_version(with_secret("third"), actor()).await.expect("begins");
    change(
        &store,
        "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE app_id = 'shop') WHERE app_id = 'third'",
    )
    .await;
    let err = read(&store, "third", 1).await.expect_err("refused").to_string();
    assert!(err.contains("the data key of app third does not open with the key"), "{err}");
}

#[tokio::test]
async fn what_lay_there_as_it_is_opens_and_a_rotation_encrypts_it() {
    let (directory, store) = plain_store().await;
    for of in ["shop", "shop", "other"] {
        store.begin_version(with_secret(of), actor()).await.expect("begins");
    }
    // It looks like something encrypted, and is not.
    let odd =
        NewVersion { environment: BTreeMap::from([("TOKEN".to_owned(), "v1:k:AAAA".to_owned())]), ..building("odd") };
    store.begin_version(odd, actor()).await.expect("begins");
    let key = store.service_key("tokens", [7; 32]).await.expect("a key");
    store.close().await;
    assert_ne!(lies_open(&directory), Some(false));

    let store = opened(&directory, Some(keyring(directory.path(), &["one"]))).await;
    assert_eq!(read(&store, "shop", 1).await.expect("opens").as_deref(), Some(SECRET));
    store.begin_version(with_secret("new"), actor()).await.expect("begins");
    let mut told = Vec::new();
    let done = store.rotate_keys(actor(), |done| told.push(done.values)).await.expect("rotates");
    assert_eq!(done, Rotation { key_id: "one".to_owned(), values: 4, service_keys: 1, ..Rotation::default() });
    assert_eq!(told.last(), Some(&4));
    assert!(store.empty_log().await.expect("empties"));
    assert_ne!(lies_open(&directory), Some(true));
    for (of, number) in [("shop", 1), ("shop", 2), ("other", 1), ("new", 1)] {
        assert_eq!(read(&store, of, number).await.expect("opens").as_deref(), Some(SECRET));
    }
    assert_eq!(read(&store, "odd", 1).await.expect("opens").as_deref(), Some("v1:k:AAAA"));
    assert_eq!(store.service_key("tokens", [8; 32]).await.expect("a key"), key);
    let again = store.rotate_keys(actor(), |_| {}).await.expect("rotates");
    assert_eq!(again, Rotation { key_id: "one".to_owned(), ..Rotation::default() }, "nothing was left");
}

#[tokio::test]
async fn a_rotation_moves_everything_to_the_current_key_in_batches_and_beside_other_writers() {
    let (directory, store) = plain_store().await;
    store.close().await;
    let apps: Vec<_> = (0..i64::from(BATCH as i32) + 5).map(|n| format!("app-{n}")).collect();
    let store = opened(&directory, Some(keyring(directory.path(), &["one"]))).await;
    for of in &apps {
        store.begin_version(with_secret(of), actor()).await.expect("begins");
    }
    store.service_key("tokens", [7; 32]).await.expect("a key");

    // Another process on the same file, as `chatfn keys rotate` is.
    let beside = opened(&directory, Some(keyring(directory.path(), &["two", "one"]))).await;
    let (done, begun) =
        tokio::join!(beside.rotate_keys(actor(), |_| {}), store.begin_version(with_secret("app-1"), actor()));
    begun.expect("begins");
    let done = done.expect("rotates");
    assert_eq!((done.key_id.as_str(), done.data_keys, done.service_keys), ("two", apps.len() as u64, 1));
    assert!(done.failed.is_empty(), "{:?}", done.failed);
    store.begin_version(with_secret("late"), actor()).await.expect("begins");
    let left = beside.rotate_keys(actor(), |_| {}).await.expect("rotates");
    assert_eq!(left.data_keys, 0, "the first one saw the new key by itself");
    store.close().await;
    beside.close().await;

    let store = opened(&directory, Some(keyring(directory.path(), &["two"]))).await;
    for (of, number) in [("app-0", 1), ("app-1", 2), ("app-104", 1), ("late", 1)] {
        assert_eq!(read(&store, of, number).await.expect("opens").as_deref(), Some(SECRET), "{of}");
    }
    assert_eq!(store.service_key("tokens", [8; 32]).await.expect("a key"), [7; 32]);
}

#[tokio::test]
async fn a_lost_key_is_named_and_stops_neither_the_others_nor_a_rotation() {
    let (directory, store) = plain_store().await;
    store.close().await;
    let store = opened(&directory, Some(keyring(directory.path(), &["lost"]))).await;
    store.begin_version(with_secret("shop"), actor()).await.expect("begins");
    store.service_key("tokens", [7; 32]).await.expect("a key");
    store.close().await;

    let without = opened(&directory, None).await;
    let err = read(&without, "shop", 1).await.expect_err("no keys").to_string();
    assert!(err.contains("\"lost\", and no encryption_keys_file is set") && !err.contains(SECRET), "{err}");
    let err = without.service_key("tokens", [7; 32]).await.expect_err("no keys").to_string();
    assert!(err.contains("\"lost\""), "{err}");
    without.begin_version(with_secret("open"), actor()).await.expect("begins");
    without.close().await;

    let store = opened(&directory, Some(keyring(directory.path(), &["found"]))).await;
    let err = read(&store, "shop", 1).await.expect_err("another key").to_string();
    assert!(err.contains("\"lost\", which is not in encryption_keys_file"), "{err}");
    let done = store.rotate_keys(actor(), |_| {}).await.expect("rotates");
    assert_eq!((done.values, done.failed.len()), (1, 2), "{done:?}");
    assert_eq!(read(&store, "open", 1).await.expect("opens").as_deref(), Some(SECRET));
    store.begin_version(with_secret("shop"), actor()).await.expect_err("its data key cannot be opened");
    assert!(store.delete_app(&app("shop"), actor()).await.expect("deletes"));
    store.begin_version(with_secret("shop"), actor()).await.expect("a new app has a new key");
    ready_version(&store, "shop").await;
}

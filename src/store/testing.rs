//! What the tests of this module share: a real file and rows to fill it with.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::{NewEvent, NewVersion, QueueLimits, Store};
use crate::model::{
    AppId, FailurePolicy, Function, Limits, RawJson, RetryPolicy, TriggerType, Version, VersionNumber, VersionState,
};

/// With keys, as a store should be.
pub async fn store() -> (TempDir, Store) {
    let (dir, store) = plain_store().await;
    let path = dir.path().join("keys");
    std::fs::write(&path, crate::secrets::generate("test").expect("a line").as_bytes()).expect("write");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    store.use_keys(crate::secrets::Keyring::open(&path).expect("keys"));
    (dir, store)
}

pub async fn plain_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(&dir.path().join("store.db"), QueueLimits::default()).await.expect("open");
    (dir, store)
}

pub fn app(id: &str) -> AppId {
    id.parse().expect("app id")
}

pub fn trigger() -> TriggerType {
    TriggerType::stored("UserSentMessage".to_owned())
}

/// Seconds after an arbitrary beginning.
pub fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

pub fn building(app_id: &str) -> NewVersion {
    let function = Function {
        trigger_type: trigger(),
        name: "Greet".to_owned(),
        description: String::new(),
        entry: "greet.ts".to_owned(),
        disabled: false,
        timeout: Duration::from_millis(1500),
        retry: RetryPolicy::default(),
        failure_policy: FailurePolicy::default(),
        batch: None,
    };
    let version = Version {
        app: app(app_id),
        number: VersionNumber(0),
        state: VersionState::Building,
        digest: String::new(),
        functions: vec![function],
        dependencies: BTreeMap::new(),
        environment_names: vec!["TOKEN".to_owned()],
        limits: Limits::default(),
        node_version: "v20.20.0".to_owned(),
        layer: String::new(),
        layer_size_bytes: 0,
        size_bytes: 0,
        has_initialization_script: true,
        created_at: at(0),
        failure: String::new(),
    };
    let environment = BTreeMap::from([("TOKEN".to_owned(), "secret".to_owned())]);
    NewVersion { version, environment, deps_digest: "deps-1".to_owned(), publish_key: None, base: None }
}

/// `new` as it looks when its build is over.
pub fn built(new: &NewVersion, number: VersionNumber) -> Version {
    Version {
        number,
        state: VersionState::Ready,
        digest: format!("blake3:{number}"),
        dependencies: BTreeMap::from([("left-pad".to_owned(), "1.3.0".to_owned())]),
        layer: "layer-1".to_owned(),
        layer_size_bytes: 10,
        size_bytes: 20,
        ..new.version.clone()
    }
}

/// Publishes and activates one more version.
pub async fn ready_version(store: &Store, app_id: &str) -> Version {
    let new = building(app_id);
    let number = store.begin_version(new.clone()).await.expect("begin");
    let version = built(&new, number);
    store.finish_version(&version, &Default::default(), true, None).await.expect("finish");
    version
}

pub fn event(app_id: &str) -> NewEvent {
    NewEvent {
        app: app(app_id),
        trigger_type: trigger(),
        version: VersionNumber(1),
        payload: RawJson::trusted(r#"{"n": 1}"#),
        ordering_key: None,
        idempotency_key: None,
        due_at: at(0),
        enqueued_at: at(0),
        batch: None,
        hops: 0,
        dead: None,
    }
}

/// Rows in every table that belongs to apps.
pub async fn row_counts(store: &Store) -> Vec<(String, i64)> {
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'
                  AND name NOT LIKE 'sqlite%' AND name <> 'service_keys' ORDER BY name";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(store.read()).await.expect("tables");
    let mut counts = Vec::new();
    for table in tables {
        let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        counts.push((table, sqlx::query_scalar(sql).fetch_one(store.read()).await.expect("count")));
    }
    counts
}

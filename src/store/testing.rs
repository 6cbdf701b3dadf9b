//! What the tests of this module share: a real file and rows to fill it with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::db::{self, Builder, each};
use super::{Database, NewEvent, NewVersion, Postgres, QueueLimits, Store};
use crate::model::{
    Actor, ActorKind, AppId, FailurePolicy, Function, Limits, RawJson, RetryPolicy, TriggerType, Version,
    VersionNumber, VersionState,
};

/// The server of PostgreSQL for tests that need one.
const SERVER: &str = "POSTGRES_FOR_TESTS";
/// `postgres`: the tests of the store run there, each in a database of its own. Else they run on SQLite.
const ENGINE: &str = "ENGINE_FOR_TESTS";

/// A test's own database; a file of SQLite's goes with it.
pub struct Place {
    dir: TempDir,
    url: Option<String>,
}

impl Place {
    /// An empty one, on the engine that this run of the tests is for.
    pub async fn new() -> Self {
        let url = match std::env::var(ENGINE) {
            Ok(engine) if engine == "postgres" => Some(create_database(&std::env::var(SERVER).expect(SERVER)).await),
            _ => None,
        };
        Self { dir: tempfile::tempdir().expect("tempdir"), url }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// SQLite's.
    pub fn file(&self) -> Option<PathBuf> {
        self.url.is_none().then(|| self.path().join("store.db"))
    }

    pub fn database(&self) -> Database {
        match &self.url {
            Some(url) => Database::Postgres(Box::new(Postgres::new(url, 4, Duration::from_secs(10)).expect("a URL"))),
            None => Database::Sqlite(self.path().join("store.db")),
        }
    }

    pub async fn open(&self) -> Store {
        Store::open(self.database(), QueueLimits::default()).await.expect("open")
    }
}

async fn create_database(server: &str) -> String {
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    let server = sqlx::PgPool::connect(server).await.expect("the tests' server of PostgreSQL");
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&server).await.expect("create a database");
    server.close().await;
    let mut url: url::Url = std::env::var(SERVER).expect("set").parse().expect("a URL");
    url.set_path(&name);
    url.into()
}

/// With keys, as a store should be.
pub async fn store() -> (Place, Store) {
    let (place, store) = plain_store().await;
    let path = place.path().join("keys");
    std::fs::write(&path, crate::secrets::generate("test").expect("a line").as_bytes()).expect("write");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    store.use_keys(crate::secrets::Keyring::open(&path).expect("keys"));
    (place, store)
}

pub async fn plain_store() -> (Place, Store) {
    let place = Place::new().await;
    let store = place.open().await;
    (place, store)
}

/// For what only a file can show.
pub async fn sqlite_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(&dir.path().join("store.db"), QueueLimits::default()).await.expect("open");
    (dir, store)
}

/// For what is compared with a file, whatever this run of the tests is for. `None`, said: there is no server.
pub async fn postgres_store() -> Option<Store> {
    let Ok(server) = std::env::var(SERVER) else {
        println!("skipped, because {SERVER} is not set: run it with scripts/with-postgres, as make test does");
        return None;
    };
    let url = create_database(&server).await;
    let database = Database::Postgres(Box::new(Postgres::new(&url, 4, Duration::from_secs(10)).expect("a URL")));
    Some(Store::open(database, QueueLimits::default()).await.expect("open"))
}

pub fn app(id: &str) -> AppId {
    id.parse().expect("app id")
}

/// Whoever changes things in the tests.
pub fn actor() -> &'static Actor {
    static ACTOR: LazyLock<Actor> = LazyLock::new(|| Actor {
        kind: ActorKind::OperatorToken,
        request_id: "of-a-test".to_owned(),
        ..Actor::service()
    });
    &ACTOR
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
    let number = store.begin_version(new.clone(), actor()).await.expect("begin");
    let version = built(&new, number);
    store.finish_version(&version, &Default::default(), Some(at(0)), None, actor()).await.expect("finish");
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
        trace: None,
        dead: None,
    }
}

/// Rows in every table that belongs to apps.
pub async fn row_counts(store: &Store) -> Vec<(String, i64)> {
    let tables = each(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'
             AND name NOT LIKE 'sqlite%' AND name NOT IN ('service_keys', 'replicas', 'blob_objects', 'audit_entries') ORDER BY name",
        "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = CURRENT_SCHEMA()
             AND tablename NOT IN ('_sqlx_migrations', 'service_keys', 'replicas', 'blob_objects', 'audit_entries') ORDER BY tablename",
    );
    let tables: Vec<String> = db::query_scalar(tables).fetch_all(store.read()).await.expect("tables");
    let mut counts = Vec::new();
    for table in tables {
        let count = Builder::new(format!("SELECT COUNT(*) FROM {table}")).build().scalar();
        counts.push((table, count.fetch_one(store.read()).await.expect("count")));
    }
    counts
}

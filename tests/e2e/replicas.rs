//! Many services on one database of PostgreSQL and one artifact store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chatfn::proto::{self, EventState, invoke_response::Outcome};
use tempfile::TempDir;
use tonic::Code;

use crate::audit::listed;
use crate::harness::{Answered, LOGIN, SENT, TestServer, binary, reason, wait_until};
use crate::inspect::answering;
use crate::pool::{Gate, until_busy};
use crate::postgres::{Server, database, sql};
use crate::publish_request::Publish;
use crate::rates::{exceeded, quota};

/// What all replicas of a test have in common.
pub struct Fleet {
    pub url: String,
    shared: Arc<TempDir>,
}

impl Fleet {
    pub fn new() -> Option<Self> {
        Some(Self { url: database()?, shared: Arc::new(TempDir::new().expect("temp dir")) })
    }

    /// On another database, with the same artifact store.
    pub fn at(&self, url: String) -> Self {
        Self { url, shared: Arc::clone(&self.shared) }
    }

    pub fn settings(&self) -> Vec<String> {
        let artifacts = format!("artifacts=file://{}", self.shared.path().display());
        // Small, for whoever was killed must not be waited for long.
        vec![format!("database_url={}", self.url), artifacts, "replica_timeout=2s".to_owned()]
    }

    pub async fn replica(&self) -> TestServer {
        let settings = self.settings();
        let mut server = TestServer::with(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await;
        // The last: PostgreSQL's notice of a transaction that was given up before it had begun, as at the end of a replica.
        for said in ["took over", "gave this one up"] {
            server.expect_log(said);
        }
        server
    }
}

#[tokio::test]
async fn what_one_replica_does_the_others_follow() {
    let Some(fleet) = Fleet::new() else { return };
    let (one, two) = (fleet.replica().await, fleet.replica().await);
    one.publish(answering("demo", "v1")).await.expect("publishes");
    assert_eq!(two.app("demo").login("jane").await.json(), "v1", "it was there before it was called");
    one.publish(answering("demo", "v2")).await.expect("publishes");
    assert_eq!(one.app("demo").login("jane").await.json(), "v2", "at once where it was activated");
    wait_until("the other replica serves it, too", async || two.app("demo").login("jane").await.json() == "v2").await;

    let request = proto::ActivateVersionRequest { app_id: "demo".to_owned(), version: 1 };
    two.versions().activate_version(request).await.expect("activates");
    assert_eq!(two.app("demo").login("jane").await.json(), "v1");
    let shared = proto::ListAuditEntriesRequest { action: "version.activate".to_owned(), ..Default::default() };
    let targets = async |server: &TestServer| {
        listed(server, shared.clone()).await.into_iter().map(|entry| entry.target).collect::<Vec<_>>()
    };
    assert_eq!(
        (targets(&one).await, targets(&two).await),
        (["1", "2", "1"].map(str::to_owned).to_vec(), targets(&one).await)
    );
    wait_until("back on both", async || one.app("demo").login("jane").await.json() == "v1").await;

    let request = proto::DeleteAppRequest { app_id: "demo".to_owned() };
    one.apps().delete_app(request).await.expect("deletes");
    let call = || async { two.app("demo").invoke(LOGIN, r#"{"username":"jane"}"#).await };
    wait_until("it is gone on both", async || call().await.is_err()).await;
    assert_eq!(sql(&fleet.url, "SELECT COUNT(*) FROM versions"), "0");
    one.stop().await;
    two.stop().await;
}

const KEYS: u64 = 4;
const EVENTS: u64 = 120;

/// Sends all events, in the order of their keys, to whichever replica answers, and kills and replaces replicas meanwhile. The ids of
/// those that were acknowledged.
async fn send_among_kills(fleet: &Fleet, replicas: &mut Vec<TestServer>) -> BTreeMap<u64, String> {
    let mut accepted = BTreeMap::new();
    for n in 0..EVENTS {
        if n % 30 == 15 {
            let victim = replicas.remove(rand::random_range(0..replicas.len()));
            let (_data, _) = victim.crash();
            replicas.push(fleet.replica().await);
        }
        let body = format!(r#"{{"user":{{"name":"jane"}},"channel":{{"id":1}},"message":{{"n":{n}}}}}"#);
        wait_until("some replica accepts it", async || {
            let app = replicas[rand::random_range(0..replicas.len())].app("demo");
            let request = proto::InvokeRequest {
                ordering_key: format!("key-{}", n % KEYS),
                idempotency_key: format!("event-{n}"),
                ..app.call(SENT, &body)
            };
            match app.send(request).await.map(|answer| answer.outcome) {
                Ok(Some(Outcome::Accepted(event))) => accepted.insert(n, event.event_id).is_none(),
                other => panic!("a replica that lives refused it: {other:?}"),
            }
        })
        .await;
    }
    accepted
}

#[tokio::test]
async fn an_idempotency_key_is_one_execution_on_whichever_replicas_its_calls_come() {
    let Some(fleet) = Fleet::new() else { return };
    let (one, two) = (fleet.replica().await, fleet.replica().await);
    let gate = Gate::new(&one);
    gate.function("demo").on(&one).await;
    let keyed = |key: &str| {
        let mut call = one.app("demo").call(LOGIN, r#"{"username":"hold"}"#);
        call.idempotency_key = key.to_owned();
        call
    };
    let send = |server: &TestServer, key: &str| {
        let (app, call) = (server.app("demo"), keyed(key));
        tokio::spawn(async move { app.send(call).await })
    };
    let first = send(&one, "k");
    until_busy(&one.app("demo"), 1).await;
    // On a machine that is busy a caller may give up by itself before it hears.
    wait_until("a caller with little time is told that it runs elsewhere", async || {
        let mut hurried = tonic::Request::new(keyed("k"));
        hurried.set_timeout(Duration::from_millis(500));
        let refused = two.invocations().invoke(hurried).await.expect_err("it runs elsewhere");
        reason(&refused) == (Code::ResourceExhausted, "AT_CAPACITY".to_owned())
    })
    .await;
    let second = send(&two, "k");
    gate.open();
    let first = first.await.expect("joins").expect("an answer");
    assert_eq!(first, second.await.expect("joins").expect("an answer"));
    assert_eq!(one.app("demo").history().await.len(), 1);

    // Whoever holds it dies: the next one runs.
    gate.close();
    let dies = send(&one, "other");
    until_busy(&one.app("demo"), 1).await;
    gate.on(&two).open();
    let next = send(&two, "other");
    one.crash();
    assert!(dies.await.expect("joins").is_err());
    let next = next.await.expect("joins").expect("an answer");
    assert_ne!(next.invocation_id, first.invocation_id);
    two.stop().await;
}

#[tokio::test]
async fn a_quota_is_for_all_replicas_together() {
    let Some(fleet) = Fleet::new() else { return };
    let (one, two) = (fleet.replica().await, fleet.replica().await);
    one.publish(answering("demo", "v1")).await.expect("publishes");
    let request = proto::UpdateAppRequest { app_id: "demo".to_owned(), quota_per_day: Some(3), ..Default::default() };
    one.apps().update_app(request).await.expect("changed");
    for _ in 0..2 {
        one.app("demo").login("jane").await;
    }
    wait_until("the other replica knows of both", async || quota(&two, "demo").await == Some((2, 3))).await;
    two.app("demo").login("jane").await;
    for server in [&two, &one] {
        let told = async || quota(server, "demo").await == Some((3, 3));
        wait_until("it knows of all three", told).await;
        let refused = async || server.app("demo").invoke(LOGIN, r#"{"username":"jane"}"#).await.err();
        wait_until("it refuses a fourth", async || refused().await.is_some_and(|status| reason(&status) == exceeded()))
            .await;
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_order_is_kept_although_replicas_are_killed() {
    let Some(fleet) = Fleet::new() else { return };
    let mut replicas = vec![fleet.replica().await, fleet.replica().await, fleet.replica().await];
    let source = "export const handleEvent = async (event) => {
        await new Promise((resolve) => setTimeout(resolve, 5));
        return event.message.n;
    };";
    // A killed replica's attempts count.
    Publish::sent("demo", source).retry(20, Duration::from_millis(10)).on(&replicas[0]).await;
    let accepted = send_among_kills(&fleet, &mut replicas).await;
    assert_eq!(accepted.len() as u64, EVENTS);

    let app = replicas[0].app("demo");
    for id in accepted.values() {
        wait_until("every acknowledged event ran", async || app.event(id).await.state() == EventState::Done).await;
    }
    // Of the attempts that ended well: what was sent before had ended when the function was called for the next of its key. (The claim is
    // no measure of that: its time is read before it waits for its turn in the database.)
    let ended = "SELECT e.payload_json::json -> 'message' ->> 'n', COALESCE(i.created_at, a.finished_at), a.finished_at
                 FROM attempts a JOIN events e ON e.seq = a.event_seq LEFT JOIN invocations i ON i.id = a.invocation_id
                 WHERE a.error_json IS NULL";
    let ended = sql(&fleet.url, ended);
    let numbers = |line: &str| line.split('|').map(|n| n.parse().expect("a number")).collect::<Vec<u64>>();
    let spans: BTreeMap<u64, (u64, u64)> = ended.lines().map(numbers).map(|of| (of[0], (of[1], of[2]))).collect();
    assert_eq!((spans.len() as u64, ended.lines().count() as u64), (EVENTS, EVENTS), "each ended well once");
    for (n, (started, _)) in &spans {
        if let Some((_, before)) = n.checked_sub(KEYS).and_then(|before| spans.get(&before)) {
            assert!(started >= before, "{n} began before {} had ended", n - KEYS);
        }
    }
    for replica in replicas {
        replica.stop().await;
    }
}

/// As a restart does, or a failover.
fn end_connections(url: &str) {
    sql(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND pid <> pg_backend_pid()",
    );
}

#[tokio::test]
async fn connections_that_end_are_made_anew_and_nothing_acknowledged_is_lost() {
    let Some(fleet) = Fleet::new() else { return };
    accepts_and_runs_all_although(&fleet, || end_connections(&fleet.url)).await;
}

#[tokio::test]
async fn a_server_of_postgresql_that_crashes_and_comes_back_costs_nothing_acknowledged() {
    let Some(server) = Server::start() else { return };
    let fleet = Fleet { url: server.url.clone(), shared: Arc::new(TempDir::new().expect("temp dir")) };
    accepts_and_runs_all_although(&fleet, || server.restart()).await;
}

/// Whatever happens to the database a few times among the events.
async fn accepts_and_runs_all_although(fleet: &Fleet, mut happens: impl FnMut()) {
    let mut server = fleet.replica().await;
    for said in ["terminating connection", "failed to", "database", "expected to read"] {
        server.expect_log(said);
    }
    let source = "export const handleEvent = (event) => event.message.n;";
    Publish::sent("demo", source).retry(20, Duration::from_millis(10)).on(&server).await;
    let app = server.app("demo");
    let mut accepted = BTreeMap::new();
    for n in 0..40 {
        if n % 10 == 5 {
            happens();
        }
        let body = format!(r#"{{"user":{{"name":"jane"}},"channel":{{"id":1}},"message":{{"n":{n}}}}}"#);
        wait_until("it is accepted", async || {
            let request = proto::InvokeRequest { idempotency_key: format!("event-{n}"), ..app.call(SENT, &body) };
            match app.send(request).await {
                Ok(answer) => match answer.outcome {
                    Some(Outcome::Accepted(event)) => accepted.insert(n, event.event_id).is_none(),
                    other => panic!("{other:?}"),
                },
                Err(status) => {
                    assert_eq!(reason(&status), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()), "{status:?}");
                    false
                }
            }
        })
        .await;
    }
    for id in accepted.values() {
        wait_until("every acknowledged event ran", async || app.event(id).await.state() == EventState::Done).await;
    }
    assert_eq!(sql(&fleet.url, "SELECT COUNT(*) FROM events"), "40", "and none was queued twice");
    server.stop().await;
}

#[tokio::test]
async fn a_database_is_brought_up_to_date_before_the_services_start() {
    let Some(url) = database() else { return };
    let user = TempDir::new().expect("temp dir");
    let migrate = |url: &str| {
        let mut command = binary();
        command.current_dir(user.path()).args(["migrate", "--json"]).env("CHATFN_DATABASE_URL", url);
        let output = command.output().expect("runs");
        (
            output.status.success(),
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat(),
        )
    };
    let (first, second) = (migrate(&url), migrate(&url));
    assert!(first.0, "{}", first.1);
    assert_eq!(first, second);
    let told: serde_json::Value = serde_json::from_str(&first.1).expect("JSON");
    assert_eq!(told["migration"], told["known"]);
    assert_eq!(told["migration"].to_string(), sql(&url, "SELECT MAX(version) FROM _sqlx_migrations"));
    assert_eq!(std::fs::read_dir(user.path()).expect("a directory").count(), 0, "nothing is left beside it");

    let (done, said) = migrate("postgres://chatfn:hunter2@127.0.0.1:1/chatfn");
    assert!(!done && said.contains("127.0.0.1:1") && !said.contains("hunter2"), "{said}");
    sql(&url, "INSERT INTO _sqlx_migrations VALUES (99999, 'from the future', now(), TRUE, '', 0)");
    let (done, said) = migrate(&url);
    let now: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(done && now["migration"] == 99999 && now["known"] == told["known"], "{said}");
    sql(&url, "UPDATE _sqlx_migrations SET description = 'contract 99998 everything' WHERE version = 99999");
    let (done, said) = migrate(&url);
    assert!(!done && said.contains("written by a newer chatfn: migration 99999 took away"), "{said}");
}

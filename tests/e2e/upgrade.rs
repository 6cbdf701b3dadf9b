//! Versions N and N+1 on one database. What a later version will add is made up here; how this version gets on with the one before is
//! seen with a binary of that one, by `CHATFN_PREVIOUS` (`make test-upgrade`).

use std::path::PathBuf;

use chatfn::proto::{EventState, invoke_response::Outcome};
use sqlx::{ConnectOptions, Connection, Executor};

use crate::cli::{command, ended};
use crate::harness::{Answered, PREVIOUS, SENT, SENT_EVENT, TestApp, TestServer, wait_until};
use crate::inspect::answering;
use crate::load::{self, Balancer, Load};
use crate::postgres::sql;
use crate::publish_request::Publish;
use crate::replicas::Fleet;

/// What a migration may do: a table, and columns in all that live. The same words for both engines.
fn future() -> String {
    let tables = [
        "apps",
        "versions",
        "environments",
        "events",
        "attempts",
        "invocations",
        "logs",
        "replies",
        "credentials",
        "service_keys",
        "functions",
        "function_versions",
        "function_bindings",
        "blobs",
        "blob_objects",
        "data_keys",
        "replicas",
    ];
    let columns = tables.map(|table| {
        format!(
            "ALTER TABLE {table} ADD COLUMN later TEXT; ALTER TABLE {table} ADD COLUMN more BIGINT NOT NULL DEFAULT 7;"
        )
    });
    let seen = "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
                VALUES (90000, 'of the future', CURRENT_TIMESTAMP, TRUE, '', 0);";
    format!(
        "CREATE TABLE futures (id BIGINT PRIMARY KEY, app_id TEXT REFERENCES apps (id)); {} {seen}",
        columns.concat()
    )
}

const BOTH: &str = "export const handleEvent = (event) => event.username ?? event.message.body;";

/// All that a service does with its database, more or less: publishes, activates, runs, queues, fails, lists, deletes.
async fn does_everything(server: &TestServer, app: &str) {
    let app: TestApp = Publish::login(app, BOTH).function(SENT, BOTH).on(server).await;
    server.publish(answering(&app.id, "again")).await.expect("publishes");
    assert_eq!(app.login("jane").await.json(), "again");
    let back = chatfn::proto::ActivateVersionRequest { app_id: app.id.clone(), version: 1 };
    server.versions().activate_version(back).await.expect("activates");
    wait_until("the first version serves", async || app.login("jane").await.json() == "jane").await;
    let keyed = chatfn::proto::InvokeRequest {
        ordering_key: "line".to_owned(),
        idempotency_key: "once".to_owned(),
        ..app.call(SENT, SENT_EVENT)
    };
    let accepted = app.send(keyed).await.expect("an answer").outcome;
    let Some(Outcome::Accepted(event)) = accepted else { panic!("{accepted:?}") };
    wait_until("the event ran", async || app.event(&event.event_id).await.state() == EventState::Done).await;
    wait_until("it is in the history", async || app.history().await.len() >= 3).await;
    for args in [
        &["versions", &app.id][..],
        &["logs", &app.id],
        &["invocations", &app.id],
        &["events", "dead-letters", "--app", &app.id],
        &["credentials", "list", &app.id],
    ] {
        ended(command(&server.address, args), "").await.done();
    }
}

#[tokio::test]
async fn what_a_later_version_adds_disturbs_neither_replicas_that_run_nor_those_that_start() {
    let Some(fleet) = Fleet::new() else { return };
    let running = fleet.replica().await;
    // Whatever it prepared stays prepared in its connections.
    does_everything(&running, "before").await;
    sql(&fleet.url, &future());
    does_everything(&running, "before").await;
    does_everything(&running, "after").await;

    let mut migrate = command("", &["migrate"]);
    migrate.env("CHATFN_DATABASE_URL", &fleet.url).current_dir(running.data());
    let said = ended(migrate, "").await.done().out;
    assert!(said.contains("migration 90000 by a newer chatfn") && said.contains("Nothing was undone"), "{said}");
    assert_eq!(sql(&fleet.url, "SELECT COUNT(*) FROM futures"), "0", "it is still there");

    let started = fleet.replica().await;
    let told: Vec<_> = started.log().into_iter().filter(|line| line.contains("by a newer chatfn")).collect();
    assert!(told.len() == 1 && told[0].contains("newer=90000"), "one line: {told:?}");
    does_everything(&started, "before").await;
    assert_eq!(started.app("after").login("jane").await.json(), "jane");
    running.stop().await;
    started.stop().await;
}

#[tokio::test]
async fn a_file_that_a_later_version_used_is_used_on() {
    let server = TestServer::with(&[]).await;
    if sqlx_file(&server).is_none() {
        return server.stop().await;
    }
    does_everything(&server, "demo").await;
    let file = sqlx_file(&server).expect("SQLite");
    let mut server = server;
    server.terminate();
    assert!(server.wait().await.success());
    let mut later = sqlx::sqlite::SqliteConnectOptions::new().filename(file).connect().await.expect("opens");
    later.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(future()))).await.expect("migrates");
    later.close().await.expect("closes");
    let server = TestServer::restart(server.crash()).await;
    assert!(server.log().iter().any(|line| line.contains("newer=90000")), "{:?}", server.log());
    does_everything(&server, "demo").await;
    does_everything(&server, "other").await;
    server.stop().await;
}

/// `None`: this run of the tests is for PostgreSQL.
fn sqlx_file(server: &TestServer) -> Option<PathBuf> {
    Some(server.data().join("data/chatfn.db")).filter(|file| file.exists())
}

/// The binary of the version before. `None`, said: there is none.
fn previous() -> Option<PathBuf> {
    let path = std::env::var_os(PREVIOUS).map(PathBuf::from);
    if path.is_none() {
        println!("skipped, because {PREVIOUS} is not set: scripts/test-upgrade REV builds that revision and sets it");
    }
    path
}

async fn of_before(program: &std::path::Path, fleet: &Fleet) -> Result<TestServer, Vec<String>> {
    let settings = fleet.settings();
    TestServer::of(program, &settings.iter().map(String::as_str).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn replicas_of_the_version_before_and_of_this_one_serve_side_by_side() {
    let Some(program) = previous() else { return };
    let Some(fleet) = Fleet::new() else { return };
    let before = of_before(&program, &fleet).await.unwrap_or_else(|log| panic!("it does not start: {log:#?}"));
    let balancer = Balancer::default();
    balancer.add(&before);
    for app in ["one", "two"] {
        load::publish(app, &before).await;
    }
    let mut load = Load::start(&balancer, &["one", "two"]);
    load.goes_on_for(50).await;

    // It brings the database up to date under the other's load.
    let now = fleet.replica().await;
    balancer.add(&now);
    load.goes_on_for(50).await;
    does_everything(&before, "made-before").await;
    does_everything(&now, "made-now").await;
    for (one, other, app) in [(&before, &now, "made-before"), (&now, &before, "made-now")] {
        assert_eq!(other.app(app).login("jane").await.json(), "jane", "what one published the other serves");
        one.publish(answering(app, "newer")).await.expect("publishes");
        wait_until("the other follows", async || other.app(app).login("jane").await.json() == "newer").await;
    }
    load.goes_on_for(50).await;
    let done = load.finish().await;
    let all_ran =
        format!("SELECT COUNT(*) = {} FROM events WHERE app_id IN ('one', 'two') AND state = 2", done.accepted.len());
    wait_until("every event ran", async || sql(&fleet.url, &all_ran) == "t").await;
    let by = "SELECT COUNT(DISTINCT replica) FROM invocations WHERE app_id IN ('one', 'two')";
    assert_eq!(sql(&fleet.url, by), "2", "both took part: {done:?}");
    println!("side by side: {} calls, {} events", done.calls, done.accepted.len());

    // The way back: the version before starts on what this one made of the database, if it is one that can.
    before.stop().await;
    match of_before(&program, &fleet).await {
        Ok(again) => {
            does_everything(&again, "made-now").await;
            assert_eq!(now.app("made-now").login("jane").await.json(), "jane");
            again.stop().await;
        }
        Err(log) => {
            let knows_no_other =
                log.iter().any(|line| line.contains("(migration ") && line.contains("is unknown to this one"));
            assert!(knows_no_other, "{log:#?}");
            println!("the way back was not tried: {} is of before versions lived with later ones", program.display());
        }
    }
    now.stop().await;
}

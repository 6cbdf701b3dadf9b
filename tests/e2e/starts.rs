//! Workers start afresh in turn: no more Nodes at a time than may, and nothing of a tenant's holds up the next one.

use chatfn::proto;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{Answered, LOGIN, TestApp, TestServer, processes_of, wait_until};
use crate::pool::Gate;
use crate::publish_request::Publish;
use crate::shutdown::health;

const HELLO: &str = "export const handleEvent = (event) => `hello ${event.username}`;";

const SETTINGS: [&str; 4] = ["reserve_workers=0", "ready_timeout=1h", "init_timeout=1h", "wait_max=1m"];

async fn service(starts: &str) -> TestServer {
    TestServer::with(&[&SETTINGS[..], &[starts]].concat()).await
}

/// From now on Node is not ready before the gate is open.
fn hold_up(server: &TestServer) -> Gate {
    let gate = Gate::new(server);
    let main = server.data().join("data/shim/main.js");
    let shim = std::fs::read_to_string(&main).expect("the shim");
    let waits = format!(
        "while (!require('fs').existsSync('{}')) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);",
        gate.path()
    );
    std::fs::write(main, format!("{waits}\n{shim}")).expect("write");
    gate
}

type Call = JoinHandle<Result<proto::InvokeResponse, Status>>;

fn call(app: &TestApp) -> Call {
    let app = app.clone();
    tokio::spawn(async move { app.invoke(LOGIN, r#"{"username":"jane"}"#).await })
}

/// Apps that have been called and whose workers are on their way.
async fn called(server: &TestServer, apps: &[&str]) -> Vec<(TestApp, Call)> {
    let mut calls = Vec::new();
    for app in apps {
        let app = server.app(app);
        let call = call(&app);
        wait_until("its worker is to start", async || app.pool().await.workers_starting == 1).await;
        calls.push((app, call));
    }
    calls
}

/// What turns there are is tried in `src/worker/starts.rs`. Here: that one is over although Node is not ready.
#[tokio::test]
async fn a_node_that_hangs_keeps_none_from_its_turn_and_nothing_waits_for_one_in_vain() {
    const APPS: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    let server = service("worker_starts_max=1").await;
    for app in APPS {
        Publish::login(app, HELLO).on(&server).await;
    }
    let server = server.stop_and_restart().await; // So that none has a worker.
    let gate = hold_up(&server);
    let mut calls = called(&server, &APPS).await;
    // The last one waits for its turn, for some seconds. It holds up neither its app's end …
    let (gone, refused) = calls.pop().expect("a call");
    server.apps().delete_app(proto::DeleteAppRequest { app_id: gone.id }).await.expect("deleted");
    refused.await.expect("no panic").expect_err("its app is gone");
    for (app, _) in &calls {
        wait_until("it has its turn", async || app.pool().await.worker_pids.len() == 1).await;
    }
    gate.open();
    for (_, call) in calls {
        assert_eq!(call.await.expect("no panic").expect("an answer").json(), "hello jane");
    }
    // … nor the service's.
    let mut server = server.stop_and_restart().await;
    hold_up(&server);
    let calls = called(&server, &APPS[..7]).await;
    server.terminate();
    wait_until("it leaves", async || health(&server).await == ServingStatus::NotServing).await;
    server.terminate();
    server.wait().await;
    for (_, call) in calls {
        call.await.expect("no panic").expect_err("the service has ended");
    }
    wait_until("nothing is left", async || processes_of(server.data()).is_empty()).await;
}

#[tokio::test]
async fn a_long_initialization_takes_no_other_workers_turn() {
    let server = service("worker_starts_max=1").await;
    let gate = Gate::new(&server);
    let waits = format!(
        "const open = () => require('fs').existsSync('{}');
        while (!open()) await new Promise((done) => setTimeout(done, 10));",
        gate.path()
    );
    gate.open();
    Publish::login("long", HELLO).initialization(&waits).on(&server).await;
    Publish::login("short", HELLO).on(&server).await;
    let server = server.stop_and_restart().await; // Its start shuts the gate.
    let (long, short) = (server.app("long"), server.app("short"));
    let initializing = call(&long);
    wait_until("it has its turn", async || long.pool().await.worker_pids.len() == 1).await;
    assert_eq!(short.login("jane").await.json(), "hello jane");
    assert_eq!(long.pool().await.workers_starting, 1);
    gate.on(&server).open();
    assert_eq!(initializing.await.expect("no panic").expect("an answer").json(), "hello jane");
    server.stop().await;
}

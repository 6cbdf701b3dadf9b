//! A rolling update under load, as Kubernetes does it: a new replica starts and is ready; then an old one gets SIGTERM and is taken out of
//! the endpoints, which lag behind. Every call is answered well, and every event runs once.

use std::time::Duration;

use chatfn::proto;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{Answered, LOGIN, TestServer, reason, wait_until};
use crate::load::{self, Balancer, Done, Load};
use crate::pool::{Gate, hold, until_busy};
use crate::postgres::sql;
use crate::replicas::Fleet;
use crate::shutdown::health;

/// For the endpoints to follow. The test does not wait for its end where they follow sooner.
const DELAY: &str = "drain_delay=4s";
const APPS: [&str; 3] = ["one", "two", "three"];

async fn replica(fleet: &Fleet) -> TestServer {
    let mut settings = fleet.settings();
    settings.push(DELAY.to_owned());
    let server = TestServer::with(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await;
    wait_until("it is ready", async || health(&server).await == ServingStatus::Serving).await;
    server
}

/// One after another. Each old one is still called after its SIGTERM, for clients have not heard of it.
async fn replace_all(fleet: &Fleet, replicas: &mut [TestServer], balancer: &Balancer, load: &mut Load) {
    for old in replicas {
        let new = replica(fleet).await;
        balancer.add(&new);
        let old = std::mem::replace(old, new);
        load.goes_on_for(20).await;
        old.terminate();
        load.goes_on_for(20).await;
        balancer.remove(&old);
        old.ended_well().await;
        load.goes_on_for(20).await;
    }
}

fn assert_each_event_ran_once(fleet: &Fleet, done: &Done) {
    let accepted = done.accepted.len().to_string();
    assert_eq!(sql(&fleet.url, "SELECT COUNT(*) FROM events"), accepted, "none was queued twice");
    assert_eq!(sql(&fleet.url, "SELECT COUNT(*) FROM attempts WHERE error_json IS NULL"), accepted);
    assert_eq!(sql(&fleet.url, "SELECT COUNT(*) FROM attempts"), accepted, "and none was tried twice");
    let ran = "SELECT COUNT(*), COUNT(DISTINCT event_id) FROM invocations WHERE event_id IS NOT NULL AND status = 1";
    assert_eq!(sql(&fleet.url, ran), format!("{accepted}|{accepted}"));
}

#[tokio::test]
async fn a_rolling_update_under_load_fails_no_call_and_runs_every_event_once() {
    let Some(fleet) = Fleet::new() else { return };
    let mut replicas = vec![replica(&fleet).await, replica(&fleet).await];
    let balancer = Balancer::default();
    replicas.iter().for_each(|replica| balancer.add(replica));
    for app in APPS {
        load::publish(app, &replicas[0]).await;
    }
    let mut load = Load::start(&balancer, &APPS);
    load.goes_on_for(100).await;
    replace_all(&fleet, &mut replicas, &balancer, &mut load).await;
    let done = load.finish().await;
    let left = "SELECT COUNT(*) FROM events WHERE state <> 2";
    wait_until("every event ran", async || sql(&fleet.url, left) == "0").await;
    for replica in replicas {
        replica.stop().await; // Only then is all of its history written.
    }
    assert_each_event_ran_once(&fleet, &done);
    println!(
        "rolling update: {} calls, {} of them sent again by HTTP/2's rules, {} events",
        done.calls,
        done.resent,
        done.accepted.len()
    );
}

#[tokio::test]
async fn a_service_that_leaves_says_so_and_still_serves_until_the_delay_is_over() {
    let server = TestServer::with(&["drain_delay=3650days"]).await;
    let app =
        crate::publish_request::Publish::login("demo", "export const handleEvent = () => 'fine';").on(&server).await;
    let get = async |path: &str| reqwest::get(format!("{}{path}", server.address)).await.expect("an answer");
    assert_eq!(get("/readyz").await.headers().get("connection"), None);
    server.terminate();
    wait_until("it says that it leaves", async || health(&server).await == ServingStatus::NotServing).await;
    assert_eq!(app.login("jane").await.json(), "fine", "on a connection of before");
    let anew = tonic::transport::Endpoint::from_shared(server.address.clone()).expect("address");
    let mut anew =
        proto::invocation_service_client::InvocationServiceClient::new(anew.connect().await.expect("connects"));
    let answer = anew.invoke(app.call(LOGIN, r#"{"username":"jane"}"#)).await.expect("an answer").into_inner();
    assert_eq!(answer.json(), "fine", "and on a new one");
    let ready = get("/readyz").await;
    assert_eq!((ready.status().as_u16(), &ready.headers()["connection"]), (503, &"close".parse().expect("a value")));
    assert_eq!(get("/healthz").await.status(), 200, "it is alive");
    // A second signal does not wait.
    let mut server = server;
    server.terminate();
    assert!(!server.wait().await.success());
}

#[tokio::test]
async fn what_is_under_way_is_answered_and_later_connections_are_told_of_the_drain() {
    let server = TestServer::with(&["drain_timeout=60s"]).await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let running = hold(&app, 2);
    until_busy(&app, 2).await;
    server.terminate();
    wait_until("it is refused", async || {
        let refused = app.invoke(LOGIN, r#"{"username":"jane"}"#).await.err();
        refused.is_some_and(|status| reason(&status).1 == "DRAINING")
    })
    .await;
    let late = reqwest::get(format!("{}/readyz", server.address)).await.expect("the port is open");
    assert_eq!(late.status(), 503);
    gate.open();
    for answer in running.join_all().await {
        answer.json();
    }
    server.ended_well().await;
}

/// A drain takes as long as what runs, and not as long as it may.
#[tokio::test]
async fn an_idle_service_ends_long_before_its_drain_timeout() {
    let server = TestServer::with(&["drain_timeout=3650days"]).await;
    let idle = tonic::transport::Endpoint::from_shared(server.address.clone()).expect("address");
    let idle = idle.keep_alive_while_idle(true).http2_keep_alive_interval(Duration::from_secs(1)).connect().await;
    server.stop().await;
    drop(idle);
}

//! The supervisor that makes workers' connections: what works through it, what it cannot be talked into, and what becomes of each when
//! the other dies. Everything happens in a network of the test's own making: see `world`.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{LOGIN, TestServer, alive, name_of, wait_until};
use crate::mode::{Mode, USER};
use crate::tenant::{Tenant, attack, attempt, program, publish};
use crate::world::{CONFIGURATION, World};

in_modes_with_a_supervisor! {
    connections_last_and_a_black_hole_is_passed_over
    a_dedicated_app_reaches_its_rules_from_its_source_and_nothing_else
    a_resolver_that_is_down_is_passed_over_and_the_clusters_domain_is_not_asked_for
    blocking_connects_do_not_hold_each_other_up
    a_connection_keeps_to_the_rules_when_it_is_connected_again
    what_is_sent_to_an_address_goes_nowhere
    changing_address_and_descriptor_under_the_supervisors_eyes_gains_nothing
    a_flood_is_held_to_its_limits_and_a_neighbour_connects_meanwhile
    the_supervisor_keeps_one_privilege_and_nothing_of_the_brokers
    a_worker_that_dies_while_it_connects_leaves_the_supervisor_well
    when_the_supervisor_dies_its_workers_end_and_others_have_a_network
}

/// `None`: there is no world, or not this mode.
async fn start(mode: Mode, configuration: &str) -> Option<(World, TestServer)> {
    let world = World::new().map_err(|reason| mode.skip(reason)).ok()?;
    let server = mode.start_in(Some(&world), configuration, &[]).await?;
    Some((world, server))
}

async fn tenant(mode: Mode, server: TestServer, egress: &str) -> Tenant {
    let app = publish("attacker", |limits| limits.egress = egress.to_owned()).on(&server).await;
    Tenant { server, app, mode }
}

fn http(host: &str) -> Value {
    json!({ "host": host, "port": 80 })
}

async fn connections_last_and_a_black_hole_is_passed_over(mode: Mode) {
    let Some((_world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    tenant
        .suffers([
            attack("keep_alive", json!({ "host": "203.0.113.10", "count": 5 }), "5 by 1"),
            attack("happy_eyeballs", json!({ "host": "half.example" }), "3ffe:dead::1 203.0.113.10 203.0.113.10"),
            attack("own_servers", json!({}), "own own own own datagram"),
        ])
        .await;
    tenant.server.stop().await;
}

async fn a_dedicated_app_reaches_its_rules_from_its_source_and_nothing_else(mode: Mode) {
    let dedicated = r#"
[egress.dedicated.attacker]
allow = [{ network = "10.96.0.1", ports = [80] }]
source = "203.0.113.99"
"#;
    let Some((_world, server)) = start(mode, &format!("{CONFIGURATION}{dedicated}")).await else { return };
    let tenant = tenant(mode, server, "dedicated").await;
    tenant
        .suffers([
            attack("fetch", json!({ "url": "http://10.96.0.1/" }), "hello from ::ffff:10.96.0.1"),
            attack("fetch", json!({ "url": "http://10.96.0.1/peer" }), "::ffff:203.0.113.99"),
            attack("fetch", json!({ "url": "http://inside.example/peer" }), "::ffff:203.0.113.99"),
            attack("connect", json!({ "host": "10.96.0.1", "port": 22 }), "EACCES"),
            attack("connect", http("192.168.1.1"), "EHOSTUNREACH"),
            // Neither the web nor what is open to those with `public`.
            attack("connect", http("203.0.113.10"), "EHOSTUNREACH"),
            attack("connect", http("3ffe:2::10"), "EHOSTUNREACH"),
            attack("connect", http("203.0.113.99"), "EHOSTUNREACH"),
        ])
        .await;
    // One without a list, and one with another kind of egress.
    for (egress, public) in [("dedicated", "EHOSTUNREACH"), ("public", "connected")] {
        let other = publish(egress, |limits| limits.egress = egress.to_owned()).on(&tenant.server).await;
        for (host, outcome) in [("10.96.0.1", "EHOSTUNREACH"), ("203.0.113.10", public), ("3ffe:2::10", public)] {
            assert_eq!(attempt(&other, "connect", &http(host)).await, outcome, "{egress} {host}");
        }
    }
    tenant.server.stop().await;
}

async fn a_resolver_that_is_down_is_passed_over_and_the_clusters_domain_is_not_asked_for(mode: Mode) {
    let Ok(world) = World::new().map_err(|reason| mode.skip(reason)) else { return };
    // The first refuses, the second never answers.
    world.resolve_by(
        "search x.svc.corp.example svc.corp.example corp.example\n\
         nameserver 203.0.113.11\nnameserver 203.0.113.66\nnameserver 198.51.100.1\n",
    );
    let Some(server) = mode.start_in(Some(&world), CONFIGURATION, &[]).await else { return };
    let tenant = tenant(mode, server, "public").await;
    tenant
        .suffers([
            attack("lookup", json!({ "name": "site.example" }), "203.0.113.10"),
            attack("lookup", json!({ "name": "db.corp.example" }), "ENOTFOUND"),
            attack("lookup", json!({ "name": "missing.example" }), "ENOTFOUND"),
        ])
        .await;
    let heard = world.what_it_heard();
    assert!(heard.contains("missing.example") && !heard.contains("corp"), "{heard}");
    tenant.server.stop().await;

    world.resolve_by("nameserver 203.0.113.11\n");
    let Some(server) = mode.start_in(Some(&world), CONFIGURATION, &[]).await else { return };
    let tenant = self::tenant(mode, server, "public").await;
    let patient = json!({ "name": "site.example", "timeout": 10_000 });
    tenant.suffers([attack("ask", patient, "ESERVFAIL")]).await;
    tenant.server.stop().await;
}

async fn blocking_connects_do_not_hold_each_other_up(mode: Mode) {
    let Some((_world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    let expected = "hole: ETIMEDOUT\nmeanwhile: ok 203.0.113.10:80\noptions: 1 1 77, blocks: true\nended: 0";
    tenant.suffers([attack("blocking", json!({ "count": 3 }), expected)]).await;
    // Sixteen at a time, the three included.
    let outcome = "EAGAIN EAGAIN, without blocking EINPROGRESS EISCONN";
    tenant.suffers([attack("too_many_blocking", json!({ "count": 14 }), outcome)]).await;
    tenant.server.stop().await;
}

async fn a_connection_keeps_to_the_rules_when_it_is_connected_again(mode: Mode) {
    let Some((world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    let expected = [
        "connected: ok 203.0.113.10:80",
        "again: EISCONN EISCONN EISCONN",
        "disconnected: EINVAL EINVAL EINVAL",
        "still: 203.0.113.10:80",
        "refused: EINPROGRESS ECONNREFUSED",
        "then: EHOSTUNREACH EACCES EINPROGRESS EISCONN 203.0.113.11:80",
        "given up: EINPROGRESS EALREADY ok",
        "used for more: EINVAL EINVAL EINVAL ECONNRESET ENOSYS",
        "elsewhere: EHOSTUNREACH EINVAL EHOSTUNREACH EINVAL ENOTCONN",
        "host: ENOSYS EPERM EPERM",
    ];
    tenant.suffers([attack("reconnect", json!({}), expected.join("\n"))]).await;
    reached_alone(&world, &["::ffff:203.0.113.10", "::ffff:203.0.113.11"]).await;
    tenant.server.stop().await;
}

/// Nobody was connected to but at these addresses.
async fn reached_alone(world: &World, addresses: &[&str]) {
    let reached = || -> BTreeSet<String> {
        let heard = world.what_it_heard();
        heard.lines().filter_map(|line| line.strip_prefix("connection to ")).map(str::to_owned).collect()
    };
    wait_until("it heard of them", async || addresses.iter().all(|address| reached().contains(*address))).await;
    assert_eq!(reached(), addresses.iter().map(|address| (*address).to_owned()).collect());
}

async fn what_is_sent_to_an_address_goes_nowhere(mode: Mode) {
    let Some((world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    let hosts = json!({ "hosts": ["203.0.113.10", "10.96.0.1", "198.51.100.1", "198.51.100.2"] });
    // Whether an address that is open is routed to may be asked, by connecting; nothing is sent there.
    let expected = [
        "203.0.113.10 ENETUNREACH ENETUNREACH ok EDESTADDRREQ ENOTCONN",
        "10.96.0.1 ENETUNREACH ENETUNREACH EHOSTUNREACH EDESTADDRREQ ENOTCONN",
        "198.51.100.1 ENETUNREACH ENETUNREACH EHOSTUNREACH EDESTADDRREQ ENOTCONN",
        "198.51.100.2 ENETUNREACH ENETUNREACH EHOSTUNREACH EDESTADDRREQ ENOTCONN",
        "after its own ok ok ENETUNREACH ENOTCONN",
    ];
    tenant
        .suffers([
            attack("datagrams", hosts, expected.join("\n")),
            // A connection's segments go to its peer, whatever address stands beside them.
            attack("stray_segments", json!({}), "ok ok ok 203.0.113.10:80"),
            attack("lookup", json!({ "name": "the.end.example" }), "ENOTFOUND"),
        ])
        .await;
    wait_until("it heard the last", async || world.what_it_heard().contains("the.end")).await;
    assert!(!world.what_it_heard().contains("datagram"), "{}", world.what_it_heard());
    reached_alone(&world, &["::ffff:203.0.113.10"]).await;
    tenant.server.stop().await;
}

#[derive(Debug, Deserialize)]
struct Race {
    /// Of the socket under the number that was raced for.
    peers: BTreeSet<String>,
    /// How often the address changed, and the descriptor.
    swaps: [u64; 2],
    /// The unconnected socket of the host's: its peer, and whether it listens.
    given: (String, i32),
}

async fn changing_address_and_descriptor_under_the_supervisors_eyes_gains_nothing(mode: Mode) {
    let Some((world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    let outcome = tenant.attempt("race", json!({ "calls": 6000 })).await;
    let race: Race = serde_json::from_str(&outcome).expect(&outcome);
    assert!(race.swaps.iter().all(|swaps| *swaps > 1000), "there was no race: {race:?}");
    // It got to whom it may: to the public one, and to its own loopback.
    let allowed = ["127.0.0.1:9000", "203.0.113.10:80"].map(str::to_owned);
    assert_eq!(race.peers, allowed.into(), "{race:?}");
    assert_eq!(race.given, ("ENOTCONN".to_owned(), 0), "{race:?}");
    // Not to the one inside, and not to the server on the host's loopback, though only for a moment.
    reached_alone(&world, &["::ffff:203.0.113.10"]).await;
    tenant.server.stop().await;
}

#[derive(Debug, Deserialize)]
struct Flood {
    seconds: f64,
    counts: BTreeMap<String, u64>,
}

async fn a_flood_is_held_to_its_limits_and_a_neighbour_connects_meanwhile(mode: Mode) {
    /// Of `egress::policy::Limits`.
    const CONNECTS_PER_SECOND: f64 = 100.0;
    const REQUESTS_PER_SECOND: f64 = 2000.0;
    /// Both limits are reached, and what they let through at once is used up.
    const CALLS: u64 = 5000;
    const THREADS: u64 = 8;
    let Some((world, server)) = start(mode, CONFIGURATION).await else { return };
    let flooder = publish("flooder", |limits| (limits.egress, limits.concurrency) = ("public".to_owned(), 2));
    let flooder = flooder.on(&server).await;
    let neighbour = publish("neighbour", |limits| limits.egress = "public".to_owned()).on(&server).await;
    let flood = json!({ "calls": CALLS, "threads": THREADS });
    let meanwhile = async {
        wait_until("the flood begins", async || world.what_it_heard().contains("flood.example")).await;
        for _ in 0..20 {
            assert_eq!(attempt(&neighbour, "connect", &http("203.0.113.10")).await, "connected");
        }
        attempt(&flooder, "end_flood", &json!({})).await
    };
    let (outcome, ended) = tokio::join!(attempt(&flooder, "flood", &flood), meanwhile);
    assert_eq!(ended, "1");
    let flood: Flood = serde_json::from_str(&outcome).expect(&outcome);
    let count = |result: &str| flood.counts.get(result).copied().unwrap_or(0);
    let (connected, refused) = (count("EINPROGRESS"), count("EAGAIN"));
    let calls = flood.counts.values().sum::<u64>();
    assert!(calls >= CALLS && connected + refused == calls, "{flood:?}");
    let at_most = |per_second: f64, at_once: f64| per_second.mul_add(flood.seconds, at_once) as u64 + 1;
    let at_once = 2.0 * CONNECTS_PER_SECOND;
    assert!((at_once as u64..=at_most(CONNECTS_PER_SECOND, at_once)).contains(&connected), "{flood:?}");
    assert!(calls <= at_most(REQUESTS_PER_SECOND, REQUESTS_PER_SECOND), "{flood:?}");
    // It is only its own connections that it had used up.
    assert_eq!(attempt(&flooder, "own_servers", &json!({})).await, "own own own own datagram");
    server.stop().await;
}

/// The service's supervisor, if it runs.
pub fn supervisor(server: &TestServer) -> Option<u32> {
    child_named(broker(server), "chatfn-egress")
}

/// Which one it was.
pub fn kill_supervisor(server: &TestServer) -> u32 {
    let pid = supervisor(server).expect("it runs");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("kill");
    pid
}

fn broker(server: &TestServer) -> u32 {
    child_named(server.pid(), "chatfn-broker").expect("it runs")
}

fn child_named(pid: u32, name: &str) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<_> = children.collect();
    children
        .iter()
        .flat_map(|children| children.split_whitespace())
        .filter_map(|child| child.parse().ok())
        .find(|child| name_of(*child) == name)
}

/// Standard streams and the broker's socket; for the worker the listener, two of the resolver's and the two ends of a pipe.
const WITH_ONE_WORKER: (usize, usize) = (2, 4 + 5);

/// Threads, and open descriptors.
fn size(pid: u32) -> (usize, usize) {
    let [threads, descriptors] =
        ["task", "fd"].map(|of| std::fs::read_dir(format!("/proc/{pid}/{of}")).map_or(0, Iterator::count));
    (threads, descriptors)
}

async fn the_supervisor_keeps_one_privilege_and_nothing_of_the_brokers(mode: Mode) {
    let Some((_world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    tenant.suffers([attack("connect", http("203.0.113.10"), "connected")]).await;
    let pid = supervisor(&tenant.server).expect("it runs");
    // CAP_SYS_PTRACE, over what the broker's user namespace holds: to look into workers of other users.
    let (kept, none) = ("0000000000080000", "0000000000000000");
    let sets = [("CapEff", kept), ("CapPrm", kept), ("CapInh", none), ("CapAmb", none), ("CapBnd", none)];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    for (key, value) in sets.into_iter().chain([("NoNewPrivs", "1"), ("SigBlk", none)]) {
        assert!(status.contains(&format!("{key}:\t{value}\n")), "{key} in {status}");
    }
    assert_eq!(size(pid), WITH_ONE_WORKER);
    tenant.server.stop().await;
}

async fn a_worker_that_dies_while_it_connects_leaves_the_supervisor_well(mode: Mode) {
    let Some((_world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    tenant.suffers([attack("connect", http("203.0.113.10"), "connected")]).await;
    let pid = supervisor(&tenant.server).expect("it runs");
    for _ in 0..3 {
        let killed = "Crashed: the worker was ended by signal 9 (SIGKILL)";
        tenant.suffers([attack("die_connecting", json!({ "count": 5 }), killed)]).await;
        tenant.suffers([attack("connect", http("203.0.113.10"), "connected")]).await;
    }
    assert_eq!(supervisor(&tenant.server), Some(pid));
    // A worker that takes the last one's place is there already, one that was killed perhaps not gone yet.
    wait_until("nothing is left of them", async || size(pid) == WITH_ONE_WORKER).await;
    tenant.server.stop().await;
}

async fn when_the_supervisor_dies_its_workers_end_and_others_have_a_network(mode: Mode) {
    let Some((world, server)) = start(mode, CONFIGURATION).await else { return };
    let tenant = tenant(mode, server, "public").await;
    let neighbour = publish("neighbour", |limits| limits.egress = "public".to_owned()).on(&tenant.server).await;
    for app in [&tenant.app, &neighbour] {
        assert_eq!(attempt(app, "connect", &http("203.0.113.10")).await, "connected");
    }
    let workers = [tenant.app.pool().await.worker_pids, neighbour.pool().await.worker_pids].concat();
    let kill = async {
        wait_until("it hangs", async || world.what_it_heard().contains("hanging.example")).await;
        kill_supervisor(&tenant.server)
    };
    // One in the middle of it is told at once.
    let (outcome, first) = tokio::join!(tenant.attempt("hang", json!({ "count": 3 })), kill);
    assert_eq!(outcome, "Collateral: the service had to end the worker, which had lost its network");
    wait_until("all its workers are gone", async || {
        let known = neighbour.pool().await.worker_pids;
        alive(&workers).is_empty() && !known.iter().any(|pid| workers.contains(pid))
    })
    .await;
    assert!(supervisor(&tenant.server).is_some_and(|pid| pid != first), "another one runs");
    for app in [&tenant.app, &neighbour] {
        assert_eq!(attempt(app, "connect", &http("203.0.113.10")).await, "connected");
        assert_eq!(attempt(app, "lookup", &json!({ "name": "site.example" })).await, "203.0.113.10");
        assert_eq!(attempt(app, "connect", &http("10.96.0.1")).await, "EHOSTUNREACH");
    }
    let said = tenant.server.log().iter().filter(|line| line.contains("the egress supervisor has ended")).count();
    assert_eq!(said, 1);
    tenant.server.stop().await;
}

/// Where the broker is nobody's, a limit keeps it from making processes, as a lack of memory would.
#[tokio::test]
async fn a_supervisor_that_could_not_be_replaced_at_once_is_replaced_later() {
    let Some((_world, server)) = start(Mode::Userns, CONFIGURATION).await else { return };
    let mut tenant = tenant(Mode::Userns, server, "public").await;
    // For the app, and for the reserve.
    tenant.server.expect_log("a worker did not start");
    tenant.server.expect_log("failed to start a worker");
    tenant.server.expect_log("a worker in reserve was of no use");
    tenant.suffers([attack("connect", http("203.0.113.10"), "connected")]).await;
    let broker = broker(&tenant.server).to_string();
    let limit = |soft: &str| {
        let mut command = program("setpriv"); // It is a process's own user who may do that.
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]);
        command.args(["prlimit", "--pid", &broker, &format!("--nproc={soft}:")]);
        assert!(command.status().expect("util-linux").success());
    };
    let limits = std::fs::read_to_string(format!("/proc/{broker}/limits")).expect("it runs");
    let before = limits.lines().find_map(|line| line.strip_prefix("Max processes")).expect("a limit");
    limit("0");
    kill_supervisor(&tenant.server);
    let said = |text: &str| tenant.server.log().iter().any(|line| line.contains(text));
    wait_until("it says so", async || said("start the egress supervisor: ")).await;
    let event = json!({ "username": "connect", "args": http("203.0.113.10") }).to_string();
    wait_until("callers are told to come again", async || {
        tenant.app.invoke(LOGIN, &event).await.is_err_and(|status| status.code() == Code::Unavailable)
    })
    .await;
    limit(before.split_whitespace().next().expect("a number"));
    wait_until("workers start again", async || tenant.app.invoke(LOGIN, &event).await.is_ok()).await;
    tenant.suffers([attack("connect", http("203.0.113.10"), "connected")]).await;
    tenant.server.stop().await;
}

//! What functions reach. Everything happens in a network of the test's own making, with stand-in addresses: see `world`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use serde_json::{Value, json};

use crate::mode::Mode;
use crate::tenant::{Attack, Tenant, attack, attempt, by_mode, publish};
use crate::world::{CONFIGURATION, World};

in_every_mode! {
    the_machines_own_services_are_out_of_reach
    public_addresses_are_reached_on_the_ports_of_the_web_and_nothing_else_is
    an_app_without_egress_reaches_nothing
}

/// The port of the service's own API.
fn port_of(tenant: &Tenant) -> u16 {
    tenant.server.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port")
}

fn to(host: &str, port: u16) -> Value {
    json!({ "host": host, "port": port })
}

/// Loopback addresses only, so the host's own network will do.
async fn the_machines_own_services_are_out_of_reach(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let port = port_of(&tenant);
    let hosts = ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0", "::1", "::ffff:127.0.0.1", "::"];
    let at_the_service = hosts.map(|host| by_mode("connect", to(host, port), "ECONNREFUSED", "EACCES"));
    tenant.suffers(at_the_service).await;
    // Sockets with a path and abstract ones, that everybody on this machine may connect to.
    let directory = tempfile::Builder::new().prefix("public").tempdir_in("/var/tmp").expect("temp dir");
    let path = directory.path().join("docker.sock");
    let _listener = UnixListener::bind(&path).expect("binds");
    for (path, mode) in [(directory.path(), 0o755), (&path, 0o777)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
    }
    let name = format!("chatfn-test-{}-{}", std::process::id(), mode.as_str());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("binds");
    let at = |path: &str| json!({ "path": path });
    tenant
        .suffers([
            attack("connect", at(&path.display().to_string()), "EACCES"),
            by_mode("connect", at(&format!("\0{name}")), "ECONNREFUSED", "EACCES"),
            attack("connect", at("/var/run/docker.sock"), "EACCES"),
            by_mode("listen", at("\0abstract"), "\0abstract", "EACCES"),
        ])
        .await;
    if mode.has_root() {
        tenant.suffers([attack("interfaces", json!({}), "lo"), attack("own_port_53", json!({}), "EACCES")]).await;
    }
    tenant.server.stop().await;
}

/// `None`: there is no world, or not this mode.
async fn tenant_in(world: &World, mode: Mode, egress: &str) -> Option<Tenant> {
    let server = mode.start_in(Some(world), CONFIGURATION, &[]).await?;
    let app = publish("attacker", |limits| limits.egress = egress.to_owned()).on(&server).await;
    Some(Tenant { server, app, mode })
}

fn world(mode: Mode) -> Option<World> {
    World::new().map_err(|reason| mode.skip(reason)).ok()
}

const OUTSIDE: [&str; 7] =
    ["169.254.169.254", "10.96.0.1", "192.168.1.1", "100.64.0.1", "fd00:77::1", "2001:db8::1", "::ffff:10.96.0.1"];
/// The host's own, where a service of its stands on port 80.
const HOSTS: [&str; 4] = ["198.51.100.2", "203.0.113.99", "3ffe:1::2", "::ffff:198.51.100.2"];

fn each(hosts: &[&str], port: u16, outcome: &str) -> Attack {
    let codes: Vec<_> = hosts.iter().map(|host| format!("{host} {outcome}")).collect();
    attack("connect_all", json!({ "hosts": hosts, "port": port }), codes.join("\n"))
}

async fn public_addresses_are_reached_on_the_ports_of_the_web_and_nothing_else_is(mode: Mode) {
    let Some(world) = world(mode) else { return };
    let Some(tenant) = tenant_in(&world, mode, "public").await else { return };
    let public = ["203.0.113.10", "3ffe:2::10"];
    tenant
        .suffers([
            each(&public, 80, "connected"),
            each(&public, 22, "EACCES"),
            attack("fetch", json!({ "url": "http://site.example/" }), "hello from ::ffff:203.0.113.10"),
            attack("fetch", json!({ "url": "http://[3ffe:2::10]/" }), "hello from 3ffe:2::10"),
            attack("lookup", json!({ "name": "site.example" }), "203.0.113.10"),
            attack("ask", json!({ "name": "site.example" }), "203.0.113.10"),
            by_mode("connect", to("127.0.0.1", 9000), "ECONNREFUSED", "EACCES"),
            by_mode("connect", to("127.0.0.1", port_of(&tenant)), "ECONNREFUSED", "EACCES"),
        ])
        .await;
    if mode.has_root() {
        tenant
            .suffers([
                each(&OUTSIDE, 80, "EHOSTUNREACH"),
                each(&HOSTS, 80, "EHOSTUNREACH"),
                // Names of the inside are not even asked for; those that lead there are of no use.
                attack("lookup", json!({ "name": "kubernetes.default.svc.cluster.local" }), "ENOTFOUND"),
                attack("fetch", json!({ "url": "http://inside.example/" }), "EHOSTUNREACH"),
                attack("ask", json!({ "name": "site.example", "server": "198.51.100.1" }), "ECONNREFUSED"),
                attack("send", to("203.0.113.10", 5353), "ENETUNREACH"),
                attack("send", to("10.96.0.1", 5353), "ENETUNREACH"),
                attack("send", to("fd00:77::1", 5353), "ENETUNREACH"),
            ])
            .await;
        let heard = world.what_it_heard();
        assert!(heard.contains("site.example"), "{heard}");
        assert!(!heard.contains("kubernetes") && !heard.contains("datagram"), "{heard}");
    } else {
        // What Landlock cannot do: it knows ports and no addresses, and TCP alone. The NetworkPolicy of the chart has to.
        tenant
            .suffers([
                each(&OUTSIDE, 80, "connected"),
                each(&HOSTS, 80, "connected"),
                each(&OUTSIDE, 8080, "EACCES"),
                attack("send", to("10.96.0.1", 5353), "ok"),
            ])
            .await;
    }
    tenant.server.stop().await;
}

async fn an_app_without_egress_reaches_nothing(mode: Mode) {
    let Some(world) = world(mode) else { return };
    let Some(tenant) = tenant_in(&world, mode, "none").await else { return };
    let refused = if mode.has_root() { "ENETUNREACH" } else { "EACCES" };
    let all = [&["203.0.113.10", "3ffe:2::10"][..], &OUTSIDE, &HOSTS].concat();
    tenant.suffers([80, 443, 22, 53, 8080].map(|port| each(&all, port, refused))).await;
    if mode.has_root() {
        tenant
            .suffers([
                attack("lookup", json!({ "name": "site.example" }), "EAI_AGAIN"),
                attack("send", to("203.0.113.10", 5353), "ENETUNREACH"),
            ])
            .await;
        assert_eq!(world.what_it_heard(), "");
    } else {
        // Datagrams go out, and with them questions for names.
        tenant.suffers([attack("send", to("203.0.113.10", 5353), "ok")]).await;
    }
    // Another app's egress is not this one's.
    let other = publish("other", |limits| limits.egress = "public".to_owned()).on(&tenant.server).await;
    assert_eq!(attempt(&other, "connect", &to("203.0.113.10", 80)).await, "connected");
    tenant.suffers([attack("connect", to("203.0.113.10", 80), refused)]).await;
    tenant.server.stop().await;
}

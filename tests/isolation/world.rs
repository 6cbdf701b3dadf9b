//! A host and a world, each a network namespace, joined by a veth pair. Nothing in them leads to anywhere real.
//!
//! IPv4 has no unused public addresses, so the documentation ranges stand in, opened by an `allow` rule; for IPv6, 3ffe::/16 (given
//! back by the 6bone, assigned to nobody) goes through the rules for the public internet.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::tenant::program;

/// What the service is configured with there.
pub const CONFIGURATION: &str = r#"
[egress]
allow = [{ network = "203.0.113.0/24", ports = [80, 443] }]
"#;
const HOST_ADDRESSES: [&str; 3] = ["198.51.100.2/24", "203.0.113.99/32", "3ffe:1::2/64"];
const WORLD_ADDRESSES: [&str; 2] = ["198.51.100.1/24", "3ffe:1::1/64"];
const SERVERS: [&str; 9] = [
    "203.0.113.10/32",
    "203.0.113.11/32",
    "169.254.169.254/32",
    "10.96.0.1/32",
    "192.168.1.1/32",
    "100.64.0.1/32",
    "3ffe:2::10/128",
    "fd00:77::1/128",
    "2001:db8::1/128",
];
/// What is sent there is never heard of again.
const BLACK_HOLES: [&str; 2] = ["203.0.113.66/32", "3ffe:dead::/32"];

pub struct World {
    host: String,
    world: String,
    servers: Vec<Child>,
    directory: TempDir,
}

impl World {
    /// # Errors
    /// Why there can be none here.
    pub fn new() -> Result<Self, &'static str> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !geteuid().is_root() {
            return Err("it takes root to make networks for a test");
        }
        if which::which("ip").is_err() {
            return Err("ip is missing, which makes networks for a test: apt-get install iproute2");
        }
        let name = format!("cf{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix("world").tempdir().expect("temp dir");
        let mut world = Self { host: format!("{name}h"), world: format!("{name}w"), servers: Vec::new(), directory };
        world.build();
        Ok(world)
    }

    fn build(&mut self) {
        let (host, world) = (self.host.clone(), self.world.clone());
        ip(&format!("netns add {host}"));
        ip(&format!("netns add {world}"));
        ip(&format!("-n {host} link add up0 type veth peer name down0 netns {world}"));
        for (namespace, device, addresses) in
            [(&host, "up0", &HOST_ADDRESSES[..]), (&world, "down0", &WORLD_ADDRESSES[..]), (&world, "lo", &SERVERS[..])]
        {
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} link set {device} up"));
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("-n {namespace} addr add {address} dev {device} {nodad}"));
            }
        }
        ip(&format!("-n {host} route add default via 198.51.100.1"));
        ip(&format!("-n {host} -6 route add default via 3ffe:1::1"));
        ip(&format!("-n {world} route add 203.0.113.99/32 via 198.51.100.2"));
        for network in BLACK_HOLES {
            let family = if network.contains(':') { "-6" } else { "-4" };
            ip(&format!("-n {world} {family} route add blackhole {network}"));
        }
        self.resolve_by("nameserver 198.51.100.1\n");
        std::fs::set_permissions(self.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/isolation/world.js");
        let heard = self.heard().display().to_string();
        self.serve(&world, &[script, &heard]);
        // The host's own services, on every address of its, and one on its loopback alone.
        self.serve(&host, &[script, &heard, "host"]);
    }

    fn serve(&mut self, namespace: &str, arguments: &[&str]) {
        let mut command = program("ip");
        command.args(["netns", "exec", namespace, "node"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = command.spawn().expect("a server");
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        self.servers.push(server);
        assert_eq!(line, "ready\n");
    }

    /// What the host's resolv.conf says; for a service that starts later.
    pub fn resolve_by(&self, resolv_conf: &str) {
        fs::write(self.resolv_conf(), resolv_conf).expect("write");
    }

    fn resolv_conf(&self) -> PathBuf {
        self.directory.path().join("resolv.conf")
    }

    fn heard(&self) -> PathBuf {
        self.directory.path().join("heard")
    }

    /// Names that were asked for, datagrams that arrived, and connections by the address that they came to.
    pub fn what_it_heard(&self) -> String {
        fs::read_to_string(self.heard()).unwrap_or_default()
    }

    /// Before a command: has it run on the host. Only the network is another, and the resolver's configuration: with all of
    /// `ip netns exec`, which mounts another /sys, there would be no cgroups.
    pub fn prefix(&self) -> Vec<OsString> {
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec nsenter --net=/run/netns/{} -- \"$@\"",
            self.resolv_conf().display(),
            self.host
        );
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        words.map(OsString::from).to_vec()
    }

    /// A channel to a service on the host's loopback: the socket is made there.
    pub async fn connect(&self, endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
        let namespace = PathBuf::from(format!("/run/netns/{}", self.host));
        let connector = tower::service_fn(move |uri: http::Uri| {
            let (namespace, authority) = (namespace.clone(), uri.authority().map(ToString::to_string));
            async move {
                let address: SocketAddr = authority.unwrap_or_default().parse().map_err(io::Error::other)?;
                let (done, connected) = tokio::sync::oneshot::channel();
                // A thread of its own: it ends in that network.
                std::thread::spawn(move || {
                    let enter = || {
                        setns(File::open(&namespace)?, CloneFlags::CLONE_NEWNET)?;
                        TcpStream::connect(address)
                    };
                    let _ = done.send(enter());
                });
                let stream = connected.await.map_err(io::Error::other)??;
                stream.set_nonblocking(true)?;
                Ok::<_, io::Error>(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
            }
        });
        endpoint.connect_with_connector(connector).await
    }
}

fn ip(arguments: &str) {
    let output = program("ip").args(arguments.split_whitespace()).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for namespace in [&self.host, &self.world] {
            let _ = program("ip").args(["netns", "del", namespace]).status();
        }
    }
}

//! What a worker may reach. Pure: no clock, no socket; the supervisor acts on the [`Verdict`].

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::address::{Cidr, is_never, is_public, judged};

/// The ports of a web server: all that [`Egress::Public`] opens on public addresses.
const WEB_PORTS: [u16; 2] = [80, 443];

/// One worker's rules, fixed while it lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub egress: Egress,
    /// Refused although public: the cluster's, the nodes' and the services' ranges, where they are not private anyway. An `allow`
    /// rule beats it, being the more deliberate statement.
    #[serde(default)]
    pub deny: Vec<Cidr>,
    /// Names that the resolver refuses, with everything below them.
    #[serde(default = "names_refused_default")]
    pub names_refused: Vec<String>,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Only the worker's own loopback; no names either.
    None,
    /// The public internet's web servers, and what `allow` adds.
    Public {
        #[serde(default)]
        allow: Vec<Rule>,
    },
    /// Nothing but what `allow` lists.
    Dedicated {
        allow: Vec<Rule>,
        /// The host's address to connect from, for firewalls that know apps by it. Without: what routing picks.
        #[serde(default)]
        source: Option<IpAddr>,
    },
}

/// An operator's permission: TCP to these ports of these addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    pub network: Cidr,
    pub ports: Vec<u16>,
}

/// Bounds on what one worker may ask of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// New connections to elsewhere, sustained; twice as many at once. Beyond: EAGAIN.
    pub connects_per_second: u32,
    /// Everything the supervisor does for it, names and loopback included. Beyond: the worker waits.
    pub requests_per_second: u32,
    /// Connects of blocking sockets under way. Beyond: EAGAIN. (Others are bounded by the worker's RLIMIT_NOFILE.)
    pub blocking_connects_max: usize,
    /// Questions to the resolver under way. Beyond: SERVFAIL.
    pub questions_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connects_per_second: 100, requests_per_second: 2000, blocking_connects_max: 16, questions_max: 64 }
    }
}

impl Policy {
    pub fn new(egress: Egress) -> Self {
        Self { egress, deny: Vec::new(), names_refused: names_refused_default(), limits: Limits::default() }
    }

    pub(super) fn source(&self) -> Option<IpAddr> {
        match self.egress {
            Egress::Dedicated { source, .. } => source,
            Egress::None | Egress::Public { .. } => None,
        }
    }

    fn allow(&self) -> &[Rule] {
        match &self.egress {
            Egress::None => &[],
            Egress::Public { allow } | Egress::Dedicated { allow, .. } => allow,
        }
    }
}

fn names_refused_default() -> Vec<String> {
    ["cluster.local", "internal", "local"].map(str::to_owned).to_vec()
}

/// The addresses of the host's own interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAddresses(pub BTreeSet<IpAddr>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The worker's own loopback: do it there, on the worker's own socket.
    Own,
    /// Connect from the host and hand the connection over.
    Connect,
    /// Say whether a route exists, and leave the socket alone. Connecting a UDP socket sends nothing; getaddrinfo does it to sort
    /// addresses (RFC 6724) and would think every address unusable if it failed.
    RouteOnly,
    Refused(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The app has no network at all.
    NoNetwork,
    Address,
    /// The address would do, on another port.
    Port,
}

impl Refusal {
    /// What a program sees. Not ECONNREFUSED or ETIMEDOUT: those read as "try again later". EHOSTUNREACH makes clients go on to the
    /// name's next address; EACCES tells that the rule, not the network, is in the way: `connect EACCES 192.0.2.1:22`.
    pub fn errno(self) -> Errno {
        match self {
            Self::NoNetwork => Errno::ENETUNREACH,
            Self::Address => Errno::EHOSTUNREACH,
            Self::Port => Errno::EACCES,
        }
    }
}

/// Decides on one connect. `target` is our copy of what the worker passed: nothing changes it any more.
pub fn decide(policy: &Policy, host: &HostAddresses, target: SocketAddr, protocol: Protocol) -> Verdict {
    let address = judged(target.ip());
    // Only loopback by its own name: 64:ff9b::127.0.0.1 would be a gateway's loopback. 0.0.0.0 and :: mean loopback to connect(2).
    let plain = target.ip().to_canonical();
    if plain.is_loopback() || plain.is_unspecified() {
        return Verdict::Own;
    }
    if policy.egress == Egress::None {
        return Verdict::Refused(Refusal::NoNetwork);
    }
    let ports = open_ports(policy, host, target.ip(), address);
    match protocol {
        _ if ports.is_empty() => Verdict::Refused(Refusal::Address),
        Protocol::Udp => Verdict::RouteOnly,
        Protocol::Tcp if ports.contains(&target.port()) => Verdict::Connect,
        Protocol::Tcp => Verdict::Refused(Refusal::Port),
    }
}

/// The TCP ports open on an address.
fn open_ports(policy: &Policy, host: &HostAddresses, written: IpAddr, address: IpAddr) -> Vec<u16> {
    if is_never(address) {
        return Vec::new();
    }
    let own = host.0.contains(&address);
    // A wide rule must not open the host's own services: they need a rule for that very address.
    let matching =
        policy.allow().iter().filter(|rule| rule.network.contains(address) && (!own || rule.network.is_single()));
    let mut ports: Vec<u16> = matching.flat_map(|rule| rule.ports.iter().copied()).collect();
    let denied = own || policy.deny.iter().any(|network| network.contains(address) || network.contains(written));
    if matches!(policy.egress, Egress::Public { .. }) && is_public(address) && !denied {
        ports.extend(WEB_PORTS);
    }
    ports
}

/// Whether the resolver may answer a question about this address' name.
pub(super) fn reverse_name_allowed(address: IpAddr) -> bool {
    is_public(judged(address))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

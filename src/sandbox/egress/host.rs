//! What the supervisor knows of the host it stands in: its addresses and its resolvers.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;

use super::policy::HostAddresses;
use super::socket::Socket;

/// Interfaces and resolvers change rarely; a new address is caught by [`super::route`] before it stands in the list.
const FRESH_FOR: Duration = Duration::from_secs(5);
const RESOLV_CONF_BYTES_MAX: usize = 64 << 10;
/// As glibc: MAXNS.
const RESOLVERS_MAX: usize = 3;
const DNS_PORT: u16 = 53;

/// Shared by the workers' threads.
pub(super) struct Host {
    /// Of the namespace we connect from.
    pub(super) namespace: u64,
    resolv_conf: PathBuf,
    addresses: Mutex<Option<(Instant, HostAddresses)>>,
    names: Mutex<Option<(Instant, Names)>>,
}

/// What resolv.conf says.
#[derive(Clone)]
pub(super) struct Names {
    /// In the host's order.
    pub resolvers: Vec<SocketAddr>,
    /// Kubernetes searches `svc.DOMAIN`, whatever the cluster's domain is called.
    pub cluster_domains: Vec<String>,
}

impl Host {
    pub(super) fn new(resolv_conf: PathBuf) -> Result<Self, Errno> {
        let namespace = Socket::new(libc::AF_INET, libc::SOCK_STREAM)?.namespace()?;
        Ok(Self { namespace, resolv_conf, addresses: Mutex::default(), names: Mutex::default() })
    }

    /// # Errors
    /// They cannot be listed; then nothing can be allowed.
    pub(super) fn addresses(&self) -> Result<HostAddresses, Errno> {
        cached(&self.addresses, || {
            let addresses = getifaddrs()?.filter_map(|interface| interface.address);
            let ip = |address: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
                let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
            };
            Ok(HostAddresses(addresses.filter_map(ip).collect()))
        })
    }

    pub(super) fn names(&self) -> Result<Names, Errno> {
        cached(&self.names, || {
            let text = std::fs::read_to_string(&self.resolv_conf).map_err(|_| Errno::ENOENT)?;
            Ok(read_names(text.get(..RESOLV_CONF_BYTES_MAX).unwrap_or(&text)))
        })
    }
}

fn cached<T: Clone>(slot: &Mutex<Option<(Instant, T)>>, read: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, value)) = slot.as_ref()
        && at.elapsed() < FRESH_FOR
    {
        return Ok(value.clone());
    }
    let value = read()?;
    *slot = Some((Instant::now(), value.clone()));
    Ok(value)
}

fn read_names(resolv_conf: &str) -> Names {
    let (mut resolvers, mut cluster_domains) = (Vec::new(), Vec::new());
    for line in resolv_conf.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") if resolvers.len() < RESOLVERS_MAX => {
                let address = words.next().and_then(|address| address.parse().ok());
                resolvers.extend(address.map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)));
            }
            Some("search") => {
                let domains = words.filter_map(|domain| domain.strip_prefix("svc."));
                cluster_domains.extend(domains.map(str::to_owned));
            }
            _ => {}
        }
    }
    Names { resolvers, cluster_domains }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_glibc_reads_them() {
        let text = "# nameserver 1.1.1.1\nsearch a.svc.example.net svc.example.net example.net\nnameserver 192.0.2.1\n\
            \x20nameserver\tfd00::1 # x\nnameserver x\noptions ndots:5\n";
        let names = read_names(text);
        assert_eq!(names.resolvers, ["192.0.2.1:53".parse().expect("v4"), "[fd00::1]:53".parse().expect("v6")]);
        assert_eq!(names.cluster_domains, ["example.net"]);
        assert_eq!(read_names(&"nameserver 192.0.2.1\n".repeat(9)).resolvers.len(), 3);
    }

    #[test]
    fn loopback_is_among_the_hosts_addresses() {
        let host = Host::new("/etc/resolv.conf".into()).expect("host");
        assert!(host.addresses().expect("list").0.contains(&"127.0.0.1".parse().expect("ip")));
    }
}

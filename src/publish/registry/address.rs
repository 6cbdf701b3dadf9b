//! Which addresses a registry's redirect may lead to.
//!
//! A registry is trusted with its own packages, not with the service's network: a redirect to the loopback interface, to a cloud's
//! metadata service or from the internet into a private network is refused. Names are checked when they are resolved, by the
//! connection itself, so a name cannot be one address for the check and another for the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// How far an address is from the service; a redirect may lead as near as the registry itself is, but never to [`Reach::Local`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// This machine, its link (where metadata services are), or no single machine.
    Local,
    /// Private networks.
    Private,
    Public,
}

impl Reach {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        /// Alibaba's and Azure's services for a machine itself, at addresses that look like any other.
        const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
        let [a, b, c, _] = address.octets();
        let local = address.is_loopback() || address.is_link_local() || a == 0 || a >= 224;
        let shared = a == 100 && (64..128).contains(&b);
        let special = (a == 192 && b == 0 && c == 0) || (a == 198 && (b == 18 || b == 19));
        match () {
            () if local || METADATA.contains(&address) => Self::Local,
            () if address.is_private() || shared || special => Self::Private,
            () => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
        let segments = address.segments();
        // NAT64 and 6to4 carry an IPv4 address.
        match segments {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
                let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
                return Self::of_v4(Ipv4Addr::new(a, b, c, d));
            }
            _ => {}
        }
        let local = address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || address.is_unicast_link_local()
            || address == AWS_METADATA;
        match () {
            () if local => Self::Local,
            () if address.is_unique_local() || segments[..3] == [0x64, 0xff9b, 1] => Self::Private,
            () => Self::Public,
        }
    }
}

/// Whether a URL's host says by itself that it is nearer than `nearest`; a name says so only where it always means this machine.
pub(super) fn is_nearer(url: &Url, nearest: Reach) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => Reach::of(address.into()) < nearest,
        Some(Host::Ipv6(address)) => Reach::of(address.into()) < nearest,
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        None => true,
    }
}

/// Resolves names to addresses that are far enough; others do not exist for it.
pub(super) struct Guard {
    pub(super) nearest: Reach,
    /// The operator's HTTP proxies, which are wherever the operator wants them.
    pub(super) exempt: Vec<String>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let nearest = if self.exempt.contains(&name) { Reach::Local } else { self.nearest };
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut allowed = found.filter(move |address| Reach::of(address.ip()) >= nearest).peekable();
            if allowed.peek().is_none() {
                return Err("the name leads to an address that a redirect must not lead to".into());
            }
            let addresses: Addrs = Box::new(allowed.collect::<Vec<_>>().into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_private_or_public() {
        for (address, reach) in [
            ("127.0.0.1", Reach::Local),
            ("127.9.9.9", Reach::Local),
            ("0.0.0.0", Reach::Local),
            ("169.254.169.254", Reach::Local),
            ("100.100.100.200", Reach::Local),
            ("168.63.129.16", Reach::Local),
            ("224.0.0.1", Reach::Local),
            ("255.255.255.255", Reach::Local),
            ("::1", Reach::Local),
            ("::", Reach::Local),
            ("fe80::1", Reach::Local),
            ("ff02::1", Reach::Local),
            ("fd00:ec2::254", Reach::Local),
            ("::ffff:127.0.0.1", Reach::Local),
            ("64:ff9b::7f00:1", Reach::Local),
            ("2002:a9fe:a9fe::", Reach::Local),
            ("10.0.0.1", Reach::Private),
            ("172.16.0.1", Reach::Private),
            ("192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("198.18.0.1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("::ffff:10.0.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("104.16.0.1", Reach::Public),
            ("2606:4700::1", Reach::Public),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), reach, "{address}");
        }
    }

    #[test]
    fn hosts_that_are_near_by_their_name_are_known() {
        let near = |url: &str| is_nearer(&Url::parse(url).unwrap(), Reach::Private);
        for bad in ["http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://[::1]/", "http://LOCALHOST./"]
        {
            assert!(near(bad), "{bad}");
        }
        assert!(!near("http://10.0.0.1/") && !near("http://cdn.example/"));
        assert!(is_nearer(&Url::parse("http://10.0.0.1/").unwrap(), Reach::Public));
    }

    #[tokio::test]
    async fn a_name_that_leads_here_does_not_resolve() {
        let guard = |exempt: &[&str]| Guard {
            nearest: Reach::Public,
            exempt: exempt.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert!(guard(&[]).resolve("localhost".parse().unwrap()).await.is_err());
        assert!(guard(&["localhost"]).resolve("localhost".parse().unwrap()).await.is_ok());
    }
}

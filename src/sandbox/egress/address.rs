//! Address ranges: CIDR notation, and which addresses are the public internet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network such as `10.0.0.0/8`, or one address. Bits below the prefix are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network: expected something like 10.0.0.0/8 or 2001:db8::1")]
pub struct InvalidCidr(String);

impl Cidr {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => same_v4(network, address, self.prefix),
            (IpAddr::V6(network), IpAddr::V6(address)) => same_v6(network, address, self.prefix),
            _ => false,
        }
    }

    /// Whether it names exactly one address.
    pub fn is_single(&self) -> bool {
        self.prefix == bits(self.network)
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let invalid = || InvalidCidr(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix = prefix.unwrap_or_else(|| bits(network));
        if prefix > bits(network) {
            return Err(invalid());
        }
        let network = match network {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask(32, prefix) as u32)),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask(128, prefix))),
        };
        Ok(Self { network, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidCidr;

    fn try_from(text: String) -> Result<Self, InvalidCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The upper `prefix` of the lower `width` bits.
fn mask(width: u32, prefix: u8) -> u128 {
    let all = u128::MAX >> (128 - width);
    all & !all.checked_shr(u32::from(prefix)).unwrap_or(0)
}

fn same_v4(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    u128::from(a.to_bits() ^ b.to_bits()) & mask(32, prefix) == 0
}

fn same_v6(a: Ipv6Addr, b: Ipv6Addr, prefix: u8) -> bool {
    (a.to_bits() ^ b.to_bits()) & mask(128, prefix) == 0
}

/// The address that packets would reach: an IPv6 address that merely wraps an IPv4 one is judged as that one.
pub(super) fn judged(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return IpAddr::V4(v4);
    }
    // 64:ff9b::/96: a NAT64 gateway sends it on to the last 32 bits (RFC 6052).
    if same_v6(v6, Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96) {
        return IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32));
    }
    address
}

/// Never a destination, whatever an operator's rule says: no rule can mean them, and a wide one must not open them.
/// Link-local holds the clouds' metadata services; multicast, broadcast and reserved addresses have no TCP peer.
pub(super) fn is_never(address: IpAddr) -> bool {
    const V4: [(Ipv4Addr, u8); 4] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(224, 0, 0, 0), 3), // Multicast 224/4, reserved 240/4, broadcast.
    ];
    match address {
        IpAddr::V4(v4) => V4.iter().any(|(network, prefix)| same_v4(*network, v4, *prefix)),
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some() // `judged` has unwrapped it: not reached.
        }
    }
}

/// Whether it is a public unicast address: IANA's special-purpose registries, read for "globally reachable", minus the ranges that
/// tunnel to an address we would not see. Expects an address that went through [`judged`].
pub(super) fn is_public(address: IpAddr) -> bool {
    const NOT_V4: [(Ipv4Addr, u8); 11] = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10), // Carriers' NAT; also what several clouds and overlays number their insides with.
        (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's host agent: public by its number, answered by the hypervisor.
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24), // 6to4 relays.
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
    ];
    const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
    const NOT_V6: [(Ipv6Addr, u8); 4] = [
        (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // IETF protocols: Teredo 2001::/32, benchmarking, ORCHID.
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
        (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4: carries any IPv4 address.
        (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // Documentation (RFC 9637).
    ];
    if is_never(address) {
        return false;
    }
    match address {
        IpAddr::V4(v4) => !NOT_V4.iter().any(|(network, prefix)| same_v4(*network, v4, *prefix)),
        IpAddr::V6(v6) => {
            same_v6(GLOBAL_V6.0, v6, GLOBAL_V6.1)
                && !NOT_V6.iter().any(|(network, prefix)| same_v6(*network, v6, *prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_read_and_contain_what_they_should() {
        let cases = [
            ("10.1.2.3/8", "10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7/32", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255", "::"),
            ("2001:db8::1/32", "2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
            ("::/0", "::/0", "ffff::", "0.0.0.0"),
        ];
        for (text, shown, inside, outside) in cases {
            let cidr: Cidr = text.parse().expect(text);
            assert_eq!(cidr.to_string(), shown);
            assert!(cidr.contains(inside.parse().expect(inside)), "{inside} in {text}");
            assert!(!cidr.contains(outside.parse().expect(outside)), "{outside} in {text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/-1", "10.0.0.0/8/8", "example.com"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_network_contains_itself_and_survives_its_text(bits: u128, prefix in 0u8..=128, v4: bool) {
            let text = if v4 {
                format!("{}/{}", Ipv4Addr::from_bits(bits as u32), prefix.min(32))
            } else {
                format!("{}/{prefix}", Ipv6Addr::from_bits(bits))
            };
            let cidr: Cidr = text.parse().expect("valid");
            prop_assert!(cidr.contains(cidr.network));
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().expect("valid"), cidr);
        }
    }
}

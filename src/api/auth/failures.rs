//! Who sends wrong tokens, and is not listened to for a while.
//!
//! By address, not by credential: secrets are 256 random bits, so nobody guesses one, but whoever knows a client's id could lock it out.
//! What a limit protects is the operator's token, which a person may have chosen, and the store, which a wrong secret makes us ask.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{Extensions, HeaderMap};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use crate::sandbox::egress::Cidr;

/// Sources that are held off; beyond that some go early.
const HELD_OFF_MAX: usize = 100_000;

pub struct Failures {
    limiter: Option<DefaultKeyedRateLimiter<IpAddr>>,
    held_off: Mutex<HashMap<IpAddr, Instant>>,
    trusted_proxies: Vec<Cidr>,
    clock: DefaultClock,
}

impl Failures {
    /// `per_minute`: wrong tokens of one address; 0: as many as it likes.
    pub fn new(per_minute: u32, trusted_proxies: Vec<Cidr>) -> Self {
        let quota = NonZeroU32::new(per_minute).map(Quota::per_minute);
        let limiter = quota.map(RateLimiter::keyed);
        Self { limiter, held_off: Mutex::default(), trusted_proxies, clock: DefaultClock::default() }
    }

    /// Where a request comes from: the connection's other end, or whom a proxy that is trusted names.
    pub fn source(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        let plain = || extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(|info| info.get_ref().remote_addr());
        let peer = tls.or_else(plain)?.ip().to_canonical();
        let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let forwarded: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
        Some(prefix(self.client(peer, &forwarded)))
    }

    /// From the right: each proxy adds whom it was called by, and what stands left of an address that is none of ours anybody can write.
    fn client(&self, peer: IpAddr, forwarded: &[&str]) -> IpAddr {
        let mut client = peer;
        for address in forwarded.iter().rev() {
            if !self.trusted_proxies.iter().any(|network| network.contains(client)) {
                break;
            }
            let Ok(next) = address.parse::<IpAddr>() else { break };
            client = next.to_canonical();
        }
        client
    }

    /// How long the source is not listened to any more.
    pub fn held_off(&self, source: Option<IpAddr>) -> Option<Duration> {
        let until = self.sources().get(&source?).copied()?;
        until.checked_duration_since(Instant::now())
    }

    /// It sent a wrong token.
    pub fn count(&self, source: Option<IpAddr>) {
        let (Some(limiter), Some(source)) = (&self.limiter, source) else { return };
        let Err(not_until) = limiter.check_key(&source) else { return };
        let until = Instant::now() + not_until.wait_time_from(self.clock.now());
        let mut sources = self.sources();
        if sources.len() >= HELD_OFF_MAX
            && let Some(one) = sources.keys().next().copied()
        {
            sources.remove(&one);
        }
        if sources.insert(source, until).is_none() {
            tracing::info!(%source, "too many wrong tokens: this address is held off");
        }
    }

    /// Forgets those that behave. Call it now and then.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.sources().retain(|_, until| *until > now);
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.held_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of IPv6 the network: a host has 2^64 addresses of its own.
fn prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn who_sends_too_many_wrong_tokens_is_held_off_and_nobody_else_is() {
        let failures = Failures::new(2, Vec::new());
        let (bad, good) = (Some(ip("192.0.2.1")), Some(ip("192.0.2.2")));
        for _ in 0..2 {
            failures.count(bad);
            assert_eq!(failures.held_off(bad), None);
        }
        failures.count(bad);
        assert!(failures.held_off(bad).is_some_and(|wait| wait <= Duration::from_secs(30)));
        assert_eq!((failures.held_off(good), failures.held_off(None)), (None, None));
        failures.sweep();
        assert!(failures.held_off(bad).is_some(), "not yet");
        let unlimited = Failures::new(0, Vec::new());
        (0..1000).for_each(|_| unlimited.count(bad));
        assert_eq!(unlimited.held_off(bad), None);
    }

    #[test]
    fn a_proxy_is_believed_only_where_it_is_trusted() {
        let failures = Failures::new(1, vec!["10.0.0.0/8".parse().expect("a network")]);
        for (peer, forwarded, expected) in [
            ("192.0.2.1", &["198.51.100.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["nonsense"], "10.0.0.1"),
        ] {
            assert_eq!(failures.client(ip(peer), forwarded), ip(expected), "{peer} {forwarded:?}");
        }
        assert_eq!(prefix(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(prefix(ip("192.0.2.1")), ip("192.0.2.1"));
    }
}

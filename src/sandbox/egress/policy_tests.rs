use super::*;

const ADDRESS: Verdict = Verdict::Refused(Refusal::Address);
const PORT: Verdict = Verdict::Refused(Refusal::Port);

fn rule(network: &str, ports: &[u16]) -> Rule {
    Rule { network: network.parse().expect(network), ports: ports.to_vec() }
}

fn host() -> HostAddresses {
    HostAddresses(["34.1.2.3", "10.0.0.5", "2600::5", "fd00::5"].map(|a| a.parse().expect(a)).into())
}

fn check(policy: &Policy, table: &[(&str, Verdict)]) {
    for (target, expected) in table {
        let verdict = decide(policy, &host(), target.parse().expect(target), Protocol::Tcp);
        assert_eq!(verdict, *expected, "{target}");
    }
}

#[test]
fn public_is_the_public_internet_on_web_ports_and_nothing_else() {
    let mut policy = Policy::new(Egress::Public { allow: vec![] });
    policy.deny = vec!["35.0.0.0/8".parse().expect("cidr"), "2a00:1::/32".parse().expect("cidr")];
    check(
        &policy,
        &[
            ("1.1.1.1:443", Verdict::Connect),
            ("1.1.1.1:80", Verdict::Connect),
            ("1.1.1.1:22", PORT),
            ("1.1.1.1:53", PORT),
            ("1.1.1.1:0", PORT),
            ("1.1.1.1:8080", PORT),
            // Its own loopback, under every name of it.
            ("127.0.0.1:5432", Verdict::Own),
            ("127.255.255.255:80", Verdict::Own),
            ("0.0.0.0:80", Verdict::Own),
            ("[::1]:80", Verdict::Own),
            ("[::]:80", Verdict::Own),
            ("[::ffff:127.0.0.1]:80", Verdict::Own),
            ("[::ffff:0.0.0.0]:80", Verdict::Own),
            // IANA's IPv4 special-purpose registry, both sides of each border.
            ("0.0.0.1:80", ADDRESS),
            ("0.255.255.255:80", ADDRESS),
            ("1.0.0.0:80", Verdict::Connect),
            ("9.255.255.255:80", Verdict::Connect),
            ("10.0.0.0:443", ADDRESS),
            ("10.255.255.255:443", ADDRESS),
            ("11.0.0.0:443", Verdict::Connect),
            ("100.63.255.255:80", Verdict::Connect),
            ("100.64.0.0:80", ADDRESS),
            ("100.100.100.200:80", ADDRESS),
            ("100.127.255.255:80", ADDRESS),
            ("100.128.0.0:80", Verdict::Connect),
            ("126.255.255.255:80", Verdict::Connect),
            ("128.0.0.0:80", Verdict::Connect),
            ("168.63.129.16:80", ADDRESS),
            ("168.63.129.17:80", Verdict::Connect),
            ("169.253.255.255:80", Verdict::Connect),
            ("169.254.0.0:80", ADDRESS),
            ("169.254.169.254:80", ADDRESS),
            ("169.254.255.255:80", ADDRESS),
            ("169.255.0.0:80", Verdict::Connect),
            ("172.15.255.255:80", Verdict::Connect),
            ("172.16.0.0:80", ADDRESS),
            ("172.31.255.255:80", ADDRESS),
            ("172.32.0.0:80", Verdict::Connect),
            ("192.0.0.192:80", ADDRESS),
            ("192.0.1.0:80", Verdict::Connect),
            ("192.0.2.1:80", ADDRESS),
            ("192.88.99.1:80", ADDRESS),
            ("192.167.255.255:80", Verdict::Connect),
            ("192.168.0.0:80", ADDRESS),
            ("192.168.255.255:80", ADDRESS),
            ("192.169.0.0:80", Verdict::Connect),
            ("198.17.255.255:80", Verdict::Connect),
            ("198.18.0.0:80", ADDRESS),
            ("198.19.255.255:80", ADDRESS),
            ("198.20.0.0:80", Verdict::Connect),
            ("198.51.100.1:80", ADDRESS),
            ("203.0.113.1:80", ADDRESS),
            ("223.255.255.255:80", Verdict::Connect),
            ("224.0.0.1:80", ADDRESS),
            ("239.255.255.255:80", ADDRESS),
            ("240.0.0.1:80", ADDRESS),
            ("255.255.255.255:80", ADDRESS),
            // IPv6: global unicast only.
            ("[2606:4700::1111]:443", Verdict::Connect),
            ("[2606:4700::1111]:22", PORT),
            ("[3ffe::1]:443", Verdict::Connect),
            ("[1fff:ffff::1]:443", ADDRESS),
            ("[4000::1]:443", ADDRESS),
            ("[2001::1]:443", ADDRESS),
            ("[2001:1ff::1]:443", ADDRESS),
            ("[2001:200::1]:443", Verdict::Connect),
            ("[2001:db8::1]:443", ADDRESS),
            ("[2001:db9::1]:443", Verdict::Connect),
            ("[2002:7f00:1::1]:443", ADDRESS),
            ("[2003::1]:443", Verdict::Connect),
            ("[3fff:fff::1]:443", ADDRESS),
            ("[fc00::1]:443", ADDRESS),
            ("[fd00:ec2::254]:80", ADDRESS),
            ("[fe80::1]:443", ADDRESS),
            ("[fec0::1]:443", ADDRESS),
            ("[ff02::1]:443", ADDRESS),
            ("[100::1]:443", ADDRESS),
            ("[64:ff9b:1::1]:443", ADDRESS),
            ("[5f00::1]:443", ADDRESS),
            ("[::2]:443", ADDRESS),
            ("[::7f00:1]:443", ADDRESS), // The old "IPv4-compatible" form: not loopback either.
            // IPv4 in IPv6 clothes.
            ("[::ffff:1.1.1.1]:443", Verdict::Connect),
            ("[::ffff:1.1.1.1]:25", PORT),
            ("[::ffff:10.0.0.1]:443", ADDRESS),
            ("[::ffff:169.254.169.254]:80", ADDRESS),
            ("[64:ff9b::1.1.1.1]:443", Verdict::Connect),
            ("[64:ff9b::10.0.0.1]:443", ADDRESS),
            ("[64:ff9b::169.254.169.254]:80", ADDRESS),
            ("[64:ff9b::127.0.0.1]:80", ADDRESS),
            // The host itself, and what the operator denied.
            ("34.1.2.3:443", ADDRESS),
            ("34.1.2.4:443", Verdict::Connect),
            ("[::ffff:34.1.2.3]:443", ADDRESS),
            ("[64:ff9b::34.1.2.3]:443", ADDRESS),
            ("[2600::5]:443", ADDRESS),
            ("35.1.1.1:443", ADDRESS),
            ("[::ffff:35.1.1.1]:443", ADDRESS),
            ("[2a00:1::1]:443", ADDRESS),
        ],
    );
}

#[test]
fn an_allow_rule_beats_private_and_denied_ranges_but_opens_neither_the_host_nor_metadata() {
    let mut policy = Policy::new(Egress::Public {
        allow: vec![
            rule("10.0.0.0/8", &[5432]),
            rule("0.0.0.0/0", &[6379]),
            rule("fd00::/8", &[5432]),
            rule("34.1.2.3/32", &[9000]),
        ],
    });
    policy.deny = vec!["10.0.0.0/8".parse().expect("cidr")];
    check(
        &policy,
        &[
            ("10.9.9.9:5432", Verdict::Connect),
            ("10.9.9.9:6379", Verdict::Connect),
            ("10.9.9.9:443", PORT),
            ("[::ffff:10.9.9.9]:5432", Verdict::Connect),
            ("[fd00::6]:5432", Verdict::Connect),
            ("1.1.1.1:443", Verdict::Connect),
            ("1.1.1.1:5432", PORT),
            ("10.0.0.5:5432", ADDRESS),
            ("[fd00::5]:5432", ADDRESS),
            ("34.1.2.3:9000", Verdict::Connect),
            ("34.1.2.3:443", PORT),
            ("169.254.169.254:6379", ADDRESS),
            ("224.0.0.1:6379", ADDRESS),
            ("127.0.0.1:6379", Verdict::Own),
        ],
    );
}

#[test]
fn dedicated_is_only_what_is_listed_and_none_is_only_loopback() {
    let dedicated = Policy::new(Egress::Dedicated { allow: vec![rule("203.0.113.7", &[5432, 443])], source: None });
    check(
        &dedicated,
        &[
            ("203.0.113.7:5432", Verdict::Connect),
            ("203.0.113.7:443", Verdict::Connect),
            ("203.0.113.7:80", PORT),
            ("203.0.113.8:443", ADDRESS),
            ("1.1.1.1:443", ADDRESS),
            ("127.0.0.1:443", Verdict::Own),
        ],
    );
    let refused = Verdict::Refused(Refusal::NoNetwork);
    check(
        &Policy::new(Egress::None),
        &[
            ("1.1.1.1:443", refused),
            ("10.0.0.1:80", refused),
            ("127.0.0.1:80", Verdict::Own),
            ("[::1]:1", Verdict::Own),
        ],
    );
}

#[test]
fn udp_only_learns_whether_there_is_a_route() {
    let policy = Policy::new(Egress::Public { allow: vec![] });
    let table = [
        ("1.1.1.1:53", Verdict::RouteOnly),
        ("1.1.1.1:0", Verdict::RouteOnly),
        ("[2606:4700::1111]:443", Verdict::RouteOnly),
        ("10.0.0.1:53", ADDRESS),
        ("169.254.169.254:53", ADDRESS),
        ("127.0.0.53:53", Verdict::Own),
    ];
    for (target, expected) in table {
        assert_eq!(decide(&policy, &host(), target.parse().expect(target), Protocol::Udp), expected, "{target}");
    }
}

#[test]
fn a_policy_is_readable_json() {
    let text = r#"{"egress":{"dedicated":{"allow":[{"network":"10.1.0.0/16","ports":[5432]}],"source":"192.0.2.9"}},"deny":["fd00::/8"]}"#;
    let policy: Policy = serde_json::from_str(text).expect("policy");
    assert_eq!(policy.source(), Some("192.0.2.9".parse().expect("ip")));
    assert_eq!(policy.names_refused, ["cluster.local", "internal", "local"]);
    let again: Policy = serde_json::from_str(&serde_json::to_string(&policy).expect("json")).expect("policy");
    assert_eq!(again, policy);
    let none: Policy = serde_json::from_str(r#"{"egress":"none"}"#).expect("policy");
    assert_eq!(none.egress, Egress::None);
}

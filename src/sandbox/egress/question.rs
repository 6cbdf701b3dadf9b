//! Reading the question out of a DNS message (RFC 1035), and refusing it. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::policy::reverse_name_allowed;

const HEADER_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;
const CLASS_IN: u16 = 1;
/// 251 IXFR, 252 AXFR, 253/254 mail: whole zones, or dead.
const TYPES_REFUSED: std::ops::RangeInclusive<u16> = 251..=254;
const FLAG_RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rcode {
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
}

/// The one question of a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Lower case, no dot at the end.
    labels: Vec<String>,
    kind: u16,
    class: u16,
    /// Where the question's section ends in the message.
    end: usize,
}

impl Question {
    /// `None`: not a query that a stub resolver would send.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let header = message.get(..HEADER_BYTES)?;
        let one_question = header[4..6] == [0, 1];
        if header[2] & FLAG_RESPONSE != 0 || !one_question {
            return None;
        }
        let mut labels = Vec::new();
        let mut at = HEADER_BYTES;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                // A pointer has nothing to point at before the first name.
                1..=63 => labels.push(String::from_utf8(message.get(at..at + length)?.to_ascii_lowercase()).ok()?),
                _ => return None,
            }
            at += length;
            if at > HEADER_BYTES + NAME_BYTES_MAX {
                return None;
            }
        }
        let tail: [u8; 4] = message.get(at..at + 4)?.try_into().ok()?;
        let [kind, class] = [[tail[0], tail[1]], [tail[2], tail[3]]].map(u16::from_be_bytes);
        let standard = header[2] & OPCODE == 0;
        standard.then_some(Self { labels, kind, class, end: at + 4 })
    }

    /// What to say instead of asking upstream.
    pub(super) fn refusal(&self, names_refused: &[String]) -> Option<Rcode> {
        if self.class != CLASS_IN || TYPES_REFUSED.contains(&self.kind) {
            return Some(Rcode::Refused);
        }
        // A label may contain a dot, which must not make it look like two.
        let odd = self.labels.iter().any(|label| label.contains('.'));
        let inside = names_refused.iter().any(|suffix| self.is_below(suffix));
        // Without a dot: the name of a service or a container next door, where the host's resolver knows such.
        if odd || inside || self.labels.len() < 2 || !self.reverse_allowed() {
            // "No such name" ends the search; REFUSED would send clients on to ask again.
            return Some(Rcode::NxDomain);
        }
        None
    }

    fn is_below(&self, suffix: &str) -> bool {
        let suffix: Vec<_> = suffix.trim_matches('.').split('.').map(str::to_ascii_lowercase).collect();
        self.labels.ends_with(&suffix)
    }

    /// The names of private addresses are a map of the inside.
    fn reverse_allowed(&self) -> bool {
        let (labels, address) = match self.labels.as_slice() {
            [labels @ .., zone, arpa] if arpa == "arpa" => (labels, reverse_address(labels, zone)),
            _ => return true,
        };
        !labels.is_empty() && address.is_some_and(reverse_name_allowed)
    }
}

fn reverse_address(labels: &[String], zone: &str) -> Option<IpAddr> {
    match zone {
        "in-addr" => {
            let octets: Vec<u8> = labels.iter().rev().map(|label| label.parse().ok()).collect::<Option<_>>()?;
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into())
        }
        "ip6" if labels.len() == 32 => {
            let digits: String = labels.iter().rev().map(String::as_str).collect();
            let bits = (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())??;
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

/// A reply without an answer. `None` if the message is too broken to be replied to.
pub(super) fn reply(message: &[u8], question: Option<&Question>, rcode: Rcode) -> Option<Vec<u8>> {
    let end = question.map_or(HEADER_BYTES, |question| question.end);
    let mut reply = message.get(..end)?.to_vec();
    if reply[2] & FLAG_RESPONSE != 0 {
        return None; // Two resolvers must not answer each other's answers.
    }
    const RECURSION_AVAILABLE: u8 = 0x80;
    reply[2] |= FLAG_RESPONSE;
    reply[3] = RECURSION_AVAILABLE | rcode as u8;
    reply[4..HEADER_BYTES].copy_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
    Some(reply)
}

/// Whether it can be the reply to a query with this beginning: same id, and a response.
pub(super) fn is_reply_to(message: &[u8], id: [u8; 2]) -> bool {
    message.len() >= HEADER_BYTES && message[..2] == id && message[2] & FLAG_RESPONSE != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn inside_names_are_refused_and_public_ones_are_not() {
        let refused = ["cluster.local", "internal", "local"].map(str::to_owned);
        let nx = Some(Rcode::NxDomain);
        let cases = [
            ("example.com", 1, None),
            ("EXAMPLE.com", 28, None),
            ("xcluster.local", 1, nx),
            ("notinternal.com", 1, None),
            ("myinternal", 1, nx),
            ("kubernetes.default.svc.cluster.local", 1, nx),
            ("kubernetes.default.svc.CLUSTER.Local", 1, nx),
            ("cluster.local", 33, nx),
            ("metadata.google.internal", 1, nx),
            ("internal.example.com", 1, None),
            ("kubernetes", 1, nx),
            ("", 2, nx),
            ("example.com", 252, Some(Rcode::Refused)),
            ("1.1.1.1.in-addr.arpa", 12, None),
            ("1.0.96.10.in-addr.arpa", 12, nx),
            ("1.0.96.10.IN-ADDR.arpa", 12, nx),
            ("10.in-addr.arpa", 2, nx),
            ("in-addr.arpa", 2, nx),
            ("1.1.1.1.1.in-addr.arpa", 12, nx),
            ("resolver.arpa", 64, nx),
            ("example.com", 12, None),
        ];
        for (name, kind, expected) in cases {
            let question = Question::parse(&query(name, kind)).expect(name);
            assert_eq!(question.refusal(&refused), expected, "{name} {kind}");
        }
        let public = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.4.6.0.6.2.ip6.arpa";
        assert_eq!(Question::parse(&query(public, 12)).expect("v6").refusal(&refused), None);
        let private = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(Question::parse(&query(private, 12)).expect("v6").refusal(&refused), nx);
    }

    #[test]
    fn a_dot_inside_a_label_does_not_hide_a_name() {
        let mut message = query("", 1);
        message.splice(12..13, *b"\x0dcluster.local\x03com\x00");
        let question = Question::parse(&message).expect("parses");
        assert_eq!(question.refusal(&[]), Some(Rcode::NxDomain));
    }

    #[test]
    fn a_reply_repeats_the_question_and_drops_the_rest() {
        let mut message = query("a.local", 1);
        let end = message.len();
        message[11] = 1; // An EDNS record follows.
        message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        let question = Question::parse(&message).expect("parses");
        let reply = reply(&message, Some(&question), Rcode::NxDomain).expect("reply");
        assert_eq!(reply[..4], [0xab, 0xcd, 0x81, 0x83]);
        assert_eq!(reply[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reply[12..], message[12..end]);
        assert!(is_reply_to(&reply, [0xab, 0xcd]) && !is_reply_to(&message, [0xab, 0xcd]));
        assert_eq!(super::reply(&reply, None, Rcode::ServFail), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_question_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let question = Question::parse(&bytes);
            if let Some(question) = &question {
                let _ = question.refusal(&["local".to_owned()]);
            }
            let _ = reply(&bytes, question.as_ref(), Rcode::ServFail);
        }

        #[test]
        fn a_mangled_query_never_panics(at in 0usize..40, byte: u8, cut in 0usize..60) {
            let mut message = query("some.name.example.com", 1);
            let at = at.min(message.len() - 1);
            message[at] = byte;
            message.truncate(cut);
            let _ = Question::parse(&message).map(|question| question.refusal(&["local".to_owned()]));
        }
    }
}

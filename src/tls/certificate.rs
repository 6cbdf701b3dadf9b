//! When a certificate ends. rustls checks the dates of others' certificates, never of the one it shows, and no crate that is here
//! already reads them: this is as much of DER as leads to `notAfter` (RFC 5280, section 4.1).

use std::time::SystemTime;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `None`: it is written in a way that we do not read.
pub(super) fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate, _) = element(der, Some(SEQUENCE))?;
    let (_, mut rest, _) = element(certificate, Some(SEQUENCE))?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest, None)?.2;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        rest = element(rest, None)?.2;
    }
    let (_, validity, _) = element(rest, Some(SEQUENCE))?;
    let (_, _, rest) = element(validity, None)?;
    let (tag, text, _) = element(rest, None)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// The tag, the content and what follows.
fn element(der: &[u8], wanted: Option<u8>) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    if wanted.is_some_and(|wanted| wanted != tag) {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` (from 1950 to 2049) or `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, text: &str) -> Option<SystemTime> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            (format!("{}{year}", if year < "50" { "20" } else { "19" }), rest)
        }
        GENERALIZED_TIME => text.split_at_checked(4).map(|(year, rest)| (year.to_owned(), rest))?,
        _ => return None,
    };
    let digits = rest.strip_suffix('Z').filter(|digits| digits.len() == 10 && digits.is_ascii())?;
    let part = |n: usize| &digits[2 * n..2 * n + 2];
    let text = format!("{year}-{}-{}T{}:{}:{}Z", part(0), part(1), part(2), part(3), part(4));
    humantime::parse_rfc3339(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn both_ways_to_write_a_time_are_read() {
        let at = |tag, text| time(tag, text).map(|at| at.duration_since(UNIX_EPOCH).expect("after").as_secs());
        assert_eq!(at(UTC_TIME, "260102030405Z"), Some(1_767_323_045));
        assert_eq!(at(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(at(GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        for (tag, bad) in [(UTC_TIME, ""), (UTC_TIME, "2601020304Z"), (GENERALIZED_TIME, "2050ä101000000Z"), (2, "1")]
        {
            assert_eq!(at(tag, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_certificates_end_is_found_and_nothing_is_found_in_a_part_of_it() {
        let der = super::super::testing::Ca::new().issue_der("localhost", 30);
        let end = not_after(&der).expect("it says so");
        let left = end.duration_since(SystemTime::now()).expect("later");
        assert!(left > Duration::from_secs(29 * 24 * 3600) && left <= Duration::from_secs(30 * 24 * 3600));
        for length in 0..der.len() {
            assert_eq!(not_after(&der[..length]), None, "{length}");
        }
    }
}

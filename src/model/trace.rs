//! W3C Trace Context, as it comes in `traceparent` and `tracestate` and goes on in them (<https://www.w3.org/TR/trace-context/>).
//!
//! Who calls may send anything: what the specification calls invalid is no context at all, never an error.

use std::fmt;
use std::sync::Arc;

/// Of a `tracestate` that is passed on; what it has beyond goes, whole members at a time.
const STATE_BYTES_MAX: usize = 512;
const STATE_MEMBERS_MAX: usize = 32;
/// Members longer than this go first, where there are too many bytes.
const LONG_MEMBER_BYTES: usize = 128;
/// `00-` trace id `-` span id `-` flags.
const TRACEPARENT_BYTES: usize = 55;
const SAMPLED: u8 = 1;

/// Of a trace: never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Of one span: never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    pub fn random() -> Self {
        Self(rand::random::<u128>().max(1).to_be_bytes())
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    fn parse(hex: &str) -> Option<Self> {
        let bytes = bytes_of(hex)?;
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// As it was written by [`fmt::Display`].
    pub fn stored(hex: &str) -> Option<Self> {
        Self::parse(hex)
    }
}

impl SpanId {
    pub fn random() -> Self {
        Self(rand::random::<u64>().max(1).to_be_bytes())
    }

    pub fn to_bytes(self) -> [u8; 8] {
        self.0
    }

    fn parse(hex: &str) -> Option<Self> {
        let bytes = bytes_of(hex)?;
        (bytes != [0; 8]).then_some(Self(bytes))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where in a trace something happens. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: TraceId,
    /// The span that whatever comes next is a child of.
    pub span_id: SpanId,
    /// Its spans are recorded.
    pub sampled: bool,
    /// Others are told of it: a caller began the trace, or traces are sent from here. A context that only gives an invocation an id is
    /// kept to ourselves: whoever hears that a trace is not sampled records nothing of it, although nobody decided so.
    pub onward: bool,
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// The first of a new trace.
    pub fn begin(sampled: bool, onward: bool) -> Self {
        Self { trace_id: TraceId::random(), span_id: SpanId::random(), sampled, onward, state: None }
    }

    /// A caller's. `None`: that is no `traceparent`. A `tracestate` that is none is left out.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let (version, rest) = (traceparent.get(..2)?, traceparent.get(2..TRACEPARENT_BYTES)?);
        let [version] = bytes_of(version)?;
        let end = traceparent.as_bytes().get(TRACEPARENT_BYTES);
        // Later versions may have more to say, behind one more dash; 255 will never be one.
        let complete = if version == 0 { end.is_none() } else { end.is_none_or(|next| *next == b'-') };
        if version == 0xff || !complete {
            return None;
        }
        let mut fields = rest.strip_prefix('-')?.split('-');
        let (trace_id, span_id, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let [flags] = bytes_of(flags)?;
        Some(Self {
            trace_id: TraceId::parse(trace_id)?,
            span_id: SpanId::parse(span_id)?,
            sampled: flags & SAMPLED != 0, // No other flag is known to this version, which says to set them to zero.
            onward: true,
            state: tracestate.and_then(checked_state).map(Into::into),
        })
    }

    /// The same trace, in a new span.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: SpanId::random(), ..self.clone() }
    }

    /// The header of that name.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled) * SAMPLED)
    }

    /// The header of that name, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// Lower-case hexadecimal digits, exactly as many as it takes.
fn bytes_of<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != 2 * N || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Its members, as many as are passed on. `None`: there are none, or it is malformed.
fn checked_state(text: &str) -> Option<String> {
    let mut members: Vec<&str> = text.split(',').map(|member| member.trim_matches([' ', '\t'])).collect();
    members.retain(|member| !member.is_empty());
    let keys: Option<Vec<&str>> = members.iter().map(|member| key_of_member(member)).collect();
    let mut keys = keys?;
    keys.sort_unstable();
    let repeats = keys.windows(2).any(|pair| pair[0] == pair[1]);
    if members.is_empty() || members.len() > STATE_MEMBERS_MAX || repeats {
        return None;
    }
    let bytes = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>().saturating_sub(1);
    if bytes(&members) > STATE_BYTES_MAX {
        members.retain(|member| member.len() <= LONG_MEMBER_BYTES);
    }
    while bytes(&members) > STATE_BYTES_MAX {
        members.pop();
    }
    (!members.is_empty()).then(|| members.join(","))
}

/// `None`: that is not `key=value`.
fn key_of_member(member: &str) -> Option<&str> {
    let (key, value) = member.split_once('=')?;
    let first = |text: &str, digit: bool| {
        text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || digit && byte.is_ascii_digit())
    };
    let plain = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(&byte))
    };
    let key_fits = match key.split_once('@') {
        Some((tenant, system)) => {
            first(tenant, true)
                && plain(tenant)
                && tenant.len() <= 241
                && first(system, false)
                && plain(system)
                && system.len() <= 14
        }
        // A digit may begin it since level 2.
        None => first(key, true) && plain(key) && key.len() <= 256,
    };
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b',' && byte != b'=';
    let value_fits = !value.is_empty() && value.len() <= 256 && value.bytes().all(printable);
    (key_fits && value_fits).then_some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The specification's example.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<TraceContext> {
        TraceContext::parse(text, None)
    }

    fn state(text: &str) -> Option<String> {
        TraceContext::parse(EXAMPLE, Some(text))?.tracestate().map(str::to_owned)
    }

    #[test]
    fn the_examples_of_the_specification_are_read_and_written_alike() {
        let context = parse(EXAMPLE).expect("valid");
        assert_eq!(context.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((context.span_id.to_string().as_str(), context.sampled), ("00f067aa0ba902b7", true));
        assert_eq!(context.traceparent(), EXAMPLE);
        let unsampled = EXAMPLE.replace("-01", "-00");
        let context = parse(&unsampled).expect("valid");
        assert_eq!((context.sampled, context.traceparent()), (false, unsampled));
    }

    #[test]
    fn flags_that_nobody_knows_are_set_to_zero_and_later_versions_are_read_as_this_one() {
        for (given, sampled) in [("09", true), ("ff", true), ("02", false), ("80", false)] {
            let context = parse(&EXAMPLE.replace("-01", &format!("-{given}"))).expect(given);
            assert_eq!(context.traceparent(), EXAMPLE.replace("-01", if sampled { "-01" } else { "-00" }));
        }
        for later in [
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-holds",
        ] {
            assert_eq!(parse(later).expect(later).traceparent(), EXAMPLE);
        }
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let bad = [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "FF-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00-4bf92f3577b34da6a3ce929d0e0e47\u{e9}-00f067aa0ba902b7-01",
        ];
        for text in bad {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_state_is_passed_on_if_it_is_one() {
        for good in ["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a=1", "1a-_*/=x y", "tenant@sys=v", "k=!~"] {
            assert_eq!(state(good).as_deref(), Some(good));
        }
        assert_eq!(state(" a=1 ,, b=2\t").as_deref(), Some("a=1,b=2"));
        for bad in
            ["", " , ", "a", "a=", "=1", "A=1", "a=1,a=2", "a=b=c", "a=\u{e9}", "a=\u{7f}", "t@1=v", "@s=v", "t@=v"]
        {
            assert_eq!(state(bad), None, "{bad:?}");
        }
        let members = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert_eq!((state(&members(32)), state(&members(33))), (Some(members(32)), None));
        for (key, value, fits) in [(256, 1, true), (257, 1, false), (1, 256, true), (1, 257, false)] {
            let text = format!("{}={}", "k".repeat(key), "v".repeat(value));
            assert_eq!(state(&text).is_some(), fits, "{key} {value}");
        }
    }

    #[test]
    fn a_state_that_is_too_long_loses_long_members_first_and_then_the_last() {
        let member = |key: &str, bytes: usize| format!("{key}={}", "v".repeat(bytes - key.len() - 1));
        let short: Vec<String> = ["a", "b", "c", "d"].iter().map(|key| member(key, 126)).collect();
        let exact = format!("{},{}", short.join(","), member("e", 4));
        assert_eq!(exact.len(), 512);
        assert_eq!(state(&exact).as_deref(), Some(exact.as_str()));
        let long = format!("{},{exact}", member("long", 129));
        assert_eq!(state(&long).as_deref(), Some(exact.as_str()));
        assert_eq!(state(&format!("{exact},z=1")).as_deref(), Some(exact.as_str()));
        let only_long = format!("{},{}", member("a", 256), member("b", 256));
        assert_eq!(state(&only_long), None);
    }

    #[test]
    fn a_child_is_in_the_same_trace() {
        let parent = TraceContext::parse(EXAMPLE, Some("a=1")).expect("valid");
        let child = parent.child();
        assert_eq!((child.trace_id, child.sampled, child.tracestate()), (parent.trace_id, true, Some("a=1")));
        assert_ne!(child.span_id, parent.span_id);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(sampled: bool) {
            let context = TraceContext::begin(sampled, true);
            prop_assert_eq!(parse(&context.traceparent()), Some(context));
        }

        #[test]
        fn nothing_panics_and_what_is_taken_is_within_bounds(parent in ".{0,80}", given in ".{0,600}") {
            let _ = parse(&parent);
            let _ = parse(&format!("00-{parent}"));
            if let Some(state) = state(&given) {
                prop_assert!(state.len() <= STATE_BYTES_MAX && checked_state(&state).as_deref() == Some(state.as_str()));
            }
        }

        #[test]
        fn near_misses_are_refused_or_mean_the_same(at in 0usize..55, with in proptest::char::range(' ', '~')) {
            let mut text: Vec<char> = EXAMPLE.chars().collect();
            text[at] = with;
            let text: String = text.into_iter().collect();
            if let Some(context) = parse(&text) {
                let version = &text[..2];
                prop_assert!(version != "ff" && context.traceparent()[3..52] == text[3..52]);
            }
        }
    }
}

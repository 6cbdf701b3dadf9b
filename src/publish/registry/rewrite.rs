//! Changes the URLs in JSON while it flows by: `dist.tarball` of packuments, `resolved` of lockfiles. Every other byte stays.
//!
//! A packument may be 100 MB, and many arrive at one time, so none is ever held as a whole or parsed into a tree. This is no
//! validation: what is not JSON comes out as it went in, and npm says so. Nor is it a boundary: a URL that escapes the rewriting
//! leads nowhere, because the proxy is the sandbox's only route.

/// Deeper than any packument; what is deeper yet is passed on as it is.
const DEPTH_MAX: usize = 256;
const KEY_BYTES_MAX: usize = 64;
const URL_BYTES_MAX: usize = 8 << 10;

/// Which strings to change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field {
    /// `tarball` in an object that is itself `dist`.
    Tarball,
    /// `resolved`, anywhere.
    Resolved,
}

/// Takes pieces of JSON and gives them on.
pub(super) struct Rewriter<F> {
    field: Field,
    change: F,
    /// Of every open object or array.
    stack: Vec<Frame>,
    /// Where `stack` is full, how many are open beyond.
    beyond: usize,
    state: State,
    /// The last key of the innermost object.
    key: Vec<u8>,
    /// A value that may be changed, with its quotes, until it is complete.
    held: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Frame {
    object: bool,
    /// Whether the field may be in it.
    selected: bool,
    awaits_key: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Outside,
    Inside { string: Kind, escaped: bool },
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Key,
    Held,
    Plain,
}

impl<F: FnMut(&str) -> Option<String>> Rewriter<F> {
    /// `change` gives the new value, or nothing to leave it.
    pub(super) fn new(field: Field, change: F) -> Self {
        let (stack, key, held) = (Vec::new(), Vec::new(), Vec::new());
        Self { field, change, stack, beyond: 0, state: State::Outside, key, held }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Outside => self.outside(bytes, out),
                State::Inside { string, escaped } => self.inside(string, escaped, bytes, out),
            };
            bytes = &bytes[taken..];
        }
    }

    /// At the end: what is still held, of a text that ended within a string.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    fn outside(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let structural = |byte: &u8| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']' | b',');
        let Some(at) = bytes.iter().position(structural) else {
            out.extend_from_slice(bytes);
            return bytes.len();
        };
        match bytes[at] {
            b'{' => self.open(true),
            b'[' => self.open(false),
            b'}' | b']' => self.close(),
            b',' => self.next(),
            _ => {
                let string = self.begin_string();
                self.state = State::Inside { string, escaped: false };
                if string == Kind::Held {
                    out.extend_from_slice(&bytes[..at]);
                    self.held.push(b'"');
                    return at + 1;
                }
            }
        }
        out.extend_from_slice(&bytes[..=at]);
        at + 1
    }

    fn inside(&mut self, string: Kind, escaped: bool, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let end = |byte: &u8| matches!(byte, b'"' | b'\\');
        // The byte after a backslash means nothing by itself.
        let found = if escaped { Some(0) } else { bytes.iter().position(end) };
        let taken = found.map_or(bytes.len(), |at| at + 1);
        let closed = !escaped && found.is_some_and(|at| bytes[at] == b'"');
        let backslash = !escaped && found.is_some_and(|at| bytes[at] == b'\\');
        self.state = State::Inside { string, escaped: backslash };
        let piece = &bytes[..taken];
        match string {
            Kind::Plain => out.extend_from_slice(piece),
            Kind::Key => {
                let room = KEY_BYTES_MAX.saturating_sub(self.key.len());
                self.key.extend_from_slice(&piece[..room.min(taken)]);
                out.extend_from_slice(piece);
            }
            Kind::Held => {
                self.held.extend_from_slice(piece);
                if self.held.len() > URL_BYTES_MAX {
                    out.append(&mut self.held);
                    self.state = State::Inside { string: Kind::Plain, escaped: backslash };
                }
            }
        }
        if closed {
            self.end_string(out);
        }
        taken
    }

    fn begin_string(&mut self) -> Kind {
        let Some(frame) = self.stack.last_mut().filter(|frame| frame.object && self.beyond == 0) else {
            return Kind::Plain;
        };
        if frame.awaits_key {
            frame.awaits_key = false;
            self.key.clear();
            return Kind::Key;
        }
        let wanted = match self.field {
            Field::Tarball => "tarball",
            Field::Resolved => "resolved",
        };
        if frame.selected && key_is(&self.key, wanted) { Kind::Held } else { Kind::Plain }
    }

    fn end_string(&mut self, out: &mut Vec<u8>) {
        self.state = State::Outside;
        if self.held.is_empty() {
            return;
        }
        let changed = serde_json::from_slice::<String>(&self.held).ok().and_then(|text| (self.change)(&text));
        match changed.and_then(|text| serde_json::to_vec(&text).ok()) {
            Some(text) => {
                out.extend_from_slice(&text);
                self.held.clear();
            }
            None => out.append(&mut self.held),
        }
    }

    fn open(&mut self, object: bool) {
        if self.stack.len() == DEPTH_MAX {
            self.beyond += 1;
            return;
        }
        let selected = match self.field {
            Field::Tarball => self.stack.last().is_some_and(|frame| frame.object) && key_is(&self.key, "dist"),
            Field::Resolved => true,
        };
        self.stack.push(Frame { object, selected, awaits_key: object });
        self.key.clear();
    }

    fn close(&mut self) {
        if self.beyond > 0 {
            self.beyond -= 1;
            return;
        }
        self.stack.pop();
        self.key.clear();
    }

    fn next(&mut self) {
        if let Some(frame) = self.stack.last_mut().filter(|_| self.beyond == 0) {
            frame.awaits_key = frame.object;
        }
    }
}

/// `raw` ends with its quote, unless it is too long to be any key that matters.
fn key_is(raw: &[u8], wanted: &str) -> bool {
    let Some(name) = raw.strip_suffix(b"\"") else { return false };
    if !name.contains(&b'\\') {
        return name == wanted.as_bytes();
    }
    let quoted = [b"\"", raw].concat();
    serde_json::from_slice::<String>(&quoted).is_ok_and(|name| name == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In pieces of every size, which must not matter.
    fn rewritten(field: Field, text: &str) -> String {
        let run = |size: usize| {
            let mut rewriter = Rewriter::new(field, |url| (!url.is_empty()).then(|| format!("<{url}>")));
            let mut out = Vec::new();
            text.as_bytes().chunks(size).for_each(|piece| rewriter.feed(piece, &mut out));
            rewriter.finish(&mut out);
            String::from_utf8(out).unwrap()
        };
        let whole = run(text.len().max(1));
        (1..9).for_each(|size| assert_eq!(run(size), whole, "in pieces of {size}"));
        whole
    }

    #[test]
    fn only_a_dists_tarball_is_changed() {
        let text = r#" {"tarball":"a","dist":"tarball","versions":{"1.0.0":{"dist" : {"x":[{"tarball":"b"},"dist"],"tarball" : "c\"/d",
            "integrity":"sha512-é\\","y":{"tarball":"e"},"z":1.50e3},"tarball":"f","description":"\"dist\":{\"tarball\":\"g\"}"},
            "2":{"d\u0069st":{"t\u0061rball":"h"}},"3":{"dist":{"tarball":""}},"4":{"dist":{"tarball":5,"a":"tarball","b":"i"}}}} "#;
        let expected = text.replace(r#""c\"/d""#, r#""<c\"/d>""#).replace(r#""h""#, r#""<h>""#);
        assert_eq!(rewritten(Field::Tarball, text), expected);
    }

    #[test]
    fn resolved_is_changed_wherever_it_is() {
        let text =
            r#"{"packages":{"a":{"resolved":"u","x":["resolved"]},"resolved":{"version":"resolved"}},"resolved":"v"}"#;
        let expected = text.replace(r#""u""#, r#""<u>""#).replace(r#""v""#, r#""<v>""#);
        assert_eq!(rewritten(Field::Resolved, text), expected);
    }

    #[test]
    fn anything_else_comes_out_as_it_went_in() {
        let deep = format!("{}{}", r#"{"dist":"#.repeat(300), r#"{"tarball":"x"}"#);
        let long = format!(r#"{{"dist":{{"tarball":"{}"}}}}"#, "u".repeat(URL_BYTES_MAX));
        let long_key = format!(r#"{{"{}":{{"tarball":"x"}}}}"#, "dist".repeat(100));
        for text in [
            "",
            "null",
            "}}]]",
            r#"{"dist":{"tarball":"unfinished"#,
            r#"{"dist":{"tarball":"\ud800"}}"#,
            "<html>\"",
            &deep,
            &long,
            &long_key,
        ] {
            assert_eq!(rewritten(Field::Tarball, text), text);
        }
    }
}

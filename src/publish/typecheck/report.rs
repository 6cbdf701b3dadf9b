//! What `tsc` prints → diagnostics with the lines around them.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::publish::diagnostics::Diagnostic;
use crate::publish::error::short;

/// More are counted only.
pub const DIAGNOSTICS_MAX: usize = 20;
/// Of one message: those about large types go on and on.
const MESSAGE_BYTES_MAX: usize = 1000;
/// Of one line; the rest of it is dropped.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Of lines that are none of a diagnostic.
const UNEXPLAINED_BYTES_MAX: usize = 2000;

/// One type error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeDiagnostic {
    /// `TS2339`
    pub code: String,
    /// Empty if it is about no file.
    pub file: String,
    /// From 1; 0 if it is about no line.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    pub message: String,
    /// The line, two before and two after it, and a caret.
    pub frame: String,
}

impl fmt::Display for TypeDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        }
        writeln!(f, "{}: {}\n", self.code, self.message)?;
        f.write_str(&self.frame)
    }
}

/// All of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The first of them.
    pub diagnostics: Vec<TypeDiagnostic>,
    /// Beyond those.
    pub more: usize,
    /// In sources of packages.
    pub elsewhere: usize,
}

impl Report {
    /// `3 type errors`
    pub fn summary(&self) -> String {
        match self.diagnostics.len() + self.more {
            1 => "1 type error".to_owned(),
            count => format!("{count} type errors"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The number first: what is long may be cut on its way.
        writeln!(f, "{}:\n", self.summary())?;
        let shown: Vec<String> = self.diagnostics.iter().map(ToString::to_string).collect();
        f.write_str(&shown.join("\n"))?;
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

/// Reads the output as it comes.
pub(super) struct Reader<'a> {
    files: &'a BTreeMap<String, Bytes>,
    line: Vec<u8>,
    report: Report,
    /// Whether lines that go on belong to the last diagnostic that was kept.
    open: bool,
    unexplained: String,
}

impl<'a> Reader<'a> {
    pub fn new(files: &'a BTreeMap<String, Bytes>) -> Self {
        Self { files, line: Vec::new(), report: Report::default(), open: false, unexplained: String::new() }
    }

    pub fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < LINE_BYTES_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// The report, and what else was printed.
    pub fn finish(mut self) -> (Report, String) {
        self.end_line();
        (self.report, self.unexplained)
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if let Some(found) = parse(line) {
            self.add(found);
        } else if line.starts_with(' ') {
            self.go_on(line);
        } else if !line.is_empty() && self.unexplained.len() + line.len() < UNEXPLAINED_BYTES_MAX {
            self.unexplained.push_str(line);
            self.unexplained.push('\n');
        }
    }

    fn add(&mut self, found: Found<'_>) {
        self.open = false;
        let text = self.files.get(found.file);
        if text.is_none() && !found.file.is_empty() && found.file != super::sources::TSCONFIG {
            self.report.elsewhere += 1;
            return;
        }
        if self.report.diagnostics.len() == DIAGNOSTICS_MAX {
            self.report.more += 1;
            return;
        }
        self.open = true;
        let text = text.map(|text| String::from_utf8_lossy(text)).unwrap_or_default();
        let column = characters(&text, found.line, found.column);
        let message = bounded(found.message);
        let frame = if text.is_empty() {
            String::new()
        } else {
            Diagnostic::at(found.file, &text, found.line, column, String::new()).frame
        };
        let (code, file) = (found.code.to_owned(), short(found.file));
        self.report.diagnostics.push(TypeDiagnostic { code, file, line: found.line, column, message, frame });
    }

    /// Long explanations come in further, indented lines.
    fn go_on(&mut self, line: &str) {
        let Some(last) = self.report.diagnostics.last_mut().filter(|_| self.open) else { return };
        if last.message.len() + line.len() < MESSAGE_BYTES_MAX {
            last.message.push('\n');
            last.message.push_str(line);
        }
    }
}

struct Found<'a> {
    file: &'a str,
    line: u32,
    column: u32,
    code: &'a str,
    message: &'a str,
}

/// `functions/X.ts(3,7): error TS2339: …`, or without a place.
fn parse(line: &str) -> Option<Found<'_>> {
    const MARK: &str = "error TS";
    let (place, rest) = match line.strip_prefix(MARK) {
        Some(rest) => ("", rest),
        // The first one that follows a place: a file's name may hold anything.
        None => line.match_indices("): error TS").find_map(|(at, mark)| {
            let (place, rest) = (&line[..at], &line[at + mark.len()..]);
            let (_, numbers) = place.rsplit_once('(')?;
            let (row, column) = numbers.split_once(',')?;
            let counts = |text: &str| text.parse::<u32>().is_ok_and(|number| number > 0);
            (counts(row) && counts(column)).then_some((place, rest))
        })?,
    };
    let (number, message) = rest.split_once(": ")?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let code = &line[line.len() - rest.len() - "TS".len()..][.."TS".len() + number.len()];
    if place.is_empty() {
        return Some(Found { file: "", line: 0, column: 0, code, message });
    }
    let (file, place) = place.rsplit_once('(')?;
    let (row, column) = place.split_once(',')?;
    Some(Found { file, line: row.parse().ok()?, column: column.parse().ok()?, code, message })
}

/// tsc counts UTF-16 units.
fn characters(text: &str, line: u32, units: u32) -> u32 {
    let line = text.split('\n').nth((line as usize).saturating_sub(1)).unwrap_or_default();
    let mut left = (units as usize).saturating_sub(1);
    let before = line.chars().take_while(|c| {
        let fits = left > 0;
        left = left.saturating_sub(c.len_utf16());
        fits
    });
    u32::try_from(before.count()).unwrap_or(u32::MAX).saturating_add(u32::from(units > 0))
}

fn bounded(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
    if end == message.len() { message.to_owned() } else { format!("{}…", &message[..end]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)], output: &str) -> (Report, String) {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), Bytes::from((*text).to_owned()))).collect();
        let mut reader = Reader::new(&files);
        // In pieces, as pipes give it.
        output.as_bytes().chunks(7).for_each(|bytes| reader.take(bytes));
        reader.finish()
    }

    /// Names are the tenant's.
    #[test]
    fn a_files_name_that_looks_like_a_diagnostic_does_no_harm() {
        let hostile = "a.ts(1,0): error TS1: x.ts";
        let output = format!("{hostile}(1,7): error TS2322: no.\na.ts(4294967295,4294967295): error TS1: x\n");
        let (report, _) = read(&[("a.ts", "one"), (hostile, "const a")], &output);
        let [first, second] = report.diagnostics.as_slice() else { panic!("{report:?}") };
        assert_eq!((first.line, first.column, first.code.as_str()), (1, 7, "TS2322"));
        assert_eq!((second.file.as_str(), second.line), ("a.ts", u32::MAX));
    }

    #[test]
    fn a_diagnostic_has_its_place_its_whole_message_and_a_frame() {
        let output = "functions/a (1).ts(2,6): error TS2345: Argument: error TS1: no.\n  Because.\n    Of that.\nerror TS6046: bad lib\n";
        let (report, rest) = read(&[("functions/a (1).ts", "one\n💥💥 x\nthree")], output);
        let [first, second] = report.diagnostics.as_slice() else { panic!("{report:?}") };
        assert_eq!((first.file.as_str(), first.line, first.column), ("functions/a (1).ts", 2, 4));
        assert_eq!(
            (first.code.as_str(), first.message.as_str()),
            ("TS2345", "Argument: error TS1: no.\n  Because.\n    Of that.")
        );
        assert_eq!(first.frame, "  1 | one\n> 2 | 💥💥 x\n    |    ^\n  3 | three\n");
        assert_eq!((second.file.as_str(), second.line, second.code.as_str()), ("", 0, "TS6046"));
        assert!(rest.trim().is_empty(), "{rest}");
    }

    #[test]
    fn more_than_the_limit_are_counted_and_those_of_packages_apart() {
        let lines: String = (1..=25).map(|n| format!("a.ts({n},1): error TS1: no\n  why\n")).collect();
        let (report, _) = read(&[("a.ts", "x")], &format!("../layer/x.ts(1,1): error TS2: theirs\n  why\n{lines}"));
        assert_eq!((report.diagnostics.len(), report.more, report.elsewhere), (20, 5, 1));
        assert!(report.to_string().starts_with("25 type errors:") && report.to_string().ends_with("and 5 more"));
    }

    #[test]
    fn whatever_is_printed_is_bounded() {
        let long = "x".repeat(1 << 20);
        let output = format!("{long}\nerror TS1: {long}\n  {long}\nerror TS: no\na.ts(1,x): error TS3: no\n");
        let (report, rest) = read(&[("a.ts", "")], &output);
        assert_eq!(report.diagnostics.len(), 1, "{report:?}");
        assert!(report.diagnostics[0].message.len() < 1100 && rest.len() < UNEXPLAINED_BYTES_MAX + 1);
        let (report, _) = read(&[("a.ts", "")], "a.ts(99,99): error TS3: no");
        assert_eq!((report.diagnostics[0].line, report.diagnostics[0].column), (99, 1));
    }
}

//! Errors in sources, with the place and the lines around it.

use std::fmt;

/// One error in a source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// `SYNTAX_ERROR`, `MODULE_NOT_FOUND`…
    pub code: &'static str,
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    pub message: String,
    /// The line, two before and two after it, and a caret.
    pub frame: String,
}

impl Diagnostic {
    pub(super) fn syntax(file: &str, text: &str, offset: usize, message: impl Into<String>) -> Self {
        let (line, column) = position(text, offset);
        Self::at(file, text, line, column, message)
    }

    pub(super) fn at(file: &str, text: &str, line: u32, column: u32, message: impl Into<String>) -> Self {
        let frame = frame(text, line, column);
        Self { code: "SYNTAX_ERROR", file: file.to_owned(), line, column, message: message.into(), frame }
    }

    pub(super) fn with_code(self, code: &'static str) -> Self {
        Self { code, ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}:{}: {}\n", self.file, self.line, self.column, self.message)?;
        f.write_str(&self.frame)
    }
}

/// Line and column of a byte, both from 1. An offset inside a character or past the end is moved back.
pub(super) fn position(text: &str, offset: usize) -> (u32, u32) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (to_u32(line), to_u32(column))
}

/// Longest part of a line that is shown: minified code has lines of megabytes.
const WIDTH_MAX: usize = 160;

fn frame(text: &str, line: u32, column: u32) -> String {
    let first = line.saturating_sub(2).max(1);
    let last = line.saturating_add(2);
    let width = last.to_string().len();
    // Every line is cut at the same column, so that they stay aligned.
    let cut = (column as usize).saturating_sub(WIDTH_MAX / 2 + 1);
    let cut = if cut < WIDTH_MAX / 2 { 0 } else { cut };
    let mut frame = String::new();
    for (number, content) in (1u32..).zip(text.split('\n')).skip(first as usize - 1).take((last - first) as usize + 1) {
        let content: String = content.trim_end_matches('\r').chars().skip(cut).take(WIDTH_MAX).collect();
        let mark = if number == line { '>' } else { ' ' };
        frame.push_str(format!("{mark} {number:>width$} | {content}").trim_end());
        frame.push('\n');
        if number == line {
            // Tabs are kept, so that the caret stands below its character whatever their width.
            let shown = (column as usize - 1).saturating_sub(cut);
            let pad: String = content.chars().chain(std::iter::repeat(' ')).take(shown).map(blank).collect();
            frame.push_str(&format!("  {:>width$} | {pad}^\n", ""));
        }
    }
    frame
}

fn blank(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_shows_the_line_two_around_it_and_a_caret() {
        let text = "one\ntwo\r\n\tthree = ;\nfour\nfive\nsix";
        let offset = text.find(" ;").expect("there") + 1;
        let diagnostic = Diagnostic::syntax("functions/X.ts", text, offset, "Expression expected");
        let expected = "functions/X.ts:3:10: Expression expected\n\n  1 | one\n  2 | two\n> 3 | \tthree = ;\n    | \t        ^\n  4 | four\n  5 | five\n";
        assert_eq!(diagnostic.to_string(), expected);
    }

    #[test]
    fn a_frame_is_bounded_and_takes_any_offset() {
        let long = "é".repeat(1 << 20);
        let diagnostic = Diagnostic::syntax("x.js", &long, (1 << 20) + 1, "no");
        assert!(diagnostic.frame.len() < 2000, "{}", diagnostic.frame.len());
        for offset in [0, 1, 5, usize::MAX] {
            Diagnostic::syntax("x.js", "é\n", offset, "no");
        }
        assert_eq!(position("", 7), (1, 1));
    }
}

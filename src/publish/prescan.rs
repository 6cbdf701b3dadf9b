//! Bounds what a source can cost the parser, before the parser sees it.
//!
//! swc recurses on nesting and on chains (`!!!!x`, `a?b:a?b:…`, `a+a+a+…`) without a limit, so a hostile megabyte of `(` would
//! overflow the stack, which aborts the whole service; and its TypeScript grammar backtracks exponentially on nested `<T>`.
//! This scanner knows just enough of JavaScript's tokens to be an upper bound for both. Where a `/` could be a division or
//! open a regular expression and the two readings would differ in what follows, it refuses: a wrong guess would hide nesting.

/// Open brackets, templates included.
const NESTING_MAX: usize = 400;
/// Tokens that one expression or statement may chain, summed over everything that is open around it.
const CHAIN_MAX: u32 = 20_000;
/// `else` in one block: their chain costs the parser the square of its length.
const ELSES_MAX: u32 = 2_000;
/// Labels in a row (`a: b: c: …`): the parser copies the list at each.
const LABELS_MAX: u32 = 100;
/// Open `<`, in TypeScript: the time that nested type arguments take grows with the cube.
const TYPE_NESTING_MAX: u32 = 40;
/// `<` where an operand is expected (`<T>(x) => …`): each open one may double the time a parse takes.
const ANGLE_MAX: u32 = 6;

/// Where and why a source is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub offset: usize,
    pub message: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Something a binary operator may follow: a `/` divides.
    Operand,
    /// A `/` opens a regular expression.
    Operator,
    Unclear,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Paren,
    /// Of `if (…)`, after which a statement begins.
    Head,
    Square,
    Brace,
    Template,
    /// `${`.
    Substitution,
}

#[derive(Default, Clone, Copy)]
struct Chain {
    run: u32,
    elses: u32,
    angles: u32,
    prefix_angles: u32,
    labels: u32,
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    open: Vec<(Bracket, Chain)>,
    chain: Chain,
    /// Of the levels in `open`.
    outer: u32,
    outer_types: u32,
    outer_angles: u32,
    outer_labels: u32,
    before: Before,
    word: &'a str,
    /// The word may be a label: a statement can begin with it.
    labels: bool,
    after_dot: bool,
    /// The last token was a colon.
    colon: bool,
    /// The last token closed `if (…)` or the like.
    closed_head: bool,
    /// The last token closed `{…}`.
    closed_brace: bool,
    line_start: bool,
    typescript: bool,
}

/// Checks one source.
pub(super) fn check(text: &str, typescript: bool) -> Result<(), Refusal> {
    let mut scanner = Scanner {
        text,
        at: 0,
        open: Vec::new(),
        chain: Chain::default(),
        outer: 0,
        outer_types: 0,
        outer_angles: 0,
        outer_labels: 0,
        before: Before::Operator,
        word: "",
        labels: false,
        after_dot: false,
        colon: false,
        closed_head: false,
        closed_brace: false,
        line_start: true,
        typescript,
    };
    if text.starts_with("#!") {
        scanner.skip_line();
    }
    while scanner.at < text.len() {
        scanner.step()?;
    }
    Ok(())
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn refuse<T>(&self, message: &'static str) -> Result<T, Refusal> {
        Err(Refusal { offset: self.at.min(self.text.len()), message })
    }

    fn step(&mut self) -> Result<(), Refusal> {
        let rest = self.rest();
        let Some(c) = rest.chars().next() else { return Ok(()) };
        match c {
            '\n' | '\r' | '\u{2028}' | '\u{2029}' => {
                self.line_start = true;
                self.at += c.len_utf8();
                return Ok(());
            }
            _ if c.is_whitespace() || c == '\u{feff}' => {
                self.at += c.len_utf8();
                return Ok(());
            }
            '/' if rest.starts_with("//") => {
                self.skip_line();
                return Ok(());
            }
            '/' if rest.starts_with("/*") => {
                let end = rest[2..].find("*/").map_or(rest.len(), |end| end + 4);
                self.line_start |= rest[..end].contains(['\n', '\r', '\u{2028}', '\u{2029}']);
                self.at += end;
                return Ok(());
            }
            _ => {}
        }
        if rest.starts_with("<!--") || (self.line_start && rest.starts_with("-->")) {
            return self.refuse("HTML-like comments are not supported: use //");
        }
        // Members and statements without semicolons: after `}` and a line end, no word but these goes on with an expression.
        let continues =
            ["in", "instanceof", "as", "satisfies", "extends", "is"].iter().any(|word| rest.starts_with(word));
        if self.line_start && self.closed_brace && is_word(c) && !continues {
            self.end_operand();
        }
        self.line_start = false;
        self.token(c)?;
        self.check_bounds()
    }

    fn token(&mut self, c: char) -> Result<(), Refusal> {
        let numeric = c == '.' && self.rest()[1..].starts_with(|d: char| d.is_ascii_digit());
        if is_word(c) || numeric {
            self.read_word();
            return Ok(());
        }
        self.chain.run += 1;
        self.colon = false;
        self.closed_head = false;
        self.closed_brace = false;
        match c {
            '"' | '\'' => return self.read_string(c),
            '`' => {
                self.open(Bracket::Template);
                self.at += 1;
                return self.read_template();
            }
            '/' => return self.read_slash(),
            '(' => self.open(if self.heads_statement() { Bracket::Head } else { Bracket::Paren }),
            '[' => self.open(Bracket::Square),
            '{' => self.open(Bracket::Brace),
            ')' | ']' | '}' => return self.close(c),
            ';' => self.reset(),
            ',' => {
                // In type arguments a comma ends nothing: `A<b, A<b, A<…`.
                self.chain.run = self.chain.angles;
                self.end_operand();
            }
            '<' => self.angle(),
            '>' => self.chain.angles = self.chain.angles.saturating_sub(1),
            ':' if self.labels && !self.word.is_empty() => self.chain.labels += 1,
            _ => self.before = Before::Operator,
        }
        match c {
            '(' | '[' | '{' | ';' | ',' | '<' => self.before = Before::Operator,
            '>' if self.typescript => self.before = Before::Unclear, // It may end type arguments.
            '!' if self.typescript => self.before = Before::Unclear, // `a!` is an operand.
            '+' | '-' if self.rest().starts_with("++") || self.rest().starts_with("--") => {
                self.before = Before::Unclear;
                self.at += 1;
            }
            _ => {}
        }
        if self.rest().starts_with("=>") {
            self.at += 1; // Its `>` ends no type arguments.
            self.before = Before::Operator;
        }
        self.after_dot = c == '.' || c == '#';
        self.word = "";
        self.colon = c == ':';
        self.at += c.len_utf8();
        Ok(())
    }

    fn heads_statement(&self) -> bool {
        ["if", "while", "for", "with"].contains(&self.word)
    }

    fn angle(&mut self) {
        self.chain.angles += 1;
        if self.before != Before::Operand {
            self.chain.prefix_angles += 1;
        }
    }

    /// What comes next is no part of what a `<T>` before may begin.
    fn end_operand(&mut self) {
        if self.chain.angles == 0 {
            self.chain.prefix_angles = 0;
        }
    }

    fn reset(&mut self) {
        self.chain = Chain { elses: self.chain.elses, ..Chain::default() };
    }

    fn open(&mut self, bracket: Bracket) {
        self.outer += self.chain.run + self.chain.elses;
        self.outer_types += self.chain.angles;
        self.outer_angles += self.chain.prefix_angles;
        self.outer_labels += self.chain.labels;
        self.open.push((bracket, self.chain));
        self.chain = Chain::default();
        self.word = "";
        self.after_dot = false;
    }

    /// Back to the level around the innermost bracket.
    fn pop(&mut self) -> Option<Bracket> {
        let (bracket, chain) = self.open.pop()?;
        self.chain = chain;
        self.outer -= chain.run + chain.elses;
        self.outer_types -= chain.angles;
        self.outer_angles -= chain.prefix_angles;
        self.outer_labels -= chain.labels;
        Some(bracket)
    }

    fn close(&mut self, c: char) -> Result<(), Refusal> {
        let bracket = match self.pop() {
            Some(bracket) => bracket,
            None => return self.refuse("This bracket closes nothing"),
        };
        let (fits, before) = match bracket {
            Bracket::Paren => (c == ')', Before::Operand),
            Bracket::Head => (c == ')', Before::Operator),
            Bracket::Square => (c == ']', Before::Operand),
            Bracket::Brace => (c == '}', Before::Unclear),
            Bracket::Substitution => (c == '}', Before::Operator),
            Bracket::Template => (false, Before::Operator),
        };
        if !fits {
            return self.refuse("This bracket does not match the one that is open");
        }
        self.at += 1;
        self.before = before;
        self.closed_head = bracket == Bracket::Head;
        self.closed_brace = bracket == Bracket::Brace;
        self.word = "";
        self.after_dot = false;
        if bracket == Bracket::Substitution { self.read_template() } else { Ok(()) }
    }

    fn read_word(&mut self) {
        let rest = self.rest();
        let number = rest.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let end = rest.find(|c: char| !(is_word(c) || (number && c == '.'))).unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        self.chain.run += 1;
        self.before = Before::Operand;
        let name = std::mem::take(&mut self.after_dot);
        // After `:`, `)`, `do` and `else` no `?` can wait for the colon that follows this word, as far as labels go.
        let colon = std::mem::take(&mut self.colon);
        self.labels = colon || self.closed_head || matches!(self.word, "do" | "else");
        self.closed_head = false;
        let previous = std::mem::replace(&mut self.word, if name { "" } else { word });
        if name {
            return;
        }
        match word {
            "typeof" | "do" | "in" | "instanceof" | "new" | "void" | "delete" | "default" | "extends" => {
                self.before = Before::Operator;
            }
            "return" | "throw" | "case" => {
                self.reset();
                self.before = Before::Operator;
            }
            // `x as const as const …` is one expression.
            "const" | "var" if previous != "as" => self.reset(),
            "else" => {
                self.chain.elses += 1;
                self.before = Before::Operator;
            }
            "await" if previous == "for" => self.word = "for",
            "await" | "yield" | "of" => self.before = Before::Unclear,
            _ => {}
        }
    }

    fn read_string(&mut self, quote: char) -> Result<(), Refusal> {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            match bytes.get(end) {
                Some(b'\\') if bytes.get(end + 1) == Some(&b'\r') && bytes.get(end + 2) == Some(&b'\n') => end += 3,
                Some(b'\\') => end += 2,
                Some(b'\n' | b'\r') | None => return self.refuse("Unterminated string constant"),
                Some(&byte) if byte == quote as u8 => break,
                Some(_) => end += 1,
            }
        }
        self.at = end + 1;
        self.finish_operand();
        Ok(())
    }

    fn finish_operand(&mut self) {
        self.before = Before::Operand;
        self.word = "";
        self.after_dot = false;
    }

    /// From inside a template's text to its end or its next `${`.
    fn read_template(&mut self) -> Result<(), Refusal> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                None => return self.refuse("Unterminated template"),
                Some(b'\\') => self.at += 2,
                Some(b'`') => {
                    self.at += 1;
                    self.pop();
                    self.finish_operand();
                    return Ok(());
                }
                Some(b'$') if bytes.get(self.at + 1) == Some(&b'{') => {
                    self.at += 2;
                    self.open(Bracket::Substitution);
                    self.before = Before::Operator;
                    return Ok(());
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn read_slash(&mut self) -> Result<(), Refusal> {
        let body = regex_body(&self.rest()[1..]);
        let regex = match (self.before, body) {
            (Before::Operand, _) => false,
            (Before::Operator, None) => return self.refuse("Unterminated regular expression"),
            (Before::Unclear, None) => false,
            (Before::Operator, Some(_)) => true,
            (Before::Unclear, Some(body)) if only_regex(body) || reads_alike(body) => true,
            (Before::Unclear, Some(_)) => {
                return self.refuse("It is unclear whether this / divides: put the regular expression in parentheses");
            }
        };
        self.at += 1;
        match body {
            Some(body) if regex => {
                self.at += body.len() + 1;
                self.finish_operand();
            }
            _ => {
                self.before = Before::Operator;
                self.word = "";
                self.after_dot = false;
            }
        }
        Ok(())
    }

    fn skip_line(&mut self) {
        let rest = self.rest();
        self.at += rest.find(['\n', '\r', '\u{2028}', '\u{2029}']).unwrap_or(rest.len());
    }

    fn check_bounds(&self) -> Result<(), Refusal> {
        if self.open.len() > NESTING_MAX {
            return self.refuse("Nested too deeply (more than 400 open brackets)");
        }
        if self.outer + self.chain.run + self.chain.elses > CHAIN_MAX {
            return self.refuse("This expression or statement is too long (more than 20000 tokens): split it");
        }
        if self.chain.elses > ELSES_MAX {
            return self.refuse("Too many else in one block (more than 2000): use a switch or a table");
        }
        if self.outer_labels + self.chain.labels > LABELS_MAX {
            return self.refuse("Too many labels (more than 100)");
        }
        if self.typescript && self.outer_types + self.chain.angles > TYPE_NESTING_MAX {
            return self.refuse("Too many < in one expression or type (more than 40 open): split it");
        }
        if self.typescript && self.outer_angles + self.chain.prefix_angles > ANGLE_MAX {
            return self
                .refuse("Type parameters or assertions `<…>` are nested too deeply (more than 6): name the parts");
        }
        Ok(())
    }
}

/// Every character beyond ASCII that is no white space: in valid code it can only be part of a name.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '_' | '$' | '\\')
        || (!c.is_ascii() && !c.is_whitespace() && c != '\u{feff}')
}

/// What stands between the slashes, if a regular expression can begin here: it must end on its line.
fn regex_body(rest: &str) -> Option<&str> {
    let mut class = false;
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            '\n' | '\r' | '\u{2028}' | '\u{2029}' => return None,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => class = true,
            ']' => class = false,
            '/' if !class => return Some(&rest[..at]),
            _ => {}
        }
    }
    None
}

/// As code it would be a syntax error at its first character, or at a backslash that escapes no name.
fn only_regex(body: &str) -> bool {
    let escapes = body.split('\\').skip(1).any(|after| !after.starts_with('u'));
    let quotes = body.contains(['"', '\'', '`']); // As code, the backslash might be inside a string.
    body.starts_with(['^', '|', '?', '&']) || (escapes && !quotes)
}

/// Whether a scanner that takes it for code is, at its end, where one that takes it for a regular expression is.
fn reads_alike(body: &str) -> bool {
    let mut open = Vec::new();
    for c in body.chars() {
        match c {
            '"' | '\'' | '`' | '/' | '\\' => return false,
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(c) => return false,
            _ => {}
        }
        if open.len() > 32 {
            return false;
        }
    }
    open.is_empty()
}

#[cfg(test)]
mod tests;

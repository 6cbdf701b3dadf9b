//! Environment variables for a version: `--env` and `--env-file`. Values are secrets: no error repeats one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::output::Usage;

const BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Environment {
    /// A variable of the version's (may be repeated); `--env NAME` takes the value that NAME has here, so that nobody sees it in the
    /// list of processes
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    variables: Vec<Variable>,
    /// A file of NAME=VALUE lines, as dotenv reads them; --env wins over it
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

/// As [`Environment`], for the command that is about nothing else.
#[derive(Debug, clap::Args)]
pub struct Variables {
    /// The variables; NAME alone takes the value that NAME has here, so that nobody sees it in the list of processes
    #[arg(value_name = "NAME[=VALUE]")]
    variables: Vec<Variable>,
    /// A file of NAME=VALUE lines, as dotenv reads them; those that are named win over it
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

#[derive(Clone)]
struct Variable(String);

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.split('=').next().unwrap_or_default())
    }
}

impl From<&str> for Variable {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Environment {
    /// # Errors
    /// The file cannot be read or understood; [`Usage`]: a variable has no name, or no value here.
    pub fn read(&self) -> anyhow::Result<BTreeMap<String, String>> {
        read(&self.variables, self.env_file.as_deref())
    }
}

impl Variables {
    /// # Errors
    /// As [`Environment::read`].
    pub fn read(&self) -> anyhow::Result<BTreeMap<String, String>> {
        read(&self.variables, self.env_file.as_deref())
    }
}

fn read(variables: &[Variable], file: Option<&Path>) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = file.map(read_file).transpose()?.unwrap_or_default();
    for Variable(text) in variables {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let missing = |_| Usage(format!("{text} is not set here: write {text}=VALUE"));
                (text.as_str(), std::env::var(text).map_err(missing)?)
            }
        };
        if name.is_empty() {
            return Err(Usage("a variable is NAME=VALUE or NAME".to_owned()).into());
        }
        all.insert(name.to_owned(), value);
    }
    Ok(all)
}

/// A file of NAME=VALUE lines.
///
/// # Errors
/// It cannot be read or understood; names the line, never what stands in it.
pub fn read_file(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut text = String::new();
    let file = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
    file.with_context(|| format!("read {}", path.display()))?;
    if text.len() as u64 > BYTES_MAX {
        bail!("{} is larger than {} KiB: that is no file of variables", path.display(), BYTES_MAX >> 10);
    }
    parse(&text).map_err(|(line, problem)| anyhow::anyhow!("{}:{line}: {problem}", path.display()))
}

/// `Err`: the line, from 1, and what is wrong with it.
fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let mut found = BTreeMap::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let (this, mut below) = split_line(rest);
        if !this.trim().is_empty() && !this.trim().starts_with('#') {
            let (name, _) = this.split_once('=').ok_or((line, "expected NAME=VALUE"))?;
            let (value, after) = value(&rest[name.len() + 1..]).ok_or((line, "the quotes of the value do not end"))?;
            let name = name.trim();
            let name = name.strip_prefix("export ").unwrap_or(name).trim();
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err((line, "expected NAME=VALUE"));
            }
            found.insert(name.to_owned(), value);
            let tail;
            (tail, below) = split_line(after);
            if !tail.trim().is_empty() && !tail.trim().starts_with('#') {
                return Err((line, "something follows the quoted value"));
            }
        }
        line += rest[..rest.len() - below.len()].matches('\n').count();
        rest = below;
    }
    Ok(found)
}

fn split_line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// A value and what follows it. Quoted ones may have several lines; in double quotes `\n`, `\"` and `\\` mean what they do in JSON.
fn value(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start_matches([' ', '\t']);
    if let Some(text) = text.strip_prefix('\'') {
        return text.split_once('\'').map(|(value, after)| (value.to_owned(), after));
    }
    let Some(text) = text.strip_prefix('"') else {
        let (line, _) = split_line(text);
        let value = if line.starts_with('#') { "" } else { line.split(" #").next().unwrap_or_default() };
        return Some((value.trim().to_owned(), &text[line.len()..]));
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                c @ ('"' | '\\' | '$') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_dotenv_does() {
        let text = "# secrets\r\n\nA=1\r\nexport B = two words # why\nC=\"x\\n\\\"y\\\" \\d#\" # c\nD='a\nb\\n'\nE=\nF=a#b\nG=x=y\nA=2";
        let found = parse(text).expect("parses");
        let expected = [
            ("A", "2"),
            ("B", "two words"),
            ("C", "x\n\"y\" \\d#"),
            ("D", "a\nb\\n"),
            ("E", ""),
            ("F", "a#b"),
            ("G", "x=y"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line_and_not_repeated() {
        for (text, line, problem) in [
            ("A=1\n\nsecret", 3, "expected NAME=VALUE"),
            ("A='1\n2'\n=x", 3, "expected NAME=VALUE"),
            ("A B=x", 1, "expected NAME=VALUE"),
            ("\nA=\"x", 2, "the quotes of the value do not end"),
            ("A='x' y", 1, "something follows the quoted value"),
        ] {
            assert_eq!(parse(text), Err((line, problem)), "{text}");
        }
    }
}

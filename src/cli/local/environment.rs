//! `.env`: the environment of local runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, bail};

/// What an environment may hold (64 KiB), with room for comments.
const BYTES_MAX: u64 = 256 << 10;

/// Empty without the file.
///
/// # Errors
/// Names the line, never what stands in it.
pub fn read(project: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let path = project.join(".env");
    let file = match File::open(&path) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        file => file.with_context(|| format!("read {}", path.display()))?,
    };
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    if text.len() as u64 > BYTES_MAX {
        bail!("{} is larger than {} KiB", path.display(), BYTES_MAX >> 10);
    }
    parse(&text)
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            bail!(".env:{number}: write NAME=value, or # before a comment")
        };
        environment.insert(name.trim().to_owned(), unquoted(value.trim()).to_owned());
    }
    Ok(environment)
}

/// Quotes around the whole value are not part of it.
fn unquoted(value: &str) -> &str {
    let inside = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_names_and_values() {
        let text = "# a comment\n\nA=1\n export B = two words \nC=\"x=y # z\"\nD='q'\nE=\nF=\"\n";
        let expected = [("A", "1"), ("B", "two words"), ("C", "x=y # z"), ("D", "q"), ("E", ""), ("F", "\"")];
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(parse(text).expect("reads"), expected);
    }

    #[test]
    fn a_wrong_line_is_named_and_not_told() {
        let refused = parse("A=1\ns3cret\n").expect_err("no name").to_string();
        assert!(refused.contains(".env:2") && !refused.contains("s3cret"), "{refused}");
    }
}

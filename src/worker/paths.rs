//! Rewrites a worker's texts so that tenants see their own file names and lines, and nothing of the machine or the shim.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a position in what we emitted stands in the tenant's source: (line, column), both from 1.
pub type Lookup = Arc<dyn Fn(u32, u32) -> Option<(u32, u32)> + Send + Sync>;

/// A source that stands under another name in the version's directory.
#[derive(Clone)]
pub struct Renamed {
    pub source: String,
    /// `None` where lines and columns are the same.
    pub lookup: Option<Lookup>,
}

/// Where Node's "Require stack" ends: the module that the shim's own `require` belongs to.
const LOADER_LINE: &str = "- chatfn.js";

/// One version's rewriting rules.
#[derive(Clone, Default)]
pub struct Paths {
    /// Directory prefixes that go away, longest first, each with a slash at its end.
    prefixes: Vec<String>,
    /// Lines that mention it are ours.
    shim: String,
    emitted: BTreeMap<String, Renamed>,
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths").field("prefixes", &self.prefixes).field("shim", &self.shim).finish_non_exhaustive()
    }
}

impl Paths {
    pub fn new(directories: &[&Path], shim: &Path, emitted: BTreeMap<String, Renamed>) -> Self {
        let mut prefixes: Vec<String> = directories.iter().map(|dir| format!("{}/", dir.display())).collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
        Self { prefixes, shim: shim.display().to_string(), emitted }
    }

    /// For messages and log lines.
    pub fn rewrite(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for prefix in &self.prefixes {
            if out.contains(prefix.as_str()) {
                out = out.replace(&format!("file://{prefix}"), "").replace(prefix.as_str(), "");
            }
        }
        if out.contains(LOADER_LINE) {
            out = out.split('\n').filter(|line| *line != LOADER_LINE).collect::<Vec<_>>().join("\n");
        }
        for (emitted, renamed) in &self.emitted {
            if out.contains(emitted.as_str()) {
                out = rename(&out, emitted, renamed);
            }
        }
        out
    }

    /// For stacks: also drops the frames that are not the tenant's.
    pub fn rewrite_stack(&self, stack: &str) -> String {
        let ours = |line: &str| {
            let frame = line.trim_start().starts_with("at ");
            frame && (line.contains(&self.shim) || line.contains("node:internal/") || line.contains("(node:"))
        };
        let kept: Vec<&str> = stack.lines().filter(|line| !ours(line)).collect();
        self.rewrite(&kept.join("\n"))
    }
}

/// Puts the source's name where the emitted one stands as a whole path, and maps a `:line:column` behind it.
fn rename(text: &str, emitted: &str, renamed: &Renamed) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(emitted) {
        let (before, found) = rest.split_at(at);
        let after = &found[emitted.len()..];
        let part_of_a_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
        let whole = !before.ends_with(part_of_a_word) && !after.starts_with(|c: char| c.is_alphanumeric());
        out.push_str(before);
        rest = after;
        if !whole {
            out.push_str(emitted);
            continue;
        }
        out.push_str(&renamed.source);
        if let (Some(lookup), Some((line, column, length))) = (&renamed.lookup, position(after)) {
            let (line, column) = lookup(line, column).unwrap_or((line, column));
            out.push_str(&format!(":{line}:{column}"));
            rest = &after[length..];
        }
    }
    out.push_str(rest);
    out
}

/// `:12:34` at the start: line, column and how long that is.
fn position(text: &str) -> Option<(u32, u32, usize)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let text = text.strip_prefix(':')?;
    let line_length = digits(text);
    let column_text = text.get(line_length..)?.strip_prefix(':')?;
    let column_length = digits(column_text);
    let line = text[..line_length].parse().ok()?;
    let column = column_text[..column_length].parse().ok()?;
    Some((line, column, line_length + column_length + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        let shifted: Lookup = Arc::new(|line, column| Some((line + 10, column + 1)));
        let emitted = BTreeMap::from([
            ("functions/Hook.mjs".to_owned(), Renamed { source: "functions/Hook.ts".into(), lookup: None }),
            ("lib/color.js".to_owned(), Renamed { source: "lib/color.ts".into(), lookup: Some(shifted) }),
        ]);
        Paths::new(&[Path::new("/data/artifacts/a/1"), Path::new("/data/layers/a/k")], Path::new("/data/shim"), emitted)
    }

    #[test]
    fn a_stack_shows_the_tenants_files_and_nothing_else() {
        let stack = "TypeError: boom\n    at handleEvent (file:///data/artifacts/a/1/functions/Hook.mjs:3:9)\n    \
                     at mix (/data/artifacts/a/1/lib/color.js:1:2)\n    at get (/data/layers/a/k/node_modules/axios/index.js:7:1)\n    \
                     at run (/data/shim/invocation.js:10:2)\n    at process.processTicks (node:internal/process/task_queues:95:5)";
        assert_eq!(
            paths().rewrite_stack(stack),
            "TypeError: boom\n    at handleEvent (functions/Hook.ts:3:9)\n    at mix (lib/color.ts:11:3)\n    \
             at get (node_modules/axios/index.js:7:1)"
        );
    }

    #[test]
    fn a_name_inside_another_stays() {
        let text = "other-lib/color.js and lib/color.json and lib/color.js";
        assert_eq!(paths().rewrite(text), "other-lib/color.js and lib/color.json and lib/color.ts");
    }
}

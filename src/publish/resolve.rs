//! From a relative specifier to the file it means, as TypeScript and Node would find it.

use std::collections::BTreeMap;

/// Source path → emitted path, for every file that can be loaded.
#[derive(Debug, Default)]
pub(super) struct Names(pub BTreeMap<String, String>);

const EXTENSIONS: [&str; 7] = ["ts", "mts", "cts", "js", "mjs", "cjs", "json"];

impl Names {
    /// The emitted path of what `from` (a source path) means by `specifier`. `None`: no such file.
    pub fn resolve(&self, from: &str, specifier: &str) -> Option<&str> {
        let path = join(from, specifier)?;
        let directory = path.is_empty() || specifier.ends_with('/') || matches!(last(specifier), "." | "..");
        if !directory && let Some(found) = self.file(&path) {
            return Some(found);
        }
        let index = if path.is_empty() { "index".to_owned() } else { format!("{path}/index") };
        self.with_extension(&index)
    }

    fn file(&self, path: &str) -> Option<&str> {
        let get = |path: &str| self.0.get(path).map(String::as_str);
        // `./x.js` is how TypeScript wants the import of x.ts to be written.
        let typed = || {
            let (stem, extension) = path.rsplit_once('.')?;
            let typed = match extension {
                "js" => "ts",
                "mjs" => "mts",
                "cjs" => "cts",
                _ => return None,
            };
            get(&format!("{stem}.{typed}"))
        };
        get(path).or_else(typed).or_else(|| self.with_extension(path))
    }

    fn with_extension(&self, path: &str) -> Option<&str> {
        EXTENSIONS.iter().find_map(|extension| self.0.get(&format!("{path}.{extension}"))).map(String::as_str)
    }
}

/// Whether it names a file of the project and not a package.
pub(super) fn is_relative(specifier: &str) -> bool {
    matches!(specifier, "." | "..") || specifier.starts_with("./") || specifier.starts_with("../")
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `None`: it leads out of the project.
fn join(from: &str, specifier: &str) -> Option<String> {
    let mut segments: Vec<&str> = from.split('/').collect();
    segments.pop();
    for segment in specifier.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            _ => segments.push(segment),
        }
    }
    Some(segments.join("/"))
}

/// The specifier by which `from` names `to`.
pub(super) fn relative(from: &str, to: &str) -> String {
    let (mut from, mut to): (Vec<_>, Vec<_>) = (from.split('/').collect(), to.split('/').collect());
    from.pop();
    let shared = from.iter().zip(&to[..to.len() - 1]).take_while(|(a, b)| a == b).count();
    let up = from.len() - shared;
    let down = to.split_off(shared).join("/");
    if up == 0 { format!("./{down}") } else { format!("{}{down}", "../".repeat(up)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_are_found_as_typescript_and_node_find_them() {
        let files = [
            "a.ts",
            "lib/b.js",
            "lib/index.mts",
            "lib/c.mts",
            "d.json",
            "e",
            "x.js",
            "x/index.ts",
            "q.d.ts.ts",
            "index.cjs",
        ];
        let names = Names(files.iter().map(|path| ((*path).to_owned(), format!("<{path}>"))).collect());
        for (from, specifier, expected) in [
            ("m.ts", "./a", Some("a.ts")),
            ("m.ts", "./a.ts", Some("a.ts")),
            ("m.ts", "./a.js", Some("a.ts")),
            ("m.ts", "./a.mjs", None),
            ("m.ts", "./lib", Some("lib/index.mts")),
            ("m.ts", "./lib/", Some("lib/index.mts")),
            ("lib/m.ts", ".", Some("lib/index.mts")),
            ("lib/m.ts", "./b", Some("lib/b.js")),
            ("lib/m.ts", "./c.mjs", Some("lib/c.mts")),
            ("lib/m.ts", "../a", Some("a.ts")),
            ("lib/m.ts", "..", Some("index.cjs")),
            ("lib/m.ts", "../../a", None),
            ("lib/m.ts", "../lib/../a", Some("a.ts")),
            ("m.ts", "./d", Some("d.json")),
            ("m.ts", "./d.json", Some("d.json")),
            ("m.ts", "./e", Some("e")),
            ("m.ts", "./e/", None),
            ("m.ts", "./x", Some("x.js")),
            ("m.ts", "./x/", Some("x/index.ts")),
            ("m.ts", "./none", None),
        ] {
            let expected = expected.map(|path| format!("<{path}>"));
            assert_eq!(names.resolve(from, specifier), expected.as_deref(), "{from}: {specifier}");
        }
    }

    #[test]
    fn a_specifier_leads_from_one_file_to_the_other() {
        for (from, to, expected) in [
            ("a.js", "b.js", "./b.js"),
            ("x/a.js", "b.js", "../b.js"),
            ("a.js", "x/b.js", "./x/b.js"),
            ("x/y/a.js", "x/z/b.js", "../z/b.js"),
            ("x/a.js", "x/a/b.js", "./a/b.js"),
            ("b/a.js", "b", "../b"),
        ] {
            assert_eq!(relative(from, to), expected, "{from} → {to}");
        }
    }
}

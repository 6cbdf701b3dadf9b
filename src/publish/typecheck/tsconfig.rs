//! The compiler's settings: ours, and of the tenant's what makes it stricter or laxer. Nothing of theirs names a file.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Read from the tenant's `compilerOptions`. Left out is what says where files are or go, what modules are (the runtime decides that),
/// and what finds unused declarations: a handler that nobody exports is one.
const BOOLEANS: [&str; 24] = [
    "strict",
    "noImplicitAny",
    "strictNullChecks",
    "strictFunctionTypes",
    "strictBindCallApply",
    "strictPropertyInitialization",
    "strictBuiltinIteratorReturn",
    "noImplicitThis",
    "useUnknownInCatchVariables",
    "noImplicitReturns",
    "noFallthroughCasesInSwitch",
    "noUncheckedIndexedAccess",
    "noImplicitOverride",
    "noPropertyAccessFromIndexSignature",
    "exactOptionalPropertyTypes",
    "allowUnreachableCode",
    "allowUnusedLabels",
    "checkJs",
    "experimentalDecorators",
    "emitDecoratorMetadata",
    "useDefineForClassFields",
    "isolatedModules",
    "verbatimModuleSyntax",
    "erasableSyntaxOnly",
];
const LIBRARIES_MAX: usize = 50;
/// What Node 20 has. Names of browsers come only if they are asked for.
const LIBRARIES: [&str; 1] = ["es2023"];

/// The file's content, and what was wrong with theirs.
pub(super) fn ours<'a>(
    theirs: Option<&[u8]>,
    files: impl Iterator<Item = &'a str>,
    types: &Path,
) -> (Value, Option<String>) {
    let (theirs, problem) = match theirs.map(options) {
        None => (Map::new(), None),
        Some(Some(options)) => (options, None),
        Some(None) => (Map::new(), Some("tsconfig.json is not a JSON object: its settings do not count".to_owned())),
    };
    // tsc's own defaults where nobody says otherwise, but for those that changed between its releases.
    let mut options = json!({ "strict": false, "lib": LIBRARIES, "target": "es2023" });
    for name in BOOLEANS {
        if let Some(Value::Bool(value)) = theirs.get(name) {
            options[name] = Value::Bool(*value);
        }
    }
    if let Some(libraries) = theirs.get("lib").and_then(Value::as_array) {
        let named = libraries.iter().filter_map(Value::as_str).filter(|name| is_library(name)).take(LIBRARIES_MAX);
        options["lib"] = named.collect();
    }
    let fixed = json!({
        "noEmit": true,
        "skipLibCheck": true,
        // As the runtime does it: `import` and `require` side by side, no extensions needed, every file a module of its own.
        "module": "preserve",
        "moduleResolution": "bundler",
        "moduleDetection": "force",
        "esModuleInterop": true,
        "allowImportingTsExtensions": true,
        "resolveJsonModule": true,
        "allowJs": true,
        "types": ["node"],
        "typeRoots": [types],
    });
    for (name, value) in fixed.as_object().into_iter().flatten() {
        options[name] = value.clone();
    }
    (json!({ "compilerOptions": options, "files": files.collect::<Vec<_>>() }), problem)
}

fn is_library(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
}

/// `compilerOptions`; `None` if the file cannot be read.
fn options(text: &[u8]) -> Option<Map<String, Value>> {
    let text = std::str::from_utf8(text).ok()?;
    let config: Value = serde_json::from_str(&plain_json(text.trim_start_matches('\u{feff}'))).ok()?;
    let options = config.as_object()?.get("compilerOptions").and_then(Value::as_object);
    Some(options.cloned().unwrap_or_default())
}

/// Without comments and commas before a closing bracket, which a `tsconfig.json` may have.
fn plain_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = if c == '"' {
            let end = string_end(rest);
            out.push_str(&rest[..end]);
            end
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            if matches!(c, '}' | ']') && out.trim_end().ends_with(',') {
                out.truncate(out.trim_end().len() - 1);
            }
            out.push(c);
            c.len_utf8()
        };
        rest = &rest[taken..];
    }
    out
}

/// Past its closing quote.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(theirs: &str) -> Value {
        ours(Some(theirs.as_bytes()), ["a.ts"].into_iter(), Path::new("/types")).0
    }

    #[test]
    fn only_harmless_options_are_theirs() {
        let config = of(r#"{
            // comments, "too"
            "extends": "/etc/passwd", /* and */ "files": ["/etc/passwd"], "include": ["/etc/**"],
            "compilerOptions": {
                "strict": true, "checkJs": true, "noUnusedLocals": true, "lib": ["es2022", "../../x", "dom",],
                "outDir": "/tmp", "noEmit": false, "typeRoots": ["/etc"], "paths": { "*": ["/etc/*"] },
                "rootDirs": ["/"], "plugins": [{ "name": "evil" }], "skipLibCheck": false, "module": "amd", "strictNullChecks": "no",
            },
        }"#);
        let options = config["compilerOptions"].as_object().expect("options");
        assert_eq!(options["strict"], true);
        assert_eq!(options["checkJs"], true);
        assert_eq!(options["lib"], json!(["es2022", "dom"]));
        assert_eq!(
            (&options["noEmit"], &options["skipLibCheck"], &options["module"]),
            (&json!(true), &json!(true), &json!("preserve"))
        );
        assert_eq!(options["typeRoots"], json!(["/types"]));
        for name in ["outDir", "paths", "rootDirs", "plugins", "noUnusedLocals", "strictNullChecks"] {
            assert!(!options.contains_key(name), "{name}");
        }
        assert_eq!(config["files"], json!(["a.ts"]));
        assert!(config.get("extends").is_none() && config.get("include").is_none());
    }

    #[test]
    fn a_tsconfig_that_cannot_be_read_is_told_and_does_not_count() {
        for bad in ["", "[]", "{", "\"", "/*", "\u{e9}\"\\"] {
            let (config, problem) = ours(Some(bad.as_bytes()), std::iter::empty(), Path::new("/types"));
            assert!(problem.is_some() && config["compilerOptions"]["strict"] == false, "{bad}");
        }
        assert_eq!(plain_json(r#"{"a": "// \" /* ,}", "b": [1, 2 , ], }"#), r#"{"a": "// \" /* ,}", "b": [1, 2 ]}"#);
    }
}

//! npm dependencies: names, version specs and `package.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::{InvalidSpec, short};
use super::sources::within;

/// What is kept of `package.json`: nothing in it that npm would run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackageJson {
    pub name: Option<String>,
    pub version: Option<String>,
    pub dependencies: BTreeMap<String, String>,
    /// Installed where they can be. No name is in both.
    pub optional: BTreeMap<String, String>,
    /// Fields that a developer may expect to count, and that do not.
    pub ignored: Vec<&'static str>,
    /// An object.
    pub overrides: Option<Value>,
    /// What code of the project may read; empty where there is no such file.
    pub visible: Map<String, Value>,
}

/// What would change how Node finds or reads the files that we emit: their names and kinds are ours.
const STEERING: [&str; 6] = ["type", "main", "module", "exports", "imports", "browser"];

const IGNORED: [&str; 7] = [
    "devDependencies",
    "peerDependencies",
    "bundleDependencies",
    "bundledDependencies",
    "workspaces",
    "resolutions",
    "imports",
];

const DEPENDENCIES_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 214;
const SPEC_BYTES_MAX: usize = 256;
const PACKAGE_JSON_BYTES_MAX: usize = 256 << 10;

impl PackageJson {
    /// What stands beside the emitted files: the tenant's own, but for what steers Node. Always there, so that no `package.json`
    /// above the data directory counts.
    pub fn emitted(&self) -> Vec<u8> {
        let mut emitted = self.visible.clone();
        emitted.insert("type".to_owned(), "commonjs".into()); // ES modules are emitted as .mjs.
        serde_json::to_vec(&emitted).expect("plain data serializes")
    }
}

/// `package.json` with the request's dependencies over its own.
pub(super) fn merge(file: Option<&[u8]>, requested: BTreeMap<String, String>) -> Result<PackageJson, InvalidSpec> {
    let mut package = file.map_or_else(|| Ok(PackageJson::default()), parse)?;
    // In npm, too, a dependency that stands in both is optional; what the request says comes last.
    package.dependencies.retain(|name, _| !package.optional.contains_key(name));
    package.optional.retain(|name, _| !requested.contains_key(name));
    package.dependencies.extend(requested);
    within("the number of dependencies", package.dependencies.len() + package.optional.len(), DEPENDENCIES_MAX)?;
    for (name, spec) in package.dependencies.iter_mut().chain(&mut package.optional) {
        check_name(name)?;
        check_spec(name, spec)?;
        if spec.trim().is_empty() {
            "*".clone_into(spec);
        }
    }
    if let Some(overrides) = &package.overrides {
        check_overrides(overrides)?;
    }
    Ok(package)
}

/// # Errors
/// It is too large, or no JSON object.
pub(super) fn read_object(bytes: &[u8]) -> Result<Map<String, Value>, InvalidSpec> {
    within("package.json (bytes)", bytes.len(), PACKAGE_JSON_BYTES_MAX)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(InvalidSpec::PackageJson("it must be a JSON object".to_owned())),
        Err(err) => Err(InvalidSpec::PackageJson(err.to_string())),
    }
}

fn parse(bytes: &[u8]) -> Result<PackageJson, InvalidSpec> {
    let wrong = |problem: &str| InvalidSpec::PackageJson(problem.to_owned());
    let object = &read_object(bytes)?;
    let (dependencies, optional) = (listed(object, "dependencies")?, listed(object, "optionalDependencies")?);
    let overrides = object.get("overrides").filter(|value| !value.is_null()).cloned();
    if overrides.as_ref().is_some_and(|value| !value.is_object()) {
        return Err(wrong("overrides must be an object"));
    }
    let text = |field: &str| object.get(field).and_then(Value::as_str).map(|text| text.chars().take(214).collect());
    let mut visible = object.clone();
    STEERING.iter().for_each(|field| drop(visible.remove(*field)));
    let counts = |value: &Value| match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        other => !other.is_null() && *other != Value::Bool(false),
    };
    let ignored = IGNORED.into_iter().filter(|field| object.get(*field).is_some_and(counts)).collect();
    let (name, version) = (text("name"), text("version"));
    Ok(PackageJson { name, version, dependencies, optional, ignored, overrides, visible })
}

fn listed(object: &Map<String, Value>, field: &str) -> Result<BTreeMap<String, String>, InvalidSpec> {
    let wrong = || InvalidSpec::PackageJson(format!("{field} must be an object of strings"));
    let Some(listed) = object.get(field) else { return Ok(BTreeMap::new()) };
    let entries = listed.as_object().ok_or_else(wrong)?.iter();
    entries.map(|(name, spec)| Ok((name.clone(), spec.as_str().ok_or_else(wrong)?.to_owned()))).collect()
}

fn check_overrides(value: &Value) -> Result<(), InvalidSpec> {
    let wrong = |problem: String| Err(InvalidSpec::PackageJson(problem));
    for (key, value) in value.as_object().into_iter().flatten() {
        let (name, spec) = split_alias(key);
        if key != "." {
            check_name(name)?;
            check_spec(name, spec)?;
        }
        match value {
            Value::Object(_) => check_overrides(value)?, // The parser bounds the depth.
            Value::String(spec) => match spec.strip_prefix('$') {
                Some(reference) => check_name(reference)?,
                None => check_spec(name, spec)?,
            },
            _ => return wrong(format!("overrides: {:?} must be a string or an object", short(key))),
        }
    }
    Ok(())
}

/// npm's rules for new packages.
pub(super) fn check_name(name: &str) -> Result<(), InvalidSpec> {
    let word = |part: &str| {
        !part.starts_with(['.', '_'])
            && !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._~".contains(c))
    };
    let plain = match name.strip_prefix('@') {
        Some(scoped) => scoped.split_once('/').is_some_and(|(scope, rest)| word(scope) && word(rest)),
        None => word(name) && !matches!(name, "node_modules" | "favicon.ico"),
    };
    if plain && name.len() <= NAME_BYTES_MAX && !name.starts_with('-') {
        return Ok(());
    }
    let problem =
        "it is not an npm package name: lower-case letters, digits, - . _ ~, at most 214, with an optional @scope/";
    Err(InvalidSpec::Dependency { name: short(name), problem: problem.to_owned() })
}

/// Versions, ranges and dist-tags of the registry, and aliases of such: nothing that names another place.
fn check_spec(name: &str, spec: &str) -> Result<(), InvalidSpec> {
    let alias = spec.strip_prefix("npm:").map(split_alias);
    let ok = match alias {
        Some((target, range)) => check_name(target).is_ok() && is_registry_spec(range),
        None => is_registry_spec(spec),
    };
    if ok {
        return Ok(());
    }
    let problem = format!(
        "{:?} is not a version: use a version, range or tag of the registry (files, links, git and URLs are not allowed)",
        short(spec)
    );
    Err(InvalidSpec::Dependency { name: short(name), problem })
}

/// `name@spec`, minding the `@` of a scope.
fn split_alias(text: &str) -> (&str, &str) {
    match text.get(1..).and_then(|rest| rest.find('@')) {
        Some(at) => (&text[..=at], &text[at + 2..]),
        None => (text, ""),
    }
}

fn is_registry_spec(spec: &str) -> bool {
    let spec = spec.trim_matches(' ');
    let lower = spec.to_ascii_lowercase();
    // npm takes a name with such an ending, or with a dot first, for a file.
    let file = spec.starts_with('.') || [".tgz", ".tar.gz", ".tar"].iter().any(|end| lower.ends_with(end));
    let tag = spec.starts_with(|c: char| c.is_ascii_alphabetic())
        && spec.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let range = spec.split([' ', '|']).filter(|part| !part.is_empty()).all(is_comparator);
    spec.len() <= SPEC_BYTES_MAX && !file && (tag || range)
}

/// `^1.2.3-beta.1+5`, `>=1`, `*`, the `-` of a range; an operator may stand apart from its version.
fn is_comparator(part: &str) -> bool {
    let version = part.trim_start_matches(['<', '>', '=', '^', '~']);
    let version = version.strip_prefix('v').unwrap_or(version);
    let starts = version.is_empty() || version.starts_with(|c: char| c.is_ascii_digit() || "xX*".contains(c));
    part == "-" || (starts && version.chars().all(|c| c.is_ascii_alphanumeric() || ".-+*".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(file: &str, requested: &[(&str, &str)]) -> Result<PackageJson, &'static str> {
        let requested = requested.iter().map(|(name, spec)| ((*name).into(), (*spec).into())).collect();
        merge(Some(file.as_bytes()), requested).map_err(|err| err.reason())
    }

    #[test]
    fn the_request_wins_over_package_json_of_which_little_is_kept() {
        let file = r#"{"name":"x","version":"1.0.0","scripts":{"install":"rm -rf /"},"dependencies":{"a":"1","b":"^2"},
            "devDependencies":{"c":"git+ssh://x"},"overrides":{"a":{".":"1.0.1","b@1":"$b"}}}"#;
        let package = merged(file, &[("b", "3.x"), ("d", "")]).expect("fine");
        let listed: Vec<_> = package.dependencies.iter().map(|(name, spec)| format!("{name}@{spec}")).collect();
        assert_eq!(listed, ["a@1", "b@3.x", "d@*"]);
        assert_eq!((package.name.as_deref(), package.version.as_deref()), (Some("x"), Some("1.0.0")));
        assert!(package.overrides.is_some());
        let steering = merged(r#"{"type":"module","main":"x.ts","exports":{},"imports":{},"config":{"a":[1]}}"#, &[]);
        let emitted = String::from_utf8(steering.expect("fine").emitted()).expect("UTF-8");
        assert_eq!(emitted, r#"{"config":{"a":[1]},"type":"commonjs"}"#);
        assert_eq!(PackageJson::default().emitted(), br#"{"type":"commonjs"}"#);
        assert_eq!(merge(None, BTreeMap::new()), Ok(PackageJson::default()));
    }

    #[test]
    fn optional_dependencies_stay_optional_and_what_is_ignored_is_listed() {
        let file = r#"{"dependencies":{"a":"1","b":"1"},"optionalDependencies":{"b":"2","c":"2","d":""},
            "devDependencies":{"x":"1"},"peerDependencies":{},"workspaces":["y"],"bundleDependencies":false}"#;
        let package = merged(file, &[("c", "3")]).expect("fine");
        let told = |listed: &BTreeMap<String, String>| {
            listed.iter().map(|(name, spec)| format!("{name}@{spec}")).collect::<Vec<_>>()
        };
        assert_eq!(told(&package.dependencies), ["a@1", "c@3"]);
        assert_eq!(told(&package.optional), ["b@2", "d@*"]);
        assert_eq!(package.ignored, ["devDependencies", "workspaces"]);
        assert_eq!(merged(r#"{"optionalDependencies":{"a":"file:x"}}"#, &[]), Err("INVALID_DEPENDENCY"));
    }

    #[test]
    fn a_package_json_is_parsed_strictly() {
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(500), "]".repeat(500));
        for bad in [
            "",
            "[]",
            "{",
            "null",
            r#"{"dependencies":[]}"#,
            r#"{"dependencies":{"a":1}}"#,
            r#"{"optionalDependencies":{"a":null}}"#,
            r#"{"overrides":[]}"#,
            r#"{"overrides":{"a":1}}"#,
            &deep,
        ] {
            assert_eq!(merged(bad, &[]), Err("INVALID_PACKAGE_JSON"), "{bad}");
        }
        assert_eq!(merged(r#"{"overrides":{"a":{"b":"git+https://x/y"}}}"#, &[]), Err("INVALID_DEPENDENCY"));
        let padded = |size: usize| format!("{{}}{}", " ".repeat(size - 2));
        assert!(merged(&padded(PACKAGE_JSON_BYTES_MAX), &[]).is_ok());
        assert_eq!(merged(&padded(PACKAGE_JSON_BYTES_MAX + 1), &[]), Err("TOO_LARGE"));
    }

    #[test]
    fn names_follow_npm() {
        let longest = "a".repeat(214);
        for good in ["a", "lodash", "@a/b", "a-b.c_d~e", "0x", &longest] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(215);
        for bad in [
            "",
            "A",
            ".a",
            "_a",
            "-g",
            "a b",
            "a/b",
            "@a",
            "@/a",
            "@a/",
            "@a/b/c",
            "@a/.b",
            "ä",
            "a%2f",
            "../x",
            "node_modules",
            &long,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn specs_name_the_registry_only() {
        for good in [
            "",
            "*",
            "1",
            "1.2.3",
            "v1.2.3",
            "=1.0.0",
            "^1.2",
            "~1",
            ">=1 <2",
            ">= 1.0.0 || 3.x",
            "1.0.0 - 2.0.0",
            "1.0.0-beta.1+exp.5",
            "latest",
            "next-11",
            "X",
            "npm:b@^1",
            "npm:@a/b@2",
            "npm:b",
        ] {
            assert!(merged("{}", &[("a", good)]).is_ok(), "{good}");
        }
        let long = "1".repeat(257);
        for bad in [
            "file:../x",
            "link:x",
            "git+ssh://git@github.com/a/b",
            "git://x",
            "github:a/b",
            "a/b",
            "a/b#main",
            "http://x/y.tgz",
            "https://x/y.tgz",
            "workspace:*",
            "catalog:",
            "./x",
            "../x",
            "..",
            ".",
            "~/x",
            "/x",
            "x.tgz",
            "X.TAR.GZ",
            "x.tar",
            "npm:../x",
            "npm:a@file:x",
            "npm:npm:a@1",
            "1\n",
            "1;2",
            "$a",
            "-g",
            "--x",
            &long,
        ] {
            assert_eq!(merged("{}", &[("a", bad)]), Err("INVALID_DEPENDENCY"), "{bad}");
        }
    }

    #[test]
    fn the_number_of_dependencies_is_limited() {
        let many = |count| (0..count).map(|n| (format!("p{n}"), "1".to_owned())).collect();
        assert!(merge(None, many(200)).is_ok());
        assert_eq!(merge(None, many(201)).map_err(|err| err.reason()), Err("TOO_LARGE"));
    }
}

//! `package-lock.json`: where it may lead, whom it was made for, and what it resolved.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{InvalidSpec, short};
use super::package::PackageJson;
use super::registry::Registries;

/// npm fetches what a lockfile says without asking the registry first. So each entry must lead to a configured registry, and
/// say what content it expects from there.
pub(super) fn check(bytes: &[u8], registries: &Registries) -> Result<(), InvalidSpec> {
    let wrong = |problem: &str| InvalidSpec::Lockfile(problem.to_owned());
    let value: Value = serde_json::from_slice(bytes).map_err(|err| InvalidSpec::Lockfile(err.to_string()))?;
    let lockfile = value.as_object().ok_or_else(|| wrong("it must be a JSON object"))?;
    if lockfile.get("lockfileVersion").and_then(Value::as_u64).is_none_or(|version| version < 2) {
        return Err(wrong("lockfileVersion must be 2 or more: write it with npm 7 or later"));
    }
    for (place, entry) in entries(lockfile, "packages")? {
        if !place.is_empty() && !place.starts_with("node_modules/") {
            return Err(told(place, "it is a folder of the project: workspaces are not supported"));
        }
        check_entry(place, entry, registries)?;
    }
    check_legacy(lockfile, registries)
}

/// What npm 6 read; npm 7 and later read it where `packages` is missing.
fn check_legacy(parent: &Map<String, Value>, registries: &Registries) -> Result<(), InvalidSpec> {
    for (name, entry) in entries(parent, "dependencies")? {
        check_entry(name, entry, registries)?;
        check_legacy(entry, registries)?; // The parser bounds the depth.
    }
    Ok(())
}

fn entries<'a>(
    parent: &'a Map<String, Value>,
    field: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Map<String, Value>)>, InvalidSpec> {
    let wrong = || InvalidSpec::Lockfile(format!("{field} must be an object of objects"));
    let listed = match parent.get(field) {
        None => None,
        Some(value) => Some(value.as_object().ok_or_else(wrong)?),
    };
    if listed.is_some_and(|listed| listed.values().any(|entry| !entry.is_object())) {
        return Err(wrong());
    }
    Ok(listed.into_iter().flatten().filter_map(|(name, entry)| Some((name, entry.as_object()?))))
}

fn check_entry(place: &str, entry: &Map<String, Value>, registries: &Registries) -> Result<(), InvalidSpec> {
    let text = |field: &str| entry.get(field).and_then(Value::as_str);
    if entry.get("link").is_some_and(|link| *link != Value::Bool(false)) {
        return Err(told(place, "it is a link: only packages of a registry can be installed"));
    }
    match entry.get("resolved") {
        None => {}
        Some(Value::String(resolved)) => {
            if !registries.origin_allowed(resolved) {
                let resolved = short(resolved);
                let problem = format!("resolved {resolved:?} is not of a configured registry ({registries})");
                return Err(told(place, &problem));
            }
            if !text("integrity").is_some_and(is_integrity) {
                return Err(told(place, "it has no integrity: write the lockfile again with npm 7 or later"));
            }
        }
        Some(_) => return Err(told(place, "resolved must be a URL of a configured registry")),
    }
    // Without `resolved`, npm takes these for what to fetch.
    for (field, value) in [("name", text("name")), ("version", text("version")), ("name", Some(place))] {
        if let Some(value) = value.filter(|value| leads_elsewhere(value, field == "name")) {
            return Err(told(place, &format!("{field} {:?} is not a package of a registry", short(value))));
        }
    }
    for field in ["dependencies", "optionalDependencies", "peerDependencies", "requires"] {
        for (name, spec) in entry.get(field).and_then(Value::as_object).into_iter().flatten() {
            let spec = spec.as_str().unwrap_or_default();
            if leads_elsewhere(spec, false) || leads_elsewhere(name, true) {
                let problem = format!("it needs {:?} as {:?}, which is not of a registry", short(name), short(spec));
                return Err(told(place, &problem));
            }
        }
    }
    Ok(())
}

/// Whether npm would look for this outside of the registry. Generous to what old packages say of their versions: a URL has a
/// colon, and whatever else leads away has a slash.
fn leads_elsewhere(text: &str, name: bool) -> bool {
    let text = if name { text } else { text.strip_prefix("npm:").unwrap_or(text) };
    let slash = text.contains('/') && !text.starts_with('@') && !(name && text.starts_with("node_modules/"));
    text.contains([':', '\\']) || slash
}

fn is_integrity(text: &str) -> bool {
    text.split_whitespace().any(|hash| {
        let (algorithm, digest) = hash.split_once('-').unwrap_or_default();
        matches!(algorithm, "sha1" | "sha256" | "sha384" | "sha512") && !digest.is_empty()
    })
}

fn told(place: &str, problem: &str) -> InvalidSpec {
    let name = place.rsplit_once("node_modules/").map_or(place, |(_, name)| name);
    InvalidSpec::Lockfile(format!("{:?}: {problem}", short(name)))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lockfile {
    packages: BTreeMap<String, Locked>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Locked {
    version: String,
    dependencies: BTreeMap<String, String>,
    #[serde(rename = "optionalDependencies")]
    optional: BTreeMap<String, String>,
}

fn parse(lockfile: &[u8]) -> Lockfile {
    serde_json::from_slice(lockfile).unwrap_or_default()
}

/// Whether `npm ci` can do it: the lockfile was made for these very dependencies.
pub(super) fn matches(lockfile: &[u8], package: &PackageJson) -> bool {
    let spelled = |spec: &str| if spec.trim().is_empty() { "*".to_owned() } else { spec.to_owned() };
    let same = |locked: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>| {
        let locked = locked.iter().map(|(name, spec)| (name.clone(), spelled(spec)));
        locked.eq(wanted.iter().map(|(name, spec)| (name.clone(), spec.clone())))
    };
    let root = parse(lockfile).packages.remove("");
    root.is_some_and(|root| same(&root.dependencies, &package.dependencies) && same(&root.optional, &package.optional))
}

/// The exact versions of the direct dependencies.
pub(super) fn resolved(lockfile: &[u8], names: &BTreeSet<String>) -> BTreeMap<String, String> {
    let lockfile = parse(lockfile);
    let exact =
        |name: &String| Some((name.clone(), lockfile.packages.get(&format!("node_modules/{name}"))?.version.clone()));
    names.iter().filter_map(exact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        check(text.as_bytes(), &Registries::public()).map_err(|err| err.to_string())
    }

    #[test]
    fn a_lockfile_leads_to_registries_only() {
        let packages = |entry: &str| {
            format!(
                r#"{{"lockfileVersion":3,"packages":{{"":{{"dependencies":{{"a":"1"}}}},"node_modules/a":{entry}}}}}"#
            )
        };
        let legacy = |entry: &str| {
            format!(
                r#"{{"lockfileVersion":2,"dependencies":{{"b":{{"version":"1.0.0","dependencies":{{"a":{entry}}}}}}}}}"#
            )
        };
        for good in [
            r#"{"version":"1.0.0","resolved":"https://registry.npmjs.org/a/-/a-1.0.0.tgz","integrity":"sha512-x"}"#,
            r#"{"version":"1.0.0","link":false,"inBundle":true}"#,
            r#"{"version":"npm:@b/c@1.0.0","name":"@b/c"}"#,
            r#"{"version":"1.0.0","peerDependencies":{"@b/c":">=1 <2 || ^3.0.0-0"},"dependencies":{"d":"npm:@e/f@1","g":"latest"}}"#,
        ] {
            assert_eq!(checked(&packages(good)), Ok(()), "{good}");
            // There, `dependencies` are entries themselves.
            if !good.contains("ependencies") {
                assert_eq!(checked(&legacy(good)), Ok(()), "{good}");
            }
        }
        for bad in [
            r#"{"resolved":"https://registry.npmjs.org/a/-/a-1.0.0.tgz"}"#,
            r#"{"resolved":"https://registry.npmjs.org/a/-/a-1.0.0.tgz","integrity":"none"}"#,
            r#"{"resolved":"https://registry.npmjs.org/a/-/a-1.0.0.tgz","integrity":["sha512-x"]}"#,
            r#"{"resolved":"http://169.254.169.254/latest/meta-data","integrity":"sha512-x"}"#,
            r#"{"resolved":"https://evil.example/a.tgz","integrity":"sha512-x"}"#,
            r#"{"resolved":"git+ssh://git@github.com/a/b.git#1","integrity":"sha512-x"}"#,
            r#"{"resolved":"file:../a","integrity":"sha512-x"}"#,
            r#"{"resolved":["https://evil.example/"]}"#,
            r#"{"link":true}"#,
            r#"{"link":"yes"}"#,
            r#"{"version":"git+https://x"}"#,
            r#"{"version":"file:x"}"#,
            r#"{"version":"github-user/repository"}"#,
            r#"{"version":"1.0.0","name":"http://evil.example/a.tgz"}"#,
            r#"{"version":"1.0.0","dependencies":{"b":"http://evil.example/b.tgz"}}"#,
            r#"{"version":"1.0.0","optionalDependencies":{"b":"user/repository"}}"#,
            r#"{"version":"1.0.0","requires":{"b":"git+https://evil.example/b"}}"#,
        ] {
            assert!(checked(&packages(bad)).is_err(), "{bad}");
            assert!(checked(&legacy(bad)).is_err(), "{bad}");
        }
        let told = checked(&packages(r#"{"resolved":"https://evil.example/a.tgz"}"#)).expect_err("elsewhere");
        assert!(told.contains(r#""a": resolved "https://evil.example/a.tgz""#), "{told}");
        assert!(told.contains("(https://registry.npmjs.org/)"), "{told}");
    }

    #[test]
    fn a_lockfile_has_the_form_that_npm_writes() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"lockfileVersion":1}"#,
            r#"{"lockfileVersion":"3"}"#,
            r#"{"lockfileVersion":3,"packages":[]}"#,
            r#"{"lockfileVersion":3,"packages":{"node_modules/a":"x"}}"#,
            r#"{"lockfileVersion":3,"packages":{"packages/a":{}}}"#,
            r#"{"lockfileVersion":3,"packages":{"node_modules/http:x":{"version":"1.0.0"}}}"#,
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
        assert_eq!(checked(r#"{"lockfileVersion":2}"#), Ok(()));
    }

    const LOCK: &[u8] = br#"{"lockfileVersion":3,"packages":{"":{"dependencies":{"axios":"^1.0.0"}},"node_modules/axios":{"version":"1.2.3"},"node_modules/axios/node_modules/form-data":{"version":"4.0.0"}}}"#;

    #[test]
    fn a_lockfile_matches_the_dependencies_it_was_made_for() {
        let wanted = |range: &str| BTreeMap::from([("axios".to_owned(), range.to_owned())]);
        let package = |range: &str| PackageJson { dependencies: wanted(range), ..PackageJson::default() };
        assert!(matches(LOCK, &package("^1.0.0")));
        assert!(!matches(LOCK, &package("^1.1.0")));
        assert!(!matches(LOCK, &PackageJson { optional: wanted("1"), ..package("^1.0.0") }));
        assert!(!matches(b"{}", &package("^1.0.0")));
        let any = br#"{"packages":{"":{"dependencies":{"axios":""},"optionalDependencies":{"axios":"1"}}}}"#;
        assert!(matches(any, &PackageJson { optional: wanted("1"), ..package("*") }));
        let names = BTreeSet::from(["axios".to_owned(), "none".to_owned()]);
        assert_eq!(resolved(LOCK, &names), BTreeMap::from([("axios".to_owned(), "1.2.3".to_owned())]));
    }
}

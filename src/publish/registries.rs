//! Which npm registries the operator configured: the only places that packages may come from.
//!
//! npm's own rules: a variable over the user's configuration over that of the installation, and the public registry where
//! nothing says otherwise. Read again for each publish, as npm does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

const PUBLIC: &str = "https://registry.npmjs.org/";
/// In the order in which npm would read them: the last one wins.
const VARIABLES: [&str; 2] = ["NPM_CONFIG_REGISTRY", "npm_config_registry"];

/// The default registry, and those of scopes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    default: Url,
    scoped: BTreeMap<String, Url>,
}

impl Default for Registries {
    fn default() -> Self {
        Self { default: Url::parse(PUBLIC).expect("a constant URL"), scoped: BTreeMap::new() }
    }
}

impl Registries {
    /// As this installation of npm sees them. `node` and `cli` say where its own configuration files are.
    pub fn of_npm(node: &Path, cli: &Path, userconfig: Option<&Path>) -> Self {
        let beside = |path: &Path, file: &str| Some(path.parent()?.parent()?.join(file));
        let files: Vec<PathBuf> = [userconfig.map(Path::to_owned), beside(node, "etc/npmrc"), beside(cli, "npmrc")]
            .into_iter()
            .flatten()
            .collect();
        // A file that is missing or unreadable says nothing, to npm as well.
        let texts: Vec<String> = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        Self::merge(&texts, |name| std::env::var(name).ok())
    }

    /// `texts` are npmrc files, the one that wins first.
    fn merge(texts: &[String], variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut registries = Self::default();
        for text in texts.iter().rev() {
            for (key, value) in settings(text, &variable) {
                // npm drops a value that is no URL.
                let Some(url) = parse(&value) else { continue };
                match key.strip_suffix(":registry") {
                    Some(scope) if scope.starts_with('@') => drop(registries.scoped.insert(scope.to_owned(), url)),
                    _ if key == "registry" => registries.default = url,
                    _ => {}
                }
            }
        }
        if let Some(url) = VARIABLES.iter().rev().find_map(|name| parse(&variable(name)?)) {
            registries.default = url;
        }
        registries
    }

    pub fn iter(&self) -> impl Iterator<Item = &Url> {
        std::iter::once(&self.default).chain(self.scoped.values())
    }

    /// Whether a package's URL is one of a registry's own. The public registry always counts: npm takes its name for the default
    /// registry, whichever that is (`replace-registry-host`), and asks there.
    pub fn contain(&self, place: &Url) -> bool {
        let public = Url::parse(PUBLIC).expect("a constant URL");
        let anonymous = place.username().is_empty() && place.password().is_none();
        let below = |registry: &Url| {
            place.origin() == registry.origin() && place.path().starts_with(registry.path()) && place.has_host()
        };
        anonymous && (self.iter().any(below) || below(&public))
    }
}

/// For messages: without credentials.
impl fmt::Display for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> =
            self.iter().map(|url| format!("{}{}", url.origin().ascii_serialization(), url.path())).collect();
        names.sort();
        names.dedup();
        f.write_str(&names.join(", "))
    }
}

/// With a slash at its end, so that it is a prefix of its packages' URLs only.
fn parse(value: &str) -> Option<Url> {
    let mut url = Url::parse(value.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Some(url)
}

/// The `key = value` lines before any `[section]`, with `${VARIABLE}` replaced.
fn settings(text: &str, variable: &impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let unquoted = |text: &str| {
        let text = text.trim();
        let quoted =
            text.len() >= 2 && ['"', '\''].iter().any(|quote| text.starts_with(*quote) && text.ends_with(*quote));
        // In bare text a comment may follow.
        let end = if quoted { text.len() - 1 } else { text.find([';', '#']).unwrap_or(text.len()) };
        text[usize::from(quoted)..end].trim().to_owned()
    };
    text.trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with([';', '#']))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (expand(&unquoted(key), variable), expand(&unquoted(value), variable)))
        .collect()
}

/// `${NAME}` is replaced where it is set, `${NAME?}` by nothing where it is not; anything else stays, as in npm.
fn expand(text: &str, variable: &impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, behind)) = after.split_once('}') else { break };
        out.push_str(before);
        match (variable(name.trim_end_matches('?')), name.ends_with('?')) {
            (Some(value), _) => out.push_str(&value),
            (None, true) => {}
            (None, false) => out.push_str(&format!("${{{name}}}")),
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(texts: &[&str], variables: &[(&str, &str)]) -> Registries {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Registries::merge(&texts, |name| {
            variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn registries_are_found_as_npm_finds_them() {
        for (texts, variables, expected) in [
            (&[][..], &[][..], "https://registry.npmjs.org/"),
            (&["registry=https://a.example/npm"], &[], "https://a.example/npm/"),
            (
                &["\u{feff} registry = \"https://a.example/\" \n", "registry=https://b.example/"],
                &[],
                "https://a.example/",
            ),
            (&["; registry=https://x.example/\n#y\nregistry=https://a.example/ ; ours"], &[], "https://a.example/"),
            (&["registry=${HOST}/x"], &[("HOST", "https://a.example")], "https://a.example/x/"),
            (&["registry=https://a.example/${SUB?}"], &[], "https://a.example/"),
            (&["registry=nonsense", "registry=https://b.example/"], &[], "https://b.example/"),
            (&["registry=file:///etc/"], &[], "https://registry.npmjs.org/"),
            (&["[other]\nregistry=https://a.example/"], &[], "https://registry.npmjs.org/"),
            (&["registry=https://a.example/"], &[("npm_config_registry", "http://127.0.0.1:1")], "http://127.0.0.1:1/"),
            (&[], &[("NPM_CONFIG_REGISTRY", "http://b.example")], "http://b.example/"),
            (
                &[
                    "registry=https://me:secret@a.example/\n@corp:registry=https://b.example/\n//b.example/:_authToken=x",
                ],
                &[],
                "https://a.example/, https://b.example/",
            ),
        ] {
            assert_eq!(merged(texts, variables).to_string(), expected, "{texts:?} {variables:?}");
        }
    }

    #[test]
    fn a_package_is_of_a_registry_by_scheme_host_port_and_path() {
        let registries = merged(&["registry=https://a.example:8443/npm\n@corp:registry=http://b.example/"], &[]);
        let contain = |place: &str| registries.contain(&Url::parse(place).expect("a URL"));
        for good in [
            "https://a.example:8443/npm/x/-/x-1.0.0.tgz",
            "http://b.example/@corp/x/-/x-1.0.0.tgz",
            "https://registry.npmjs.org/x/-/x-1.0.0.tgz",
            "https://registry.npmjs.org:443/x.tgz",
        ] {
            assert!(contain(good), "{good}");
        }
        for bad in [
            "http://a.example:8443/npm/x.tgz",
            "https://a.example/npm/x.tgz",
            "https://a.example:8443/npmx/x.tgz",
            "https://a.example:8443/npm/../x.tgz",
            "https://a.example:8443/npm/%2e%2e/x.tgz",
            "https://b.example/x.tgz",
            "http://b.example:81/x.tgz",
            "http://b.example.evil/x.tgz",
            "http://b.example@evil.example/x.tgz",
            "http://me@b.example/x.tgz",
            "http://registry.npmjs.org/x.tgz",
            "file:///npm/x.tgz",
            "data:x",
        ] {
            assert!(!contain(bad), "{bad}");
        }
    }
}

//! npm's configuration as npm itself would see it: the operator's files, then the environment over them.
//!
//! Knows the syntax (ini with npm's quirks, `npm_config_*`) and no meaning. Values may be secrets, so [`Settings`] shows none.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::Error;

/// Of one file; a configuration is a few lines, but all of a system's certificates are more.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Key → its values; several only for `key[]`.
#[derive(Default, Clone)]
pub(super) struct Settings {
    values: BTreeMap<String, Vec<String>>,
    environment: BTreeMap<String, String>,
}

impl Settings {
    /// Least to most important: the global file (`npm_config_globalconfig`), the user's, the environment.
    pub(super) fn load(userconfig: Option<&Path>, environment: BTreeMap<String, String>) -> Result<Self, Error> {
        let of_environment = npm_variables(&environment);
        let mut settings = Self { values: BTreeMap::new(), environment };
        // npm sets both variables for what it runs, whether the files exist or not.
        let named = |key: &str| of_environment.get(key).map(PathBuf::from).filter(|path| path.exists());
        let user = userconfig.map(Path::to_owned).or_else(|| named("userconfig"));
        for file in [named("globalconfig"), user].into_iter().flatten() {
            let text = read_text(&file)?;
            settings.merge(&text);
        }
        settings.values.extend(of_environment.into_iter().map(|(key, value)| (key, vec![value])));
        Ok(settings)
    }

    /// What counts is the last one; `null` and nothing mean "not set".
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let value = self.values.get(key)?.last()?.as_str();
        (!matches!(value, "" | "null" | "undefined")).then_some(value)
    }

    pub(super) fn all(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.keys().filter_map(|key| Some((key.as_str(), self.get(key)?)))
    }

    /// A variable of the operator's environment, in the case given or in lower case, as proxies' are.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let find = |name: &str| self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty());
        find(name).or_else(|| find(&name.to_ascii_lowercase()))
    }

    fn merge(&mut self, text: &str) {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                break; // What follows is a section's, which npm keeps apart.
            }
            let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with([';', '#'])) else { continue };
            let (key, value) = (self.expand(&unquote(key)), self.expand(&unquote(value)));
            match key.strip_suffix("[]") {
                Some(list) => values.entry(list.to_owned()).or_default().push(value),
                None => drop(values.insert(key, vec![value])),
            }
        }
        self.values.extend(values);
    }

    /// `${NAME}`, and `${NAME?}` which may be missing; a name that is not set stays as it stands, as with npm.
    fn expand(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let Some(length) = rest[start..].find('}') else { break };
            let (before, whole) = (&rest[..start], &rest[start..=start + length]);
            let name = &whole[2..length];
            rest = &rest[start + length + 1..];
            if let Some(before) = before.strip_suffix('\\') {
                expanded.extend([before, whole]);
                continue;
            }
            let optional = name.strip_suffix('?');
            let value = self.environment.get(optional.unwrap_or(name)).map(String::as_str);
            expanded.extend([before, value.or(optional.map(|_| "")).unwrap_or(whole)]);
        }
        expanded + rest
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// Reads a file of the operator's that has a sensible size.
pub(super) fn read_text(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is larger than 4 MiB")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// `npm_config_fetch_retries` → `fetch-retries`; keys that begin with `//` or `@` stay as they are, but for the case.
fn npm_variables(environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const PREFIX: &str = "npm_config_";
    let mut variables = BTreeMap::new();
    for (name, value) in environment {
        let Some(start) = name.get(..PREFIX.len()).filter(|start| start.eq_ignore_ascii_case(PREFIX)) else { continue };
        let key = &name[start.len()..];
        let key = match key.chars().next() {
            Some('/') => key.to_owned(),
            Some(first) => format!("{first}{}", key[first.len_utf8()..].replace('_', "-")).to_lowercase(),
            None => continue,
        };
        if !value.is_empty() {
            variables.insert(key, value.clone());
        }
    }
    variables
}

/// As the `ini` package does it: quoted text is JSON, an unescaped `;` or `#` begins a comment.
fn unquote(text: &str) -> String {
    let text = text.trim();
    let within = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    if within('"') {
        return serde_json::from_str(text).unwrap_or_else(|_| text.to_owned());
    }
    if within('\'') {
        return text[1..text.len() - 1].to_owned();
    }
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        match (escaped, c) {
            (false, ';' | '#') => break,
            (false, '\\') => escaped = true,
            (true, ';' | '#' | '\\') => {
                plain.push(c);
                escaped = false;
            }
            (_, c) => {
                plain.extend(escaped.then_some('\\'));
                plain.push(c);
                escaped = false;
            }
        }
    }
    plain.extend(escaped.then_some('\\'));
    plain.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("npmrc");
        std::fs::write(&file, text).unwrap();
        Settings::load(Some(&file), environment(variables)).unwrap()
    }

    #[test]
    fn lines_are_read_as_npm_reads_them() {
        let text = "; a comment\n# another\nregistry = http://a/ # here\nq=\"x;y\\n\"\ns='z#'\nescaped=a\\;b\\c\n\nnothing\n\
                    empty=\nnull=null\nca[]=one\nca[]=two\n//h/:_authToken=${TOKEN}\n//h/:x=${NO}-${NO?}-\\${TOKEN}\n\
                    [section]\nregistry=http://b/\n";
        let settings = settings(text, &[("TOKEN", "t0")]);
        for (key, value) in [
            ("registry", Some("http://a/")),
            ("q", Some("x;y\n")),
            ("s", Some("z#")),
            ("escaped", Some("a;b\\c")),
            ("nothing", None),
            ("empty", None),
            ("null", None),
            ("//h/:_authToken", Some("t0")),
            ("//h/:x", Some("${NO}--${TOKEN}")),
        ] {
            assert_eq!(settings.get(key), value, "{key}");
        }
        assert_eq!(settings.all("ca"), ["one", "two"]);
        assert!(!format!("{settings:?}").contains("t0"));
    }

    #[test]
    fn the_environment_wins() {
        let variables = [
            ("NPM_CONFIG_REGISTRY", "http://env/"),
            ("npm_config_strict_ssl", "false"),
            ("npm_config_//h/:_authToken", "t"),
            ("npm_config_@a:registry", "http://a/"),
            ("npm_config_proxy", ""),
            ("https_proxy", "http://p/"),
        ];
        let settings = settings("registry=http://file/\nproxy=http://file/\n", &variables);
        assert_eq!(settings.get("registry"), Some("http://env/"));
        assert_eq!(settings.get("strict-ssl"), Some("false"));
        assert_eq!(settings.get("//h/:_authToken"), Some("t"));
        assert_eq!(settings.get("@a:registry"), Some("http://a/"));
        assert_eq!(settings.get("proxy"), Some("http://file/"));
        assert_eq!(settings.variable("HTTPS_PROXY"), Some("http://p/"));
    }
}

//! The registries that the operator configured, and what lies below them.

use std::collections::BTreeMap;
use std::path::Path;

use http::HeaderValue;
use url::{Origin, Url};

use super::Error;
use super::credentials::{Credentials, authority};
use super::npmrc::Settings;
use super::outbound::Outbound;

const DEFAULT: &str = "https://registry.npmjs.org/";
/// npm takes this host in a lockfile for "the registry that is configured", whichever that is.
const MAGIC_HOST: &str = "registry.npmjs.org";

/// Where packages come from, with what credentials, and how to get there. Neither Debug nor an error shows a credential.
#[derive(Debug, Clone)]
pub struct Registries {
    pub(super) default: Url,
    /// `@scope` → its registry.
    pub(super) scopes: BTreeMap<String, Url>,
    /// Registries, and places that have credentials of their own. Each ends in a slash.
    bases: Vec<Url>,
    credentials: Credentials,
    pub(super) outbound: Outbound,
}

impl Registries {
    /// Reads npm's configuration: `userconfig` (else the file that `npm_config_userconfig` names), under it the file that
    /// `npm_config_globalconfig` names, above both the `npm_config_*` variables; then `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`,
    /// `NODE_EXTRA_CA_CERTS` and `SSL_CERT_FILE`. What it does not know is ignored, as npm does.
    ///
    /// # Errors
    /// A file that cannot be read, or a setting that cannot be used.
    pub fn load(
        userconfig: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let settings = Settings::load(userconfig, environment.into_iter().collect())?;
        let mut credentials = Credentials::of(&settings)?;
        let default = parse_registry("registry", settings.get("registry").unwrap_or(DEFAULT))?;
        let mut scopes = BTreeMap::new();
        for (key, value) in settings.iter() {
            if let Some(scope) = key.strip_suffix(":registry").filter(|scope| scope.starts_with('@')) {
                scopes.insert(scope.to_owned(), parse_registry(key, value)?);
            }
        }
        let outbound = Outbound::of(&settings)?;
        outbound.secrets().for_each(|secret| credentials.hide(&secret));
        let mut bases: Vec<Url> = std::iter::once(&default).chain(scopes.values()).cloned().collect();
        let of_credentials: Vec<Url> = credentials
            .places()
            .filter_map(|place| {
                let http = bases.iter().any(|base| {
                    base.scheme() == "http" && authority(base).as_deref() == Some(place.authority.as_str())
                });
                // Not named by any registry, so not in clear text either.
                let scheme = if http { "http" } else { "https" };
                Url::parse(&format!("{scheme}://{}{}", place.authority, place.path)).ok()
            })
            .collect();
        bases.extend(of_credentials);
        bases.sort();
        bases.dedup();
        Ok(Self { default, scopes, bases, credentials, outbound })
    }

    #[cfg(test)]
    pub(in crate::publish) fn public() -> Self {
        Self::load(None, []).expect("the defaults can be used")
    }

    /// Whether a lockfile's `resolved` may say this: it lies below a configured registry (or a place that has credentials), or at
    /// registry.npmjs.org, which npm reads as the configured registry.
    pub fn origin_allowed(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| self.base_of(&url).is_some() || is_magic(&url))
    }

    /// The scopes that have a registry of their own.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scopes.keys().map(String::as_str)
    }

    /// The longest base that the URL is below.
    pub(super) fn base_of(&self, url: &Url) -> Option<&Url> {
        let plain = url.username().is_empty() && url.password().is_none();
        let below = |base: &&Url| plain && same_origin(base, url) && url.path().starts_with(base.path());
        self.bases.iter().filter(below).max_by_key(|base| base.path().len())
    }

    /// Whether a registry is at that very host and port.
    pub(super) fn is_origin(&self, url: &Url) -> bool {
        self.bases.iter().any(|base| same_origin(base, url))
    }

    pub(super) fn for_scope(&self, scope: Option<&str>) -> &Url {
        scope.and_then(|scope| self.scopes.get(scope)).unwrap_or(&self.default)
    }

    /// A registry's credential goes wherever that registry's own host serves something that [`Self::base_of`] allows.
    pub(super) fn credential(&self, url: &Url) -> Option<&HeaderValue> {
        self.base_of(url).and_then(|base| self.credentials.find(url).or_else(|| self.credentials.find(base)))
    }

    /// Without anything secret, and not longer than a message should be.
    pub(super) fn scrub(&self, text: &str) -> String {
        const SHOWN_BYTES_MAX: usize = 500;
        let mut text = self.credentials.scrub(text);
        text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX));
        text
    }
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    let (a, b) = (a.origin(), b.origin());
    matches!(a, Origin::Tuple(..)) && a == b
}

pub(super) fn is_magic(url: &Url) -> bool {
    url.host_str() == Some(MAGIC_HOST) && matches!(url.scheme(), "http" | "https")
}

fn parse_registry(key: &str, value: &str) -> Result<Url, Error> {
    let wrong = |problem: &str| Error::Setting { key: key.to_owned(), problem: problem.to_owned() };
    let mut url = Url::parse(value.trim()).map_err(|err| wrong(&format!("it is not a URL: {err}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("a registry's URL begins with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("a URL must not hold a user or a password: use //host/:_auth"));
    }
    url.set_query(None);
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Without credentials: for messages.
impl std::fmt::Display for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.default)?;
        self.scopes.values().try_for_each(|registry| write!(f, ", {registry}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Registries, Error> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("npmrc");
        std::fs::write(&file, text).unwrap();
        Registries::load(Some(&file), variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn without_configuration_it_is_npms_registry() {
        let registries = Registries::load(None, []).unwrap();
        assert_eq!(registries.default.as_str(), DEFAULT);
        assert!(registries.origin_allowed("https://registry.npmjs.org/ms/-/ms-2.1.3.tgz"));
        for bad in ["https://registry.yarnpkg.com/ms/-/ms-2.1.3.tgz", "https://registry.npmjs.org.evil/x.tgz", "x", ""]
        {
            assert!(!registries.origin_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn what_lies_below_a_registry_or_a_credential_is_allowed() {
        let text = "registry=https://npm.corp/api/npm/all\n@git:registry=https://gitlab.corp/api/v4/packages/npm/\n\
                    @plain:registry=http://local:4873\n//gitlab.corp/api/v4/projects/7/packages/npm/:_authToken=t1\n\
                    //local:4873/sub/:_authToken=t2\n//cdn.corp/:_authToken=t3\n";
        let registries = load(text, &[]).unwrap();
        for good in [
            "https://npm.corp/api/npm/all/ms/-/ms-1.0.0.tgz",
            "https://npm.corp:443/api/npm/all/ms/-/ms-1.0.0.tgz",
            "https://gitlab.corp/api/v4/projects/7/packages/npm/x.tgz",
            "http://local:4873/sub/x.tgz",
            "https://cdn.corp/x.tgz",
            "https://registry.npmjs.org/x.tgz",
        ] {
            assert!(registries.origin_allowed(good), "{good}");
        }
        for bad in [
            "https://npm.corp/api/npm/secret/ms/-/ms-1.0.0.tgz",
            "https://npm.corp/api/npm/all/../secret/x.tgz",
            "https://npm.corp/api/npm/all/%2e%2e/secret/x.tgz",
            "http://npm.corp/api/npm/all/x.tgz",
            "https://npm.corp:8443/api/npm/all/x.tgz",
            "https://u:p@npm.corp/api/npm/all/x.tgz",
            "https://gitlab.corp/api/v4/projects/8/packages/npm/x.tgz",
            "https://local:4873/x.tgz",
            "http://cdn.corp/x.tgz",
            "git+https://npm.corp/api/npm/all/x.tgz",
            "file:///x.tgz",
        ] {
            assert!(!registries.origin_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn a_credential_goes_to_the_longest_path_and_nowhere_else() {
        let text = "registry=https://h/\n@a:registry=https://h/a/\n@b:registry=https://other/b/\n//h/:_authToken=root\n\
                    //h/a:_auth=dTpw\n//other/b/:username=u\n//other/b/:_password=cA==\n//elsewhere/:_authToken=${TOKEN}\n";
        let registries = load(text, &[("TOKEN", "secret0")]).unwrap();
        let credential = |url: &str| {
            registries.credential(&Url::parse(url).unwrap()).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(credential("https://h/ms").as_deref(), Some("Bearer root"));
        assert_eq!(credential("https://h/a/ms").as_deref(), Some("Basic dTpw"));
        assert_eq!(credential("https://h/ab").as_deref(), Some("Bearer root"));
        assert_eq!(credential("https://other/b/x").as_deref(), Some("Basic dTpw"));
        assert_eq!(credential("https://elsewhere/x").as_deref(), Some("Bearer secret0"));
        for none in ["http://h/ms", "https://h:8443/ms", "https://other/c", "https://h.evil/ms"] {
            assert_eq!(credential(none), None, "{none}");
        }
        let shown = format!("{registries:?}");
        for secret in ["Bearer", "root", "dTpw", "secret0", "cA=="] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert_eq!(registries.scrub("not secret0, nor dTpw"), "not ***, nor ***");
    }

    #[test]
    fn a_bad_setting_is_named_and_its_value_is_not() {
        for (text, key) in [
            ("registry=not a url s3cret", "registry"),
            ("registry=ftp://s3cret/", "registry"),
            ("registry=https://u:s3cret@h/", "registry"),
            ("@a:registry=http://", "@a:registry"),
            ("//h/:username=u\n//h/:_password=s3cret!", "//h/:_password"),
            ("//h/:_authToken=\"s3cret\\n\"", "//h/:_authToken"),
            ("https-proxy=http://u:s3cret@", "https-proxy"),
            ("proxy=socks5://u:s3cret@h", "proxy"),
            ("cafile=/nowhere/s3c", "/nowhere/s3c"),
            ("ca=nonsense", "ca"),
        ] {
            let message = load(text, &[]).unwrap_err().to_string();
            assert!(message.contains(key) && !message.contains("s3cret"), "{text}: {message}");
        }
        assert!(load("", &[("npm_config_userconfig", "/nowhere"), ("NODE_EXTRA_CA_CERTS", "/nowhere")]).is_ok());
        assert!(Registries::load(Some(Path::new("/nowhere/s3c")), []).is_err());
        assert!(load("whatever=s3cret\nno equals sign\n//h/:email=x\n//:_authToken", &[]).is_ok());
    }
}

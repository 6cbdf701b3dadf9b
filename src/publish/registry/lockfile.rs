//! A lockfile on its way into the sandbox and back out.
//!
//! Inside, `resolved` must lead to the proxy: npm would guess from a registry's URL, and only half of it. Outside, no port of a proxy
//! may be in it: the layer's key is made of the lockfile, and the lockfile is kept.

use url::Url;

use super::rewrite::{Field, Rewriter};
use super::route::{delocalize, localize_resolved};
use super::{Error, Registries};

impl Registries {
    /// The lockfile with every `resolved` leading to the proxy at `port`; all else, `integrity` first, stays as it is.
    ///
    /// # Errors
    /// The first `resolved` that is not allowed (see [`Registries::origin_allowed`]), or text that is not JSON.
    pub fn localize_lockfile(&self, lockfile: &[u8], port: u16) -> Result<Vec<u8>, Error> {
        let mut foreign = None;
        let localized = rewrite(lockfile, |resolved| {
            if !self.origin_allowed(resolved) {
                foreign.get_or_insert_with(|| shown(resolved));
                return None;
            }
            localize_resolved(self, resolved, port)
        })?;
        foreign.map_or(Ok(localized), |url| Err(Error::Foreign { url }))
    }

    /// The lockfile that npm left, with the registries' own URLs.
    ///
    /// # Errors
    /// Text that is not JSON.
    pub fn restore_lockfile(&self, lockfile: &[u8]) -> Result<Vec<u8>, Error> {
        rewrite(lockfile, |resolved| {
            let url = Url::parse(resolved)
                .ok()
                .filter(|url| url.host_str() == Some("127.0.0.1") && url.scheme() == "http")?;
            // A registry of the operator's may be at that address too.
            if self.base_of(&url).is_some() {
                return None;
            }
            let original = delocalize(url.path()).map(String::from);
            // Without a mark it was made from registry.npmjs.org, npm's name for "whichever registry".
            Some(original.unwrap_or_else(|| format!("https://registry.npmjs.org{}", url.path())))
        })
    }
}

/// Checked first: the rewriting alone takes whatever text there is.
fn rewrite(lockfile: &[u8], change: impl FnMut(&str) -> Option<String>) -> Result<Vec<u8>, Error> {
    serde_json::from_slice::<serde::de::IgnoredAny>(lockfile).map_err(|err| Error::Lockfile(err.to_string()))?;
    let mut rewriter = Rewriter::new(Field::Resolved, change);
    let mut out = Vec::with_capacity(lockfile.len() * 5 / 4);
    rewriter.feed(lockfile, &mut out);
    rewriter.finish(&mut out);
    Ok(out)
}

/// For a message: short, and without what may be a password.
fn shown(resolved: &str) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    let mut text = match Url::parse(resolved) {
        Ok(url) => format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path()),
        Err(_) => resolved.escape_debug().to_string(),
    };
    text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"{ "packages": { "": {}, "node_modules/ms": { "version": "2.1.3",
        "resolved": "https://registry.npmjs.org/ms/-/ms-2.1.3.tgz", "integrity": "sha512-x" },
        "node_modules/a": { "resolved": "https://npm.corp/x/a/-/a-1.tgz?sig=1" } } }"#;

    fn registries(registry: &str) -> Registries {
        Registries::load(None, [("npm_config_registry".to_owned(), registry.to_owned())]).unwrap()
    }

    #[test]
    fn a_lockfile_goes_in_and_comes_back_the_same() {
        let registries = registries("https://npm.corp/x/");
        let local = registries.localize_lockfile(LOCK.as_bytes(), 4873).unwrap();
        let text = String::from_utf8(local.clone()).unwrap();
        assert!(text.contains("\"http://127.0.0.1:4873/ms/-/ms-2.1.3.tgz\""), "{text}");
        assert!(
            text.contains("\"http://127.0.0.1:4873/-/tarball-query/sig%3D1/https/npm.corp/x/a/-/a-1.tgz\""),
            "{text}"
        );
        assert_eq!(registries.restore_lockfile(&local).unwrap(), LOCK.as_bytes());
        assert_eq!(registries.restore_lockfile(LOCK.as_bytes()).unwrap(), LOCK.as_bytes());
    }

    #[test]
    fn a_lockfile_that_leads_elsewhere_is_refused() {
        let refused = registries("https://npm.other/").localize_lockfile(LOCK.as_bytes(), 1).unwrap_err();
        assert!(matches!(&refused, Error::Foreign { url } if url == "https://npm.corp/x/a/-/a-1.tgz"), "{refused}");
        let text = r#"{"resolved":"git+ssh://git:pw@h/x.git#1"}"#;
        let refused = registries("https://h/").localize_lockfile(text.as_bytes(), 1).unwrap_err().to_string();
        assert!(refused.contains("git+ssh://h/x.git") && !refused.contains("pw"), "{refused}");
        assert!(matches!(registries("https://h/").localize_lockfile(b"{", 1), Err(Error::Lockfile(_))));
    }
}

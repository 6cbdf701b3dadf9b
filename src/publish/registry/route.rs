//! A request's path → the place that it means, or why it is not served. Pure.
//!
//! Three kinds of paths are understood: a package's name (its packument, from its scope's registry); `/-/tarball/<scheme>/<host>/…`,
//! which the proxy itself wrote into packuments and lockfiles and which names the tarball's place exactly; and a registry's own path
//! of a tarball, which npm derives from a lockfile's `resolved` by replacing its host.

use http::StatusCode;
use url::{Url, form_urlencoded};

use super::registries::{Registries, is_magic};

const TARBALL: &str = "/-/tarball/";
/// The query in front, for the few registries that use one: npm drops what stands behind a `?`.
const TARBALL_WITH_QUERY: &str = "/-/tarball-query/";
const PATH_BYTES_MAX: usize = 4 << 10;

/// What to ask a registry for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Packument(Url),
    Tarball(Url),
}

/// Why a request is answered by the proxy alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the path is not one of a package")]
    Path,
    #[error("only packages and their tarballs are served here")]
    NotServed,
    #[error("{0} is not below a registry that this server is configured for")]
    Foreign(String),
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Path => StatusCode::BAD_REQUEST,
            Self::NotServed | Self::Foreign(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// The path is as it came: percent-encoded.
pub(super) fn route(registries: &Registries, path: &str) -> Result<Target, Refusal> {
    if path.len() > PATH_BYTES_MAX {
        return Err(Refusal::Path);
    }
    if path.starts_with(TARBALL) || path.starts_with(TARBALL_WITH_QUERY) {
        let url = delocalize(path).ok_or(Refusal::Path)?;
        return tarball(registries, url);
    }
    let segments = decode_segments(path).ok_or(Refusal::Path)?;
    match segments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [scope, name] if scope.starts_with('@') => packument(registries, Some(scope), name),
        [name] => match name.split_once('/') {
            Some((scope, name)) => packument(registries, Some(scope), name),
            None => packument(registries, None, name),
        },
        ["-", ..] => Err(Refusal::NotServed),
        _ => tarball(registries, guess(registries, path, &segments)),
    }
}

fn packument(registries: &Registries, scope: Option<&str>, name: &str) -> Result<Target, Refusal> {
    if name.is_empty() || name == "-" || name.starts_with('_') || scope == Some("@") {
        return Err(Refusal::NotServed);
    }
    let mut url = registries.for_scope(scope).clone();
    // One segment: registries know a scoped name as `@scope%2fname`.
    let full = scope.map_or_else(|| name.to_owned(), |scope| format!("{scope}/{name}"));
    url.path_segments_mut().map_err(|()| Refusal::Path)?.pop_if_empty().push(&full);
    Ok(Target::Packument(url))
}

/// With the operator's credentials only what looks like a tarball may be asked for: not a registry's `/-/npm/v1/tokens`, nor an API
/// that shares its host.
fn tarball(registries: &Registries, url: Url) -> Result<Target, Refusal> {
    let Some(base) = registries.base_of(&url) else {
        let mut shown = url;
        shown.set_query(None);
        return Err(Refusal::Foreign(shown.into()));
    };
    let segments = decode_segments(&url.path()[base.path().len() - 1..]).ok_or(Refusal::Path)?;
    let (first, last) = (segments.first().ok_or(Refusal::NotServed)?, segments.last().ok_or(Refusal::NotServed)?);
    let archive = [".tgz", ".tar.gz"].iter().any(|end| last.to_ascii_lowercase().ends_with(end));
    // GitHub's registry: /download/@scope/name/version/digest.
    if first.starts_with(['-', '_']) || !(archive || first == "download") {
        return Err(Refusal::NotServed);
    }
    Ok(Target::Tarball(url))
}

/// Decoded, and harmless: nothing in them climbs or means something else to another server. `/` only within `@scope%2fname`.
fn decode_segments(path: &str) -> Option<Vec<String>> {
    let url = Url::parse("http://x/").ok()?.join(&format!("http://x{path}")).ok()?;
    let segments = url.path_segments()?.map(|raw| {
        let decoded = percent_decode(raw)?;
        let odd = decoded.contains(['\\', '%', '?', '#']) || decoded.chars().any(char::is_control);
        let slashes = decoded.matches('/').count();
        let scoped = slashes == 0 || (slashes == 1 && decoded.starts_with('@') && !decoded.ends_with('/'));
        let climbs = decoded.split('/').any(|part| matches!(part, "." | "..") || part.is_empty());
        (!odd && scoped && !climbs).then_some(decoded)
    });
    segments.collect()
}

fn percent_decode(text: &str) -> Option<String> {
    // A plus is a plus in a path.
    let safe = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let (decoded, _) = form_urlencoded::parse(safe.as_bytes()).next().unwrap_or_default();
    (!decoded.contains('\u{fffd}')).then(|| decoded.into_owned())
}

/// Whose path it is: a registry's whose own path it begins with, else its scope's, else the default one's.
fn guess(registries: &Registries, path: &str, segments: &[String]) -> Url {
    let scope = segments.iter().find(|segment| segment.starts_with('@'));
    let scope = scope.map(|segment| segment.split_once('/').map_or(segment.as_str(), |(scope, _)| scope));
    let own = registries.for_scope(scope);
    let whole = |base: &Url| {
        let mut url = base.clone();
        url.set_path(path);
        url
    };
    let begins = |base: &&Url| base.path() != "/" && path.starts_with(base.path());
    let others = registries.scopes.values().chain([&registries.default]);
    if let Some(base) = [own].into_iter().chain(others).find(begins) {
        return whole(base);
    }
    // `/name/-/name-1.0.0.tgz` is every registry's layout, below whatever path it has.
    let standard =
        segments.iter().position(|segment| segment == "-").is_some_and(|at| at == 1 || (at == 2 && scope.is_some()));
    let mut url = whole(own);
    if standard {
        url.set_path(&format!("{}{}", own.path(), path.trim_start_matches('/')));
    }
    url
}

/// A tarball's URL as one that leads to the proxy. Everything that says where it is stands in the path.
pub(super) fn localize(url: &str, port: u16) -> Option<String> {
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let authority = super::credentials::authority(&url)?;
    let place = format!("{}/{authority}{}", url.scheme(), url.path());
    Some(match url.query() {
        None => format!("http://127.0.0.1:{port}{TARBALL}{place}"),
        Some(query) => {
            let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
            format!("http://127.0.0.1:{port}{TARBALL_WITH_QUERY}{query}/{place}")
        }
    })
}

/// The other way round, from the path alone.
pub(super) fn delocalize(path: &str) -> Option<Url> {
    let (query, place) = match path.strip_prefix(TARBALL_WITH_QUERY) {
        Some(rest) => {
            let (query, place) = rest.split_once('/')?;
            let (query, _) = form_urlencoded::parse(query.as_bytes()).next()?;
            (Some(query.into_owned()), place)
        }
        None => (None, path.strip_prefix(TARBALL)?),
    };
    let (scheme, rest) = place.split_once('/')?;
    // No user, and nothing that ends an authority early.
    let clean = !rest.split('/').next()?.contains(['@', '\\', '?', '#', '%']);
    let mut url = Url::parse(&format!("{scheme}://{rest}")).ok()?;
    url.set_query(query.as_deref());
    url.set_fragment(None);
    (clean && matches!(scheme, "http" | "https")).then_some(url)
}

/// A lockfile's `resolved`, made to lead to the proxy.
pub(super) fn localize_resolved(registries: &Registries, resolved: &str, port: u16) -> Option<String> {
    let url = Url::parse(resolved).ok()?;
    if is_magic(&url) && registries.base_of(&url).is_none() {
        return Some(format!("http://127.0.0.1:{port}{}", url.path()));
    }
    localize(resolved, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURATION: [(&str, &str); 5] = [
        ("npm_config_registry", "https://npm.corp/api/npm/all/"),
        ("npm_config_@git:registry", "https://npm.github.test/"),
        ("npm_config_@b:registry", "http://b.test:4873/api/npm/b/"),
        ("npm_config_//cdn.test/:_authToken", "t"),
        ("npm_config_@root:registry", "https://root.test/"),
    ];

    fn registries() -> Registries {
        Registries::load(None, CONFIGURATION.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap()
    }

    fn target(path: &str) -> Result<String, Refusal> {
        route(&registries(), path).map(|target| match target {
            Target::Packument(url) => format!("P {url}"),
            Target::Tarball(url) => format!("T {url}"),
        })
    }

    #[test]
    fn names_lead_to_their_scopes_registry() {
        for (path, url) in [
            ("/ms", "https://npm.corp/api/npm/all/ms"),
            ("/%2e%2e/x/../ms", "https://npm.corp/api/npm/all/ms"),
            ("/JSONStream", "https://npm.corp/api/npm/all/JSONStream"),
            ("/@x%2fy", "https://npm.corp/api/npm/all/@x%2Fy"),
            ("/@x/y", "https://npm.corp/api/npm/all/@x%2Fy"),
            ("/@git%2Fy", "https://npm.github.test/@git%2Fy"),
            ("/@b/y", "http://b.test:4873/api/npm/b/@b%2Fy"),
        ] {
            assert_eq!(target(path), Ok(format!("P {url}")), "{path}");
        }
    }

    #[test]
    fn tarballs_are_found_by_exact_and_by_derived_paths() {
        for (path, url) in [
            ("/-/tarball/https/npm.corp/api/npm/all/ms/-/ms-1.tgz", "https://npm.corp/api/npm/all/ms/-/ms-1.tgz"),
            ("/-/tarball/http/b.test:4873/api/npm/b/@b/y/-/y-1.tgz", "http://b.test:4873/api/npm/b/@b/y/-/y-1.tgz"),
            ("/-/tarball-query/a%3Db%26c/https/cdn.test/y-1.tgz", "https://cdn.test/y-1.tgz?a=b&c"),
            (
                "/-/tarball/https/npm.github.test/download/@git/y/1.0.0/abc",
                "https://npm.github.test/download/@git/y/1.0.0/abc",
            ),
            ("/ms/-/ms-1.tgz", "https://npm.corp/api/npm/all/ms/-/ms-1.tgz"),
            ("/@x/y/-/y-1.tgz", "https://npm.corp/api/npm/all/@x/y/-/y-1.tgz"),
            ("/api/npm/all/ms/-/ms-1.tgz", "https://npm.corp/api/npm/all/ms/-/ms-1.tgz"),
            ("/api/npm/b/@b/y/-/y-1.tgz", "http://b.test:4873/api/npm/b/@b/y/-/y-1.tgz"),
            ("/@b/y/-/y-1.tgz", "http://b.test:4873/api/npm/b/@b/y/-/y-1.tgz"),
            ("/@b%2fy/-/y-1.tgz", "http://b.test:4873/api/npm/b/@b%2fy/-/y-1.tgz"),
            ("/download/@git/y/1.0.0/abc", "https://npm.github.test/download/@git/y/1.0.0/abc"),
            ("/odd/@root/y/y-1+2.tgz", "https://root.test/odd/@root/y/y-1+2.tgz"),
        ] {
            assert_eq!(target(path), Ok(format!("T {url}")), "{path}");
        }
    }

    #[test]
    fn nothing_else_is_served() {
        for path in [
            "/",
            "",
            "//",
            "/-",
            "/-/all",
            "/-/whoami",
            "/-/npm/v1/tokens",
            "/-/v1/search",
            "/-/npm/v1/security/audits",
            "/_session",
            "/@x/_y",
            "/@/y",
            "/.",
            "/..",
            "/..%2fx",
            "/%2e%2e%2fx",
            "/a%2fb",
            "/a%5cb",
            "/a%00",
            "/a%25",
            "/a%3fb",
            "/@x%2f..",
            "/@x%2fy%2fz",
            "/%ff",
            "/ms/1.0.0",
            "/ms/latest",
            "/-/tarball/",
            "/-/tarball/https",
            "/-/tarball/ftp/npm.corp/x.tgz",
            "/-/tarball/file/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/secret/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/../secret/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/..%2fsecret/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/%2e%2e/secret/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/x/..%5c..%5cx.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/-/npm/v1/tokens",
            "/-/tarball/https/npm.corp/api/npm/all/-/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/%2d/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/_x/x.tgz",
            "/-/tarball/https/npm.corp/api/npm/all/ms",
            "/-/tarball/https/npm.corp/api/npm/all/",
            "/-/tarball/https/evil.test/x.tgz",
            "/-/tarball/https/u:p@npm.corp/api/npm/all/x.tgz",
            "/-/tarball/https/npm.corp%2fx/api/npm/all/x.tgz",
            "/-/tarball/https/npm.corp%00/api/npm/all/x.tgz",
            "/-/tarball/http/npm.corp/api/npm/all/x.tgz",
            "/-/tarball/https/127.0.0.1/x.tgz",
            "/-/tarball-query/x",
            "/-/tarball-query/x/https/evil.test/x.tgz",
            "/api/npm/secret/ms/-/ms-1.tgz/../../x.tgz",
        ] {
            assert!(target(path).is_err(), "{path}: {:?}", target(path));
        }
        assert!(target(&format!("/{}", "a".repeat(PATH_BYTES_MAX))).is_err());
        let foreign = target("/-/tarball/https/evil.test/x.tgz").unwrap_err();
        assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
        assert!(foreign.to_string().contains("https://evil.test/x.tgz is not below"));
    }

    #[test]
    fn localized_urls_come_back_as_they_were() {
        for url in
            ["https://h/a/-/a-1.tgz", "http://h:8080/@a%2fb/-/b-1.0.0+x.tgz", "https://h/x.tgz?sig=a%2Fb+c&d=%20"]
        {
            let local = localize(url, 4873).unwrap();
            let path = local.strip_prefix("http://127.0.0.1:4873").unwrap();
            assert_eq!(delocalize(path).unwrap().as_str(), url);
            assert_eq!(Url::parse(&local).unwrap().query(), None);
        }
        assert_eq!(localize("git+ssh://h/x", 1), None);
        let magic = localize_resolved(&registries(), "https://registry.npmjs.org/ms/-/ms-1.tgz", 7);
        assert_eq!(magic.as_deref(), Some("http://127.0.0.1:7/ms/-/ms-1.tgz"));
    }
}

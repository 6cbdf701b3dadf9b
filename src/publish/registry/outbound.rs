//! The way out: HTTP proxies, trusted certificates, and the clients made of them.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use reqwest::{Certificate, Client, NoProxy, redirect};
use url::Url;

use super::address::{Guard, Reach};
use super::npmrc::{Settings, read_text};
use super::{Error, Limits};

/// Connections to one host that are kept for the next request.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// What the operator configured about connections.
#[derive(Clone)]
pub(super) struct Outbound {
    http_proxy: Option<Url>,
    https_proxy: Option<Url>,
    no_proxy: String,
    /// Trusted beside the system's, or (`only`) instead of them.
    certificates: Vec<Certificate>,
    only: bool,
    strict: bool,
}

impl Outbound {
    pub(super) fn of(settings: &Settings) -> Result<Self, Error> {
        // npm uses `https-proxy`, and `proxy` where there is none, for everything; the variables go by the URL's scheme.
        let configured = parse_proxy(settings, "https-proxy")?.or(parse_proxy(settings, "proxy")?);
        let of_variable = |name: &str| settings.variable(name).map(|value| parse_proxy_url(name, value)).transpose();
        let (https_proxy, http_proxy) = match configured {
            Some(proxy) => (Some(proxy.clone()), Some(proxy)),
            None => (of_variable("HTTPS_PROXY")?, of_variable("HTTP_PROXY")?.or(of_variable("HTTPS_PROXY")?)),
        };
        let lists = settings.all("noproxy").iter().filter(|list| !matches!(list.as_str(), "" | "null"));
        let mut no_proxy = lists.map(String::as_str).collect::<Vec<_>>().join(",");
        if no_proxy.is_empty() {
            settings.variable("NO_PROXY").unwrap_or_default().clone_into(&mut no_proxy);
        }
        let own = own_certificates(settings)?;
        let only = !own.is_empty();
        let certificates = if only { own } else { extra_certificates(settings)? };
        let strict = settings.get("strict-ssl") != Some("false");
        Ok(Self { http_proxy, https_proxy, no_proxy, certificates, only, strict })
    }

    /// Of the proxies' URLs.
    pub(super) fn secrets(&self) -> impl Iterator<Item = String> {
        let proxies = [&self.http_proxy, &self.https_proxy].into_iter().flatten();
        proxies.filter_map(|proxy| proxy.password().map(str::to_owned))
    }

    /// Whether `peer` may be a proxy that was asked for the URL, and not the URL's own host: no other way leads past `noproxy`.
    pub(super) fn may_be_proxy(&self, peer: SocketAddr, url: &Url) -> bool {
        let proxy = if url.scheme() == "https" { &self.https_proxy } else { &self.http_proxy };
        proxy.as_ref().is_some_and(|proxy| proxy.port_or_known_default() == Some(peer.port()))
    }

    pub(super) fn proxy_hosts(&self) -> Vec<String> {
        let proxies = [&self.http_proxy, &self.https_proxy].into_iter().flatten();
        proxies.filter_map(|proxy| proxy.host_str().map(str::to_owned)).collect()
    }

    /// A client that connects to nothing nearer than `nearest`. It follows no redirect by itself and unpacks nothing.
    pub(super) fn client(&self, nearest: Reach, limits: &Limits) -> Result<Client, Error> {
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(limits.connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        let no_proxy = || NoProxy::from_string(&self.no_proxy);
        if let Some(proxy) = &self.https_proxy {
            builder = builder.proxy(reqwest::Proxy::https(proxy.clone()).map_err(tls)?.no_proxy(no_proxy()));
        }
        if let Some(proxy) = &self.http_proxy {
            builder = builder.proxy(reqwest::Proxy::http(proxy.clone()).map_err(tls)?.no_proxy(no_proxy()));
        }
        if nearest > Reach::Local {
            builder = builder.dns_resolver(Guard { nearest, exempt: self.proxy_hosts() });
        }
        builder = match (self.strict, self.only) {
            (false, _) => builder.tls_danger_accept_invalid_certs(true),
            (true, true) => builder.tls_certs_only(self.certificates.iter().cloned()),
            (true, false) => builder.tls_certs_merge(self.certificates.iter().cloned()),
        };
        builder.build().map_err(tls)
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("proxies", &self.proxy_hosts())
            .field("no_proxy", &self.no_proxy)
            .field("certificates", &self.certificates.len())
            .field("only", &self.only)
            .field("strict", &self.strict)
            .finish()
    }
}

fn parse_proxy(settings: &Settings, key: &str) -> Result<Option<Url>, Error> {
    match settings.get(key) {
        None | Some("false") => Ok(None),
        Some(value) => parse_proxy_url(key, value).map(Some),
    }
}

fn parse_proxy_url(key: &str, value: &str) -> Result<Url, Error> {
    let wrong = |problem: &str| Error::Setting { key: key.to_owned(), problem: problem.to_owned() };
    // Variables often leave the scheme out.
    let with_scheme = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let url = Url::parse(&with_scheme).map_err(|err| wrong(&format!("it is not a URL: {err}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("only http:// and https:// proxies are supported"));
    }
    Ok(url)
}

/// `cafile` and `ca`: npm trusts nothing else where they are set.
fn own_certificates(settings: &Settings) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    if let Some(path) = settings.get("cafile") {
        certificates.extend(parse_certificates("cafile", &read_text(Path::new(path))?)?);
    }
    for text in settings.all("ca").iter().filter(|text| !matches!(text.as_str(), "" | "null")) {
        certificates.extend(parse_certificates("ca", &text.replace("\\n", "\n"))?);
    }
    Ok(certificates)
}

/// Where there is no such file, Node and OpenSSL go on without.
fn extra_certificates(settings: &Settings) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    for name in ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
        let Some(path) = settings.variable(name) else { continue };
        match read_text(Path::new(path)) {
            Ok(text) => certificates.extend(parse_certificates(name, &text)?),
            Err(err) => tracing::warn!(%err, "{name} is not used"),
        }
    }
    Ok(certificates)
}

fn parse_certificates(key: &str, text: &str) -> Result<Vec<Certificate>, Error> {
    let wrong = |problem: String| Error::Setting { key: key.to_owned(), problem };
    let certificates = Certificate::from_pem_bundle(text.as_bytes()).map_err(|err| wrong(err.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("it holds no certificate (PEM)".to_owned()));
    }
    Ok(certificates)
}

fn tls(err: reqwest::Error) -> Error {
    let source = std::error::Error::source(&err).map(|source| format!(": {source}")).unwrap_or_default();
    Error::Tls(format!("{}{source}", err.without_url()))
}

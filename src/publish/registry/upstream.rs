//! The request that leaves: few headers, the registry's credential, and redirects that the proxy follows itself.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::Arc;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, IF_NONE_MATCH, LOCATION, USER_AGENT};
use http::{HeaderValue, Method, StatusCode};
use reqwest::{Client, Response};
use tokio::time::timeout;
use url::Url;

use super::address::{Reach, is_nearer};
use super::registries::{Registries, same_origin};
use super::{Error, Limits};

/// Asks registries. Cheap to clone.
#[derive(Clone)]
pub(super) struct Upstream {
    pub(super) registries: Arc<Registries>,
    pub(super) limits: Arc<Limits>,
    /// For what the operator configured, wherever it is.
    configured: Client,
    /// For the redirects of a registry within a private network, and of any other.
    private: Client,
    public: Client,
}

/// Why there is no answer. Texts hold no credential.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{host} cannot be reached: {problem}")]
    Away { host: String, problem: String },
    #[error("{host} did not answer within {seconds} s")]
    TimedOut { host: String, seconds: u64 },
    #[error("{host} redirects to {target}, which is not allowed: {problem}")]
    Redirect { host: String, target: String, problem: &'static str },
    #[error("{host} redirects too often")]
    Loop { host: String },
}

impl Failure {
    /// npm tries again on 5xx alone.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Away { .. } | Self::Loop { .. } => StatusCode::BAD_GATEWAY,
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Redirect { .. } => StatusCode::FORBIDDEN,
        }
    }
}

/// Where one request has got to.
struct Hop {
    url: Url,
    /// Still at the registry's own host: there only the credential goes, and never again once it was left.
    home: bool,
    nearest: Reach,
}

impl Upstream {
    pub(super) fn new(registries: Arc<Registries>, limits: Arc<Limits>) -> Result<Self, Error> {
        let client = |nearest| registries.outbound.client(nearest, &limits);
        let (configured, private, public) = (client(Reach::Local)?, client(Reach::Private)?, client(Reach::Public)?);
        Ok(Self { configured, private, public, registries, limits })
    }

    /// The answer to a request for a URL below a configured registry; it is no redirect.
    pub(super) async fn get(&self, method: &Method, url: Url, headers: &HeaderMap) -> Result<Response, Failure> {
        let mut hop = Hop { url, home: true, nearest: Reach::Local };
        for _ in 0..=self.limits.redirects_max {
            let response = self.send(method, &hop, headers).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            hop = self.next(&hop, &response)?;
        }
        Err(Failure::Loop { host: host(&hop.url) })
    }

    async fn send(&self, method: &Method, hop: &Hop, headers: &HeaderMap) -> Result<Response, Failure> {
        let client = match hop.nearest {
            Reach::Local => &self.configured,
            Reach::Private => &self.private,
            Reach::Public => &self.public,
        };
        let mut request = client.request(method.clone(), hop.url.clone()).headers(headers.clone());
        if let Some(credential) = self.registries.credential(&hop.url).filter(|_| hop.home) {
            request = request.header(AUTHORIZATION, credential);
        }
        let limit = self.limits.header_timeout;
        let timed_out = || Failure::TimedOut { host: host(&hop.url), seconds: limit.as_secs() };
        match timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(err)) if err.is_timeout() => Err(timed_out()),
            Ok(Err(err)) => Err(Failure::Away { host: host(&hop.url), problem: self.describe(err) }),
            Err(_) => Err(timed_out()),
        }
    }

    /// Where a redirect leads, if it may.
    fn next(&self, hop: &Hop, response: &Response) -> Result<Hop, Failure> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| hop.url.join(location).ok());
        let shown = target.as_ref().map_or_else(|| "nowhere".to_owned(), host);
        let refused = |problem| Failure::Redirect { host: host(&hop.url), target: shown.clone(), problem };
        let mut target = target.ok_or_else(|| refused("it is not a URL"))?;
        target.set_fragment(None);
        if !matches!(target.scheme(), "http" | "https") || !target.has_host() {
            return Err(refused("it is neither https nor http"));
        }
        // A packument from the clear would choose both what is installed and the integrity that it is checked by.
        if hop.url.scheme() == "https" && target.scheme() == "http" {
            return Err(refused("it leaves https"));
        }
        if !target.username().is_empty() || target.password().is_some() {
            return Err(refused("it holds a user or a password"));
        }
        let home = hop.home && same_origin(&hop.url, &target);
        if home || self.registries.is_origin(&target) {
            return Ok(Hop { url: target, home, nearest: Reach::Local });
        }
        let nearest = self.farther(hop, response);
        let of_proxy = self.registries.outbound.proxy_hosts().iter().any(|name| target.host_str() == Some(name));
        if of_proxy || is_nearer(&target, nearest) {
            return Err(refused("it is a private address"));
        }
        Ok(Hop { url: target, home, nearest })
    }

    /// A registry in a private network may lead to its neighbours; nobody may lead to this machine.
    fn farther(&self, hop: &Hop, response: &Response) -> Reach {
        let literal = hop.url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        let peer = response.remote_addr().filter(|peer| !self.registries.outbound.may_be_proxy(*peer, &hop.url));
        let reach = literal.or(peer.map(|address| address.ip())).map_or(Reach::Public, Reach::of);
        reach.max(hop.nearest).max(Reach::Private)
    }

    /// The chain of causes, which says more than its head.
    pub(super) fn describe(&self, err: reqwest::Error) -> String {
        let err = err.without_url();
        let mut text = String::new();
        let mut cause = err.source();
        while let Some(source) = cause {
            let separator = if text.is_empty() { "" } else { ": " };
            let _ = write!(text, "{separator}{source}"); // A String takes everything.
            cause = source.source();
        }
        let text = if text.is_empty() { err.to_string() } else { text };
        self.registries.scrub(&text)
    }
}

/// Of what npm sent, the little that a registry needs.
pub(super) fn request_headers(from: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        let of_npm = name.as_str().starts_with("npm-") && name != "npm-otp";
        if of_npm || [ACCEPT, IF_NONE_MATCH, USER_AGENT].contains(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(super) fn host(url: &Url) -> String {
    url.origin().ascii_serialization()
}

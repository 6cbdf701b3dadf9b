//! What npm gets: a tarball as it is, or an error that npm prints. Packuments have their own file.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, EXPIRES, HeaderName, LAST_MODIFIED,
    RETRY_AFTER, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Limits;
use super::upstream::host;

/// Of a registry's own words.
const ERROR_BYTES_MAX: usize = 64 << 10;
const PROBLEMS_MAX: usize = 20;

pub(super) type Body = UnsyncBoxBody<Bytes, Trouble>;

/// What one install has used, and what went wrong for it.
pub(super) struct Usage {
    pub(super) port: u16,
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
    problems: Mutex<Vec<String>>,
}

impl Usage {
    pub(super) fn new(port: u16) -> Self {
        Self { port, requests: AtomicU64::new(0), bytes: AtomicU64::new(0), problems: Mutex::default() }
    }

    pub(super) fn note(&self, problem: String) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < PROBLEMS_MAX && !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why an answer ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the registry stopped sending for {0:?}")]
    Stalled(Duration),
    #[error("the registry's answer broke off: {0}")]
    Broken(String),
    #[error("the packument is larger than {0} bytes")]
    TooLarge(u64),
    #[error("this install downloaded more than {0} bytes")]
    Exhausted(u64),
    #[error("the registry answered with something that is no packument")]
    NotJson,
}

impl Trouble {
    fn status(&self) -> StatusCode {
        match self {
            Self::Stalled(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken(_) | Self::NotJson => StatusCode::BAD_GATEWAY,
            Self::TooLarge(_) | Self::Exhausted(_) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// An answer on its way from the registry to npm, with the permits that it holds until its end.
pub(super) struct Flow {
    pub(super) response: reqwest::Response,
    pub(super) usage: Arc<Usage>,
    pub(super) limits: Arc<Limits>,
    /// One of the install's, one of all installs'.
    pub(super) _permits: [OwnedSemaphorePermit; 2],
}

impl Flow {
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        let idle = self.limits.idle_timeout;
        match timeout(idle, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(err)) => Err(Trouble::Broken(err.without_url().to_string())),
            Err(_) => Err(Trouble::Stalled(idle)),
        }
    }

    pub(super) fn count(&self, bytes: usize) -> Result<(), Trouble> {
        let (bytes, most) = (bytes as u64, self.limits.install_bytes_max);
        let before = self.usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > most { Err(Trouble::Exhausted(most)) } else { Ok(()) }
    }

    pub(super) fn noted(&self, trouble: Trouble) -> Trouble {
        self.usage.note(format!("{}: {trouble}", self.response.url().host_str().unwrap_or_default()));
        trouble
    }

    pub(super) fn header(&self) -> (StatusCode, HeaderMap) {
        const KEPT: [HeaderName; 8] =
            [AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, LAST_MODIFIED, RETRY_AFTER, VARY];
        let from = self.response.headers();
        let kept = KEPT.into_iter().filter_map(|name| from.get(&name).map(|value| (name, value.clone())));
        (self.response.status(), kept.collect())
    }

    /// Byte for byte, as fast as npm takes it.
    pub(super) fn tarball(self) -> Response<Body> {
        let (status, mut headers) = self.header();
        for name in [CONTENT_LENGTH, CONTENT_ENCODING] {
            if let Some(value) = self.response.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let most = self.limits.install_bytes_max;
        let left = most.saturating_sub(self.usage.bytes.load(Ordering::Relaxed));
        if self.response.content_length().is_some_and(|length| length > left) {
            return self.refuse(Trouble::Exhausted(most));
        }
        let pieces = try_unfold(self, |mut flow: Self| async move {
            let piece = flow.piece().await.map_err(|trouble| flow.noted(trouble))?;
            Ok(piece.map(|bytes| (Frame::data(bytes), flow)))
        });
        respond(status, headers, StreamBody::new(pieces).boxed_unsync())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Trouble> {
        let chunk = self.chunk().await?;
        chunk.as_ref().map_or(Ok(()), |chunk| self.count(chunk.len()))?;
        Ok(chunk)
    }

    /// The answer to HEAD, or one that says "not modified".
    pub(super) fn headers_only(self) -> Response<Body> {
        let (status, headers) = self.header();
        respond(status, headers, full(Bytes::new()))
    }

    /// A registry's "no", in its own words: without its headers, of which some would make npm ask for a login.
    pub(super) async fn error(mut self, scrub: impl Fn(&str) -> String) -> Response<Body> {
        let status = self.response.status();
        let mut text = Vec::new();
        while text.len() < ERROR_BYTES_MAX {
            let Ok(Some(chunk)) = self.chunk().await else { break };
            text.extend_from_slice(&chunk);
        }
        let said = serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default();
        let said = ["error", "message", "reason"].iter().find_map(|field| said.get(field)?.as_str());
        let said = said.or(status.canonical_reason()).unwrap_or("no reason given");
        let text = scrub(&format!("{said} ({})", host(self.response.url())));
        self.usage.note(format!("{}: {text}", status.as_u16()));
        let mut response = error(status, &text);
        if let Some(value) = self.response.headers().get(RETRY_AFTER) {
            response.headers_mut().insert(RETRY_AFTER, value.clone());
        }
        response
    }

    pub(super) fn refuse(self, trouble: Trouble) -> Response<Body> {
        let trouble = self.noted(trouble);
        error(trouble.status(), &trouble.to_string())
    }
}

/// A JSON error as registries send it, which npm prints.
pub(super) fn error(status: StatusCode, text: &str) -> Response<Body> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    respond(status, headers, full(serde_json::json!({ "error": text }).to_string()))
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(super) fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

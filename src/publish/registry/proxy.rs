//! Serves one install after the other, or many at a time, each on its own listener.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{ALLOW, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::respond::{Body, Flow, Usage, error};
use super::route::{Target, route};
use super::upstream::{Upstream, request_headers};
use super::{Error, Limits, Registries};

/// For a request's head, and between two requests: npm keeps connections while it unpacks.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After a failed accept, which is most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the operator's registries to installs. Cheap to clone; what its clones share are connections and limits, no content.
#[derive(Clone)]
pub struct Proxy {
    upstream: Upstream,
    requests: Arc<Semaphore>,
}

/// How an install used the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub requests: u64,
    pub bytes: u64,
    /// What went wrong between the proxy and the registries, and what was refused: the first few, without credentials.
    pub problems: Vec<String>,
}

/// Of one install.
struct Install {
    upstream: Upstream,
    /// Of all installs, then of this one.
    requests: Arc<Semaphore>,
    own_requests: Arc<Semaphore>,
    usage: Arc<Usage>,
}

impl Proxy {
    /// # Errors
    /// TLS cannot be set up: certificates that are none, or no trusted ones at all.
    pub fn new(registries: Registries, limits: Limits) -> Result<Self, Error> {
        let requests = Arc::new(Semaphore::new(limits.requests_max));
        Ok(Self { upstream: Upstream::new(Arc::new(registries), Arc::new(limits))?, requests })
    }

    pub fn registries(&self) -> &Registries {
        &self.upstream.registries
    }

    /// Serves one install until it is stopped. On return every connection is closed. Where the listener is, in this network namespace
    /// or another, does not matter; npm must reach it as 127.0.0.1 and its own port.
    ///
    /// # Cancel safety
    /// Dropping the future closes every connection.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> Report {
        let limits = &self.upstream.limits;
        let port = listener.local_addr().map_or(0, |address| address.port());
        let install = Arc::new(Install {
            upstream: self.upstream.clone(),
            requests: Arc::clone(&self.requests),
            own_requests: Arc::new(Semaphore::new(limits.install_requests_max)),
            usage: Arc::new(Usage::new(port)),
        });
        let mut connections = JoinSet::new();
        loop {
            let room = connections.len() < limits.install_connections_max;
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if room => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&install), stream))),
                    Err(err) => {
                        tracing::warn!(%err, "accept a connection of npm");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
        install.report()
    }
}

async fn connection(install: Arc<Install>, stream: TcpStream) {
    let io = TokioIo::new(Connection::new(stream, install.upstream.limits.idle_timeout));
    let service = service_fn(|request| {
        let install = Arc::clone(&install);
        async move { Ok::<_, io::Error>(install.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service);
    if let Err(err) = served.await {
        tracing::debug!(%err, "npm's connection ended early");
    }
}

impl Install {
    /// The request's body is never read.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        if method != Method::GET && method != Method::HEAD {
            let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "packages can only be read here");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        self.usage.requests.fetch_add(1, Ordering::Relaxed);
        match route(&self.upstream.registries, request.uri().path()) {
            Ok(target) => self.fetch(&method, target, &request).await,
            Err(refusal) => self.refuse(refusal.status(), &refusal.to_string()),
        }
    }

    async fn fetch(&self, method: &Method, target: Target, request: &Request<Incoming>) -> Response<Body> {
        let Some(permits) = self.permits().await else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, "too many requests to registries are under way");
        };
        let (url, packument) = match target {
            Target::Packument(url) => (url, true),
            Target::Tarball(url) => (url, false),
        };
        let response = match self.upstream.get(method, url, &request_headers(request.headers())).await {
            Ok(response) => response,
            Err(failure) => return self.refuse(failure.status(), &failure.to_string()),
        };
        let limits = Arc::clone(&self.upstream.limits);
        let flow = Flow { response, usage: Arc::clone(&self.usage), limits, _permits: permits };
        match flow.response.status() {
            StatusCode::OK if method == Method::HEAD => flow.headers_only(),
            StatusCode::NOT_MODIFIED => flow.headers_only(),
            StatusCode::OK if packument => flow.packument().await,
            StatusCode::OK => flow.tarball(),
            status if status.is_client_error() || status.is_server_error() => {
                flow.error(|text| self.upstream.registries.scrub(text)).await
            }
            // Neither a success that has a body to install, nor an error that npm knows.
            status => self.refuse(StatusCode::BAD_GATEWAY, &format!("the registry answered with status {status}")),
        }
    }

    /// As long as a registry may take to answer, a place may take to become free.
    async fn permits(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let both = async {
            // The install's own first: while it waits for that, it takes nothing from the others.
            let own = Arc::clone(&self.own_requests).acquire_owned().await.ok()?;
            let shared = Arc::clone(&self.requests).acquire_owned().await.ok()?;
            Some([own, shared])
        };
        timeout(self.upstream.limits.header_timeout, both).await.ok().flatten()
    }

    fn refuse(&self, status: StatusCode, text: &str) -> Response<Body> {
        self.usage.note(text.to_owned());
        error(status, text)
    }

    fn report(&self) -> Report {
        let Usage { requests, bytes, .. } = &*self.usage;
        let (requests, bytes) = (requests.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
        Report { requests, bytes, problems: self.usage.problems() }
    }
}

//! Every number that bounds the proxy.

use std::time::Duration;

/// Bounds of what npm can make the service do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests to registries at one time, of all installs together. Those beyond wait.
    pub requests_max: usize,
    /// The same of one install, so that one cannot starve the others. npm itself opens 15.
    pub install_requests_max: usize,
    /// Connections of one install; those beyond wait to be accepted.
    pub install_connections_max: usize,
    /// What one install may be sent, headers aside.
    pub install_bytes_max: u64,
    /// Of one packument, unpacked.
    pub packument_bytes_max: u64,
    /// To reach a registry (or the HTTP proxy before it).
    pub connect_timeout: Duration,
    /// From a request's departure to its answer's headers. Shorter than npm's `fetch-timeout`, so that npm hears of it.
    pub header_timeout: Duration,
    /// Between two pieces of an answer, and for npm to take one.
    pub idle_timeout: Duration,
    pub redirects_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 64,
            install_requests_max: 20,
            install_connections_max: 64,
            install_bytes_max: 2 << 30,
            packument_bytes_max: 128 << 20,
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            redirects_max: 5,
        }
    }
}

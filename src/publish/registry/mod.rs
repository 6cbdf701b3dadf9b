//! The registry proxy: an install's only route, and the place that holds the operator's credentials.
//!
//! `npm install` runs with an empty network namespace. Inside it listens one socket, whose descriptor the service holds: this module
//! serves it. A tenant's npm asks for packuments and tarballs there; the proxy asks the operator's registries, with the operator's
//! credentials, certificates and HTTP proxy, none of which ever enter the sandbox. Whatever arrives from inside is hostile: only GET
//! and HEAD of things that look like packages below a configured registry are served, and everything has a limit.
//!
//! It starts nothing, caches nothing (a cache that tenants share can be poisoned) and knows no apps. Start reading at [`Registries`]
//! (what the operator configured), then `route.rs` (a request's path → a place), `upstream.rs` (the request that leaves), `respond.rs`
//! and `packument.rs` (what npm gets) and `proxy.rs` (connections and their limits).

mod address;
mod connection;
mod credentials;
mod limits;
mod lockfile;
mod npm_side;
mod npmrc;
mod outbound;
mod packument;
mod proxy;
mod registries;
mod respond;
mod rewrite;
mod route;
#[cfg(test)]
mod tests;
mod upstream;

use std::path::PathBuf;

pub use limits::Limits;
pub use proxy::{Proxy, Report};
pub use registries::Registries;

/// What is wrong with the operator's configuration, or a tenant's lockfile. Never holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The value is left out on purpose: it may hold a password.
    #[error("npm configuration: {key} is not usable: {problem}")]
    Setting { key: String, problem: String },
    #[error(
        "npm configuration: set up TLS for registries: {0} (where the system has no certificates: install ca-certificates, or set `cafile`)"
    )]
    Tls(String),
    #[error("{url} is not below a registry that this server is configured for")]
    Foreign { url: String },
    #[error("the lockfile is not JSON: {0}")]
    Lockfile(String),
}

//! The HTTP side of the port.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::time::timeout;

use crate::drain::Drain;
use crate::store::Store;

/// Less than a kubelet waits for a probe that its user gave some time.
const STORE_PATIENCE: Duration = Duration::from_millis(800);

/// `/healthz`: alive. `/readyz`: takes new work, and has its store.
pub(super) fn router(drain: Drain, store: Store) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready)).with_state((drain, store))
}

async fn ready(State((drain, store)): State<(Drain, Store)>) -> (StatusCode, &'static str) {
    if drain.is_leaving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
    }
    match timeout(STORE_PATIENCE, store.ping()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n"),
        Ok(Err(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready: the store does not answer\n"),
    }
}

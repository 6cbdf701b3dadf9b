//! The HTTP side of the port.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::drain::Drain;

/// `/healthz`: alive. `/readyz`: takes new work.
pub(super) fn router(drain: Drain) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready)).with_state(drain)
}

async fn ready(State(drain): State<Drain>) -> (StatusCode, &'static str) {
    if drain.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") } else { (StatusCode::OK, "ready\n") }
}

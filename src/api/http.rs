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
    if drain.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

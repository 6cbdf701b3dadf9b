//! The admin listener: a second port, in plain text and without credentials, for those who watch the service from beside it. A
//! kubelet's gRPC probes know no TLS and send no token, and Prometheus needs none of the rights that an operator's token has.

use axum::Router;
use axum::routing::get;
use tonic::service::Routes;

use super::{Measures, http, measures};
use crate::drain::Drain;
use crate::store::Store;

/// `/metrics`, `/healthz`, `/readyz` and grpc.health.v1, and nothing else.
pub fn routes(drain: Drain, store: Store, counted: Measures) -> Routes {
    let health = Routes::new(drain.health_service()).prepare().into_axum_router();
    let metrics = Router::new().route("/metrics", get(measures::open)).with_state(counted);
    Routes::from(http::router(drain, store).merge(metrics).merge(health.reset_fallback()))
}

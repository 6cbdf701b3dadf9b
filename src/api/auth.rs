//! One auth layer for everything that needs a token: metadata (or header) `authorization: Bearer …`.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;

use super::status::with_reason;

/// The operator's token. Kept as a hash, whose comparison takes the same time wherever two differ.
#[derive(Clone)]
pub struct OperatorToken(blake3::Hash);

impl OperatorToken {
    pub fn new(token: &str) -> Self {
        Self(blake3::hash(token.as_bytes()))
    }

    fn accepts(&self, request: &Request) -> bool {
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        token.is_some_and(|token| blake3::hash(token.trim().as_bytes()) == self.0)
    }
}

/// Without a token everything is open: the configuration allows that on loopback alone.
pub(super) fn guard(router: Router, token: Option<OperatorToken>) -> Router {
    match token {
        Some(token) => router.layer(from_fn_with_state(token, check)),
        None => router,
    }
}

async fn check(State(token): State<OperatorToken>, request: Request, next: Next) -> Response {
    if token.accepts(&request) {
        return next.run(request).await;
    }
    let message = "send the operator's token as `authorization: Bearer …`";
    let status: Status = with_reason(tonic::Code::Unauthenticated, "UNAUTHENTICATED", message);
    status.into_http()
}

//! What every call has: an id that the caller and the log know it by, a line about its end, and its place in the metrics.
//!
//! The id comes in `x-request-id` if that is a usable one, else it is made, and it goes back in the header of that name (of gRPC: the
//! initial metadata). It stands on every line that is logged on the call's behalf.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use prost::Message;
use prost_types::FileDescriptorSet;
use tracing::Instrument;
use uuid::Uuid;

use crate::metrics::{OTHER, series};
use crate::proto;

/// The id of a call, among its request's extensions.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub Arc<str>);

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Paths of our gRPC methods: what else is called is nobody's to name.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let descriptors = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap_or_default();
    let of_file = descriptors.file.iter().flat_map(|file| {
        let of_service = move |service: &prost_types::ServiceDescriptorProto| {
            let path = format!("/{}.{}", file.package(), service.name());
            service.method.iter().map(|method| format!("{path}/{}", method.name())).collect::<Vec<_>>()
        };
        file.service.iter().flat_map(of_service)
    });
    of_file.collect()
});

pub(super) fn follow(router: Router) -> Router {
    router.layer(from_fn(answer))
}

async fn answer(mut request: Request, next: Next) -> Response {
    let id: Arc<str> = request_id(request.headers()).into();
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));
    let method = label(&request);
    let span = tracing::info_span!("request", request_id = %id);
    let began = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let (took, code) = (began.elapsed(), code(&response));
    series().served(&method, &code, took);
    span.in_scope(|| tracing::debug!(method, code, ?took, "a call was answered"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// One that would not be safe in a log, or is long, is replaced: no call fails for it.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_usable(id));
    given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

fn is_usable(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/+=".contains(c);
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.chars().all(plain)
}

fn label(request: &Request) -> String {
    let path = request.uri().path();
    if METHODS.contains(path) {
        return path.trim_start_matches('/').to_owned();
    }
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    match request.extensions().get::<MatchedPath>() {
        // Whatever comes behind a wildcard is not ours.
        Some(route) if known.contains(request.method()) && !route.as_str().contains('*') => {
            format!("{} {}", request.method(), route.as_str())
        }
        _ => OTHER.to_owned(),
    }
}

/// Where a gRPC call went well, or began to stream, its status comes behind the body.
fn code(response: &Response) -> String {
    let headers = response.headers();
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/grpc") {
        return response.status().as_u16().to_string();
    }
    let status = headers.get("grpc-status").map_or(tonic::Code::Ok, |value| tonic::Code::from_bytes(value.as_bytes()));
    (status as i32).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_if_it_is_short_and_plain() {
        let taken = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, given.parse().expect("a header"));
            request_id(&headers) == given
        };
        for good in ["a", "0af7651916cd43dd8448eb211c80319c", "gw-1:abc/2+3=", &"x".repeat(128)] {
            assert!(taken(good), "{good}");
        }
        for bad in ["", "a b", "a\tb", "{\"x\":1}", "a,b", &"x".repeat(129)] {
            assert!(!taken(bad), "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn labels_come_from_a_closed_set() {
        let of = |method: &str, path: &str| {
            label(&Request::builder().method(method).uri(path).body(axum::body::Body::empty()).expect("a request"))
        };
        let invoke = "chatfunctions.v1.InvocationService/Invoke";
        assert_eq!(of("POST", &format!("/{invoke}")), invoke);
        assert_eq!(of("POST", "/chatfunctions.v1.InvocationService/Nonsense"), "other");
        assert_eq!(of("BREW", "/coffee"), "other");
    }
}

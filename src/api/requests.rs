//! What every call has: an id that the caller and the log know it by, a line about its end, and its place in the metrics.
//!
//! The id comes in `x-request-id` if that is a usable one, else it is made, and it goes back in the header of that name (of gRPC: the
//! initial metadata). It stands on every line that is logged on the call's behalf. So does the trace, which comes in `traceparent` and
//! `tracestate`, and goes back in the former. And a service that drains waits for the calls under way.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use prost::Message;
use prost_types::FileDescriptorSet;
use tracing::Instrument;
use uuid::Uuid;

use crate::drain::Drain;
use crate::metrics::{OTHER, series};
use crate::model::TraceContext;
use crate::proto;
use crate::traces::{self, Kind, Span};

/// The id of a call, among its request's extensions.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub Arc<str>);

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 128;
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Of a `tracestate` that is looked at: three times what it may have.
const TRACESTATE_BYTES_MAX: usize = 1536;

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

#[derive(Clone)]
pub(super) struct Following {
    pub drain: Drain,
    /// The service does not end before these calls are answered.
    pub awaited: bool,
}

pub(super) fn follow(following: Following, router: Router) -> Router {
    router.layer(from_fn_with_state(following, answer))
}

async fn answer(State(following): State<Following>, mut request: Request, next: Next) -> Response {
    let _awaited = following.awaited.then(|| following.drain.call());
    let keeps_connection = request.version() < Version::HTTP_2;
    let id: Arc<str> = request_id(request.headers()).into();
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));
    let method = label(&request);
    let mut traced = trace(&request, &method);
    traced.record(|span| {
        span.set("chatfn.request_id", &*id);
    });
    let span = tracing::info_span!("request", request_id = %id, trace_id = tracing::field::Empty);
    if let Some(trace_id) = traced.trace_id() {
        span.record("trace_id", tracing::field::display(trace_id));
    }
    let began = Instant::now();
    let work = next.run(request).instrument(span.clone());
    let mut response = traces::scope(traced.context().clone(), work).await;
    let (took, code) = (began.elapsed(), code(&response));
    series().served(&method, &code, took);
    tell_end(&mut traced, &response, &code);
    span.in_scope(|| tracing::debug!(method, code, ?took, "a call was answered"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if keeps_connection && following.drain.is_leaving() {
        // A keep-alive connection that is closed between two requests may cost its client the second. HTTP/2 has GOAWAY.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if traced.trace_id().is_some()
        && let Ok(value) = HeaderValue::from_str(&traced.context().traceparent())
    {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    response
}

/// Calls of the API have spans; probes, and whoever reads metrics, only pass their context through.
fn trace(request: &Request, method: &str) -> Span {
    let given = trace_context(request.headers());
    let path = request.uri().path();
    if METHODS.contains(path) {
        let mut span = Span::arriving(given, Kind::Server, method);
        span.record(|span| {
            span.set("rpc.system", "grpc");
            if let Some((service, name)) = method.split_once('/') {
                span.set("rpc.service", service).set("rpc.method", name);
            }
        });
        return span;
    }
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Some(route) = route.filter(|route| method != OTHER && route.starts_with("/v1/")) else {
        return Span::passing(given);
    };
    let mut span = Span::arriving(given, Kind::Server, method);
    span.record(|span| {
        span.set("http.request.method", request.method().as_str()).set("http.route", route);
    });
    span
}

/// Failures of ours alone: what a caller did wrong is no error of a server's span.
fn tell_end(span: &mut Span, response: &Response, code: &str) {
    span.record(|span| {
        let number = code.parse::<u32>().unwrap_or_default();
        let failed = if is_grpc(response) {
            span.set("rpc.grpc.status_code", number);
            use tonic::Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
            matches!(
                tonic::Code::from(number.cast_signed()),
                Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss
            )
        } else {
            span.set("http.response.status_code", number);
            response.status().is_server_error()
        };
        if failed {
            span.failed(code);
        }
    });
}

/// A caller's. Two of them are none: nobody can say which one is meant.
fn trace_context(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let mut state = String::new();
    for value in headers.get_all(TRACESTATE) {
        let value = value.to_str().ok()?;
        if state.len() + value.len() > TRACESTATE_BYTES_MAX {
            break;
        }
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(value);
    }
    TraceContext::parse(parent.to_str().ok()?, Some(&state))
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
    if !is_grpc(response) {
        return response.status().as_u16().to_string();
    }
    let status = response
        .headers()
        .get("grpc-status")
        .map_or(tonic::Code::Ok, |value| tonic::Code::from_bytes(value.as_bytes()));
    (status as i32).to_string()
}

fn is_grpc(response: &Response) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|of| of.starts_with("application/grpc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_trace_is_taken_if_there_is_one() {
        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let taken = |given: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(*name, HeaderValue::from_bytes(value).expect("a header"));
            }
            trace_context(&headers).map(|context| (context.traceparent(), context.tracestate().map(str::to_owned)))
        };
        let with = |state: Option<&str>| Some((PARENT.to_owned(), state.map(str::to_owned)));
        let parent = (TRACEPARENT, PARENT.as_bytes());
        assert_eq!(taken(&[parent]), with(None));
        assert_eq!(taken(&[parent, (TRACESTATE, b"a=1"), (TRACESTATE, b"b=2")]), with(Some("a=1,b=2")));
        assert_eq!(taken(&[parent, (TRACESTATE, b"A=1")]), with(None));
        assert_eq!(taken(&[parent, parent]), None);
        assert_eq!(taken(&[(TRACEPARENT, b"\xff"), (TRACESTATE, b"a=1")]), None);
        assert_eq!(taken(&[(TRACESTATE, b"a=1")]), None);
    }

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

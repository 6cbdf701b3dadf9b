//! An OpenTelemetry collector, which keeps what it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as wire};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::harness::wait_until;

/// As it came, in words.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty: it has none.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    pub state: String,
    pub attributes: BTreeMap<String, String>,
    /// Trace and span id.
    pub links: Vec<(String, String)>,
    pub failed: bool,
    pub began: u64,
    pub ended: u64,
    /// Of the service that sent it.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// Empty: there is none.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().expect("lock");
        for of_service in request.into_inner().resource_spans {
            let resource = words(of_service.resource.unwrap_or_default().attributes);
            let spans = of_service.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
            kept.extend(spans.map(|span| read(span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

pub struct Collector {
    pub address: SocketAddr,
    kept: Kept,
    _stop: DropGuard,
}

impl Collector {
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a port"), None)
    }

    /// In the clear, unless it is given a certificate.
    pub fn on(listener: TcpListener, tls: Option<ServerTlsConfig>) -> Self {
        let (address, kept, stop) =
            (listener.local_addr().expect("an address"), Kept::default(), CancellationToken::new());
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).expect("a certificate");
        }
        let router = server.add_service(TraceServiceServer::new(kept.clone()));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(router.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped));
        Self { address, kept, _stop: stop.drop_guard() }
    }

    /// The setting that sends traces here.
    pub fn setting(&self) -> String {
        format!("traces.otlp_endpoint=http://{}", self.address)
    }

    pub fn all(&self) -> Vec<Span> {
        self.kept.0.lock().expect("lock").clone()
    }

    pub fn of(&self, trace: &str) -> Vec<Span> {
        self.all().into_iter().filter(|span| span.trace == trace).collect()
    }

    /// A trace's, once so many with this name have come.
    pub async fn until(&self, trace: &str, name: &str, count: usize) -> Vec<Span> {
        wait_until(&format!("{count} spans {name:?} of the trace {trace}"), async || {
            self.of(trace).iter().filter(|span| span.name == name).count() >= count
        })
        .await;
        self.of(trace)
    }
}

/// The one with this name.
pub fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let [span] = found[..] else { panic!("not one {name:?} among {spans:#?}") };
    span
}

fn read(span: wire::Span, resource: &BTreeMap<String, String>) -> Span {
    Span {
        kind: span.kind(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        state: span.trace_state,
        attributes: words(span.attributes),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        failed: span.status.is_some_and(|status| status.code() == StatusCode::Error),
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
        resource: resource.clone(),
    }
}

fn words(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let word = |attribute: KeyValue| {
        let text = match attribute.value.and_then(|value| value.value) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(flag)) => flag.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key, text)
    };
    attributes.into_iter().map(word).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Sends spans to a collector, many at a time. What it cannot send is lost, and said once in a while.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use super::span::Ended;
use super::{Error, Kind, Settings, Value, tracer};
use crate::model::TraceContext;

const BATCH_MAX: usize = 512;
/// A span is sent so long after its end, at the latest, unless the collector is slow.
const PAUSE: Duration = Duration::from_millis(500);
/// For one batch, with what is tried again.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same trouble is logged so often, at most.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Sender {
    exporter: SpanExporter,
    queue: mpsc::Receiver<Box<Ended>>,
    scope: InstrumentationScope,
    /// Not sent since the last complaint, and why.
    lost: u64,
    cause: Option<String>,
    complained: Option<Instant>,
}

impl Sender {
    pub fn new(settings: &Settings, queue: mpsc::Receiver<Box<Ended>>) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Endpoint(problem);
        // `OTEL_EXPORTER_OTLP_HEADERS`, for collectors that want a token, is read here.
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel(&settings.endpoint)?)
            .with_timeout(SEND_TIMEOUT)
            .build()
            .map_err(|err| wrong(err.to_string()))?;
        exporter.set_resource(&resource(&settings.service_name));
        let scope = InstrumentationScope::builder("chatfn").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { exporter, queue, scope, lost: 0, cause: None, complained: None })
    }

    /// Until it is stopped, and then as long as something is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let stopped = stop.is_cancelled();
            while batch.len() < BATCH_MAX
                && let Ok(span) = self.queue.try_recv()
            {
                batch.push(*span);
            }
            if batch.is_empty() {
                if stopped {
                    break;
                }
                tokio::select! {
                    span = self.queue.recv() => batch.extend(span.map(|span| *span)),
                    () = stop.cancelled() => continue,
                }
            }
            if !stopped && batch.len() < BATCH_MAX {
                // Others will come: a call rarely has one span alone.
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    () = stop.cancelled() => {}
                }
                while batch.len() < BATCH_MAX
                    && let Ok(span) = self.queue.try_recv()
                {
                    batch.push(*span);
                }
            }
            self.send(&mut batch).await;
        }
    }

    async fn send(&mut self, batch: &mut Vec<Ended>) {
        let spans: Vec<SpanData> = batch.drain(..).map(|span| self.data(span)).collect();
        let count = spans.len() as u64;
        if let Err(err) = self.exporter.export(spans).await {
            self.lost += count;
            self.cause = Some(err.to_string());
        }
        let overflowed = tracer().map_or(0, |tracer| tracer.lost.swap(0, Ordering::Relaxed));
        if overflowed > 0 {
            self.lost += overflowed;
            self.cause.get_or_insert_with(|| "they came faster than they could be sent".to_owned());
        }
        self.complain();
    }

    fn complain(&mut self) {
        if self.complained.is_some_and(|at| at.elapsed() < SAID_AGAIN_AFTER) {
            return;
        }
        if let Some(cause) = self.cause.take() {
            tracing::warn!(spans = self.lost, "traces: spans were lost, and nothing else: {cause}");
            (self.lost, self.complained) = (0, Some(Instant::now()));
        }
    }

    fn data(&self, span: Ended) -> SpanData {
        let mut links = SpanLinks::default();
        links.links = span.links.iter().map(|context| Link::with_context(context_of(context, true))).collect();
        let (parent, remote) = span.parent.map_or(([0; 8], false), |(id, remote)| (id.to_bytes(), remote));
        SpanData {
            span_context: context_of(&span.context, false),
            parent_span_id: opentelemetry::SpanId::from_bytes(parent),
            parent_span_is_remote: remote,
            span_kind: match span.kind {
                Kind::Server => SpanKind::Server,
                Kind::Internal => SpanKind::Internal,
                Kind::Producer => SpanKind::Producer,
                Kind::Consumer => SpanKind::Consumer,
            },
            name: Cow::Owned(span.name),
            start_time: span.began,
            end_time: span.ended.unwrap_or(span.began),
            attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: span.failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn attribute(key: &'static str, value: Value) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(key, text),
        Value::Number(number) => KeyValue::new(key, number),
        Value::Flag(flag) => KeyValue::new(key, flag),
    }
}

fn context_of(context: &TraceContext, remote: bool) -> SpanContext {
    let flags = if context.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    // Checked by our own rules: where OpenTelemetry's differ, the spans go without.
    let state = context.tracestate().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    SpanContext::new(
        opentelemetry::TraceId::from_bytes(context.trace_id.to_bytes()),
        opentelemetry::SpanId::from_bytes(context.span_id.to_bytes()),
        flags,
        remote,
        state,
    )
}

/// `OTEL_RESOURCE_ATTRIBUTES` may add to it.
fn resource(service_name: &str) -> Resource {
    let instance = uuid::Uuid::new_v4().to_string();
    Resource::builder()
        .with_service_name(service_name.to_owned())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .build()
}

/// Connects with the first spans, and again whenever it must.
fn channel(endpoint: &str) -> Result<Channel, Error> {
    let wrong = |err: tonic::transport::Error| Error::Endpoint(err.to_string());
    let mut channel = Channel::from_shared(endpoint.to_owned())
        .map_err(|err| Error::Endpoint(err.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(SEND_TIMEOUT);
    if endpoint.starts_with("https://") {
        channel = channel.tls_config(ClientTlsConfig::new().ca_certificates(roots())).map_err(wrong)?;
    }
    Ok(channel.connect_lazy())
}

/// Those that this machine trusts, or `SSL_CERT_FILE` names.
fn roots() -> Vec<Certificate> {
    let pem = |der: &[u8]| format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64.encode(der));
    rustls_native_certs::load_native_certs().certs.iter().map(|der| Certificate::from_pem(pem(der))).collect()
}

//! Traces: a caller's context goes in, through the queue, into the function and out again, and spans go to a real collector.

use std::time::Duration;

use chatfn::proto::invocation_service_client::InvocationServiceClient;
use chatfn::proto::{self};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::transport::{Identity, ServerTlsConfig};

use crate::certificates::Ca;
use crate::collector::{Collector, Span, named};
use crate::events::{accept, results, until_dead};
use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestApp, TestServer, binary, request, wait_until};
use crate::publish_request::Publish;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const TELLS: &str = "export const handleEvent = (event, context) => context.trace";
const FAILS_ONCE: &str = "export const handleEvent = (event, context) => {
    if (context.invocation.attempt === 1) throw new Error('a secret of the app');
    return context.trace;
};";
const INVOKE: &str = "chatfunctions.v1.InvocationService/Invoke";

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// A call with these headers; the answer with the header that came back.
async fn call(
    app: &TestApp,
    request: proto::InvokeRequest,
    headers: &[(&'static str, &str)],
) -> (proto::InvokeResponse, Option<String>) {
    let mut request = tonic::Request::new(request);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("ascii"));
    }
    let answer = InvocationServiceClient::new(app.channel()).invoke(request).await.expect("an answer");
    let header = answer.metadata().get("traceparent").map(|value| value.to_str().expect("ascii").to_owned());
    (answer.into_inner(), header)
}

fn login(app: &TestApp) -> proto::InvokeRequest {
    app.call(LOGIN, r#"{"username":"jane"}"#)
}

async fn with_collector(more: &[&str]) -> (Collector, TestServer) {
    let collector = Collector::start().await;
    let setting = collector.setting();
    let settings: Vec<&str> = std::iter::once(setting.as_str()).chain(more.iter().copied()).collect();
    let server = TestServer::with(&settings).await;
    (collector, server)
}

fn trace_of(value: &Value) -> (&str, &str, bool) {
    let text = |name: &str| value[name].as_str().expect("a text");
    (text("traceId"), text("spanId"), value["sampled"].as_bool().expect("a flag"))
}

/// Nothing that callers or tenants wrote.
fn tell_no_secrets(spans: &[Span]) {
    let text = format!("{spans:?}");
    for secret in ["jane", "a secret of the app"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_blocking_calls_spans_are_a_chain_from_its_caller_into_the_function() {
    let (collector, server) = with_collector(&["traces.service_name=chat"]).await;
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    let headers = [("traceparent", &*parent("01")), ("tracestate", "vendor=1,other=2")];
    let (answer, header) = call(&app, login(&app), &headers).await;
    let spans = collector.until(TRACE, INVOKE, 1).await;
    tell_no_secrets(&spans);

    let server_span = named(&spans, INVOKE);
    assert_eq!((server_span.kind, server_span.parent.as_str()), (SpanKind::Server, CALLER));
    let rpc =
        ["rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code"].map(|name| server_span.attribute(name));
    assert_eq!(rpc, ["grpc", "chatfunctions.v1.InvocationService", "Invoke", "0"]);
    assert_eq!(server_span.state, "vendor=1,other=2");
    assert_eq!(server_span.resource["service.name"], "chat");
    assert_eq!(header, Some(format!("00-{TRACE}-{}-01", server_span.id)));

    let invoke = named(&spans, "invoke");
    assert_eq!((invoke.kind, &invoke.parent), (SpanKind::Internal, &server_span.id));
    let of_function = ["faas.version", "faas.invocation_id", "chatfn.app.id", "chatfn.trigger_type", "chatfn.outcome"];
    let expected = ["1", &answer.invocation_id, "demo", LOGIN, "result"];
    assert_eq!(of_function.map(|name| invoke.attribute(name)), expected);
    assert_eq!(invoke.attribute("faas.coldstart"), answer.cold_start.to_string());
    let (wait, run) = (named(&spans, "worker wait"), named(&spans, "run"));
    assert_eq!((&wait.parent, &run.parent), (&invoke.id, &invoke.id));
    assert!(wait.ended <= run.began && invoke.began <= wait.began && run.ended <= invoke.ended);
    assert!(spans.iter().all(|span| span.began <= span.ended && !span.failed));

    let seen = answer.json();
    assert_eq!(trace_of(&seen), (TRACE, run.id.as_str(), true));
    assert_eq!(seen["traceparent"], format!("00-{TRACE}-{}-01", run.id));
    assert_eq!(seen["tracestate"], "vendor=1,other=2");
    assert_eq!(app.invocation(&answer.invocation_id).await.trace_id, TRACE);
    server.stop().await;
}

#[tokio::test]
async fn a_cold_start_is_a_part_of_the_wait_and_a_failure_is_told_by_its_kind() {
    let (collector, server) = with_collector(&["reserve_workers=0"]).await;
    let source = "export const handleEvent = () => { throw new Error('a secret of the app') }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    let mut again = request("demo", &[(&format!("functions/{LOGIN}.ts"), source)]);
    again.activate = Some(false);
    server.publish(again).await.expect("publishes");
    // A version that nobody keeps warm.
    let (answer, _) =
        call(&app, proto::InvokeRequest { version: Some(2), ..login(&app) }, &[("traceparent", &*parent("01"))]).await;
    assert!(answer.cold_start);
    let spans = collector.until(TRACE, INVOKE, 1).await;
    tell_no_secrets(&spans);
    let (wait, start) = (named(&spans, "worker wait"), named(&spans, "worker start"));
    assert_eq!((&start.parent, wait.attribute("faas.coldstart")), (&wait.id, "true"));
    assert!(start.ended <= wait.ended && start.began < start.ended);
    for span in [named(&spans, "run"), named(&spans, "invoke")] {
        assert!(span.failed && span.attribute("error.type") == "THROWN", "{span:?}");
    }
    assert!(!named(&spans, INVOKE).failed, "a tenant's failure is an answer like any other");
    server.stop().await;
}

#[tokio::test]
async fn an_events_attempts_are_in_its_callers_trace() {
    let (collector, server) = with_collector(&[]).await;
    let app = Publish::sent("demo", FAILS_ONCE).retry(2, Duration::from_millis(1)).on(&server).await;
    let headers = [("traceparent", &*parent("01")), ("tracestate", "vendor=1")];
    let (answer, _) = call(&app, app.call(SENT, SENT_EVENT), &headers).await;
    assert!(answer.invocation_id.is_empty(), "it was accepted");
    collector.until(TRACE, "process", 2).await;
    let spans = collector.until(TRACE, INVOKE, 1).await;
    tell_no_secrets(&spans);

    let server_span = named(&spans, INVOKE);
    let enqueue = named(&spans, "enqueue");
    assert_eq!((enqueue.kind, &enqueue.parent, &*server_span.parent), (SpanKind::Producer, &server_span.id, CALLER));
    let wait = named(&spans, "queue wait");
    assert_eq!(wait.parent, enqueue.id);
    let of = |name: &str| -> Vec<&Span> { spans.iter().filter(|span| span.name == name).collect() };
    let (attempts, runs) = (of("process"), of("run"));
    for (number, (attempt, run)) in (1..).zip(attempts.iter().zip(&runs)) {
        assert_eq!((attempt.kind, &attempt.parent, &run.parent), (SpanKind::Consumer, &enqueue.id, &attempt.id));
        assert_eq!((attempt.attribute("chatfn.attempt"), attempt.failed), (&*format!("{number}"), number == 1));
        assert_eq!(attempt.attribute("messaging.message.id"), enqueue.attribute("messaging.message.id"));
        assert!(wait.ended <= attempt.began);
    }
    assert_eq!(attempts[0].attribute("error.type"), "THROWN");
    wait_until("it succeeded", async || results(&app).await.len() == 1).await;
    let seen: Value = serde_json::from_str(&results(&app).await[0]).expect("JSON");
    assert_eq!((trace_of(&seen), seen["tracestate"].as_str()), ((TRACE, runs[1].id.as_str(), true), Some("vendor=1")));
    assert!(app.history().await.iter().all(|invocation| invocation.trace_id == TRACE));
    server.stop().await;
}

#[tokio::test]
async fn a_redriven_event_stays_in_its_trace() {
    let (collector, server) = with_collector(&[]).await;
    let throws = "export const handleEvent = () => { throw new Error('no') }";
    let app = Publish::sent("demo", throws).retry(1, Duration::from_millis(1)).on(&server).await;
    let (answer, _) = call(&app, app.call(SENT, SENT_EVENT), &[("traceparent", &*parent("01"))]).await;
    let Some(proto::invoke_response::Outcome::Accepted(accepted)) = answer.outcome else { panic!("{answer:?}") };
    until_dead(&app).await;
    collector.until(TRACE, "process", 1).await;
    let redrive = proto::RedriveDeadLettersRequest {
        app_id: app.id.clone(),
        event_ids: vec![accepted.event_id],
        ..Default::default()
    };
    server.events().redrive_dead_letters(redrive).await.expect("redriven");
    let spans = collector.until(TRACE, "process", 2).await;
    let enqueue = named(&spans, "enqueue");
    let attempts = spans.iter().filter(|span| span.name == "process");
    assert!(attempts.into_iter().all(|span| span.parent == enqueue.id));
    assert_eq!(spans.iter().filter(|span| span.name == "queue wait").count(), 2);
    server.stop().await;
}

#[tokio::test]
async fn events_that_run_together_are_linked_to_the_first() {
    let (collector, server) = with_collector(&[]).await;
    let source = "export const handleEvent = (events, context) => [events.length, context.trace.traceId]";
    let app = Publish::sent("demo", source).batch(2, Duration::from_secs(600)).on(&server).await;
    let other = TRACE.replace('4', "5");
    for trace in [TRACE, &other] {
        let mut request = app.call(SENT, SENT_EVENT);
        request.ordering_key = "one".to_owned();
        call(&app, request, &[("traceparent", &*format!("00-{trace}-{CALLER}-01"))]).await;
    }
    let spans = collector.until(TRACE, "process", 1).await;
    collector.until(&other, "enqueue", 1).await;
    let linked = named(&collector.of(&other), "enqueue").id.clone();
    let process = named(&spans, "process");
    assert_eq!((&process.links, process.attribute("messaging.batch.message_count")), (&vec![(other, linked)], "2"));
    assert_eq!(results(&app).await, [json!([2, TRACE]).to_string()]);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_traceparent_begins_a_new_trace() {
    let (collector, server) = with_collector(&[]).await;
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    let zeros = format!("00-{}-{CALLER}-01", "0".repeat(32));
    for bad in ["nonsense", &zeros, &parent("1"), &parent("01").replace("00-4", "ff-4")] {
        let (answer, header) = call(&app, login(&app), &[("traceparent", bad), ("tracestate", "a=1")]).await;
        let seen = answer.json();
        let (trace, _, sampled) = trace_of(&seen);
        assert!(sampled && trace != TRACE && seen.get("tracestate").is_none(), "{seen}");
        let spans = collector.until(trace, INVOKE, 1).await;
        assert_eq!(named(&spans, INVOKE).parent, "", "it is the first of its trace");
        assert_eq!(header, Some(format!("00-{trace}-{}-01", named(&spans, INVOKE).id)));
    }
    let later = parent("01").replacen("00", "cc", 1) + "-more";
    let (answer, _) = call(&app, login(&app), &[("traceparent", &later)]).await;
    assert_eq!(trace_of(&answer.json()).0, TRACE, "a later version is read as this one");
    server.stop().await;
}

#[tokio::test]
async fn what_its_caller_does_not_record_is_passed_on_and_not_sent() {
    let (collector, server) = with_collector(&["traces.sample_ratio=0"]).await;
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    let (answer, header) = call(&app, login(&app), &[("traceparent", &*parent("00")), ("tracestate", "a=1")]).await;
    let seen = answer.json();
    assert_eq!((trace_of(&seen), seen["tracestate"].as_str()), ((TRACE, CALLER, false), Some("a=1")));
    assert_eq!((seen["traceparent"].as_str(), header), (Some(&*parent("00")), Some(parent("00"))));
    let (unasked, header) = call(&app, login(&app), &[]).await;
    let unasked = unasked.json();
    assert!(
        !trace_of(&unasked).2 && header.is_some_and(|header| header.ends_with("-00")),
        "none of the new ones is taken"
    );
    // The caller's word counts more than the ratio; and what was before it would have come before it.
    let other = TRACE.replace('4', "5");
    call(&app, login(&app), &[("traceparent", &*format!("00-{other}-{CALLER}-01"))]).await;
    collector.until(&other, INVOKE, 1).await;
    assert!(collector.all().iter().all(|span| span.trace == other), "{:?}", collector.all());
    server.stop().await;
}

#[tokio::test]
async fn without_a_collector_a_callers_context_goes_on_and_no_other_is_told() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    let (answer, header) = call(&app, login(&app), &[("traceparent", &*parent("01")), ("tracestate", "a=1")]).await;
    assert_eq!((trace_of(&answer.json()), header), ((TRACE, CALLER, true), Some(parent("01"))));
    assert_eq!(app.invocation(&answer.invocation_id).await.trace_id, TRACE);
    let (answer, header) = call(&app, login(&app), &[]).await;
    let seen = answer.json();
    let (trace, span, sampled) = trace_of(&seen);
    assert!(trace.len() == 32 && span.len() == 16 && !sampled, "{seen}");
    assert_eq!((header, app.invocation(&answer.invocation_id).await.trace_id.as_str()), (None, ""));
    // Through the queue, too.
    let events = server.deploy_function("events", SENT, TELLS).await;
    call(&events, events.call(SENT, SENT_EVENT), &[("traceparent", &*parent("01"))]).await;
    accept(&events, events.call(SENT, SENT_EVENT)).await;
    wait_until("both ran", async || results(&events).await.len() == 2).await;
    let seen = results(&events).await;
    assert_eq!(seen.iter().filter(|seen| seen.contains(TRACE)).count(), 1, "{seen:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_publishs_steps_are_spans() {
    let (collector, server) = with_collector(&[]).await;
    let mut publish = tonic::Request::new(request("demo", &[(&format!("functions/{LOGIN}.ts"), TELLS)]));
    publish.metadata_mut().insert("traceparent", parent("01").parse().expect("ascii"));
    let mut steps = server.versions().publish_version(publish).await.expect("a stream").into_inner();
    while steps.message().await.expect("a step").is_some() {}
    let spans = collector.until(TRACE, "publish", 1).await;
    let publish = named(&spans, "publish");
    let method = "chatfunctions.v1.VersionService/PublishVersion";
    assert_eq!(publish.parent, named(&collector.until(TRACE, method, 1).await, method).id);
    assert_eq!((publish.attribute("chatfn.app.id"), publish.attribute("chatfn.version")), ("demo", "1"));
    for phase in ["validate", "transpile", "install", "verify", "store", "activate"] {
        let span = named(&spans, phase);
        assert!(span.parent == publish.id && publish.began <= span.began && span.ended <= publish.ended, "{phase}");
    }
    let mut broken = tonic::Request::new(request("demo", &[(&format!("functions/{LOGIN}.ts"), "export const =")]));
    let other = TRACE.replace('4', "5");
    broken.metadata_mut().insert("traceparent", format!("00-{other}-{CALLER}-01").parse().expect("ascii"));
    let mut steps = server.versions().publish_version(broken).await.expect("a stream").into_inner();
    while steps.message().await.is_ok_and(|step| step.is_some()) {}
    assert!(named(&collector.until(&other, "publish", 1).await, "publish").failed);
    server.stop().await;
}

#[tokio::test]
async fn a_rest_call_has_a_span_and_a_probe_has_none() {
    let (collector, server) = with_collector(&[]).await;
    server.deploy_function("demo", LOGIN, TELLS).await;
    let get = async |path: &str, flags: &str| {
        let url = format!("{}{path}", server.address);
        let request = reqwest::Client::new().get(url).header("x-chatfn-app", "demo");
        request.header("traceparent", parent(flags)).send().await.expect("an answer")
    };
    let probed = get("/healthz", "01").await;
    assert_eq!(probed.headers()["traceparent"], parent("01"));
    let answer = get("/v1/functions/999999", "01").await;
    assert_eq!(answer.status(), 404);
    let spans = collector.until(TRACE, "GET /v1/functions/{id}", 1).await;
    let [span] = &spans[..] else { panic!("not one: {spans:?}") };
    assert_eq!((span.kind, span.parent.as_str(), span.failed), (SpanKind::Server, CALLER, false));
    let http = ["http.request.method", "http.route", "http.response.status_code"].map(|name| span.attribute(name));
    assert_eq!(http, ["GET", "/v1/functions/{id}", "404"]);
    assert_eq!(answer.headers()["traceparent"], format!("00-{TRACE}-{}-01", span.id));
    server.stop().await;
}

#[tokio::test]
async fn without_its_collector_the_service_loses_spans_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let endpoint = format!("traces.otlp_endpoint=http://{address}");
    let mut server = TestServer::with(&[&endpoint]).await;
    server.expect_log("traces: spans were lost");
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    let (answer, _) = call(&app, login(&app), &[("traceparent", &*parent("01"))]).await;
    assert_eq!(trace_of(&answer.json()).0, TRACE);
    let complaints = || server.log().iter().filter(|line| line.contains("traces: spans were lost")).count();
    wait_until("it says so", async || complaints() == 1).await;
    // It comes, and what is recorded from then on arrives.
    let collector = Collector::on(TcpListener::bind(address).await.expect("the port"), None);
    let other = TRACE.replace('4', "5");
    let header = format!("00-{other}-{CALLER}-01");
    wait_until("spans arrive", async || {
        call(&app, login(&app), &[("traceparent", &*header)]).await;
        !collector.of(&other).is_empty()
    })
    .await;
    assert_eq!(complaints(), 1, "once in a while");
    // What waits is sent at the end.
    let last = TRACE.replace('4', "6");
    call(&app, login(&app), &[("traceparent", &*format!("00-{last}-{CALLER}-01"))]).await;
    server.stop().await;
    assert_eq!(named(&collector.of(&last), INVOKE).parent, CALLER);
}

#[tokio::test]
async fn a_collector_may_speak_tls() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("temp dir"));
    let pair = ca.issue("127.0.0.1", 30);
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&pair.cert, &pair.key));
    let collector = Collector::on(TcpListener::bind("127.0.0.1:0").await.expect("a port"), Some(tls));
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, ca.pem()).expect("write");
    let variables = [("SSL_CERT_FILE", roots.to_str().expect("UTF-8"))];
    let file = format!("default_dependencies = {{}}\n[traces]\notlp_endpoint = 'https://{}'\n", collector.address);
    let server = TestServer::with_environment(&file, &variables, &["listen=127.0.0.1:0"]).await;
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    call(&app, login(&app), &[("traceparent", &*parent("01"))]).await;
    collector.until(TRACE, INVOKE, 1).await;
    server.stop().await;
}

#[tokio::test]
async fn log_lines_name_the_trace_they_belong_to() {
    let server = TestServer::with(&["log_format=json", "log_level=chatfn=debug,warn"]).await;
    let app = server.deploy_function("demo", LOGIN, TELLS).await;
    let events = server.deploy_function("events", SENT, TELLS).await;
    let other = TRACE.replace('4', "5");
    call(&app, login(&app), &[("traceparent", &*parent("00"))]).await;
    call(&app, login(&app), &[]).await;
    call(&events, events.call(SENT, SENT_EVENT), &[("traceparent", &*format!("00-{other}-{CALLER}-01"))]).await;
    let ended = || -> Vec<Value> {
        let lines = server.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        lines.filter(|line| line["fields"]["message"] == "an invocation ended").collect()
    };
    wait_until("all three ended", async || ended().len() == 3).await;
    let trace = |line: &Value| {
        let spans = line["spans"].as_array().expect("spans").iter();
        spans.filter_map(|span| span["trace_id"].as_str()).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut traces: Vec<_> = ended().iter().map(trace).collect();
    traces.sort();
    assert_eq!(traces, [vec![], vec![TRACE.to_owned()], vec![other]]);
    server.stop().await;
}

#[test]
fn what_is_wrong_with_the_settings_is_said_before_anything_starts() {
    for (setting, said) in [
        ("traces.otlp_endpoint=collector:4317", "traces.otlp_endpoint"),
        ("traces.sample_ratio=1.5", "traces.sample_ratio"),
        ("traces.service_name=", "traces.service_name"),
    ] {
        let refused = TestServer::refused(&[setting]);
        assert!(refused.contains(said), "{refused}");
    }
    let data = tempfile::tempdir().expect("temp dir");
    let mut command = binary();
    command.args(["serve", "--check-config", "--set", "traces.otlp_endpoint=http://127.0.0.1:4317", "--data-dir"]);
    let output = command.arg(data.path()).current_dir(data.path()).output().expect("runs");
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(shown["traces"]["otlp_endpoint"], "http://127.0.0.1:4317");
}

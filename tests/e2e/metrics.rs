//! What Prometheus reads, and who may.

use std::collections::BTreeMap;
use std::time::Duration;

use chatfn::metrics::declared::{ALL, Kind};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::credentials::{bearer, create, wanted};
use crate::events::{HANDLES, accept, event, until_dead};
use crate::harness::{LOGIN, SENT, TestServer, wait_until};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

const DECIDES: &str = "export const handleEvent = (event, context) => {
    if (event.username === 'mallory') context.deny('no');
    if (event.username === 'bug') throw new Error('oops');
    return 1;
}";

type Labels = BTreeMap<String, String>;

/// One exposition, read strictly: each family once, with its HELP and TYPE before its samples, and nothing else.
#[derive(Debug, Default)]
pub struct Scrape {
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has an end");
        let (mut scrape, mut family, mut helped) = (Self::default(), (String::new(), String::new()), String::new());
        let mut seen = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split_once(' ').expect("a help text").0.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(name, helped, "HELP comes before TYPE");
                assert!(!seen.contains(&name.to_owned()), "{name} comes twice");
                seen.push(name.to_owned());
                family = (name.to_owned(), kind.to_owned());
            } else {
                scrape.sample(line, &family);
            }
        }
        scrape.check_histograms();
        scrape
    }

    fn sample(&mut self, line: &str, (family, kind): &(String, String)) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let value: f64 = value.parse().expect("a number");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').expect("closed");
        let labels: Labels = labels
            .split_terminator(',')
            .map(|label| {
                let (name, value) = label.split_once("=\"").expect("a label");
                (name.to_owned(), value.strip_suffix('"').expect("quoted").to_owned())
            })
            .collect();
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        let own = suffixes.iter().any(|suffix| name == format!("{family}{suffix}"));
        assert!(own, "{name} stands below {family}, a {kind}");
        let declared =
            ALL.iter().find(|metric| metric.name == family).unwrap_or_else(|| panic!("{family} is not declared"));
        assert_eq!(declared.kind.as_str(), kind, "{family}");
        let mut names: Vec<_> = labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
        let mut expected = declared.labels.to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{family}");
        assert_eq!(labels.contains_key("le"), name.ends_with("_bucket") && kind == "histogram", "{line}");
        assert!(self.samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
    }

    /// Buckets only grow, and the last has all.
    fn check_histograms(&self) {
        for metric in ALL {
            let Kind::Histogram(buckets) = metric.kind else { continue };
            for ((_, labels), count) in self.of(&format!("{}_count", metric.name)) {
                let at = |le: String| {
                    let labels: Labels = labels.clone().into_iter().chain([("le".to_owned(), le)]).collect();
                    self.samples[&(format!("{}_bucket", metric.name), labels)]
                };
                let counts: Vec<f64> = buckets.iter().map(|le| at(le.to_string())).collect();
                assert!(counts.is_sorted(), "{}: {counts:?}", metric.name);
                assert_eq!(at("+Inf".to_owned()), *count, "{}", metric.name);
            }
        }
    }

    fn of(&self, name: &str) -> impl Iterator<Item = (&(String, Labels), &f64)> {
        self.samples.iter().filter(move |((of, _), _)| of == name)
    }

    /// 0 for a series that there is not.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied().unwrap_or(0.0)
    }

    /// The values of a label that there are.
    fn labels(&self, name: &str, label: &str) -> Vec<String> {
        let mut values: Vec<_> = self.of(name).map(|((_, labels), _)| labels[label].clone()).collect();
        values.sort();
        values.dedup();
        values
    }
}

/// `http://…` of the admin listener.
pub fn admin(server: &TestServer) -> String {
    let log = server.log();
    let line = log.iter().find(|line| line.contains("the admin listener serves")).expect("it is said");
    let address = line.split("address=").nth(1).expect("an address");
    format!("http://{}", address.split_whitespace().next().expect("an address"))
}

async fn get(url: &str, token: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::new().get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

pub async fn scrape(server: &TestServer) -> Scrape {
    let (status, text) = get(&format!("{}/metrics", server.address), None).await;
    assert_eq!(status, 200, "{text}");
    Scrape::parse(&text)
}

#[tokio::test]
async fn every_invocation_event_and_publish_is_counted_once() {
    let server = TestServer::start().await;
    let publish = Publish::login("demo", DECIDES).function(SENT, HANDLES).retry(2, Duration::from_millis(1));
    let app = publish.on(&server).await;
    for name in ["jane", "joe", "mallory", "bug", "jane"] {
        app.login(name).await;
    }
    app.invoke("UserReadMessage", r#"{"user":{},"message":{},"receipt":{}}"#).await.expect("skipped");
    accept(&app, app.call(SENT, &event("fine"))).await;
    let mut twice = app.call(SENT, &event("throw"));
    twice.idempotency_key = "once".to_owned();
    assert!(!accept(&app, twice.clone()).await.duplicate && accept(&app, twice).await.duplicate);
    until_dead(&app).await;
    // Of hops there may be five: dead from the start.
    let mut loops = tonic::Request::new(app.call(SENT, &event("loop")));
    loops.metadata_mut().insert("x-chatfn-hops", "6".parse().expect("ascii"));
    server.invocations().invoke(loops).await.expect("accepted");
    let refused = server.publish(Publish::login("demo", "export const handleEvent = (").0).await;
    assert_eq!(refused.expect_err("a syntax error").code(), tonic::Code::InvalidArgument);
    let done = [("app", "demo"), ("disposition", "done")];
    wait_until("all is done", async || scrape(&server).await.value("chatfn_events_finished_total", &done) > 0.0).await;

    let seen = scrape(&server).await;
    let login = |outcome| [("app", "demo"), ("trigger_type", LOGIN), ("outcome", outcome)];
    let sent = |outcome| [("app", "demo"), ("trigger_type", SENT), ("outcome", outcome)];
    let verdict = |verdict, by| [("app", "demo"), ("verdict", verdict), ("decided_by", by)];
    let app = [("app", "demo")];
    let none: [(&str, &str); 0] = [];
    for (name, labels, expected) in [
        ("chatfn_invocations_total", &login("result")[..], 3.0),
        ("chatfn_invocations_total", &login("denied"), 1.0),
        ("chatfn_invocations_total", &login("error"), 1.0),
        ("chatfn_invocations_total", &sent("result"), 1.0),
        ("chatfn_invocations_total", &sent("error"), 2.0),
        ("chatfn_invocation_errors_total", &[("app", "demo"), ("trigger_type", SENT), ("kind", "THROWN")], 2.0),
        ("chatfn_invocations_skipped_total", &[("app", "demo"), ("reason", "NO_FUNCTION")], 1.0),
        ("chatfn_verdicts_total", &verdict("ALLOW", "FUNCTION"), 3.0),
        ("chatfn_verdicts_total", &verdict("DENY", "FUNCTION"), 1.0),
        ("chatfn_verdicts_total", &verdict("DENY", "POLICY"), 1.0),
        ("chatfn_invocation_run_seconds_count", &app, 8.0),
        ("chatfn_invocation_queue_seconds_count", &app, 8.0),
        ("chatfn_events_enqueued_total", &[("app", "demo"), ("trigger_type", SENT)], 3.0),
        ("chatfn_events_finished_total", &[("app", "demo"), ("disposition", "done")], 1.0),
        ("chatfn_events_finished_total", &[("app", "demo"), ("disposition", "dead")], 2.0),
        ("chatfn_dead_letters_total", &[("app", "demo"), ("reason", "ATTEMPTS_EXHAUSTED")], 1.0),
        ("chatfn_dead_letters_total", &[("app", "demo"), ("reason", "LOOP")], 1.0),
        ("chatfn_event_retries_total", &app, 1.0),
        ("chatfn_events_claimed_total", &none, 3.0),
        ("chatfn_event_wait_seconds_count", &none, 2.0),
        ("chatfn_claims_taken_over_total", &none, 0.0),
        ("chatfn_events_queued", &none, 0.0),
        ("chatfn_events_running", &none, 0.0),
        ("chatfn_events_dead", &none, 2.0),
        ("chatfn_events_oldest_due_age_seconds", &none, 0.0),
        ("chatfn_invocations_running", &none, 0.0),
        ("chatfn_publishes_total", &[("outcome", "published")], 1.0),
        ("chatfn_publishes_total", &[("outcome", "refused")], 1.0),
        ("chatfn_publish_phase_seconds_count", &[("phase", "verify")], 1.0),
        ("chatfn_publishes_running", &none, 0.0),
        ("chatfn_store_up", &none, 1.0),
        ("chatfn_draining", &none, 0.0),
        ("chatfn_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("node", &node())], 1.0),
    ] {
        assert_eq!(seen.value(name, labels), expected, "{name} {labels:?}");
    }
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
        assert!(seen.value(name, &[]) > 0.0, "{name}");
    }
    assert!(seen.value("chatfn_store_transactions_total", &[("kind", "queue"), ("outcome", "committed")]) > 0.0);
    // Gauges of workers follow within a tick.
    wait_until("its worker is idle", async || {
        scrape(&server).await.value("chatfn_pool_workers", &[("app", "demo"), ("state", "idle")]) >= 1.0
    })
    .await;
    server.stop().await;
}

#[allow(clippy::disallowed_methods, reason = "as the service asks it")]
fn node() -> String {
    let version = std::process::Command::new("node").arg("--version").output().expect("node").stdout;
    String::from_utf8(version).expect("text").trim().to_owned()
}

#[tokio::test]
async fn beyond_the_limit_apps_share_one_label() {
    let server = TestServer::with(&["metrics_apps_max=2"]).await;
    for app in ["one", "two", "three", "four", "other"] {
        server.deploy_function(app, LOGIN, "export const handleEvent = () => 1").await.login("jane").await;
    }
    let seen = scrape(&server).await;
    for name in ["chatfn_invocations_total", "chatfn_verdicts_total", "chatfn_pool_workers"] {
        assert_eq!(seen.labels(name, "app"), ["one", "other", "two"], "{name}");
    }
    let of = |app| [("app", app), ("trigger_type", LOGIN), ("outcome", "result")];
    let counts = ["one", "two", "other"].map(|app| seen.value("chatfn_invocations_total", &of(app)));
    assert_eq!(counts, [1.0, 1.0, 3.0]);
    server.stop().await;
}

#[tokio::test]
async fn metrics_are_an_operators_and_the_admin_listener_asks_nobody() {
    const OPERATOR: &str = "0123456789abcdef0123456789abcdef";
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), OPERATOR).expect("write");
    let token = format!("operator_token_file={}", file.path().display());
    let server = TestServer::with(&[&token, "admin_listen=127.0.0.1:0"]).await;
    let made = async |app: &str, scopes: &[&str]| {
        create(&server, bearer(wanted(app, scopes), OPERATOR)).await.expect("created").secret
    };
    let client = made("demo", &["invoke", "publish", "manage"]).await;
    let operator = made("", &["operator"]).await;
    let url = format!("{}/metrics", server.address);
    for (token, status) in
        [(None, 401), (Some("wrong"), 401), (Some(&*client), 403), (Some(&*operator), 200), (Some(OPERATOR), 200)]
    {
        assert_eq!(get(&url, token).await.0, status, "{token:?}");
    }
    let admin = admin(&server);
    let (status, text) = get(&format!("{admin}/metrics"), None).await;
    assert_eq!((status, Scrape::parse(&text).value("chatfn_store_up", &[])), (200, 1.0));
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/v1/runtimes/nodejs", 404), ("/oauth/token", 404)] {
        assert_eq!(get(&format!("{admin}{path}"), None).await.0, status, "{path}");
    }
    let calls = tonic::transport::Endpoint::from_shared(admin).expect("an address").connect().await.expect("connects");
    let mut apps = chatfn::proto::app_service_client::AppServiceClient::new(calls);
    let refused = apps.list_apps(bearer(chatfn::proto::ListAppsRequest::default(), OPERATOR)).await;
    assert_eq!(refused.expect_err("not served there").code(), tonic::Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn an_open_service_tells_its_metrics_to_no_foreign_page() {
    let server = TestServer::start().await;
    let request = reqwest::Client::new().get(format!("{}/metrics", server.address)).header("host", "evil.example");
    assert_eq!(request.send().await.expect("an answer").status().as_u16(), 403);
    server.stop().await;
}

#[tokio::test]
async fn draining_flips_readiness_and_nothing_else() {
    let server = TestServer::with(&["admin_listen=127.0.0.1:0"]).await;
    let admin = admin(&server);
    let channel = tonic::transport::Endpoint::from_shared(admin.clone()).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("connects"));
    let mut says = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.expect("an answer").into_inner().status()
    };
    assert_eq!((says("").await, says("liveness").await), (ServingStatus::Serving, ServingStatus::Serving));
    let gate = Gate::new(&server);
    let held = gate.function("holds").on(&server).await;
    let running = hold(&held, 1);
    until_busy(&held, 1).await;
    server.terminate();
    wait_until("it drains", async || get(&format!("{admin}/readyz"), None).await.0 == 503).await;
    assert_eq!(get(&format!("{admin}/healthz"), None).await.0, 200);
    assert_eq!((says("").await, says("liveness").await), (ServingStatus::NotServing, ServingStatus::Serving));
    let (_, text) = get(&format!("{admin}/metrics"), None).await;
    let seen = Scrape::parse(&text);
    assert_eq!((seen.value("chatfn_draining", &[]), seen.value("chatfn_invocations_running", &[])), (1.0, 1.0));
    gate.open();
    running.join_all().await;
    server.ended_well().await;
}

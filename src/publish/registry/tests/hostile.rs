//! What hostile tenants and broken registries try.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::Limits;
use super::Served;
use super::stand_in::{Reply, StandIn, archive, gzip, json, packument, redirect, status};

fn limits() -> Limits {
    Limits {
        header_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(500),
        packument_bytes_max: 4 << 20,
        install_bytes_max: 8 << 20,
        ..Limits::default()
    }
}

async fn served(registry: &StandIn) -> Served {
    Served::start(&[("npm_config_registry", &registry.url("/"))], limits()).await
}

async fn raw(served: &Served, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", served.port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn only_reading_is_possible() {
    let registry = StandIn::start(|_| packument("a", "x")).await;
    let served = served(&registry).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"] {
        let request = format!("{method} /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        assert!(raw(&served, &request).await.starts_with("HTTP/1.1 405 "), "{method}");
    }
    for request in [
        "CONNECT evil.test:443 HTTP/1.1\r\nhost: evil.test:443\r\n\r\n".to_owned(),
        format!("CONNECT 127.0.0.1:{} HTTP/1.1\r\nhost: x\r\n\r\n", registry.port),
    ] {
        assert!(raw(&served, &request).await.starts_with("HTTP/1.1 405 "), "{request}");
    }
    // As to a proxy: the host means nothing, the path is a package's.
    let other = StandIn::start(|_| packument("a", "x")).await;
    let request = format!("GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", other.url("/a"));
    assert!(raw(&served, &request).await.starts_with("HTTP/1.1 200 "));
    assert_eq!((registry.asked().len(), other.asked().len()), (1, 0));
    for request in
        ["GET / HTTP/1.1\r\n", "nonsense\r\n\r\n", "GET /-/whoami HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"]
    {
        assert!(!raw(&served, request).await.contains(" 200 "), "{request}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "a".repeat(5000));
    assert!(raw(&served, &long).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(registry.asked().len(), 1);
}

#[tokio::test]
async fn a_registry_learns_nothing_of_the_sandbox_and_the_sandbox_nothing_of_the_credential() {
    let registry = StandIn::start(|asked| match asked.headers.get("authorization").map(String::as_str) {
        Some("Bearer s3cret") if asked.target == "/missing" => status(404, "no package of s3cret"),
        Some("Bearer s3cret") => packument("a", "x"),
        _ => status(401, "who are you"),
    })
    .await;
    let place = format!("npm_config_//127.0.0.1:{}/:_authToken", registry.port);
    let configuration = [("npm_config_registry", registry.url("/")), (&place, "s3cret".to_owned())];
    let configuration = configuration.each_ref().map(|(name, value)| (*name, value.as_str()));
    let served = Served::start(&configuration, limits()).await;
    let sent = [
        ("authorization", "Bearer stolen"),
        ("cookie", "c=1"),
        ("x-anything", "x"),
        ("npm-otp", "123"),
        ("npm-command", "install"),
        ("accept", "application/vnd.npm.install-v1+json"),
        ("if-none-match", "\"e\""),
        ("range", "bytes=0-1"),
        ("user-agent", "npm/11"),
    ];
    assert_eq!(served.get_with("/a?write=true", &sent).await.0, 200);
    let asked = registry.asked().remove(0);
    let names: Vec<&str> = asked.headers.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["accept", "accept-encoding", "authorization", "host", "if-none-match", "npm-command", "user-agent"]
    );
    assert_eq!(
        (asked.target.as_str(), asked.headers["accept"].as_str()),
        ("/a", "application/vnd.npm.install-v1+json")
    );
    let (code, body) = served.get("/missing").await;
    assert_eq!(code, 404);
    assert!(body.contains("no package of ***") && !body.contains("s3cret"), "{body}");
    let report = served.stop().await;
    assert!(!format!("{report:?}").contains("s3cret"), "{report:?}");
}

#[tokio::test]
async fn a_registrys_no_is_passed_on_without_its_headers() {
    for code in [400, 401, 403, 404, 429, 500, 503] {
        let registry = StandIn::start(move |_| status(code, "because")).await;
        let served = served(&registry).await;
        let answer = raw(&served, "GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code} ")) && answer.contains("{\"error\":\"because ("),
            "{answer}"
        );
        for header in ["www-authenticate", "set-cookie"] {
            assert!(!answer.contains(header), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_is_away_or_hangs_is_an_error_that_npm_retries() {
    let hanging = StandIn::start(|asked| match asked.target.as_str() {
        "/halted" => Reply::Halted(b"{\"name\":".to_vec()),
        "/html" => Reply::Now(200, Vec::new(), b"<html>".to_vec()),
        "/empty" => Reply::Now(200, Vec::new(), Vec::new()),
        "/br" => Reply::Now(200, vec![("content-encoding".into(), "br".into())], b"{}".to_vec()),
        "/odd" => Reply::Now(203, Vec::new(), b"{}".to_vec()),
        "/gzip" => Reply::Now(200, vec![("content-encoding".into(), "gzip".into())], b"not gzip".to_vec()),
        _ => Reply::Never,
    })
    .await;
    let served_hanging = served(&hanging).await;
    for (path, code, text) in [
        ("/a", 504, "did not answer within"),
        ("/halted", 504, "stopped sending"),
        ("/html", 502, "no packument"),
        ("/empty", 502, "no packument"),
        ("/br", 502, "encoding"),
        ("/odd", 502, "203"),
        ("/gzip", 502, "broke off"),
    ] {
        let (got, body) = served_hanging.get(path).await;
        assert!(got == code && body.contains(text), "{path}: {got} {body}");
    }
    let nobody = Served::start(&[("npm_config_registry", "http://127.0.0.1:1/")], limits()).await;
    let (code, body) = nobody.get("/a").await;
    assert!(
        code == 502 && body.contains("http://127.0.0.1:1 cannot be reached") && body.contains("refused"),
        "{code} {body}"
    );
}

#[tokio::test]
async fn sizes_are_limited_on_both_sides() {
    let sized = |size: usize| format!("{{\"x\":\"{}\"}}", "y".repeat(size - 8)).into_bytes();
    let most = limits().packument_bytes_max as usize;
    let registry = StandIn::start(move |asked| {
        let gzipped = |bytes: &[u8]| Reply::Now(200, vec![("content-encoding".into(), "gzip".into())], gzip(bytes));
        match asked.target.as_str() {
            "/fits" => Reply::Now(200, Vec::new(), sized(most)),
            "/large" => Reply::Now(200, Vec::new(), sized(most + 1)),
            "/bomb" => gzipped(&sized(100 << 20)),
            "/small" => gzipped(&sized(1 << 20)),
            "/endless" => Reply::Endless([b"{\"x\":\"", &[b'y'; 65536][..]].concat()),
            "/x.tgz" | "/a/-/a-1.tgz" => Reply::Endless(vec![0; 65536]),
            _ => Reply::Now(200, Vec::new(), vec![0; 9 << 20]),
        }
    })
    .await;
    let (code, body) = served(&registry).await.get("/fits").await;
    assert_eq!((code, body.len()), (200, most));
    let (code, body) = served(&registry).await.get("/small").await;
    assert_eq!((code, body.len()), (200, 1 << 20));
    let (code, body) = served(&registry).await.get("/large").await;
    assert!(code == 413 && body.contains("larger than"), "{code} {body}");
    let (code, body) = served(&registry).await.get("/b/-/b-1.tgz").await;
    assert!(code == 413 && body.contains("downloaded more than"), "{code} {body}");
    // By then npm has the headers: the answer breaks off, and the report says why.
    for (path, why) in [("/bomb", "larger than"), ("/endless", "larger than"), ("/a/-/a-1.tgz", "downloaded more than")]
    {
        let served = served(&registry).await;
        assert_eq!(served.get(path).await, (200, "broken off".to_owned()), "{path}");
        let report = served.stop().await;
        assert!(report.problems.iter().any(|problem| problem.contains(why)), "{path}: {report:?}");
    }
}

#[tokio::test]
async fn who_does_not_take_an_answer_loses_its_place() {
    let registry = StandIn::start(|_| Reply::Endless(vec![0; 65536])).await;
    let limits =
        Limits { requests_max: 1, install_bytes_max: u64::MAX, header_timeout: Duration::from_secs(5), ..limits() };
    let served = Served::start(&[("npm_config_registry", &registry.url("/"))], limits).await;
    let mut idle = TcpStream::connect(("127.0.0.1", served.port)).await.unwrap();
    idle.write_all(b"GET /a/-/a-1.tgz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    idle.read_u8().await.unwrap();
    // The only place is taken; it becomes free within the idle timeout.
    let response =
        reqwest::Client::builder().no_proxy().build().unwrap().get(served.url("/a/-/a-1.tgz")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    drop(idle);
}

#[tokio::test]
async fn a_full_house_is_an_error_and_not_a_hang() {
    let registry = StandIn::start(|_| Reply::Never).await;
    let limits = Limits { install_requests_max: 1, ..limits() };
    let served = Served::start(&[("npm_config_registry", &registry.url("/"))], limits).await;
    let answers = tokio::join!(served.get("/a"), served.get("/b"), served.get("/c"));
    let codes = [answers.0.0, answers.1.0, answers.2.0];
    assert!(codes.contains(&504) && codes.contains(&503), "{codes:?}");
}

#[tokio::test]
async fn a_stopped_proxy_closes_everything() {
    let registry = StandIn::start(|_| Reply::Never).await;
    let served = served(&registry).await;
    let mut waiting = TcpStream::connect(("127.0.0.1", served.port)).await.unwrap();
    waiting.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    while registry.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    let port = served.port;
    assert_eq!(served.stop().await.requests, 1);
    assert!(waiting.read_u8().await.is_err());
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn a_tarball_elsewhere_is_refused() {
    let elsewhere = StandIn::start(|_| Reply::Now(200, Vec::new(), archive("a"))).await;
    let foreign = elsewhere.url("/a-1.0.0.tgz");
    let registry = StandIn::start(move |_| packument("a", &foreign)).await;
    let served = served(&registry).await;
    let (code, body) = served.get("/a").await;
    let local = format!("http://127.0.0.1:{}/-/tarball/http/127.0.0.1:{}/a-1.0.0.tgz", served.port, elsewhere.port);
    assert!(code == 200 && body.contains(&local), "{body}");
    let (code, body) = served.get(local.strip_prefix(&served.url("")).unwrap()).await;
    assert!(code == 403 && body.contains("is not below a registry"), "{code} {body}");
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn redirects_lead_neither_to_this_machine_nor_in_circles() {
    let inside = StandIn::start(|_| Reply::Now(200, Vec::new(), archive("a"))).await;
    let port = inside.port;
    let registry = StandIn::start(move |asked| match asked.target.as_str() {
        "/ip/-/a.tgz" => redirect(&format!("http://127.0.0.1:{port}/a.tgz")),
        "/name/-/a.tgz" => redirect(&format!("http://localhost:{port}/a.tgz")),
        "/v6/-/a.tgz" => redirect(&format!("http://[::ffff:127.0.0.1]:{port}/a.tgz")),
        "/short/-/a.tgz" => redirect(&format!("//127.1:{port}/a.tgz")),
        "/metadata/-/a.tgz" => redirect("http://169.254.169.254/latest/meta-data/"),
        "/file/-/a.tgz" => redirect("file:///etc/passwd"),
        "/user/-/a.tgz" => redirect("http://u:p@example.test/a.tgz"),
        "/nowhere/-/a.tgz" => redirect("http://"),
        "/loop/-/a.tgz" => redirect("/loop/-/a.tgz"),
        "/moved/-/a.tgz" => redirect("/found/-/a.tgz"),
        _ => json(&serde_json::json!({})),
    })
    .await;
    let served = served(&registry).await;
    for path in ["ip", "name", "v6", "short", "metadata", "file", "user", "nowhere"] {
        let (code, body) = served.get(&format!("/{path}/-/a.tgz")).await;
        assert!(code == 403 && body.contains("redirects to"), "{path}: {code} {body}");
    }
    let (code, body) = served.get("/loop/-/a.tgz").await;
    assert!(code == 502 && body.contains("too often"), "{code} {body}");
    assert_eq!(registry.asked().iter().filter(|asked| asked.target.starts_with("/loop")).count(), 6);
    assert_eq!(served.get("/moved/-/a.tgz").await, (200, "{}".to_owned()));
    assert!(inside.asked().is_empty());
}

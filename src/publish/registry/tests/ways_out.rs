//! The operator's ways out: registries by scope, HTTP proxies, certificates; and that credentials stay on theirs.

use std::process::Stdio;

use tokio::process::{Child, Command};

use super::super::{Limits, Registries};
use super::Served;
use super::stand_in::{Reply, StandIn, packument, redirect};

/// `name value` pairs.
async fn served(configuration: &[(&str, String)]) -> Served {
    let configuration: Vec<_> = configuration.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Served::start(&configuration, Limits::default()).await
}

#[tokio::test]
async fn a_redirect_takes_no_credential_to_another_host() {
    let other = StandIn::start(|_| Reply::Now(200, Vec::new(), b"tarball".to_vec())).await;
    let to_other = other.url("/cdn/a.tgz");
    let registry = StandIn::start(move |asked| match asked.target.as_str() {
        "/a/-/a-1.tgz" => redirect("/moved.tgz"),
        _ => redirect(&to_other),
    })
    .await;
    let (own, others) = (
        format!("npm_config_//127.0.0.1:{}/:_authToken", registry.port),
        format!("npm_config_//127.0.0.1:{}/:_auth", other.port),
    );
    let served = served(&[
        ("npm_config_registry", registry.url("/")),
        ("npm_config_@o:registry", other.url("/o/")),
        (&own, "t1".to_owned()),
        (&others, "dDI=".to_owned()),
    ])
    .await;
    assert_eq!(served.get("/a/-/a-1.tgz").await, (200, "tarball".to_owned()));
    let credentials: Vec<_> =
        registry.asked().iter().map(|asked| asked.headers.get("authorization").cloned()).collect();
    assert_eq!(credentials, [Some("Bearer t1".to_owned()), Some("Bearer t1".to_owned())]);
    // A registry that is configured, but not the one that was asked.
    assert_eq!(other.asked()[0].headers.get("authorization"), None);
    assert_eq!(served.get("/@o/x/-/x-1.tgz").await.0, 200);
    assert_eq!(other.asked()[1].headers["authorization"], "Basic dDI=");
}

#[tokio::test]
async fn an_http_proxy_is_asked_for_what_is_not_exempt() {
    let near = StandIn::start(|_| packument("a", "x")).await;
    let proxy = StandIn::start(|asked| match asked.target.as_str() {
        "http://registry.test/a/-/a-1.tgz" => redirect("http://cdn.test/a-1.tgz"),
        "http://cdn.test/a-1.tgz" => Reply::Now(200, Vec::new(), b"tarball".to_vec()),
        "http://registry.test/b/-/b-1.tgz" => redirect("http://10.0.0.1/a-1.tgz"),
        "http://registry.test/c/-/c-1.tgz" => redirect("http://127.0.0.1/a-1.tgz"),
        _ => Reply::Now(404, Vec::new(), Vec::new()),
    })
    .await;
    let served = served(&[
        ("npm_config_registry", "http://registry.test/".to_owned()),
        ("npm_config_@near:registry", near.url("/")),
        ("npm_config_//registry.test/:_authToken", "t1".to_owned()),
        ("npm_config_proxy", format!("http://user:pass@127.0.0.1:{}", proxy.port)),
        ("npm_config_noproxy", "127.0.0.1".to_owned()),
    ])
    .await;
    assert_eq!(served.get("/a/-/a-1.tgz").await, (200, "tarball".to_owned()));
    let asked = proxy.asked();
    assert_eq!(asked[0].headers["authorization"], "Bearer t1");
    assert_eq!(asked[1].headers.get("authorization"), None);
    assert!(asked.iter().all(|asked| asked.headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"), "{asked:?}");
    for path in ["/b/-/b-1.tgz", "/c/-/c-1.tgz"] {
        assert_eq!(served.get(path).await.0, 403, "{path}");
    }
    assert_eq!(served.get("/@near/a").await.0, 200);
    assert_eq!((near.asked().len(), proxy.asked().len()), (1, 4));
    assert_eq!(near.asked()[0].headers.get("proxy-authorization"), None);
}

/// `openssl s_server`, which serves files that hold whole answers: a registry of one packument.
struct Tls {
    _child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

#[allow(clippy::disallowed_methods, reason = "a test's own helper process")]
async fn openssl(arguments: &[&str], directory: &std::path::Path) -> Child {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(directory).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Tls {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Not self-signed: rustls takes no authority for a server, which OpenSSL does.
        let common = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -config openssl.cnf";
        let authority = format!("{common} -subj /CN=authority -extensions ca -keyout ca-key.pem -out ca.pem");
        let server = format!(
            "{common} -subj /CN=x -extensions server -CA ca.pem -CAkey ca-key.pem -keyout key.pem -out cert.pem"
        );
        let configuration = "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\n[server]\n\
                             basicConstraints=CA:FALSE\nsubjectAltName=DNS:registry.test,IP:127.0.0.1\n";
        std::fs::write(directory.path().join("openssl.cnf"), configuration).unwrap();
        for made in [authority, server] {
            let arguments: Vec<&str> = made.split(' ').collect();
            assert!(openssl(&arguments, directory.path()).await.wait().await.unwrap().success());
        }
        for (path, answer) in [
            ("a", "HTTP/1.0 200 OK\r\n\r\n{\"name\":\"a\"}"),
            ("b", "HTTP/1.0 302 Found\r\nlocation: http://127.0.0.1/a\r\ncontent-length: 0\r\n\r\n"),
        ] {
            std::fs::write(directory.path().join(path), answer).unwrap();
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let accept = format!("127.0.0.1:{port}");
        let serve = ["s_server", "-accept", &accept, "-cert", "cert.pem", "-key", "key.pem", "-HTTP", "-quiet"];
        let child = openssl(&serve, directory.path()).await;
        while tokio::net::TcpStream::connect(&accept).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Self { _child: child, directory, port }
    }

    fn certificate(&self) -> String {
        self.directory.path().join("ca.pem").display().to_string()
    }
}

#[tokio::test]
async fn a_certificate_is_trusted_where_the_operator_says_so() {
    let tls = Tls::start().await;
    let registry = format!("https://127.0.0.1:{}/", tls.port);
    let with = async |name: &'static str, value: String| {
        served(&[("npm_config_registry", registry.clone()), (name, value)]).await.get("/a").await
    };
    let (code, body) = with("X", String::new()).await;
    assert!(code == 502 && body.contains("certificate"), "{code} {body}");
    for name in ["npm_config_cafile", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
        assert_eq!(with(name, tls.certificate()).await, (200, "{\"name\":\"a\"}".to_owned()), "{name}");
    }
    let pem = std::fs::read_to_string(tls.certificate()).unwrap();
    assert_eq!(with("npm_config_ca", pem.replace('\n', "\\n")).await.0, 200);
    // What came by TLS stays with it.
    let trusting = served(&[("npm_config_registry", registry.clone()), ("npm_config_cafile", tls.certificate())]).await;
    let (code, body) = trusting.get("/b").await;
    assert!(code == 403 && body.contains("it leaves https"), "{code} {body}");
    assert_eq!(with("npm_config_strict_ssl", "false".to_owned()).await.0, 200);
}

#[tokio::test]
async fn tls_goes_through_the_operators_proxy() {
    let tls = Tls::start().await;
    let to = format!("127.0.0.1:{}", tls.port);
    let proxy = StandIn::start(move |_| Reply::Tunnel(to.clone())).await;
    let served = served(&[
        ("npm_config_registry", "https://registry.test/".to_owned()),
        ("npm_config_//registry.test/:_authToken", "t1".to_owned()),
        ("npm_config_cafile", tls.certificate()),
        ("HTTPS_PROXY", format!("http://user:pass@127.0.0.1:{}", proxy.port)),
    ])
    .await;
    assert_eq!(served.get("/a").await.0, 200);
    let asked = proxy.asked().remove(0);
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("CONNECT", "registry.test:443"));
    assert_eq!(asked.headers["proxy-authorization"], "Basic dXNlcjpwYXNz");
    assert_eq!(asked.headers.get("authorization"), None);
}

#[test]
fn this_machines_configuration_can_be_read() {
    assert!(Registries::load(None, super::own_environment()).is_ok());
}

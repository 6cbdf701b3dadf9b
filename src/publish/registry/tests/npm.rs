//! Real npm. What is installed from the registry of this machine needs that registry.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use super::super::{Limits, Proxy, Registries};
use super::stand_in::{Asked, Reply, StandIn, archive, packument, redirect, status};
use super::{Served, own_environment};

struct Project {
    directory: tempfile::TempDir,
}

impl Project {
    fn new(dependencies: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("app")).unwrap();
        let dependencies: std::collections::BTreeMap<_, _> = dependencies.iter().copied().collect();
        let package = serde_json::json!({ "name": "app", "version": "1.0.0", "dependencies": dependencies });
        std::fs::write(directory.path().join("app/package.json"), package.to_string()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("app").join(name)
    }

    fn lockfile(&self) -> Vec<u8> {
        std::fs::read(self.path("package-lock.json")).unwrap()
    }

    fn version_of(&self, name: &str) -> Option<String> {
        let text = std::fs::read(self.path(&format!("node_modules/{name}/package.json"))).ok()?;
        serde_json::from_slice::<serde_json::Value>(&text).ok()?["version"].as_str().map(str::to_owned)
    }

    /// npm with nothing but the proxy; a HOME, and so a cache, of its own each time.
    #[allow(clippy::disallowed_methods, reason = "a test's own npm")]
    async fn npm(&self, command: &str, served: &Served) -> Result<String, String> {
        let side = served.registries.npm_side(served.port);
        let home = tempfile::tempdir().unwrap();
        let output = Command::new("npm")
            .arg(command)
            .args([
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--no-update-notifier",
                "--loglevel=http",
                "--color=false",
            ])
            .args(["--allow-remote=none", "--allow-git=none", "--allow-file=none", "--allow-directory=none"])
            .args(&side.arguments)
            .env_clear()
            .envs(side.environment)
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", home.path())
            .current_dir(self.directory.path().join("app"))
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    fn remove_modules(&self) {
        std::fs::remove_dir_all(self.path("node_modules")).unwrap();
    }
}

fn own_registries() -> Registries {
    let userconfig = std::env::home_dir().map(|home| home.join(".npmrc")).filter(|file| file.exists());
    Registries::load(userconfig.as_deref(), own_environment()).unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn packages_of_the_real_registry_are_installed_and_installed_again() {
    let served = Served::with(own_registries(), Limits::default()).await;
    let project = Project::new(&[("ms", "2.1.3"), ("chatkitty-platform-sdk", "2.4.0")]);
    let said = project.npm("install", &served).await.unwrap();
    assert!(!said.contains("npm warn"), "{said}");
    assert_eq!(project.version_of("ms").as_deref(), Some("2.1.3"));
    assert_eq!(project.version_of("chatkitty-platform-sdk").as_deref(), Some("2.4.0"));
    let left = project.lockfile();
    assert!(text(&left).contains("/-/tarball/https/registry.npmjs.org/ms/-/ms-2.1.3.tgz"), "{}", text(&left));
    let restored = served.registries.restore_lockfile(&left).unwrap();
    assert!(text(&restored).contains("\"https://registry.npmjs.org/ms/-/ms-2.1.3.tgz\""), "{}", text(&restored));
    assert!(!text(&restored).contains("127.0.0.1") && text(&restored).contains("\"integrity\": \"sha512-"));

    // As restored (npm finds the way by the path alone), as localized, and without any `resolved`.
    let localized = served.registries.localize_lockfile(&restored, served.port).unwrap();
    assert_eq!(text(&localized), text(&left));
    let mut without: serde_json::Value = serde_json::from_slice(&restored).unwrap();
    for package in without["packages"].as_object_mut().unwrap().values_mut() {
        package.as_object_mut().unwrap().remove("resolved");
    }
    for lockfile in [restored, localized, without.to_string().into_bytes()] {
        project.remove_modules();
        std::fs::write(project.path("package-lock.json"), &lockfile).unwrap();
        project.npm("ci", &served).await.unwrap();
        assert_eq!(project.version_of("ms").as_deref(), Some("2.1.3"));
        assert!(project.version_of("axios").is_some());
        assert_eq!(project.lockfile(), lockfile);
    }

    // What integrity does not fit is not installed.
    let wrong = text(&left).replace("\"integrity\": \"sha512-", "\"integrity\": \"sha512-AAAA");
    std::fs::write(project.path("package-lock.json"), wrong).unwrap();
    project.remove_modules();
    assert!(project.npm("ci", &served).await.unwrap_err().contains("EINTEGRITY"));
    let missing = Project::new(&[("chatfn-there-is-no-such-package", "1")]);
    assert!(missing.npm("install", &served).await.unwrap_err().contains("code E404"));
    assert!(served.stop().await.bytes > 10_000);
}

/// A registry below `path`, which wants `token` and serves every name; its tarballs stand where its packuments say.
async fn registry(path: &'static str, token: &'static str) -> StandIn {
    StandIn::start(move |asked: &Asked| {
        let port = asked.headers["host"].rsplit_once(':').map(|(_, port)| port.to_owned()).unwrap_or_default();
        if asked.headers.get("authorization") != Some(&format!("Bearer {token}")) {
            return status(401, "a token is needed");
        }
        let Some(name) = asked.target.strip_prefix(path) else { return status(404, "not here") };
        let decoded = name.replace("%2F", "/").replace("%2f", "/");
        match decoded.split_once("/-/") {
            Some((name, _)) => Reply::Now(200, Vec::new(), archive(name)),
            None => packument(&decoded, &format!("http://127.0.0.1:{port}{path}{decoded}/-/x-1.0.0.tgz?sig=1")),
        }
    })
    .await
}

#[tokio::test]
async fn each_scope_has_its_registry_and_credential() {
    let (plain, scoped) = (registry("/", "t-plain").await, registry("/api/npm/scoped/", "t-scoped").await);
    let file = tempfile::NamedTempFile::new().unwrap();
    let userconfig = format!(
        "registry={}\n@s:registry={}\n//127.0.0.1:{}/:_authToken=t-plain\n//127.0.0.1:{}/api/npm/scoped/:_authToken=${{TOKEN}}\n",
        plain.url("/"),
        scoped.url("/api/npm/scoped"),
        plain.port,
        scoped.port,
    );
    std::fs::write(file.path(), userconfig).unwrap();
    let variables = [("TOKEN".to_owned(), "t-scoped".to_owned())];
    let proxy = Proxy::new(Registries::load(Some(file.path()), variables).unwrap(), Limits::default()).unwrap();

    // Two installs at one time, each with its listener.
    let installs = [Served::of(&proxy).await, Served::of(&proxy).await].map(async |served| {
        let project = Project::new(&[("a", "1.0.0"), ("@s/b", "^1"), ("@t/c", "latest")]);
        let said = project.npm("install", &served).await.unwrap();
        assert!(!said.contains("npm warn") && !said.contains("t-plain") && !said.contains("t-scoped"), "{said}");
        for name in ["a", "@s/b", "@t/c"] {
            assert_eq!(project.version_of(name).as_deref(), Some("1.0.0"), "{name}");
        }
        let restored = served.registries.restore_lockfile(&project.lockfile()).unwrap();
        let url = format!("\"{}\"", scoped.url("/api/npm/scoped/@s/b/-/x-1.0.0.tgz?sig=1"));
        assert!(text(&restored).contains(&url), "{}", text(&restored));
        let localized = served.registries.localize_lockfile(&restored, served.port).unwrap();
        for lockfile in [localized, restored] {
            project.remove_modules();
            std::fs::write(project.path("package-lock.json"), lockfile).unwrap();
            project.npm("ci", &served).await.unwrap();
            assert_eq!(project.version_of("@s/b").as_deref(), Some("1.0.0"));
        }
        served.stop().await
    });
    for report in futures_util::future::join_all(installs).await {
        assert!(report.problems.is_empty() && report.requests >= 12, "{report:?}");
    }
    assert!(scoped.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer t-scoped"));
    assert!(scoped.asked().iter().any(|asked| asked.target.ends_with("?sig=1")));
}

#[tokio::test]
async fn npm_prints_what_went_wrong() {
    let registry = StandIn::start(|asked| match asked.target.as_str() {
        "/away" => status(503, "down for maintenance"),
        "/hidden" => status(401, "a token is needed"),
        "/forbidden" => status(403, "not for you"),
        "/huge" => Reply::Now(200, Vec::new(), vec![b' '; 3000]),
        "/foreign" => packument("foreign", "https://evil.test/foreign-1.0.0.tgz"),
        "/lured" => packument("lured", &format!("http://{}/lured/-/lured-1.0.0.tgz", asked.headers["host"])),
        "/lured/-/lured-1.0.0.tgz" => redirect("http://169.254.169.254/latest"),
        "/endless" => packument("endless", &format!("http://{}/endless/-/endless-1.0.0.tgz", asked.headers["host"])),
        "/endless/-/endless-1.0.0.tgz" => Reply::Endless(vec![b'x'; 65536]),
        "/slow" => Reply::Never,
        _ => status(404, "not found"),
    })
    .await;
    let limits = Limits {
        header_timeout: std::time::Duration::from_millis(700),
        packument_bytes_max: 2000,
        install_bytes_max: 1_000_000,
        ..Limits::default()
    };
    let served = Served::start(&[("npm_config_registry", &registry.url("/"))], limits).await;
    let explain = async |name: &str| Project::new(&[(name, "1.0.0")]).npm("install", &served).await.unwrap_err();
    for (name, code, reason) in [
        ("away", "E503", "down for maintenance"),
        ("hidden", "E401", "a token is needed"),
        ("forbidden", "E403", "not for you"),
        ("missing", "E404", "not found"),
        ("huge", "E413", "larger than 2000 bytes"),
        ("foreign", "E403", "https://evil.test/foreign-1.0.0.tgz is not below a registry"),
        ("lured", "E403", "redirects to http://169.254.169.254, which is not allowed"),
        ("slow", "E504", "did not answer within"),
    ] {
        let said = explain(name).await;
        assert!(said.contains(&format!("npm error code {code}")) && said.contains(reason), "{name}: {said}");
    }
    // Here npm cannot be told: the answer has begun. The report has the reason.
    let broken = explain("endless").await;
    assert!(broken.contains("npm error code"), "{broken}");
    println!("{broken}");
    let report = served.stop().await;
    assert!(report.problems.iter().any(|problem| problem.contains("downloaded more than 1000000 bytes")), "{report:?}");
    let away = Served::start(&[("npm_config_registry", "http://127.0.0.1:1/")], Limits::default()).await;
    let said = Project::new(&[("a", "1")]).npm("install", &away).await.unwrap_err();
    assert!(said.contains("npm error code E502") && said.contains("cannot be reached"), "{said}");
}

#[test]
fn npm_is_told_nothing_but_the_proxy() {
    let variables = [
        ("npm_config_registry", "https://u.test/"),
        ("npm_config_@s:registry", "https://s.test/"),
        ("npm_config_//s.test/:_authToken", "s3cret"),
    ];
    let registries =
        Registries::load(None, variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap();
    let side = registries.npm_side(4873);
    for argument in
        ["--registry=http://127.0.0.1:4873/", "--@s:registry=http://127.0.0.1:4873/", "--replace-registry-host=always"]
    {
        assert!(side.arguments.iter().any(|given| given == argument), "{argument}");
    }
    let all = format!("{side:?}");
    assert!(!all.contains("s3cret") && !all.contains(".test"), "{all}");
}

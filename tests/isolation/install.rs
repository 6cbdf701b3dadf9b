//! A hostile install script: allowed by its app, so it runs, with a shell, but with no network and nothing of anybody else's.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use chatfn::proto;
use serde_json::json;
use tempfile::TempDir;

use crate::egress::{kill_supervisor, supervisor};
use crate::harness::{Answered, request, wait_until};
use crate::mode::Mode;
use crate::tenant::program;

in_every_mode! {
    an_install_script_gets_at_nothing_of_anybody_elses
}

in_modes_with_a_supervisor! {
    an_install_goes_on_when_the_egress_supervisor_dies
}

const TOKEN: &str = "the-registrys-token";

/// The stand-in, and the operator's configuration for it.
struct Registry {
    process: Child,
    port: u16,
    directory: TempDir,
}

impl Registry {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("temp dir");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/isolation/registry.js");
        let mut command = program("node");
        command.arg(script).arg(directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let port: u16 = line.trim().parse().expect("a port");
        let npmrc = format!("registry=http://127.0.0.1:{port}/\n//127.0.0.1:{port}/:_authToken={TOKEN}\n");
        std::fs::write(directory.path().join("npmrc"), npmrc).expect("write");
        Self { process, port, directory }
    }

    fn setting(&self) -> String {
        format!("npm_userconfig={}", self.directory.path().join("npmrc").display())
    }

    /// Answers once this is gone.
    fn hold(&self) -> PathBuf {
        self.directory.path().join("hold")
    }

    fn asked(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("asked")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn needing_it() -> proto::PublishVersionRequest {
    let source = "exports.handleEvent = () => require('hostile')";
    let mut publish = request("demo", &[("functions/UserAttemptedStartSession.js", source)]);
    publish.spec.as_mut().expect("a spec").dependencies.insert("hostile".to_owned(), "1.0.0".to_owned());
    publish
}

async fn an_install_script_gets_at_nothing_of_anybody_elses(mode: Mode) {
    let registry = Registry::start();
    let Some(server) = mode.start(&[&registry.setting()]).await else { return };
    let port: u16 = server.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    // What the service can read, and would take for npm's.
    let lockfile = registry.directory.path().join("lockfile.json");
    let forged = json!({ "lockfileVersion": 3, "packages": { "node_modules/hostile": { "version": "6.6.6" } } });
    std::fs::write(&lockfile, forged.to_string()).expect("write");
    let facts = json!({
        "database": server.data().join("data/chatfn.db"),
        "lockfile": lockfile,
        "pids": [server.pid()],
        "ports": [port, registry.port, 4873],
        "secret": [TOKEN, "for the service alone"],
    });
    std::fs::write(registry.directory.path().join("facts.json"), facts.to_string()).expect("write");
    let mut publish = needing_it();
    let spec = publish.spec.as_mut().expect("a spec");
    spec.scripts_allowed = vec!["hostile".to_owned()];
    let (version, progress) = server.publish_with_progress(publish).await.expect("publishes");
    let outcomes: BTreeMap<&str, &str> = progress
        .iter()
        .filter_map(|step| step.message.split_once("attack ")?.1.split_once(": "))
        .map(|(name, outcome)| (name, outcome.trim()))
        .collect();
    let in_mode = |rooted: &'static str, landlock: &'static str| if mode.has_root() { rooted } else { landlock };
    let expected = BTreeMap::from([
        ("has_a_shell", "hello"),
        ("writes_its_own", "ok"),
        ("read_shadow", in_mode("ENOENT", "EACCES")),
        ("read_database", in_mode("ENOENT", "EACCES")),
        ("write_elsewhere", in_mode("ENOENT EROFS", "EACCES ENOENT")),
        // Ours and npm's.
        ("environment", "COLOR,EDITOR,HOME,INIT_CWD,LANG,NODE,PATH,PWD,TMPDIR"),
        ("secrets", "none"),
        ("network", in_mode("ECONNREFUSED", "EACCES")),
        ("signal", in_mode("ESRCH", "EPERM")),
        ("look_into", in_mode("ENOENT", "EACCES")),
        ("replace_lockfile", "ok"),
        ("user_is_root", "false"),
    ]);
    assert_eq!(outcomes, expected, "in mode {mode:?}");
    // The token came from the proxy, and the layer is what npm made of it.
    assert!(registry.asked().contains(&format!("GET /hostile Bearer {TOKEN}")), "{}", registry.asked());
    assert_eq!(server.app("demo").login("jane").await.json(), "installed");
    // The lockfile is npm's, not what the script put a link to in its place.
    assert_eq!(version.dependencies, BTreeMap::from([("hostile".to_owned(), "1.0.0".to_owned())]));
    let kept = server.data().join("data/layers/demo").join(&version.layer).join("package-lock.json");
    assert!(kept.symlink_metadata().expect("it is there").is_file());
    assert!(!std::fs::read_to_string(kept).expect("read").contains("6.6.6"));
    server.stop().await;
}

async fn an_install_goes_on_when_the_egress_supervisor_dies(mode: Mode) {
    let registry = Registry::start();
    std::fs::write(registry.hold(), "").expect("write");
    std::fs::write(registry.directory.path().join("facts.json"), "{}").expect("write");
    let Some(server) = mode.start(&[&registry.setting()]).await else { return };
    let meanwhile = async {
        wait_until("npm asks", async || registry.asked().contains("GET /hostile")).await;
        let killed = kill_supervisor(&server);
        wait_until("another one runs", async || supervisor(&server).is_some_and(|pid| pid != killed)).await;
        std::fs::remove_file(registry.hold()).expect("remove");
    };
    let (published, ()) = tokio::join!(server.publish(needing_it()), meanwhile);
    published.expect("publishes");
    assert_eq!(server.app("demo").login("jane").await.json(), "installed");
    server.stop().await;
}

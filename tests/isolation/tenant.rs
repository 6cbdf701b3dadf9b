//! A hostile tenant: an app whose one function carries out the attack that it is asked for.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use chatfn::proto::{self, invoke_response::Outcome};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::harness::{LOGIN, TestApp, TestServer};
use crate::mode::Mode;
use crate::publish_request::Publish;

const MAIN: &str = include_str!("attacks/main.js");
const ATTACKS: [(&str, &str); 8] = [
    ("attacks/files.js", include_str!("attacks/files.js")),
    ("attacks/processes.js", include_str!("attacks/processes.js")),
    ("attacks/calls.js", include_str!("attacks/calls.js")),
    ("attacks/network.js", include_str!("attacks/network.js")),
    ("attacks/egress.js", include_str!("attacks/egress.js")),
    ("attacks/thread.js", include_str!("attacks/thread.js")),
    ("attacks/resources.js", include_str!("attacks/resources.js")),
    ("attacks/controls.js", include_str!("attacks/controls.js")),
];

/// For an attack that goes through thousands of files or all its memory, on a shared machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One attack, and what must come of it.
pub struct Attack {
    name: &'static str,
    args: Value,
    full: String,
    userns: String,
    landlock: String,
}

impl Attack {
    /// Another outcome where it has a user of its own.
    pub fn in_full(mut self, outcome: &str) -> Self {
        self.full = outcome.to_owned();
        self
    }
}

/// The same in all modes.
pub fn attack(name: &'static str, args: Value, outcome: impl Into<String>) -> Attack {
    let outcome = outcome.into();
    Attack { name, args, full: outcome.clone(), userns: outcome.clone(), landlock: outcome }
}

/// One outcome with a root directory and namespaces of its own, that is in `full` and `userns`, and another without.
pub fn by_mode(name: &'static str, args: Value, rooted: &str, landlock: &str) -> Attack {
    let rooted = rooted.to_owned();
    Attack { name, args, full: rooted.clone(), userns: rooted, landlock: landlock.to_owned() }
}

/// A service with one such tenant.
pub struct Tenant {
    pub server: TestServer,
    pub app: TestApp,
    pub mode: Mode,
}

impl Tenant {
    /// `None`: the mode was skipped.
    pub async fn start(mode: Mode) -> Option<Self> {
        Self::with(mode, |_| {}).await
    }

    pub async fn with(mode: Mode, limits: impl FnOnce(&mut proto::Limits)) -> Option<Self> {
        let server = mode.start(&[]).await?;
        let app = publish("attacker", limits).on(&server).await;
        Some(Self { server, app, mode })
    }

    /// Carries them all out, one after the other, and tells of all that did not come out as they must.
    pub async fn suffers(&self, attacks: impl IntoIterator<Item = Attack>) {
        self.suffers_at_once(1, attacks).await;
    }

    /// So many at a time: they must not touch the same things.
    pub async fn suffers_at_once(&self, count: usize, attacks: impl IntoIterator<Item = Attack>) {
        let outcomes = stream::iter(attacks).map(|attack| self.surprise(attack)).buffer_unordered(count);
        let surprises: Vec<_> = outcomes.filter_map(std::future::ready).collect().await;
        assert!(surprises.is_empty(), "in mode {:?}: {surprises:#?}", self.mode);
    }

    /// What is wrong with its outcome.
    async fn surprise(&self, Attack { name, args, full, userns, landlock }: Attack) -> Option<String> {
        let expected = match self.mode {
            Mode::Full => full,
            Mode::Userns => userns,
            Mode::Landlock => landlock,
        };
        let outcome = attempt(&self.app, name, &args).await;
        (outcome != expected).then(|| format!("{name} {args}: {outcome:?} instead of {expected:?}"))
    }

    pub async fn attempt(&self, name: &str, args: Value) -> String {
        attempt(&self.app, name, &args).await
    }
}

/// What the attack answered or, if it never did, how that failed: `Crashed: the worker was ended by signal 31 (SIGSYS)`.
pub async fn attempt(app: &TestApp, name: &str, args: &Value) -> String {
    let event = json!({ "username": name, "args": args }).to_string();
    let answer = app.invoke(LOGIN, &event).await.expect("an answer");
    match answer.outcome {
        Some(Outcome::Result(result)) => {
            let value: Value = serde_json::from_slice(&result.json).expect("JSON");
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        }
        Some(Outcome::Error(error)) => format!("{:?}: {}", error.kind(), error.message),
        other => format!("{other:?}"),
    }
}

/// The attacks as an app. It reaches nothing over the network unless `limits` says so.
pub fn publish(app: &str, limits: impl FnOnce(&mut proto::Limits)) -> Publish {
    let mut publish =
        Publish::login(app, MAIN).timeout(PATIENCE).limits(|limits| limits.egress = "none".to_owned()).limits(limits);
    for (path, content) in ATTACKS {
        publish = publish.file(path, content);
    }
    let files = &mut publish.0.spec.as_mut().expect("a spec").files;
    files.insert("lib/raw.node".to_owned(), addon());
    publish
}

/// Native code, compiled once; on a machine without a compiler, the file that `ISOLATION_TEST_ADDON` names.
fn addon() -> Bytes {
    static ADDON: OnceLock<Bytes> = OnceLock::new();
    let compile = || {
        if let Some(file) = std::env::var_os("ISOLATION_TEST_ADDON") {
            return Bytes::from(std::fs::read(file).expect("the addon"));
        }
        let directory = tempfile::tempdir().expect("temp dir");
        let (source, file) = (directory.path().join("addon.c"), directory.path().join("raw.node"));
        std::fs::write(&source, include_str!("addon.c")).expect("write");
        let flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"];
        let output = program("cc").args(flags).args([&file, &source]).output().expect("a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Bytes::from(std::fs::read(&file).expect("read"))
    };
    ADDON.get_or_init(compile).clone()
}

#[allow(clippy::disallowed_methods, reason = "tests start programs as users do")]
pub fn program(name: impl AsRef<OsStr>) -> Command {
    Command::new(name)
}

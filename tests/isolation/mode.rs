//! The modes, and a service in each.
//!
//! `full` is shown as root, the others as a user without privileges, which root can become here. A mode that the machine lacks is
//! skipped with the service's own reason, on the test's stderr; so is said which modes ran. With `ISOLATION_TEST_MODES=full,userns`
//! those must run.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::harness::{TestServer, wait_until};
use crate::world::World;

/// nobody's, who runs the service where root is not to.
pub const USER: u32 = 65_534;
/// What the service says when it finds no mode, and why.
const LACKING: &str = "no way to confine children works here";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Full,
    Userns,
    Landlock,
}

/// Makes each of these functions, which take a [`Mode`], a test for each mode.
macro_rules! in_every_mode {
    ($($test:ident)*) => {
        $(mod $test {
            #[tokio::test]
            async fn full() {
                super::$test(crate::mode::Mode::Full).await;
            }

            #[tokio::test]
            async fn userns() {
                super::$test(crate::mode::Mode::Userns).await;
            }

            #[tokio::test]
            async fn landlock() {
                super::$test(crate::mode::Mode::Landlock).await;
            }
        })*
    };
}

/// Those alone in which a supervisor makes workers' connections.
macro_rules! in_modes_with_a_supervisor {
    ($($test:ident)*) => {
        $(mod $test {
            #[tokio::test]
            async fn full() {
                super::$test(crate::mode::Mode::Full).await;
            }

            #[tokio::test]
            async fn userns() {
                super::$test(crate::mode::Mode::Userns).await;
            }
        })*
    };
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Userns => "userns",
            Self::Landlock => "landlock",
        }
    }

    pub fn has_root(self) -> bool {
        self != Self::Landlock
    }

    /// `None`: it was skipped, which was told.
    pub async fn start(self, settings: &[&str]) -> Option<TestServer> {
        self.start_in(None, "", settings).await
    }

    /// With more configuration, as in the file; in a network of the test's, if there is one.
    pub async fn start_in(self, world: Option<&World>, configuration: &str, settings: &[&str]) -> Option<TestServer> {
        let data = Arc::new(tempfile::tempdir().expect("temp dir"));
        let mut settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        settings.push(format!("isolation.mode={}", self.as_str()));
        let command = self.command(&data, world, configuration, &settings);
        let started = TestServer::reached(command, data, settings, async |endpoint| match world {
            Some(world) => world.connect(endpoint).await,
            None => endpoint.connect().await,
        });
        match started.await {
            Ok(server) => {
                let told =
                    || server.log().into_iter().find_map(|line| Some(line.split_once("isolation: ")?.1.to_owned()));
                wait_until("it tells what confines", async || told().is_some()).await;
                self.say_once(&format!("ran – {}", told().unwrap_or_default()));
                Some(server)
            }
            Err(said) => {
                let lacking = said.iter().find(|line| line.contains(LACKING));
                let reason = lacking.unwrap_or_else(|| panic!("the service did not start in mode {self:?}: {said:#?}"));
                self.skip(reason);
                None
            }
        }
    }

    pub fn skip(self, reason: &str) {
        let demanded = std::env::var("ISOLATION_TEST_MODES").unwrap_or_default();
        assert!(!demanded.split(',').any(|mode| mode == self.as_str()), "mode {self:?} must run here, but: {reason}");
        self.say_once(&format!("skipped, because {reason}"));
    }

    /// Past the test runner, which keeps to itself what tests that pass print.
    fn say_once(self, what: &str) {
        static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let line = format!("isolation tests: mode {}: {what}\n", self.as_str());
        if SAID.lock().expect("lock").insert(line.clone()) {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn command(self, data: &TempDir, world: Option<&World>, configuration: &str, settings: &[String]) -> Command {
        let file = data.path().join("chatfn.toml");
        std::fs::write(&file, format!("default_dependencies = {{}}\n{configuration}"))
            .expect("write the configuration");
        let mut words: Vec<OsString> = world.map(World::prefix).unwrap_or_default();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_chatfn"));
        if self != Self::Full && geteuid().is_root() {
            let ids = [format!("--reuid={USER}"), format!("--regid={USER}")];
            words.push("setpriv".into());
            words.extend(ids.map(OsString::from));
            words.push("--clear-groups".into());
            program = executable_for_everybody(program, data.path());
            for path in [data.path(), &file] {
                chown(path, Some(USER), Some(USER)).expect("give it the data directory");
            }
        }
        words.push(program.into());
        words.extend(["serve", "--listen", "127.0.0.1:0", "--config"].map(OsString::from));
        words.extend([file.into(), "--data-dir".into(), data.path().join("data").into()]);
        for setting in settings {
            words.extend(["--set".into(), setting.into()]);
        }
        let mut command = crate::tenant::program(&words[0]);
        command.args(&words[1..]);
        // None of it may reach tenants' code.
        command.envs([("SERVICE_SECRET", "for the service alone"), ("NODE_OPTIONS", "--no-deprecation")]);
        command
    }
}

/// Where it is if everybody can walk there, else a copy.
fn executable_for_everybody(program: PathBuf, data: &Path) -> PathBuf {
    let open = |path: &Path| path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    if program.ancestors().all(open) {
        return program;
    }
    let copy = data.join("chatfn");
    if std::fs::hard_link(&program, &copy).is_err() {
        std::fs::copy(&program, &copy).expect("copy the program");
    }
    assert!(copy.metadata().is_ok_and(|metadata| metadata.mode() & 0o005 == 0o005), "{}", copy.display());
    copy
}

//! Databases of the tests' server of PostgreSQL, which `scripts/with-postgres` starts. Without one these tests are skipped, and say so.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// `postgres`: every service of the tests uses a database of its own.
const ENGINE: &str = "ENGINE_FOR_TESTS";
const SERVER: &str = "POSTGRES_FOR_TESTS";

/// The settings that a service takes where this run of the tests is for PostgreSQL; else none.
pub fn of_this_run() -> Vec<String> {
    match std::env::var(ENGINE) {
        Ok(engine) if engine == "postgres" => database().map(|url| format!("database_url={url}")).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The URL of a new one. `None`, said: there is no server.
pub fn database() -> Option<String> {
    let Ok(server) = std::env::var(SERVER) else {
        println!("skipped, because {SERVER} is not set: run it with scripts/with-postgres, as make test does");
        return None;
    };
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    sql(&server, &format!("CREATE DATABASE {name}"));
    let mut url: url::Url = server.parse().expect("a URL");
    url.set_path(&name);
    Some(url.into())
}

/// A server of the test's own, which it may restart; ends when this is dropped.
pub struct Server {
    process: Child,
    pub url: String,
    restart: String,
}

impl Server {
    /// `None`, said: there is none here.
    #[allow(clippy::disallowed_methods, reason = "a server of the test's own")]
    pub fn start() -> Option<Self> {
        database()?; // Where the tests have no server, one of our own is not to be had either.
        let tell = r#"echo "$POSTGRES_FOR_TESTS"; echo "$POSTGRES_RESTART"; read -r _"#;
        let mut command = Command::new("scripts/with-postgres");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["sh", "-c", tell]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines().map(|line| line.expect("a line"));
        let (url, restart) = (lines.next().expect("its URL"), lines.next().expect("how to restart it"));
        Some(Self { process, url, restart })
    }

    /// As after a crash: it is killed, recovers, and takes connections again.
    #[allow(clippy::disallowed_methods, reason = "as an operator does")]
    pub fn restart(&self) {
        let status = Command::new("sh").args(["-c", &format!("cd / && {}", self.restart)]).status().expect("pg_ctl");
        assert!(status.success(), "{}", self.restart);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take()); // Then its command ends, and it cleans up.
        let _ = self.process.wait();
    }
}

/// What psql prints.
#[allow(clippy::disallowed_methods, reason = "the tests look into the database as its operator would")]
pub fn sql(url: &str, sql: &str) -> String {
    let output = Command::new("psql").args(["-X", "-q", "-t", "-A", "-d", url, "-c", sql]).output().expect("psql");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

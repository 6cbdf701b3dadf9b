//! Databases of the tests' server of PostgreSQL, which `scripts/with-postgres` starts. Without one these tests are skipped, and say so.

use std::process::Command;

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

/// What psql prints.
#[allow(clippy::disallowed_methods, reason = "the tests look into the database as its operator would")]
pub fn sql(url: &str, sql: &str) -> String {
    let output = Command::new("psql").args(["-X", "-q", "-t", "-A", "-d", url, "-c", sql]).output().expect("psql");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

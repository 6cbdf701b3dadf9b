//! Secrets at rest: what lies in the data directory, and how keys are replaced under a running service.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chatfn::proto;
use serde_json::Value;
use tempfile::TempDir;

use crate::audit::listed;
use crate::credentials::{bearer, create, wanted};
use crate::credentials_oauth::access_token;
use crate::harness::{Answered, LOGIN, TestServer, binary, request};

const SECRET: &str = "hunter2-never-to-be-seen";
const READS_IT: &str =
    "export const handleEvent = () => process.env.TOKEN === undefined ? 'none' : process.env.TOKEN.length";

/// Out with what `chatfn` prints, err with what it says.
async fn chatfn(args: &[&str]) -> (bool, String, String) {
    let mut command = binary();
    command.args(args);
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

struct Keys(TempDir);

impl Keys {
    fn path(&self) -> PathBuf {
        self.0.path().join("keys")
    }

    fn setting(&self) -> String {
        format!("encryption_keys_file={}", self.path().display())
    }

    /// These ones, made if they are new, the first one first.
    async fn write(&self, ids: &[&str]) {
        let mut lines = String::new();
        for id in ids {
            let path = self.0.path().join(format!("key-{id}"));
            if !path.exists() {
                let (good, line, err) = chatfn(&["keys", "generate", "--id", id]).await;
                assert!(good && line.starts_with(&format!("{id}:")), "{err}");
                std::fs::write(&path, line).expect("write");
            }
            lines += &std::fs::read_to_string(&path).expect("read");
        }
        std::fs::write(self.path(), lines).expect("write");
        std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(0o600)).expect("chmod");
    }
}

fn keys() -> Keys {
    Keys(tempfile::tempdir().expect("temp dir"))
}

fn with_secret(app: &str) -> proto::PublishVersionRequest {
    let mut request = request(app, &[("functions/UserAttemptedStartSession.ts", READS_IT)]);
    if let Some(spec) = &mut request.spec {
        spec.environment.insert("TOKEN".to_owned(), SECRET.to_owned());
    }
    request
}

async fn sees_it(server: &TestServer, app: &str) -> bool {
    server.app(app).login("jane").await.json() == SECRET.len()
}

/// Whether the secret lies anywhere in the data directory.
fn lies_open(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(lies_open(&entry.path()));
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            if bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()) {
                found.push(entry.path());
            }
        }
    }
    found
}

fn data(server: &TestServer) -> PathBuf {
    server.data().join("data")
}

async fn rotate(server: &TestServer, keys: &Keys) -> Value {
    let directory = data(server).display().to_string();
    let (good, out, err) =
        chatfn(&["keys", "rotate", "--json", "--data-dir", &directory, "--set", &keys.setting()]).await;
    assert!(good, "{out}{err}");
    assert!(!err.contains(SECRET) && !out.contains(SECRET));
    serde_json::from_str(&out).expect("JSON")
}

async fn restarted(server: TestServer, settings: &[&str]) -> TestServer {
    let (data, _) = server.crash();
    TestServer::restart((data, settings.iter().map(|&setting| setting.to_owned()).collect())).await
}

#[tokio::test]
async fn with_keys_no_secret_lies_open_and_all_of_them_work_after_a_crash() {
    let keys = keys();
    keys.write(&["one"]).await;
    let server = TestServer::with(&[&keys.setting(), "log_level=debug"]).await;
    server.publish(with_secret("demo")).await.expect("publishes");
    assert!(sees_it(&server, "demo").await);
    assert!(lies_open(&data(&server)).is_empty(), "{:?}", lies_open(&data(&server)));
    assert!(!server.log().join("\n").contains(SECRET));
    let server = server.crash_and_restart().await;
    assert!(sees_it(&server, "demo").await);
    let done = rotate(&server, &keys).await;
    let nothing = BTreeMap::from([("data_keys", 0), ("values", 0), ("service_keys", 0)]);
    assert!(nothing.iter().all(|(name, count)| done[name] == *count) && done["key_id"] == "one", "{done}");
    server.stop().await;
}

#[tokio::test]
async fn a_key_is_replaced_under_a_running_service() {
    let keys = keys();
    keys.write(&["old"]).await;
    let server = TestServer::with(&[&keys.setting()]).await;
    for app in ["demo", "other"] {
        server.publish(with_secret(app)).await.expect("publishes");
    }
    let credential = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let token = access_token(&server, &credential).await;
    // The service is not told.
    keys.write(&["new", "old"]).await;
    let done = rotate(&server, &keys).await;
    assert_eq!((&done["key_id"], &done["data_keys"], &done["service_keys"]), (&"new".into(), &2.into(), &1.into()));
    assert_eq!((&done["values"], &done["failed"]), (&0.into(), &serde_json::json!([])));
    assert!(sees_it(&server, "demo").await);
    // Read from the store, which takes the new key: versions and apps of all ages.
    let again = proto::PublishVersionRequest {
        keep_environment: true,
        ..request("demo", &[("functions/UserAttemptedStartSession.ts", READS_IT)])
    };
    server.publish(again).await.expect("publishes");
    server.publish(with_secret("late")).await.expect("publishes");
    assert_eq!(rotate(&server, &keys).await["data_keys"], 0, "what came later took the new key by itself");

    let rotations = proto::ListAuditEntriesRequest { action: "keys.rotate".to_owned(), ..Default::default() };
    let entries = listed(&server, rotations).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    let actor = entries[1].actor.as_ref().expect("an actor");
    assert_eq!((actor.kind.as_str(), actor.id.is_empty()), ("command", false), "{actor:?}");
    assert_eq!((entries[1].app_id.as_str(), entries[1].target.as_str()), ("", "new"));
    let details: Value = serde_json::from_slice(&entries[1].details_json).expect("JSON");
    assert_eq!(
        (&details["data_keys"], &details["service_keys"], &details["ended"]),
        (&2.into(), &1.into(), &true.into())
    );

    keys.write(&["new"]).await;
    let server = restarted(server, &[&keys.setting()]).await;
    for app in ["demo", "other", "late"] {
        assert!(sees_it(&server, app).await, "{app}");
    }
    let call = server.app("demo").call(LOGIN, r#"{"username":"jane"}"#);
    server.invocations().invoke(bearer(call, &token)).await.expect("the token is still known");
    server.stop().await;
}

#[tokio::test]
async fn what_lay_open_before_there_were_keys_works_on_and_a_rotation_encrypts_it() {
    let keys = keys();
    let server = TestServer::start().await;
    server.publish(with_secret("demo")).await.expect("publishes");
    assert!(!lies_open(&data(&server)).is_empty(), "else this test finds nothing anywhere");
    keys.write(&["one"]).await;
    let server = restarted(server, &[&keys.setting()]).await;
    assert!(sees_it(&server, "demo").await);
    let done = rotate(&server, &keys).await;
    assert_eq!((&done["values"], &done["service_keys"]), (&1.into(), &1.into()));
    assert!(lies_open(&data(&server)).is_empty(), "{:?}", lies_open(&data(&server)));
    let server = restarted(server, &[&keys.setting()]).await;
    assert!(sees_it(&server, "demo").await);
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_is_missing_is_named_before_anything_starts() {
    let keys = keys();
    keys.write(&["lost"]).await;
    let server = TestServer::with(&[&keys.setting()]).await;
    server.publish(with_secret("demo")).await.expect("publishes");
    let directory = data(&server).display().to_string();
    let (kept, _) = server.crash();
    let start = async |settings: &[&str]| {
        let sets = settings.iter().flat_map(|setting| ["--set", setting]);
        let args = ["serve", "--listen", "127.0.0.1:0", "--data-dir", &directory].into_iter().chain(sets);
        let (good, out, err) = chatfn(&args.collect::<Vec<_>>()).await;
        assert!(!good && !out.contains("listens") && !err.contains(SECRET), "{out}{err}");
        err
    };
    assert!(start(&[]).await.contains("\"lost\", and no encryption_keys_file is set"));
    keys.write(&["found"]).await;
    assert!(start(&[&keys.setting()]).await.contains("\"lost\", which is not in encryption_keys_file"));
    let (good, out, err) = chatfn(&["keys", "rotate", "--data-dir", &directory, "--set", &keys.setting()]).await;
    assert!(!good && out.contains("2 could not be opened") && err.contains("\"lost\""), "{out}{err}");

    std::fs::set_permissions(keys.path(), std::fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(start(&[&keys.setting()]).await.contains("chmod 600"));
    let (good, _, err) = chatfn(&["serve", "--check-config", "--set", &keys.setting()]).await;
    assert!(!good && err.contains("encryption_keys_file") && err.contains("chmod 600"), "{err}");
    let (good, _, err) = chatfn(&["keys", "rotate", "--data-dir", &directory]).await;
    assert!(!good && err.contains("chatfn keys generate"), "{err}");

    keys.write(&["found", "lost"]).await;
    let server = TestServer::restart((Arc::clone(&kept), vec![keys.setting()])).await;
    assert!(sees_it(&server, "demo").await);
    server.stop().await;
}

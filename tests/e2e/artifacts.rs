//! An artifact store that replicas share: a real S3-compatible server, and services whose data directories have nothing in common.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use chatfn::proto;
use tempfile::TempDir;
use tonic::Code;

use crate::harness::{Answered, TestServer, binary, reason};
use crate::inspect::{login, map, with};
use crate::s3::{S3Server, SECRET_KEY};

const LOCATION: &str = "s3://chatfn/e2e";
const SOURCE: &str = "const fs = require('fs');
exports.handleEvent = () => {
  const seen = Object.keys(process.env).filter((name) => name.startsWith('AWS_'));
  return [require('ms')('2 days'), seen, fs.readFileSync('/proc/self/environ', 'latin1').includes('AWS_')];
};";

fn command(data: &Path, store: &S3Server) -> Command {
    let config = data.join("chatfn.toml");
    fs::write(&config, "default_dependencies = {}\n").expect("write the configuration");
    let mut command = binary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--artifacts", LOCATION, "--config"]).arg(config);
    command.arg("--data-dir").arg(data.join("data")).envs(store.environment());
    command
}

async fn replica(data: &Arc<TempDir>, store: &S3Server) -> TestServer {
    let connect = async |endpoint: tonic::transport::Endpoint| endpoint.connect().await;
    let started = TestServer::reached(command(data.path(), store), Arc::clone(data), Vec::new(), connect).await;
    started.unwrap_or_else(|log| panic!("the service did not start: {log:?}"))
}

fn needing_ms() -> proto::PublishVersionRequest {
    with(login("demo", SOURCE), |spec| spec.dependencies = map(&[("ms", "2.1.2")]))
}

#[tokio::test]
async fn a_replica_serves_what_another_published() {
    let mut store = S3Server::start();
    let (one, two) = (Arc::new(TempDir::new().expect("temp dir")), Arc::new(TempDir::new().expect("temp dir")));
    let first = replica(&one, &store).await;
    first.publish(needing_ms()).await.expect("publishes");
    let answer = serde_json::json!([172_800_000, [], false]);
    assert_eq!(first.app("demo").login("jane").await.json(), answer);
    assert_eq!(store.blobs("e2e").len(), 2, "an artifact and a layer");
    first.stop().await;

    fs::create_dir(two.path().join("data")).expect("make");
    fs::copy(one.path().join("data/chatfn.db"), two.path().join("data/chatfn.db")).expect("copy the database");
    let mut second = replica(&two, &store).await;
    assert!(!two.path().join("data/layers/demo").exists());
    assert_eq!(second.app("demo").login("jane").await.json(), answer);
    assert!(second.log().iter().any(|line| line.contains("fetched from the artifact store")), "{:?}", second.log());
    assert!(second.log().iter().all(|line| !line.contains(SECRET_KEY)));

    store.stop();
    second.expect_log("artifact store");
    assert_eq!(second.app("demo").login("jane").await.json(), answer, "what is at hand needs no store");
    let changed = with(needing_ms(), |spec| spec.initialization_script = "exports.x = 1".to_owned());
    let refused = second.publish(changed).await.expect_err("there is nowhere to put it");
    assert_eq!(reason(&refused), (Code::Unavailable, "ARTIFACT_STORE_UNAVAILABLE".to_owned()));
    let request = proto::ListVersionsRequest { app_id: "demo".to_owned(), ..Default::default() };
    let versions = second.versions().list_versions(request).await.expect("lists").into_inner().versions;
    let states: Vec<_> = versions.iter().map(proto::Version::state).collect();
    assert_eq!(states, [proto::VersionState::Failed, proto::VersionState::Ready]);
    assert_eq!(second.app("demo").login("jane").await.json(), answer);
    store.restart();
    second.publish(needing_ms()).await.expect("publishes");
    second.stop().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_told_at_the_start() {
    let mut store = S3Server::start();
    let data = TempDir::new().expect("temp dir");
    store.stop();
    let away = command(data.path(), &store).output().expect("runs");
    let said = String::from_utf8_lossy(&away.stderr).into_owned();
    assert!(!away.status.success() && said.contains(LOCATION) && said.contains("AWS_ENDPOINT"), "{said}");
    assert!(!said.contains(SECRET_KEY));
    let said = TestServer::refused(&["artifacts=s3://key:hunter22@bucket"]);
    assert!(said.contains("credentials do not belong here") && !said.contains("hunter22"), "{said}");
}

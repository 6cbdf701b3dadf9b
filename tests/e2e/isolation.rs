//! What the service says about its confinement, and what it refuses without. Whether that confines is tried by the layers' own tests in
//! `src/sandbox`, and by tenants in `tampering.rs` and `orphans.rs`.

use std::process::Command;

use chatfn::proto;

use crate::harness::{LOGIN, TestServer};

#[allow(clippy::disallowed_methods, reason = "tests start the program as users do")]
fn doctor(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_chatfn")).arg("doctor").args(arguments).output().expect("runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn every_layer_is_told_with_its_proof_by_the_service_and_by_doctor() {
    let server = TestServer::start().await;
    let shown = server.apps().get_isolation(proto::GetIsolationRequest {}).await.expect("shown").into_inner();
    assert!(shown.layers.iter().any(|layer| layer.name == "seccomp" && layer.active), "{shown:?}");
    for layer in &shown.layers {
        assert!(!layer.proof.is_empty(), "{layer:?}");
        assert_eq!(layer.active, layer.consequence.is_empty() && layer.advice.is_empty(), "{layer:?}");
    }
    let (good, said) = doctor(&["--json"]);
    assert!(good, "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["mode"], shown.mode.as_str());
    let told: Vec<_> = report["layers"].as_array().expect("layers").iter().map(|layer| &layer["name"]).collect();
    let names: Vec<_> = shown.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(told, names);
    server.stop().await;
}

#[tokio::test]
async fn a_layer_that_is_required_and_missing_stops_the_start_with_the_reason() {
    // Without a network namespace there is no egress supervisor, on any machine.
    let settings = ["isolation.mode=landlock", r#"isolation.require=["egress"]"#];
    let said = TestServer::refused(&settings);
    assert!(said.contains("egress is not active (no network namespace to stand in for)"), "{said}");
    let (good, said) = doctor(&["--set", settings[0], "--set", settings[1]]);
    assert!(!good && said.contains("would not start"), "{said}");
    let said = TestServer::refused(&["isolation.mode=none"]);
    assert!(said.contains("--insecure-no-sandbox"), "{said}");
    let said = TestServer::refused(&[r#"isolation.require=["moat"]"#]);
    assert!(said.contains("moat"), "{said}");
}

#[tokio::test]
async fn without_a_sandbox_the_service_runs_only_if_told_so_and_says_it_loudly() {
    let mut server = TestServer::with(&["insecure_no_sandbox=true"]).await;
    server.expect_log("isolation: ");
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => process.getuid()").await;
    assert_eq!(crate::harness::Answered::json(&app.login("jane").await), nix::unistd::getuid().as_raw());
    assert!(server.log().iter().any(|line| line.contains("WARN") && line.contains("run trusted code only")));
    server.stop().await;
}

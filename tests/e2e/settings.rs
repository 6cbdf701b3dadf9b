//! Where settings come from, and what the service says about them.

use std::process::Output;

use tonic::Code;

use crate::harness::{LOGIN, TestServer, binary, reason, wait_until};

const FINE: &str = "export const handleEvent = (event) => event.username";

/// The `chatfn` command, with no `chatfn.toml` where it runs.
pub fn chatfn(args: &[&str], variables: &[(&str, &str)]) -> Output {
    binary().args(args).envs(variables.iter().copied()).current_dir(std::env::temp_dir()).output().expect("runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_variable_wins_over_the_file_in_the_working_directory_and_a_flag_over_both() {
    let file = "listen = '127.0.0.1:0'\nevent_bytes_max = 10\nresult_bytes_max = 10\ndefault_dependencies = {}\n";
    let variables = [("CHATFN_EVENT_BYTES_MAX", "50"), ("CHATFN_RESULT_BYTES_MAX", "20")];
    let server = TestServer::with_environment(file, &variables, &["result_bytes_max=60"]).await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => 'x'.repeat(40)").await;
    let event = |bytes: usize| format!("{:bytes$}", r#"{"username":"jane"}"#);
    app.invoke(LOGIN, &event(51)).await.expect_err("more than the variable allows");
    let answer = app.invoke(LOGIN, &event(50)).await.expect("as much as the variable allows, more than the file does");
    assert!(matches!(answer.outcome, Some(chatfn::proto::invoke_response::Outcome::Result(_))), "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn variables_that_are_no_settings_are_named_and_do_no_harm() {
    let kubernetes = [("CHATFN_PORT", "tcp://10.0.0.1:7400"), ("CHATFN_SERVICE_HOST", "10.0.0.1")];
    let misspelt = [("CHATFN_IDLE_TLL", "5s")];
    let variables: Vec<_> = kubernetes.into_iter().chain(misspelt).collect();
    let file = "listen = '127.0.0.1:0'\ndefault_dependencies = {}\n";
    let mut server = TestServer::with_environment(file, &variables, &[]).await;
    server.expect_log("CHATFN_IDLE_TLL");
    wait_until("it is logged", async || server.log().iter().any(|line| line.contains("CHATFN_"))).await;
    let warnings: Vec<_> = server.log().into_iter().filter(|line| line.contains("CHATFN_")).collect();
    let [warning] = &warnings[..] else { panic!("not one warning: {warnings:?}") };
    for name in ["CHATFN_IDLE_TLL", "CHATFN_PORT", "CHATFN_SERVICE_HOST"] {
        assert!(warning.contains(" WARN ") && warning.contains(name), "{warning}");
    }
    server.deploy_function("demo", LOGIN, FINE).await.login("jane").await;
    server.stop().await;

    let checked = chatfn(&["serve", "--check-config"], &[("CHATFN_IDLE_TLL", "5s")]);
    assert!(checked.status.success() && said(&checked).contains("CHATFN_IDLE_TLL"), "{}", said(&checked));
    let refused = chatfn(&["serve", "--check-config"], &[("CHATFN_IDLE_TTL", "soon")]);
    assert!(!refused.status.success() && said(&refused).contains("idle_ttl"), "{}", said(&refused));
}

#[tokio::test]
async fn a_map_is_json_in_a_variable() {
    let checked = chatfn(&["serve", "--check-config"], &[("CHATFN_DEFAULT_DEPENDENCIES", r#"{"ms":"2.1.2"}"#)]);
    let printed: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    assert_eq!(printed["default_dependencies"], serde_json::json!({ "ms": "2.1.2" }));
    let refused = chatfn(&["serve", "--check-config"], &[("CHATFN_DEFAULT_DEPENDENCIES", "ms@2")]);
    assert!(!refused.status.success() && said(&refused).contains("default_dependencies"), "{}", said(&refused));
}

#[tokio::test]
async fn an_open_service_says_so() {
    let server = TestServer::start().await;
    let open = |line: &String| line.contains(" WARN ") && line.contains("open: no operator_token_file");
    wait_until("it is logged", async || server.log().iter().any(open)).await;
    server.stop().await;
}

#[tokio::test]
async fn with_a_token_it_listens_on_every_address_and_refuses_who_does_not_have_it() {
    let token = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(token.path(), "0123456789abcdef").expect("write");
    let file = format!(
        "listen = '0.0.0.0:0'\ndefault_dependencies = {{}}\noperator_token_file = '{}'\n",
        token.path().display()
    );
    let mut server = TestServer::with_environment(&file, &[], &[]).await;
    assert!(server.address.starts_with("http://0.0.0.0:"), "{}", server.address);
    let apps = async |token: Option<&str>| {
        let mut request = tonic::Request::new(chatfn::proto::ListAppsRequest::default());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ascii"));
        }
        server.apps().list_apps(request).await
    };
    for wrong in [None, Some("0123456789abcdeF")] {
        let refused = apps(wrong).await.expect_err("refused");
        assert_eq!(reason(&refused), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
    }
    apps(Some("0123456789abcdef")).await.expect("accepted");
    server.expect_log("no encryption_keys_file is set");
    server.stop().await;
}

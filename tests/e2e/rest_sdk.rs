//! The REST API by ChatKitty's own client, as its users have it from npm.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::credentials::{Credential, bearer, create, wanted};
use crate::harness::{LOGIN, TestServer};

#[allow(clippy::disallowed_methods, reason = "the client as its users run it")]
fn run(program: &str, args: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(directory).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the client was answered, by the name of each call.
fn drive(directory: &Path, base: &str, client: &Credential, part: &str, id: &str) -> Value {
    let said = run("node", &["drive.js", &client.id, &client.secret, base, part, id], directory);
    serde_json::from_str(&said).expect("JSON")
}

fn installed() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temp dir");
    std::fs::write(directory.path().join("drive.js"), include_str!("rest_sdk.js")).expect("write the script");
    let install = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "chatkitty-platform-sdk@2.4.0"];
    run("npm", &install, directory.path());
    directory
}

/// `ApiError` of the client's schema.
fn refused(said: &Value, status: u16, error: &str) -> String {
    assert_eq!((said["status"].as_u64(), said["data"]["error"].as_str()), (Some(status.into()), Some(error)), "{said}");
    let timestamp = said["data"]["timestamp"].as_str().expect("a time");
    assert!(humantime::parse_rfc3339(timestamp).is_ok(), "{timestamp}");
    said["data"]["message"].as_str().expect("a message").to_owned()
}

fn without_links(mut data: Value) -> Value {
    let object = data.as_object_mut().expect("an object");
    assert!(object.remove("_links").expect("links")["self"]["href"].is_string());
    data
}

fn check_changes(said: &Value) {
    let fresh = without_links(said["fresh"]["data"].clone());
    let id = fresh["id"].as_u64().expect("a number");
    assert!(id < 1 << 53, "as JavaScript has it: {id}");
    let empty =
        json!({ "type": "NODEJS", "id": id, "version": "1.0.0", "dependencies": [], "environmentVariables": {} });
    assert_eq!(fresh, empty);
    let dependencies =
        json!([{ "name": "is-number", "version": "7.0.0", "defaultDependency": false, "resolvedVersion": "7.0.0" }]);
    assert_eq!(said["dependencies"]["data"]["dependencies"], dependencies);
    assert_eq!(said["dependencies"]["data"]["version"], "1.0.1");
    let masked = json!({ "GREETING": "********", "KEY": "********" });
    assert_eq!(said["environment"]["data"]["environmentVariables"], masked);
    assert!(!said.to_string().contains("hunter2"), "{said}");
    let script = json!({ "script": "export const greeting = process.env.GREETING;" });
    assert_eq!(said["initialization"]["data"]["initializationScript"], script);
    let created = &said["created"];
    assert_eq!(created["status"], 201);
    let expected = json!({
        "type": LOGIN, "id": created["data"]["id"], "name": "Login", "description": "lets in", "currentVersionNumber": 0,
        "enabled": false, "runtime": { "type": "NODEJS", "id": id, "version": "1.0.3" },
    });
    assert_eq!(without_links(created["data"].clone()), expected);
    refused(&said["again"], 409, "FUNCTION_EXISTS");
    refused(&said["none"], 404, "VERSION_NOT_FOUND");
    for (name, number) in [("first", 1), ("second", 2)] {
        assert_eq!(
            (&said[name]["status"], &said[name]["data"]["versionNumber"]),
            (&json!(201), &json!(number)),
            "{said}"
        );
    }
    let message = refused(&said["syntax"], 400, "SYNTAX_ERROR");
    assert!(message.contains("UserAttemptedStartSession.ts:2:") && message.contains("> 2 | const = 2;"), "{message}");
    assert!(refused(&said["throws"], 422, "VERIFICATION_FAILED").contains("at start"));
    refused(&said["unknownPackage"], 400, "INVALID_DEPENDENCY");
}

fn check_looks(said: &Value, id: &Value) {
    let function = &said["function"]["data"];
    assert_eq!((&function["currentVersionNumber"], &function["enabled"]), (&json!(2), &json!(true)), "{function}");
    assert_eq!((&function["name"], &function["description"]), (&json!("Login"), &json!("lets in")));
    assert_eq!(said["functions"]["data"]["_embedded"]["functions"], json!([function]));
    let page = json!({ "number": 0, "size": 10, "totalElements": 1, "totalPages": 1 });
    assert_eq!(said["functions"]["data"]["page"], page);
    let versions = &said["versions"]["data"];
    assert_eq!(versions["page"], json!({ "number": 0, "size": 1, "totalElements": 2, "totalPages": 2 }));
    let newest = &versions["_embedded"]["versions"][0];
    assert_eq!(newest["versionNumber"], 2);
    assert!(newest["handlerScript"].as_str().expect("a script").contains("isNumber(2)"), "{newest}");
    assert_eq!(&said["current"]["data"], newest);
    assert_eq!(&said["version"]["data"], newest);
    let invocations = &said["invocations"]["data"];
    assert_eq!(invocations["page"]["totalElements"], 1);
    let invocation = &invocations["_embedded"]["invocations"][0];
    assert_eq!(invocation["args"], json!({ "username": "jane" }));
    assert_eq!(invocation["result"], json!({ "said": "hello jane", "number": true }));
    assert_eq!((&invocation["status"], &invocation["versionNumber"]), (&json!("SUCCEEDED"), &json!(2)));
    assert!(invocation["id"].is_u64());
    assert!(humantime::parse_rfc3339(invocation["createdTime"].as_str().expect("a time")).is_ok());
    assert_eq!(said["runtime"]["data"]["version"], "1.0.5");
    assert_eq!(function["runtime"]["id"], said["runtime"]["data"]["id"]);
    refused(&said["users"], 404, "NOT_FOUND");
    refused(&said["elsewhere"], 404, "FUNCTION_NOT_FOUND");
    assert_eq!(&function["id"], id);
}

#[tokio::test]
async fn rest_serves_chatkittys_own_client() {
    let server = TestServer::start().await;
    let client = create(&server, wanted("demo", &["publish", "invoke"])).await.expect("created");
    let (base, drives) = (server.address.clone(), client.clone());
    let (directory, said) = tokio::task::spawn_blocking(move || {
        let directory = installed();
        let said = drive(directory.path(), &base, &drives, "change", "");
        (directory, said)
    })
    .await
    .expect("joins");
    check_changes(&said);
    let call = server.app("demo").call(LOGIN, r#"{"username":"jane"}"#);
    server.invocations().invoke(bearer(call, &client.secret)).await.expect("an answer");
    let (id, base) = (said["created"]["data"]["id"].clone(), server.address.clone());
    let text = id.to_string();
    let said = tokio::task::spawn_blocking(move || drive(directory.path(), &base, &client, "look", &text));
    check_looks(&said.await.expect("joins"), &id);
    server.stop().await;
}

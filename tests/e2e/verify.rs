//! A version is loaded in a real worker before it may serve; one that does not load changes nothing.

use tonic::Code;

use crate::harness::{Answered, LOGIN, TestServer, request};
use crate::inspect::{login, messages};

const FINE: &str = "export const handleEvent = () => 'fine'";

/// Publishes version 1, then a second one with this initialization script that must fail; returns what it said.
async fn refused(server: &TestServer, app: &str, function: &str, init: Option<&str>) -> String {
    server.deploy_function(app, LOGIN, FINE).await;
    let mut files = vec![("functions/UserAttemptedStartSession.ts", function)];
    files.extend(init.map(|init| ("init.ts", init)));
    let message = server.refuse(request(app, &files), Code::FailedPrecondition, "VERIFICATION_FAILED").await;
    let first_line = message.lines().next().expect("a line").trim_start_matches("verification failed: ").to_owned();
    server.assert_failed_and_tidy(app, &first_line).await;
    message
}

/// Nothing of the machine, and no frame of ours.
fn assert_only_the_tenants(server: &TestServer, message: &str) {
    let ours = [server.data().to_str().expect("UTF-8"), "/shim/", "main.js", "loader.js", "node:internal"];
    for text in ours {
        assert!(!message.contains(text), "{text} in {message}");
    }
}

#[tokio::test]
async fn an_initialization_script_that_throws_is_shown_with_the_tenants_stack() {
    let server = TestServer::start().await;
    let init = "interface Key {\n  text?: string;\n}\nfunction readKey(key: Key) {\n  throw new RangeError('no key is set');\n}\n\nreadKey({});\n";
    let message = refused(&server, "throws", FINE, Some(init)).await;
    assert!(message.contains("RangeError: no key is set"), "{message}");
    assert!(message.contains("init.ts:5:9"), "{message}");
    assert!(message.contains("init.ts:8:1"), "{message}");
    assert_only_the_tenants(&server, &message);

    let init = "await Promise.resolve();\nthrow new Error('rejected later');\n";
    let message = refused(&server, "rejects", FINE, Some(init)).await;
    assert!(message.contains("Error: rejected later") && message.contains("init.ts:2:7"), "{message}");
    assert_only_the_tenants(&server, &message);
    server.stop().await;
}

#[tokio::test]
async fn a_module_that_is_missing_or_throws_is_named_with_the_line_that_loads_it() {
    let server = TestServer::start().await;
    let function =
        "// A package that nobody installed.\nconst nope = require('nope');\nexports.handleEvent = () => nope;";
    let message = refused(&server, "missing", function, None).await;
    assert!(message.contains("Cannot find module 'nope'"), "{message}");
    assert!(message.contains("functions/UserAttemptedStartSession.ts:2"), "{message}");
    assert_only_the_tenants(&server, &message);

    let function = "import nope from 'nope';\nexport const handleEvent = () => nope;";
    let message = refused(&server, "missing-esm", function, None).await;
    assert!(message.contains("nope"), "{message}");
    assert_only_the_tenants(&server, &message);

    let function = "exports.handleEvent = () => 1;\n\nnull.length;";
    let message = refused(&server, "throws", function, None).await;
    assert!(message.contains("TypeError") && message.contains("functions/UserAttemptedStartSession.ts:3"), "{message}");
    assert_only_the_tenants(&server, &message);
    server.stop().await;
}

/// Node asks the nearest package.json above a file what the file is.
#[tokio::test]
async fn a_package_json_above_the_data_directory_changes_nothing() {
    let server = TestServer::start().await;
    let files = [
        (
            "functions/UserAttemptedStartSession.ts",
            "exports.handleEvent = () => require('../package.json').config.motto",
        ),
        ("package.json", r#"{ "type": "module", "main": "lib/none.ts", "config": { "motto": "mine" } }"#),
    ];
    for above in [r#"{ "type": "module" }"#, "{ no JSON"] {
        std::fs::write(server.data().join("package.json"), above).expect("write");
        server.publish(request("demo", &files)).await.expect("publishes");
        assert_eq!(server.app("demo").login("jane").await.json(), "mine");
        server.publish(login("plain", "exports.handleEvent = () => 1")).await.expect("publishes");
        assert_eq!(server.app("plain").login("jane").await.json(), 1);
    }
    let imported = "import pkg from '../package.json';\nexport const handleEvent = () => pkg.config.motto;";
    let files = [("functions/UserAttemptedStartSession.ts", imported), files[1]];
    server.publish(request("imports", &files)).await.expect("publishes");
    assert_eq!(server.app("imports").login("jane").await.json(), "mine");
    let message = server.refuse(login("demo", imported), Code::InvalidArgument, "MODULE_NOT_FOUND").await;
    assert!(message.contains("UserAttemptedStartSession.ts:1:17"), "{message}");
    let message = server
        .refuse(login("demo", "require('../package.json/x')"), Code::FailedPrecondition, "VERIFICATION_FAILED")
        .await;
    assert_only_the_tenants(&server, &message);
    server.stop().await;
}

#[tokio::test]
async fn a_file_without_a_handler_is_refused() {
    let server = TestServer::start().await;
    let message = refused(&server, "none", "exports.answer = 42;", None).await;
    assert!(message.contains("functions/UserAttemptedStartSession.ts"), "{message}");
    assert!(message.to_lowercase().contains("handler"), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn an_initialization_script_that_never_ends_or_exits_is_refused() {
    let server = TestServer::with(&["init_timeout=1s"]).await;
    let message = refused(&server, "waits", FINE, Some("await new Promise((never) => setTimeout(never, 1e8));")).await;
    assert!(message.contains("1s"), "{message}");
    refused(&server, "spins", FINE, Some("while (true) {}")).await;
    refused(&server, "exits", FINE, Some("process.exit(0);")).await;
    assert_eq!(server.app("waits").pool().await.worker_pids.len(), 1, "only the one that serves is left");
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_stored_or_activated_after_a_failed_verification() {
    let server = TestServer::start().await;
    let failing = || login("demo", "throw new Error('no');");
    let (progress, result) = server.publish_steps(failing()).await;
    result.expect_err("it throws");
    assert_eq!(messages(&progress, "store").len() + messages(&progress, "activate").len(), 0, "{progress:?}");
    // An app whose first version failed exists, without an active one: callers go on as if nothing was installed.
    let app = server.app("demo");
    assert_eq!(app.show().await.active_version, 0);
    let answer = app.login("jane").await;
    let Some(chatfn::proto::invoke_response::Outcome::Skipped(skipped)) = answer.outcome else { panic!("{answer:?}") };
    assert_eq!(skipped.reason, "NO_ACTIVE_VERSION");
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn an_error_of_any_size_and_script_reaches_the_caller() {
    let server = TestServer::start().await;
    for text in ["x", "ä", "💥", "%", "\\n", "\\u0000"] {
        let init = format!("throw new Error('{text}'.repeat(50_000));");
        let request = request("demo", &[("functions/UserAttemptedStartSession.ts", FINE), ("init.js", &init)]);
        let message = server.refuse(request, Code::FailedPrecondition, "VERIFICATION_FAILED").await;
        assert!(message.len() > 1500, "{message}");
    }
    server.stop().await;
}

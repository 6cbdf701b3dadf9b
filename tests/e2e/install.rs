//! Dependencies from the real registry, by the real npm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatfn::proto;
use serde_json::json;

use crate::harness::{Answered, TestServer, request};
use crate::inspect::{login, map, messages, with};
use crate::lockfile::{IS_NUMBER_6, lockfile};

/// A function that answers `expression`, with these dependencies.
fn needing(app: &str, expression: &str, dependencies: &[(&str, &str)]) -> proto::PublishVersionRequest {
    let source = format!("export const handleEvent = () => {expression}");
    with(login(app, &source), |spec| spec.dependencies = map(dependencies))
}

/// What npm itself said.
fn npm_lines(progress: &[proto::Progress]) -> Vec<String> {
    messages(progress, "install")
        .into_iter()
        .filter(|line| line.starts_with("npm ") || line.contains(" packages in "))
        .collect()
}

#[tokio::test]
async fn dependencies_are_installed_once_and_reused_until_they_change() {
    let server = TestServer::start().await;
    let install = |expression: &str| needing("demo", expression, &[("ms", "2.1.2")]);
    let (first, progress) = server.publish_with_progress(install("require('ms')('2 days')")).await.expect("publishes");
    assert!(npm_lines(&progress).iter().any(|line| line.starts_with("npm http fetch GET 200 ")), "{progress:?}");
    assert!(
        npm_lines(&progress).iter().all(|line| !line.contains(server.data().to_str().expect("UTF-8"))),
        "{progress:?}"
    );
    assert_eq!(first.dependencies, map(&[("ms", "2.1.2")]));
    assert!(!first.layer.is_empty() && first.layer_size_bytes > 1000, "{first:?}");
    let app = server.app("demo");
    assert_eq!(app.login("jane").await.json(), 172_800_000);

    let began = Instant::now();
    let code_only = install("require('ms')(120_000)");
    let (second, progress) = server.publish_with_progress(code_only).await.expect("publishes");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(messages(&progress, "install"), ["reusing the dependencies of version 1"]);
    assert_eq!((second.layer, &second.dependencies), (first.layer.clone(), &first.dependencies));
    assert_ne!(second.digest, first.digest);
    assert_eq!(app.login("jane").await.json(), "2m");

    // The initialization script has the same dependencies; package.json asks as the request does.
    let files = [
        (
            "functions/UserAttemptedStartSession.js",
            "exports.handleEvent = (event, context) => [context.initialization, require('ms')('1s')]",
        ),
        (
            "init.ts",
            "import isNumber from 'is-number';\nimport ms from 'ms';\nexport default () => [isNumber(ms('1m')), isNumber('x')];",
        ),
        ("package.json", r#"{ "dependencies": { "ms": "2.1.2", "is-number": "^7.0.0" } }"#),
    ];
    let third = server.publish(request("demo", &files)).await.expect("publishes");
    assert_ne!(third.layer, first.layer);
    assert_eq!(third.dependencies, map(&[("ms", "2.1.2"), ("is-number", "7.0.0")]));
    assert_eq!(app.login("jane").await.json(), json!([[true, false], 1000]));
    server.assert_tidy("demo").await;
    assert_eq!(server.layers("demo").len(), 2);

    // The rollback has its own dependencies again, without npm; a layer goes with the last version that uses it.
    app.activate(1).await.expect("rolls back");
    assert_eq!(app.login("jane").await.json(), 172_800_000);
    app.delete(3).await.expect("deletes");
    assert_eq!(server.layers("demo"), [first.layer.clone()].into());
    app.delete(2).await.expect("deletes");
    assert_eq!(server.layers("demo"), [first.layer].into(), "version 1 needs it");
    assert_eq!(app.login("jane").await.json(), 172_800_000);
    server.stop().await;
}

#[tokio::test]
async fn optional_dependencies_are_installed_where_they_can_be_and_what_is_ignored_is_told() {
    let server = TestServer::start().await;
    let function =
        "export const handleEvent = () => { try { require('none'); } catch { return require('ms')('1m'); } }";
    let package = r#"{ "optionalDependencies": { "ms": "2.1.2", "none": "npm:chatfn-surely-nobody-publishes-this@1" },
        "devDependencies": { "is-number": "7.0.0" }, "peerDependencies": { "is-number": "7.0.0" } }"#;
    let files = [("functions/UserAttemptedStartSession.ts", function), ("package.json", package)];
    let (version, progress) = server.publish_with_progress(request("demo", &files)).await.expect("publishes");
    assert_eq!(version.dependencies, map(&[("ms", "2.1.2")]));
    assert_eq!(server.app("demo").login("jane").await.json(), 60_000);
    let told = messages(&progress, "validate");
    for field in ["devDependencies", "peerDependencies"] {
        assert!(told.iter().any(|line| line.contains(&format!("{field} is ignored"))), "{told:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn versions_and_their_dependencies_survive_a_move_of_the_data_directory() {
    let server = TestServer::start().await;
    server.publish(needing("demo", "require('ms')('1m')", &[("ms", "2.1.2")])).await.expect("publishes");
    server.publish(needing("demo", "2", &[])).await.expect("publishes");
    let (old, settings) = server.crash();
    let new = tempfile::tempdir().expect("temp dir");
    std::fs::rename(old.path().join("data"), new.path().join("data")).expect("moves");
    let server = TestServer::restart((Arc::new(new), settings)).await;
    server.app("demo").activate(1).await.expect("it loads where it is now");
    assert_eq!(server.app("demo").login("jane").await.json(), 60_000);
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn install_scripts_run_only_where_they_are_allowed() {
    let server = TestServer::start().await;
    // Its postinstall script prints its thanks.
    let ejs = |app: &str, allowed: &[&str]| {
        with(needing(app, "require('ejs').VERSION", &[("ejs", "2.7.4")]), |spec| {
            spec.scripts_allowed = allowed.iter().map(|&name| name.to_owned()).collect();
        })
    };
    let thanks = |progress: &[proto::Progress]| {
        messages(progress, "install").iter().any(|line| line.contains("Thank you for installing"))
    };
    let (plain, progress) = server.publish_with_progress(ejs("demo", &[])).await.expect("publishes");
    assert!(!thanks(&progress), "{progress:?}");
    let (scripted, progress) = server.publish_with_progress(ejs("demo", &["ejs"])).await.expect("publishes");
    assert!(thanks(&progress), "{progress:?}");
    assert_ne!(plain.layer, scripted.layer, "what scripts made is not shared with those that did not run them");
    assert_eq!(server.app("demo").login("jane").await.json(), "2.7.4");
    // Another package's permission is none.
    let (other, progress) = server.publish_with_progress(ejs("other", &["ms"])).await.expect("publishes");
    assert!(!thanks(&progress), "{progress:?}");
    assert_eq!(other.dependencies, map(&[("ejs", "2.7.4")]));
    server.stop().await;
}

#[tokio::test]
async fn every_app_has_the_default_dependencies_unless_it_names_its_own() {
    let server = TestServer::with(&["default_dependencies.chatkitty-platform-sdk=2.4.0"]).await;
    let source = "export const handleEvent = (event, context) => ['ChatKitty' in context, require('chatkitty-platform-sdk/package.json').version]";
    let version = server.publish(login("demo", source)).await.expect("publishes");
    assert_eq!(version.dependencies, map(&[("chatkitty-platform-sdk", "2.4.0")]));
    assert_eq!(server.app("demo").login("jane").await.json()[1], "2.4.0");

    // An app's own choice wins (here a package that is no SDK at all), and its lockfile, which cannot know of the default, counts.
    let own =
        needing("own", "require('chatkitty-platform-sdk')(7)", &[("chatkitty-platform-sdk", "npm:is-number@6.0.0")]);
    let version = server.publish(own).await.expect("publishes");
    assert_eq!(version.dependencies, map(&[("chatkitty-platform-sdk", "6.0.0")]));
    assert_eq!(server.app("own").login("jane").await.json(), true);
    let files = [
        (
            "functions/UserAttemptedStartSession.ts",
            "export const handleEvent = () => require('is-number/package.json').version",
        ),
        ("package.json", r#"{ "dependencies": { "is-number": ">=6.0.0" } }"#),
        ("package-lock.json", &lockfile(">=6.0.0", "6.0.0", IS_NUMBER_6)),
    ];
    let version = server.publish(request("locked", &files)).await.expect("publishes");
    assert_eq!(version.dependencies, map(&[("chatkitty-platform-sdk", "2.4.0"), ("is-number", "6.0.0")]));
    server.stop().await;
}

//! The audit log through the front door: every change with whoever made it, by every way there is to make one.

use std::collections::BTreeMap;
use std::time::Duration;

use chatfn::proto::{self, AuditEntry, AuditOutcome};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tonic::{Code, Request};

use crate::cli::chatfn;
use crate::credentials::{Credential, bearer, create, wanted};
use crate::events::{HANDLES, accept, event, until_dead};
use crate::harness::{LOGIN, SENT, TestServer, reason, request, wait_until};
use crate::publish_request::Publish;

const OPERATOR: &str = "0123456789abcdef0123456789abcdef";
const SECRET: &str = "hunter2-hunter2";
const FINE: &str = "export const handleEvent = () => 1";

/// One where everybody needs a token.
async fn closed() -> (TestServer, NamedTempFile) {
    let token = NamedTempFile::new().expect("temp file");
    std::fs::write(token.path(), OPERATOR).expect("write");
    let server = TestServer::with(&[&format!("operator_token_file={}", token.path().display())]).await;
    (server, token)
}

fn of(app: &str) -> proto::ListAuditEntriesRequest {
    proto::ListAuditEntriesRequest { app_id: app.to_owned(), ..Default::default() }
}

/// The newest first.
pub async fn listed(
    server: &TestServer,
    request: impl tonic::IntoRequest<proto::ListAuditEntriesRequest>,
) -> Vec<AuditEntry> {
    server.apps().list_audit_entries(request).await.expect("a list").into_inner().entries
}

/// Everything that happened, the oldest first: what, to which target, and by whom.
async fn told(server: &TestServer, token: &str) -> Vec<String> {
    let all = proto::ListAuditEntriesRequest { page_size: 1000, ..of("") };
    listed(server, bearer(all, token)).await.iter().rev().map(line).collect()
}

fn line(entry: &AuditEntry) -> String {
    let actor = entry.actor.as_ref().expect("an actor");
    let failure = if entry.outcome() == AuditOutcome::Failed { format!(" !{}", entry.reason) } else { String::new() };
    format!("{} {} {}{failure} by {} {}", entry.app_id, entry.action, entry.target, actor.kind, actor.id)
}

fn details(entry: &AuditEntry) -> Value {
    serde_json::from_slice(&entry.details_json).expect("JSON")
}

/// By this token, as the call of this id.
fn call<T>(message: T, token: &str, id: &str) -> Request<T> {
    let mut request = bearer(message, token);
    request.metadata_mut().insert("x-request-id", id.parse().expect("ascii"));
    request
}

async fn publish(server: &TestServer, Publish(message): Publish, token: &str, id: &str) -> Result<(), (Code, String)> {
    let published = server.versions().publish_version(call(message, token, id)).await;
    let mut steps = published.map_err(|status| reason(&status))?.into_inner();
    while steps.message().await.map_err(|status| reason(&status))?.is_some() {}
    Ok(())
}

/// By REST, with a credential of the app's.
async fn send(server: &TestServer, method: &str, path: &str, body: Value, credential: &Credential) -> Value {
    let request = Client::new().request(method.parse().expect("a method"), format!("{}{path}", server.address));
    let request = request.bearer_auth(&credential.secret).header("x-request-id", "by-rest");
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let body = response.text().await.expect("a body");
    assert!(status.is_success(), "{status} {body}");
    serde_json::from_str(&body).expect("JSON")
}

#[tokio::test]
async fn every_change_is_told_with_whoever_made_it_and_no_secret() {
    let (server, _token) = closed().await;
    let operators = create(&server, bearer(wanted("", &["operator"]), OPERATOR)).await.expect("created");
    let owner = create(&server, call(wanted("demo", &["publish", "manage"]), &operators.secret, "make-owner")).await;
    let owner = owner.expect("created");
    let by = &owner.secret;
    let first = || Publish::login("demo", FINE).variable("TOKEN", SECRET).variable("KEPT", SECRET);
    publish(&server, first(), by, "publish-1").await.expect("publishes");
    let throws = first().initialization("throw new Error('no ' + process.env.TOKEN)");
    let failed = publish(&server, throws, by, "publish-2").await.expect_err("it does not load");
    assert_eq!(failed, (Code::FailedPrecondition, "VERIFICATION_FAILED".to_owned()));
    let wrong = publish(&server, Publish::login("demo", "export const = 1"), by, "publish-3").await.expect_err("wrong");
    assert_eq!(wrong.0, Code::InvalidArgument);
    let change = json!({ "TOKEN": "another-hunter2", "NEW": SECRET });
    send(&server, "PUT", "/v1/runtimes/nodejs/environment-variables", change, &owner).await;
    let created = json!({ "type": SENT, "name": "Sent" });
    send(&server, "POST", "/v1/runtimes/nodejs/functions", created, &owner).await;
    send(&server, "POST", "/v1/runtimes/nodejs/rollback", json!({}), &owner).await;
    let activate = proto::ActivateVersionRequest { app_id: "demo".to_owned(), version: 3 };
    server.versions().activate_version(bearer(activate, OPERATOR)).await.expect("activates");
    let delete = proto::DeleteVersionRequest { app_id: "demo".to_owned(), version: 1 };
    server.versions().delete_version(bearer(delete, by)).await.expect("deletes");
    let update = proto::UpdateAppRequest {
        app_id: "demo".to_owned(),
        description: Some(SECRET.to_owned()),
        rate_per_second: Some(50),
        ..Default::default()
    };
    server.apps().update_app(bearer(update, &operators.secret)).await.expect("updates");
    let given = create(&server, bearer(wanted("demo", &["publish"]), by)).await.expect("created");
    let revoke = proto::RevokeCredentialRequest { client_id: given.id.clone(), ..Default::default() };
    server.apps().revoke_credential(bearer(revoke, by)).await.expect("revokes");
    let delete = proto::DeleteAppRequest { app_id: "demo".to_owned() };
    server.apps().delete_app(call(delete, by, "the-end")).await.expect("deletes");

    let (operator, owner_id) = (&operators.id, &owner.id);
    let by_owner = |what: &str| format!("demo {what} by credential {owner_id}");
    let by_operators = |what: &str| format!("demo {what} by operator_credential {operator}");
    let expected = [
        format!(" credential.create {operator} by operator_token "),
        by_operators("app.create "),
        by_operators(&format!("credential.create {owner_id}")),
        by_owner("version.publish 1"),
        by_owner("env.set KEPT"),
        by_owner("env.set TOKEN"),
        by_owner("version.activate 1"),
        by_owner("version.publish 2 !VERIFICATION_FAILED"),
        by_owner(&format!("version.publish  !{}", wrong.1)),
        by_owner("version.publish 3"),
        by_owner("env.set NEW"),
        by_owner("env.set TOKEN"),
        by_owner("env.unset KEPT"),
        by_owner("version.activate 3"),
        by_owner(&format!("function.create {SENT}")),
        by_owner("version.activate 1"),
        "demo version.activate 3 by operator_token ".to_owned(),
        by_owner("version.delete 1"),
        by_operators("app.update "),
        by_owner(&format!("credential.create {}", given.id)),
        by_owner(&format!("credential.revoke {}", given.id)),
        by_owner("app.delete "),
        by_owner(&format!("credential.revoke {owner_id}")),
    ];
    assert_eq!(told(&server, OPERATOR).await, expected);
    let all = listed(&server, bearer(proto::ListAuditEntriesRequest { page_size: 1000, ..of("") }, OPERATOR)).await;
    let written = format!("{all:?}{}", all.iter().map(|entry| details(entry).to_string()).collect::<String>());
    for secret in [SECRET, "another-hunter2", OPERATOR, &owner.secret[4..], &given.secret[4..], &operators.secret[4..]]
    {
        assert!(!written.contains(secret), "{written}");
    }
    let ids: BTreeMap<_, _> = all.iter().map(|entry| (line(entry), entry.request_id.as_str())).collect();
    for (entry, id) in
        [(2, "make-owner"), (3, "publish-1"), (7, "publish-2"), (8, "publish-3"), (9, "by-rest"), (21, "the-end")]
    {
        assert_eq!(ids[&expected[entry]], id, "{}", expected[entry]);
    }
    let shown = |n: usize| details(&all[all.len() - 1 - n]);
    let published = shown(9);
    assert_eq!((&published["active_before"], &published["functions"]), (&1.into(), &1.into()), "{published}");
    assert_eq!(shown(16), json!({ "active_before": 1 }));
    assert_eq!(shown(18), json!({ "description": "changed", "rate_per_second": 50 }));
    server.stop().await;
}

#[tokio::test]
async fn an_apps_client_sees_its_own_app_and_only_since_that_exists() {
    let (server, _token) = closed().await;
    let make = async |app: &str, scopes: &[&str]| {
        create(&server, bearer(wanted(app, scopes), OPERATOR)).await.expect("created")
    };
    let (shop, other) = (make("shop", &["manage"]).await, make("other", &["manage"]).await);
    let publisher = make("shop", &["publish"]).await;
    let refused = async |app: &str, credential: &Credential| {
        let listed = server.apps().list_audit_entries(bearer(of(app), &credential.secret)).await;
        reason(&listed.expect_err("refused"))
    };
    let denied = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
    for (app, credential) in [("shop", &other), ("", &other), ("shop", &publisher), ("gone", &shop)] {
        assert_eq!(refused(app, credential).await, denied, "{app:?}");
    }
    let seen = async |app: &str, token: &str| {
        listed(&server, bearer(of(app), token)).await.into_iter().map(|entry| entry.action).collect::<Vec<_>>()
    };
    assert_eq!(seen("other", &other.secret).await, ["credential.create", "app.create"]);
    let delete = proto::DeleteAppRequest { app_id: "shop".to_owned() };
    server.apps().delete_app(bearer(delete, &shop.secret)).await.expect("deletes");
    let next = make("shop", &["manage"]).await;
    assert_eq!(seen("shop", &next.secret).await, ["credential.create", "app.create"]);
    assert_eq!(seen("shop", OPERATOR).await.len(), 8, "operators see what was before");
    assert_eq!(seen("never", OPERATOR).await.len(), 0);
    server.stop().await;
}

#[tokio::test]
async fn what_becomes_of_dead_letters_is_told() {
    let server = TestServer::start().await;
    let app = Publish::sent("demo", HANDLES).retry(1, Duration::from_millis(1)).on(&server).await;
    for _ in 0..2 {
        accept(&app, app.call(SENT, &event("throw"))).await;
        until_dead(&app).await;
        let redrive = proto::RedriveDeadLettersRequest { app_id: "demo".to_owned(), all: true, ..Default::default() };
        server.events().redrive_dead_letters(redrive).await.expect("redriven");
        until_dead(&app).await;
        let purge = proto::PurgeDeadLettersRequest { app_id: "demo".to_owned(), all: true, ..Default::default() };
        server.events().purge_dead_letters(purge).await.expect("purged");
    }
    for action in ["dead_letters.redrive", "dead_letters.purge"] {
        let request = proto::ListAuditEntriesRequest { action: action.to_owned(), ..of("demo") };
        let entries = listed(&server, request).await;
        assert_eq!(entries.len(), 2, "{entries:?}");
        for entry in &entries {
            assert_eq!(details(entry), json!({ "count": 1 }));
            assert_eq!(line(entry), format!("demo {action}  by local "), "nobody has to say who they are");
            assert!(!entry.request_id.is_empty(), "the service makes one");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn entries_come_page_by_page_by_grpc_rest_and_the_command() {
    let server = TestServer::start().await;
    let manager = create(&server, wanted("demo", &["manage"])).await.expect("created");
    for _ in 0..5 {
        create(&server, wanted("demo", &["invoke"])).await.expect("created");
    }
    let everything: Vec<_> = listed(&server, of("demo")).await.into_iter().map(|entry| entry.entry_id).collect();
    assert_eq!(everything.len(), 7);
    let (mut page_token, mut pages) = (String::new(), Vec::new());
    loop {
        let request = proto::ListAuditEntriesRequest { page_size: 3, page_token, ..of("") };
        let page = server.apps().list_audit_entries(request).await.expect("a page").into_inner();
        pages.push(page.entries.into_iter().map(|entry| entry.entry_id).collect::<Vec<_>>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((pages.len(), pages.concat()), (3, everything.clone()));

    let (mut path, mut ids) = ("/v1/audit-entries?size=3&action=credential.create".to_owned(), Vec::new());
    loop {
        let page = send(&server, "GET", &path, json!({}), &manager).await;
        let entries = page["_embedded"]["auditEntries"].as_array().expect("entries").clone();
        assert!(entries.iter().all(|entry| entry["action"] == "credential.create" && entry["outcome"] == "SUCCEEDED"));
        ids.extend(entries.into_iter().map(|entry| entry["id"].as_str().expect("an id").to_owned()));
        match page["_links"]["next"]["href"].as_str() {
            Some(next) => next.clone_into(&mut path),
            None => break,
        }
    }
    assert_eq!(ids, everything[..6], "all but the app's beginning");

    let refused = async |request| reason(&server.apps().list_audit_entries(request).await.expect_err("refused"));
    let invalid = |reason: &str| (Code::InvalidArgument, reason.to_owned());
    let action = proto::ListAuditEntriesRequest { action: "publish".to_owned(), ..of("demo") };
    assert_eq!(refused(action).await, invalid("UNKNOWN_ACTION"));
    let kind = proto::ListAuditEntriesRequest { actor_kind: "root".to_owned(), ..of("demo") };
    assert_eq!(refused(kind).await, invalid("UNKNOWN_ACTOR_KIND"));
    let token = proto::ListAuditEntriesRequest { page_token: "x".to_owned(), ..of("demo") };
    assert_eq!(refused(token).await, invalid("INVALID_PAGE_TOKEN"));

    let run = async |args: &[&str]| chatfn(&server, &[&["audit"], args].concat()).await;
    let shown = run(&["--app", "demo", "--limit", "2"]).await.done().out;
    assert!(
        shown.starts_with("AT ") && shown.contains("credential.create  cfc_") && shown.contains("local"),
        "{shown}"
    );
    assert!(shown.ends_with("There are more: --limit 0 shows all.\n") && shown.lines().count() == 4, "{shown}");
    let ran = run(&["--action", "app.create", "--since", "1h", "--actor-kind", "local", "--json"]).await.done();
    let entry = ran.json();
    assert_eq!(
        (&entry["app_id"], &entry["details"], &entry["outcome"]),
        (&"demo".into(), &json!({}), &"SUCCEEDED".into())
    );
    assert_eq!(run(&["--until", "1h"]).await.done().out, "There are no such entries.\n");
    let wrong = run(&["--action", "app.creat"]).await;
    assert!(wrong.code == Some(1) && wrong.err.contains("use one of app.create, app.update"), "{wrong:?}");
    assert_eq!(run(&["--since", "yesterday"]).await.code, Some(2));
    server.stop().await;
}

#[tokio::test]
async fn a_publish_that_a_kill_cut_off_is_told_and_old_entries_go() {
    let server = TestServer::start().await;
    create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let Publish(hangs) =
        Publish::login("demo", FINE).initialization("await new Promise(() => setInterval(() => {}, 1000))");
    let mut steps = server.versions().publish_version(hangs).await.expect("begins").into_inner();
    let verifies = |step: proto::PublishVersionResponse| match step.event.expect("an event") {
        proto::publish_version_response::Event::Progress(step) => step.phase == "verify",
        proto::publish_version_response::Event::Version(version) => panic!("it ended: {version:?}"),
    };
    while !verifies(steps.message().await.expect("a step").expect("not the end")) {}
    let (data, mut settings) = server.crash();
    let mut server = TestServer::restart((data, settings.clone())).await;
    server.expect_log("versions were being built when the service stopped");
    let publishes = || proto::ListAuditEntriesRequest { action: "version.publish".to_owned(), ..of("demo") };
    wait_until("it is given up", async || !listed(&server, publishes()).await.is_empty()).await;
    let told: Vec<_> = listed(&server, publishes()).await.iter().map(line).collect();
    assert_eq!(told, ["demo version.publish 1 !SERVICE_STOPPED by local "]);

    // The first upkeep after a start is at once.
    let (data, _) = server.crash();
    settings.push("audit_retention=1ms".to_owned());
    let server = TestServer::restart((data, settings)).await;
    wait_until("they are old enough", async || listed(&server, of("")).await.is_empty()).await;
    server.publish(request("demo", &[(&format!("functions/{LOGIN}.ts"), FINE)])).await.expect("publishes");
    server.stop().await;
}

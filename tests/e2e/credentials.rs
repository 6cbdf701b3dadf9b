//! Credentials from their creation to their end, and who may give them. What each scope opens is in `credentials_scopes.rs`, and the
//! access tokens are in `credentials_oauth.rs`.

use std::path::Path;

use chatfn::proto;
use serde_json::Value;
use tonic::{Code, Request, Status};

use crate::credentials_oauth::access_token;
use crate::harness::{LOGIN, TestServer, binary, reason, request};

/// What a test keeps of a credential.
#[derive(Debug, Clone)]
pub struct Credential {
    pub id: String,
    pub secret: String,
}

/// With this token.
pub fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ascii"));
    request
}

pub fn wanted(app: &str, scopes: &[&str]) -> proto::CreateCredentialRequest {
    proto::CreateCredentialRequest {
        app_id: app.to_owned(),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        description: "of a test".to_owned(),
    }
}

pub async fn create(
    server: &TestServer,
    request: impl tonic::IntoRequest<proto::CreateCredentialRequest>,
) -> Result<Credential, Status> {
    let created = server.apps().create_credential(request).await?.into_inner();
    Ok(Credential { id: created.client_id, secret: created.client_secret })
}

pub async fn list(server: &TestServer, app: &str) -> Vec<proto::Credential> {
    let request = proto::ListCredentialsRequest { app_id: app.to_owned(), ..Default::default() };
    server.apps().list_credentials(request).await.expect("a list").into_inner().credentials
}

fn revoked(app: &str, id: &str) -> proto::RevokeCredentialRequest {
    proto::RevokeCredentialRequest { app_id: app.to_owned(), client_id: id.to_owned() }
}

async fn revoke(server: &TestServer, id: &str) {
    server.apps().revoke_credential(revoked("", id)).await.expect("revoked");
}

async fn invoke(server: &TestServer, token: &str) -> Result<proto::InvokeResponse, Status> {
    let call = server.app("demo").call(LOGIN, r#"{"username":"jane"}"#);
    server.invocations().invoke(bearer(call, token)).await.map(tonic::Response::into_inner)
}

async fn assert_unknown(server: &TestServer, token: &str) {
    let status = invoke(server, token).await.expect_err("refused");
    assert_eq!(reason(&status), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "PERMISSION_DENIED".to_owned())
}

#[tokio::test]
async fn a_credential_opens_its_app_until_it_is_revoked_and_its_access_tokens_end_with_it() {
    let server = TestServer::start().await;
    // Before anything is published: the app begins with it.
    let credential = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let shown = list(&server, "demo").await;
    assert_eq!(shown.len(), 1);
    assert_eq!((&shown[0].client_id, &shown[0].scopes[..]), (&credential.id, &["invoke".to_owned()][..]));
    assert_eq!((shown[0].app_id.as_str(), shown[0].description.as_str()), ("demo", "of a test"));
    assert_eq!(server.app("demo").show().await.active_version, 0);

    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    let token = access_token(&server, &credential).await;
    for good in [&credential.secret, &token] {
        invoke(&server, good).await.expect("it may");
        let publish = server.versions().publish_version(bearer(request("demo", &[]), good)).await;
        let status = publish.expect_err("it may not");
        assert_eq!(reason(&status), denied());
        assert_eq!(status.message(), "this takes the scope publish, and the token has invoke");
    }
    let other = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    revoke(&server, &credential.id).await;
    assert_unknown(&server, &credential.secret).await;
    assert_unknown(&server, &token).await;
    invoke(&server, &other.secret).await.expect("the other one still may");
    let again = server.apps().revoke_credential(revoked("", &credential.id)).await.expect_err("gone");
    assert_eq!(reason(&again), (Code::NotFound, "CREDENTIAL_NOT_FOUND".to_owned()));
    assert_eq!(list(&server, "demo").await.len(), 1);
    server.stop().await;
}

/// All that lies in a directory.
fn contents(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            bytes.extend(contents(&entry.path()));
        } else if kind.is_file() {
            bytes.extend(std::fs::read(entry.path()).expect("readable"));
        }
    }
    bytes
}

#[tokio::test]
async fn credentials_and_tokens_outlive_a_crash_and_no_secret_is_written_down() {
    let server = TestServer::with(&["log_level=debug"]).await;
    let credential = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let operator = create(&server, wanted("", &["operator"])).await.expect("created");
    let ended = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let (token, ended_token) = (access_token(&server, &credential).await, access_token(&server, &ended).await);
    invoke(&server, &credential.secret).await.expect("it may");
    revoke(&server, &ended.id).await;

    let log = server.log().join("\n").into_bytes();
    let written = contents(server.data());
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(&written, &credential.id), "this is where credentials lie");
    for secret in [&credential.secret, &operator.secret, &ended.secret, &token, &ended_token] {
        // Without the prefix, which everybody knows.
        assert!(!holds(&written, &secret[4..]) && !holds(&log, &secret[4..]), "a secret lies open");
    }

    let server = server.crash_and_restart().await;
    invoke(&server, &credential.secret).await.expect("it may");
    invoke(&server, &token).await.expect("it may");
    server.apps().list_apps(bearer(proto::ListAppsRequest::default(), &operator.secret)).await.expect("it may");
    assert_unknown(&server, &ended.secret).await;
    assert_unknown(&server, &ended_token).await;
    server.stop().await;
}

#[tokio::test]
async fn a_deleted_app_takes_its_credentials_along_and_one_of_the_same_name_does_not_bring_them_back() {
    let server = TestServer::start().await;
    let invokes = create(&server, wanted("demo", &["invoke"])).await.expect("created");
    let manages = create(&server, wanted("demo", &["manage"])).await.expect("created");
    let token = access_token(&server, &invokes).await;
    invoke(&server, &invokes.secret).await.expect("it may");
    invoke(&server, &token).await.expect("it may");
    let delete = proto::DeleteAppRequest { app_id: "demo".to_owned() };
    server.apps().delete_app(bearer(delete, &manages.secret)).await.expect("it may");
    for attempt in 0..2 {
        for gone in [&invokes.secret, &manages.secret, &token] {
            assert_unknown(&server, gone).await;
        }
        if attempt == 0 {
            create(&server, wanted("demo", &["invoke"])).await.expect("created");
        }
    }
    assert_eq!(list(&server, "demo").await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_client_gives_no_more_than_it_has_and_only_for_its_own_app() {
    let server = TestServer::start().await;
    let manages = create(&server, wanted("demo", &["manage", "invoke"])).await.expect("created");
    let publishes = create(&server, wanted("demo", &["publish"])).await.expect("created");
    let others = create(&server, wanted("other", &["invoke"])).await.expect("created");
    let by = async |token: &str, app: &str, scopes: &[&str]| create(&server, bearer(wanted(app, scopes), token)).await;

    let given = by(&manages.secret, "demo", &["invoke"]).await.expect("it has that");
    by(&given.secret, "demo", &["invoke"]).await.expect_err("invoke alone gives nothing");
    by(&manages.secret, "demo", &["manage", "invoke"]).await.expect("it has that");
    // A token that was asked to hold less gives less.
    for (token, app, scopes) in [
        (&manages.secret, "demo", &["publish"][..]),
        (&manages.secret, "demo", &["invoke", "publish"]),
        (&manages.secret, "demo", &["operator"]),
        (&manages.secret, "", &["operator"]),
        (&manages.secret, "", &["manage"]),
        (&manages.secret, "other", &["manage"]),
        (&manages.secret, "missing", &["manage"]),
        (&publishes.secret, "demo", &["publish"]),
    ] {
        let status = by(token, app, scopes).await.expect_err("refused");
        assert_eq!(reason(&status), denied(), "{app} {scopes:?}");
    }
    let missing = server.apps().get_app(proto::GetAppRequest { app_id: "missing".to_owned() }).await;
    assert_eq!(missing.expect_err("none").code(), Code::NotFound, "nothing was made");

    let by_client = async |app: &str, id: &str| {
        server.apps().revoke_credential(bearer(revoked(app, id), &manages.secret)).await.map(|_| ())
    };
    for unknown in [&others.id, "cfc_00000000000000000000000000000000"] {
        let status = by_client("", unknown).await.expect_err("none of its own");
        assert_eq!(reason(&status), (Code::NotFound, "CREDENTIAL_NOT_FOUND".to_owned()));
    }
    assert_eq!(reason(&by_client("other", &others.id).await.expect_err("another's")), denied());
    assert_eq!(list(&server, "other").await.len(), 1);
    by_client("", &given.id).await.expect("its own app's");
    by_client("demo", &publishes.id).await.expect("its own app's");
    server.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason() {
    let server = TestServer::start().await;
    let invalid = |reason: &str| (Code::InvalidArgument, reason.to_owned());
    for (app, scopes, expected) in [
        ("demo", &[][..], invalid("NO_SCOPES")),
        ("", &[], invalid("NO_SCOPES")),
        ("demo", &["Invoke"], invalid("INVALID_SCOPE")),
        ("demo", &["invoke publish"], invalid("INVALID_SCOPE")),
        ("demo", &["operator"], invalid("INVALID_SCOPE")),
        ("", &["operator", "invoke"], invalid("INVALID_SCOPE")),
        ("", &["invoke"], invalid("INVALID_SCOPE")),
        ("no/app", &["invoke"], invalid("INVALID_APP_ID")),
    ] {
        let status = create(&server, wanted(app, scopes)).await.expect_err("refused");
        assert_eq!(reason(&status), expected, "{app:?} {scopes:?}");
    }
    let text =
        |bytes: usize| proto::CreateCredentialRequest { description: "x".repeat(bytes), ..wanted("demo", &["invoke"]) };
    assert_eq!(reason(&create(&server, text(4097)).await.expect_err("too long")), invalid("TOO_LARGE"));
    let apps = server.apps().list_apps(proto::ListAppsRequest::default()).await.expect("a list").into_inner().apps;
    assert!(apps.is_empty(), "a refusal makes no app: {apps:?}");
    let status = server.apps().revoke_credential(revoked("", "demo")).await.expect_err("no id");
    assert_eq!(reason(&status), invalid("INVALID_CLIENT_ID"));
    let unknown = proto::ListCredentialsRequest { app_id: "demo".to_owned(), ..Default::default() };
    let status = server.apps().list_credentials(unknown).await.expect_err("no app");
    assert_eq!(reason(&status), (Code::NotFound, "APP_NOT_FOUND".to_owned()));

    let mut first = create(&server, text(4096)).await.expect("created").id;
    for n in 1..100 {
        create(&server, wanted("demo", &["invoke"])).await.unwrap_or_else(|status| panic!("{n}: {status}"));
    }
    let status = create(&server, wanted("demo", &["invoke"])).await.expect_err("too many");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "TOO_MANY_CREDENTIALS".to_owned()));
    create(&server, wanted("other", &["invoke"])).await.expect("another app has its own");
    let (mut page_token, mut ids) = (String::new(), Vec::new());
    loop {
        let request = proto::ListCredentialsRequest { app_id: "demo".to_owned(), page_size: 40, page_token };
        let page = server.apps().list_credentials(request).await.expect("a page").into_inner();
        ids.extend(page.credentials.into_iter().map(|credential| credential.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((ids.len(), &ids[0]), (100, &first));
    revoke(&server, &first).await;
    first = create(&server, wanted("demo", &["invoke"])).await.expect("there is room again").id;
    assert_eq!(list(&server, "demo").await.len(), 50, "a page");
    revoke(&server, &first).await;
    server.stop().await;
}

#[tokio::test]
async fn where_apps_are_not_kept_apart_a_credential_makes_no_second_one() {
    let server = TestServer::with(&["insecure_no_sandbox=true"]).await;
    create(&server, wanted("demo", &["invoke"])).await.expect("the first");
    create(&server, wanted("demo", &["manage"])).await.expect("the same");
    let status = create(&server, wanted("other", &["invoke"])).await.expect_err("a second");
    assert_eq!(reason(&status), (Code::FailedPrecondition, "SINGLE_TENANT".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn who_follows_logs_stops_when_the_credential_is_revoked() {
    let server = TestServer::start().await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => console.log('ran')").await;
    let credential = create(&server, wanted("demo", &["publish"])).await.expect("created");
    let tail = proto::TailLogsRequest { app_id: "demo".to_owned(), follow: true, ..Default::default() };
    let mut lines =
        server.invocations().tail_logs(bearer(tail, &credential.secret)).await.expect("follows").into_inner();
    server.app("demo").login("jane").await;
    assert_eq!(lines.message().await.expect("a line").expect("a line").entry.expect("an entry").text, "ran");
    // Another's end is not its own.
    let other = create(&server, wanted("demo", &["publish"])).await.expect("created");
    revoke(&server, &other.id).await;
    server.app("demo").login("jane").await;
    assert!(lines.message().await.expect("a line").is_some());
    revoke(&server, &credential.id).await;
    while lines.message().await.expect("no error").is_some() {}
    server.stop().await;
}

async fn chatfn(server: &TestServer, token: Option<&str>, args: &[&str]) -> (bool, String, String) {
    let mut command = binary();
    command.arg("credentials").args(args).args(["--address", &server.address]).env_remove("CHATFN_TOKEN");
    command.envs(token.map(|token| ("CHATFN_TOKEN", token)));
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_command_creates_lists_and_revokes() {
    let server = TestServer::start().await;
    let (good, out, err) = chatfn(&server, None, &["list", "demo"]).await;
    assert!(!good && err.contains("there is no app demo (APP_NOT_FOUND)"), "{out}{err}");
    let create = ["create", "demo", "--scope", "invoke", "--scope", "manage", "--description", "a\u{1b}[2J\nb"];
    let (good, out, err) = chatfn(&server, None, &[&create[..], &["--json"]].concat()).await;
    assert!(good, "{err}");
    let made: Value = serde_json::from_str(&out).expect("JSON");
    let (id, secret) = (made["client_id"].as_str().expect("an id"), made["client_secret"].as_str().expect("a secret"));
    invoke(&server, secret).await.expect("it may");

    // As that client, from here on.
    let (good, out, err) = chatfn(&server, Some(secret), &["create", "demo", "--scope", "invoke"]).await;
    assert!(good && out.contains("client_id      cfc_") && out.contains("client_secret  cfs_"), "{out}{err}");
    assert!(err.contains("nobody can show it again"), "{err}");
    let (good, out, err) = chatfn(&server, Some(secret), &["create", "demo", "--scope", "publish"]).await;
    assert!(!good && out.is_empty() && err.contains("(PERMISSION_DENIED)"), "{out}{err}");
    let (good, out, _) = chatfn(&server, Some(secret), &["list", "demo"]).await;
    assert!(good && out.lines().count() == 2 && !out.contains('\u{1b}') && !out.contains("cfs_"), "{out}");
    assert!(out.starts_with(id) && out.contains("invoke manage"), "{out}");
    let (_, out, _) = chatfn(&server, Some(secret), &["list", "demo", "--json"]).await;
    let first: Value = serde_json::from_str(out.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&first["client_id"], &first["app_id"]), (&made["client_id"], &"demo".into()));
    assert_eq!(first["scopes"], serde_json::json!(["invoke", "manage"]));
    assert!(first.get("client_secret").is_none(), "{first}");

    let (good, out, err) = chatfn(&server, Some(secret), &["revoke", id]).await;
    assert!(good && out == format!("{id} is revoked\n"), "{out}{err}");
    let (good, _, err) = chatfn(&server, Some(secret), &["list", "demo"]).await;
    assert!(!good && err.contains("(UNAUTHENTICATED)"), "{err}");
    let (good, out, _) = chatfn(&server, None, &["list"]).await;
    assert!(good && out == "There are no operators' credentials.\n", "{out}");
    let (good, _, err) = chatfn(&server, None, &["create", "--scope", "operator"]).await;
    assert!(good, "{err}");
    assert_eq!(list(&server, "").await.len(), 1);
    server.stop().await;
}

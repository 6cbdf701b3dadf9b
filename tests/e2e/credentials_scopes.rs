//! Every call of every service, found in the descriptors: whom it refuses, and whom it does not.

use std::collections::BTreeMap;

use chatfn::proto;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::credentials::{bearer, create, wanted};
use crate::harness::{TestServer, reason};

const APP_SCOPES: [&str; 3] = ["invoke", "publish", "manage"];

/// The scopes that open each call; none: the operator's alone. A new call is added here, after its check.
const OPENED_BY: &[(&str, &[&str])] = &[
    ("InvocationService/Invoke", &["invoke"]),
    ("InvocationService/ListInvocations", &["publish", "manage"]),
    ("InvocationService/GetInvocation", &["publish", "manage"]),
    ("InvocationService/TailLogs", &["publish", "manage"]),
    ("InvocationService/TestFunction", &["publish"]),
    ("InvocationService/ReplayInvocations", &["publish"]),
    ("VersionService/PublishVersion", &["publish"]),
    ("VersionService/ListVersions", &["publish", "manage"]),
    ("VersionService/GetVersion", &["publish", "manage"]),
    ("VersionService/ActivateVersion", &["publish"]),
    ("VersionService/DeleteVersion", &["publish"]),
    ("VersionService/GetVersionSpec", &["publish", "manage"]),
    ("VersionService/CheckTypes", &["publish"]),
    ("VersionService/GetDeclarations", &["publish", "manage"]),
    ("EventService/GetEvent", &["manage"]),
    ("EventService/ListDeadLetters", &["manage"]),
    ("EventService/RedriveDeadLetters", &["manage"]),
    ("EventService/PurgeDeadLetters", &["manage"]),
    ("AppService/GetApp", &["publish", "manage"]),
    ("AppService/ListApps", &[]),
    ("AppService/UpdateApp", &["manage"]),
    ("AppService/DeleteApp", &["manage"]),
    ("AppService/GetIsolation", &[]),
    ("AppService/CreateCredential", &["manage"]),
    ("AppService/ListCredentials", &["manage"]),
    ("AppService/RevokeCredential", &["manage"]),
    ("AppService/ListAuditEntries", &["manage"]),
];

/// Each call as `Service/Method`, and whether its request names an app (always in field 1).
pub fn calls() -> BTreeMap<String, bool> {
    let descriptors = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("descriptors");
    let messages: BTreeMap<_, _> = descriptors
        .file
        .iter()
        .flat_map(|file| {
            file.message_type.iter().map(|message| (format!(".{}.{}", file.package(), message.name()), message))
        })
        .collect();
    let methods = descriptors.file.iter().flat_map(|file| &file.service).flat_map(|service| {
        service.method.iter().map(move |method| (format!("{}/{}", service.name(), method.name()), method))
    });
    let named = methods.map(|(name, method)| {
        assert!(!method.client_streaming(), "{name}: this test sends one message");
        let app = messages[method.input_type()].field.iter().find(|field| field.name() == "app_id");
        assert!(app.is_none_or(|field| field.number() == 1), "{name}: app_id is not field 1");
        (name, app.is_some())
    });
    named.collect()
}

/// Calls it with nothing but the app's id; the first error, if there is one.
async fn call(server: &TestServer, name: &str, app: &str, token: Option<&str>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.expect("ready");
    let path = format!("/chatfunctions.v1.{name}").parse().expect("a path");
    // Every request that names an app does so as this one.
    let message = proto::GetAppRequest { app_id: app.to_owned() };
    let request = token.map_or_else(|| tonic::Request::new(message.clone()), |token| bearer(message.clone(), token));
    let mut answers = client.server_streaming(request, path, ProstCodec::<_, ()>::default()).await?.into_inner();
    answers.message().await.map(|_| ())
}

fn denied(answer: &Result<(), Status>) -> bool {
    answer.as_ref().is_err_and(|status| reason(status) == (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()))
}

#[test]
fn every_call_is_in_the_table() {
    let table: Vec<_> = OPENED_BY.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<_> = calls().into_keys().filter(|name| !table.contains(name)).collect();
    assert!(missing.is_empty(), "add to OPENED_BY who may call: {missing:?}");
    assert_eq!(calls().len(), table.len(), "OPENED_BY names calls that do not exist");
}

#[tokio::test]
async fn every_call_is_refused_to_who_has_not_its_scope_and_to_other_apps_clients() {
    const OPERATOR: &str = "0123456789abcdef0123456789abcdef";
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), OPERATOR).expect("write");
    let server = TestServer::with(&[&format!("operator_token_file={}", file.path().display())]).await;
    let made = async |app: &str, scopes: &[&str]| {
        create(&server, bearer(wanted(app, scopes), OPERATOR)).await.expect("created").secret
    };
    let other = made("other", &APP_SCOPES).await;
    made("there", &["invoke"]).await;
    for (n, (name, names_app)) in calls().into_iter().enumerate() {
        let id = |app: &str| if names_app { app.to_owned() } else { String::new() };
        let opened_by = OPENED_BY.iter().find(|(known, _)| *known == name).expect("in the table").1;
        for token in [None, Some("wrong"), Some("cfs_wrong")] {
            let refused = call(&server, &name, &id("there"), token).await.expect_err(&name);
            assert_eq!(reason(&refused), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()), "{name} {token:?}");
        }
        // Whether the app exists is nothing that another's client learns.
        let [there, missing] = [id("there"), id("missing")];
        let there = call(&server, &name, &there, Some(&other)).await;
        let missing = call(&server, &name, &missing, Some(&other)).await;
        assert!(denied(&there) && denied(&missing), "{name}: {there:?} {missing:?}");
        let said = |answer: Result<(), Status>| answer.expect_err("denied").message().replace("there", "missing");
        assert_eq!(said(there), said(missing), "{name}");

        for scope in APP_SCOPES {
            // An app of its own: some calls end it.
            let app = format!("own-{n}-{scope}");
            let token = made(&app, &[scope]).await;
            let answer = call(&server, &name, &id(&app), Some(&token)).await;
            assert_eq!(denied(&answer), !opened_by.contains(&scope), "{name} by {scope}: {answer:?}");
            let known =
                answer.as_ref().is_ok_and(|()| true) || answer.is_err_and(|err| err.code() != Code::Unauthenticated);
            assert!(known, "{name} by {scope}");
        }
        let app = format!("own-{n}-operator");
        made(&app, &["invoke"]).await;
        let operator = create(&server, bearer(wanted("", &["operator"]), OPERATOR)).await.expect("created").secret;
        let answer = call(&server, &name, &id(&app), Some(&operator)).await;
        assert!(!denied(&answer), "{name} by an operator: {answer:?}");
        assert!(names_app || opened_by.is_empty(), "{name} names no app, so who but an operator may call it?");
    }
    server.stop().await;
}

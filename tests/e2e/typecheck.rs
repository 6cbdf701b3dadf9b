//! Types: what is generated, and what a publish finds with the real `tsc`. The compiler comes from the real registry.

use std::net::TcpListener;

use chatfn::proto::{self, TypeCheck};
use tonic::Code;

use crate::harness::{TestServer, reason, request};
use crate::inspect::{answering, login, map, messages, with};

const MISSPELLED: &str = "// A comment.\nasync function handleEvent(event: UserAttemptedStartSessionEvent, context: Context) {\n  return { hello: event.usernam };\n}\n";

/// ChatKitty's guides, as they print it, but for what calls their servers while it is loaded.
const GUIDE: [(&str, &str); 3] = [
    (
        "functions/UserAttemptedStartSession.ts",
        r"const firebase = require('firebase');

async function handleEvent(
  event: UserAttemptedStartSessionEvent,
  context: Context
) {
  const email = event.username;
  const password = event.authParams.password;

  const userApi = context.getUserApi();

  const userCredential = await firebase
    .auth()
    .signInWithEmailAndPassword(email, password);

  await userApi.getUserExists(email).catch(async () => {
    await userApi.createUser({
      name: event.username,
      displayName: userCredential.user.displayName || event.username,
    });
  });
}
",
    ),
    (
        "functions/UserReceivedNotification.ts",
        r"const firebase = require('firebase');

async function handleEvent(event: UserReceivedNotificationEvent, context: Context) {
  if (event.userHasActiveSession) return;
  const messages = [];
  for (const pushToken of event.user.properties['expo-push-tokens']) {
    messages.push({
      to: pushToken,
      sound: 'default',
      title: event.notification.title,
      body: event.notification.body,
      data: event.notification.data,
    });
  }
  for (const chunk of firebase.chunkPushNotifications(messages)) {
    await firebase.sendPushNotificationsAsync(chunk);
  }
}
",
    ),
    (
        "functions/UserSentMessage.js",
        "exports.handleEvent = async (event, context) => context.getChannelsApi().whatever(event.anything);\n",
    ),
];

fn checked(request: proto::PublishVersionRequest, typecheck: TypeCheck) -> proto::PublishVersionRequest {
    proto::PublishVersionRequest { typecheck: typecheck.into(), ..request }
}

fn diagnostics(progress: &[proto::Progress]) -> Vec<proto::Diagnostic> {
    progress.iter().flat_map(|step| step.diagnostics.clone()).collect()
}

/// What the check finds, by file, line and code.
async fn found(server: &TestServer, request: proto::PublishVersionRequest) -> Vec<(String, u32, String)> {
    let (progress, ended) = server.publish_steps(checked(request, TypeCheck::Warn)).await;
    ended.expect("publishes");
    let of = |one: proto::Diagnostic| (one.file, one.line, one.code);
    diagnostics(&progress).into_iter().map(of).collect()
}

#[tokio::test]
async fn type_errors_are_not_looked_for_told_or_fatal_as_the_publish_asks() {
    let server = TestServer::start().await;
    for off in [TypeCheck::Unspecified, TypeCheck::Off] {
        let (progress, ended) = server.publish_steps(checked(login("demo", MISSPELLED), off)).await;
        ended.expect("publishes");
        assert!(messages(&progress, "typecheck").is_empty() && server.listed("tools").is_empty(), "{progress:?}");
    }

    let (progress, ended) = server.publish_steps(checked(login("demo", MISSPELLED), TypeCheck::Warn)).await;
    assert!(ended.expect("publishes").active);
    let told = messages(&progress, "typecheck");
    assert!(told[0].starts_with("installing TypeScript ") && told[1].starts_with("checking types "), "{told:?}");
    let [one] = diagnostics(&progress).try_into().expect("one diagnostic");
    assert_eq!((one.file.as_str(), one.line, one.column), ("functions/UserAttemptedStartSession.ts", 3, 25));
    assert_eq!(one.code, "TS2551");
    assert!(one.message.contains("'usernam' does not exist on type 'UserAttemptedStartSessionEvent'"), "{one:?}");
    assert!(one.frame.contains("> 3 |   return { hello: event.usernam };\n    | "), "{one:?}");

    let (progress, ended) = server.publish_steps(checked(login("demo", MISSPELLED), TypeCheck::Error)).await;
    let status = ended.expect_err("type errors");
    assert_eq!(reason(&status), (Code::InvalidArgument, "TYPE_ERRORS".to_owned()));
    let message = status.message();
    assert!(message.starts_with("1 type error:"), "{message}");
    assert!(message.contains("functions/UserAttemptedStartSession.ts:3:25: TS2551: Property 'usernam'"), "{message}");
    assert!(message.contains("return { hello: event.usernam };\n"), "{message}");
    assert_eq!(diagnostics(&progress).len(), 1);
    assert!(messages(&progress, "typecheck")[0].starts_with("checking types "), "installed once: {progress:?}");
    assert_eq!(server.listed("tools").len(), 1);
    assert_eq!(server.app("demo").show().await.active_version, 3);

    let many: String = (0..26).map(|n| format!("const x{n}: number = 'x';\n")).collect();
    let many = format!("{many}export const handleEvent = () => 1;\n");
    let message =
        server.refuse(checked(login("demo", &many), TypeCheck::Error), Code::InvalidArgument, "TYPE_ERRORS").await;
    assert!(message.starts_with("26 type errors:"), "{message}");

    let unknown = proto::PublishVersionRequest { typecheck: 9, ..answering("demo", "x") };
    server.refuse(unknown, Code::InvalidArgument, "INVALID_TYPE_CHECK").await;
    server.stop().await;
}

#[tokio::test]
async fn code_that_is_right_passes_and_each_source_of_types_counts() {
    let server = TestServer::start().await;
    let sdk = [("chatkitty-platform-sdk", "2.4.0")];
    // A small package stands in for the guides' large ones.
    let dependencies = map(&[("firebase", "npm:is-number@6.0.0"), sdk[0]]);
    let guide = with(request("guide", &GUIDE), |spec| spec.dependencies = dependencies);
    server.publish(checked(guide, TypeCheck::Error)).await.expect("the guides' code has no type errors");

    let sources = [
        ("functions/UserAttemptedStartSession.ts", MISSPELLED),
        (
            "functions/UserSentMessage.ts",
            "import isPlainObject from 'is-plain-obj';\nimport { five } from '../lib/five';\n\
             export const handleEvent: ChatFunctions.Handler<'UserSentMessage'> = async (event, context) => {\n\
             const wrong: number = isPlainObject({});\nconst fine: boolean = isPlainObject(event.user.name);\n\
             const key: string = process.env.API_KEY + context.env.API_KEY;\nconst other: string = process.env.OTHER;\n\
             five.toFixed();\nfive.trim();\n\
             context.ChatKitty.Users.retrieveUser('not a number');\ncontext.deny('no', { code: 1 });\n};\n",
        ),
        ("lib/five.ts", "export const five: 5 = 5;\n"),
        // Old, and not the service's: it does not count.
        ("chat-functions.d.ts", "type UserSentMessageEvent = any;\ninterface Context { nothing: true }\n"),
        (
            "tsconfig.json",
            r#"{ "extends": "/etc/passwd", "compilerOptions": { "strict": true, // A comment.
                "noEmit": false, "outDir": "/app", "rootDirs": ["/"], "paths": { "*": ["/etc/*"] } } }"#,
        ),
    ];
    let all = with(request("demo", &sources), |spec| {
        spec.dependencies = map(&[("is-plain-obj", "4.1.0"), sdk[0]]);
        spec.environment = map(&[("API_KEY", "secret")]);
    });
    let told = found(&server, all).await;
    let expected = [
        ("functions/UserAttemptedStartSession.ts", 3, "TS2551"),
        ("functions/UserSentMessage.ts", 4, "TS2322"),
        ("functions/UserSentMessage.ts", 7, "TS2322"),
        ("functions/UserSentMessage.ts", 9, "TS2339"),
        ("functions/UserSentMessage.ts", 10, "TS2345"),
        ("functions/UserSentMessage.ts", 11, "TS2322"),
    ];
    let told: Vec<_> = told.iter().map(|(file, line, code)| (file.as_str(), *line, code.as_str())).collect();
    assert_eq!(told, expected);

    let reaching = "/// <reference path=\"/etc/passwd\" />\n/// <reference path=\"../../../../../etc/hosts.d.ts\" />\n\
                    import type text from '/etc/hostname';\nexport const handleEvent = () => 1;\n";
    let (progress, _) = server.publish_steps(checked(login("reach", reaching), TypeCheck::Warn)).await;
    let told = messages(&progress, "typecheck").join("\n");
    assert!(!diagnostics(&progress).is_empty() && !told.contains("root:"), "{told}");

    let of = |version| proto::GetDeclarationsRequest { app_id: "demo".to_owned(), version };
    let mut versions = server.versions();
    let shown = versions.get_declarations(of(0)).await.expect("declarations").into_inner();
    assert_eq!(shown.file_name, "chat-functions.d.ts");
    assert!(shown.content.contains("\"API_KEY\": string;") && !shown.content.contains("secret"));
    let unknown = versions.get_declarations(of(9)).await.expect_err("no such version");
    assert_eq!(reason(&unknown).1, "VERSION_NOT_FOUND");
    server.stop().await;
}

#[tokio::test]
async fn a_check_that_takes_too_long_is_ended_and_told() {
    let server = TestServer::with(&["typecheck_timeout=1ms"]).await;
    let asked = |typecheck| checked(answering("demo", "fine"), typecheck);
    let message = server.refuse(asked(TypeCheck::Error), Code::FailedPrecondition, "TYPE_CHECK_TIMED_OUT").await;
    assert!(message.contains("typecheck_timeout"), "{message}");
    let (progress, ended) = server.publish_steps(asked(TypeCheck::Warn)).await;
    ended.expect("publishes");
    assert!(messages(&progress, "typecheck").iter().any(|told| told.contains("typecheck_timeout")), "{progress:?}");
    assert!(server.listed("tmp").iter().all(|name| !name.starts_with("typecheck-")));
    server.stop().await;
}

#[tokio::test]
async fn without_a_registry_a_check_fails_only_what_depends_on_it() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let npmrc = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(npmrc.path(), format!("registry=http://127.0.0.1:{port}/\n")).expect("write");
    let server = TestServer::with(&[&format!("npm_userconfig={}", npmrc.path().display())]).await;
    let asked = |typecheck| checked(answering("demo", "fine"), typecheck);
    let message = server.refuse(asked(TypeCheck::Error), Code::Unavailable, "REGISTRY_UNAVAILABLE").await;
    assert!(message.contains("TypeScript could not be installed"), "{message}");
    let (progress, ended) = server.publish_steps(asked(TypeCheck::Warn)).await;
    ended.expect("publishes");
    let told = messages(&progress, "typecheck");
    assert!(told.iter().any(|told| told.contains("TypeScript could not be installed")), "{told:?}");
    assert!(server.listed("tools").is_empty());
    server.stop().await;
}

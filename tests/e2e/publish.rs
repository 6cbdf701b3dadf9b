//! What may be published: sources in every form, and the mistakes that are refused before anything happens.

use bytes::Bytes;
use chatfn::proto::{self, ErrorKind, function_spec::Code as Source};
use serde_json::json;
use tonic::Code;

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestServer, reason, request, wait_until};
use crate::inspect::{login, map, messages, with};

#[tokio::test]
async fn every_form_of_handler_is_found() {
    let server = TestServer::start().await;
    let forms = [
        ("plain", "ts", "async function handleEvent(event: { username: string }) { return event.username; }"),
        ("arrow", "js", "const handleEvent = (event) => event.username;"),
        ("cjs", "js", "exports.handleEvent = (event) => event.username;"),
        ("cjs-module", "js", "module.exports = async (event) => event.username;"),
        (
            "esm",
            "ts",
            "import os from 'node:os';\nexport async function handleEvent(event: any) { return os && event.username; }",
        ),
        ("esm-default", "js", "import { EOL } from 'node:os';\nexport default (event) => EOL && event.username;"),
        ("mjs", "mjs", "export const handleEvent = (event) => event.username;"),
        ("cts", "cts", "exports.handleEvent = (event: { username: string }) => event.username;"),
    ];
    for (app, extension, source) in forms {
        let app = server.deploy(app, &[(&format!("functions/{LOGIN}.{extension}"), source)]).await;
        assert_eq!(app.login("jane").await.json(), "jane", "{source}");
    }
    server.stop().await;
}

#[tokio::test]
async fn inline_sources_are_published_one_per_function() {
    let server = TestServer::start().await;
    let inline = |trigger_type: &str, language: &str, source: &str| proto::FunctionSpec {
        trigger_type: trigger_type.to_owned(),
        language: language.to_owned(),
        code: Some(Source::Source(source.to_owned())),
        name: "greets".to_owned(),
        description: "says hello".to_owned(),
        ..Default::default()
    };
    let request = with(request("demo", &[]), |spec| {
        // Any spelling of a trigger type goes in.
        spec.functions.push(inline(
            "User Attempted Start Session",
            "",
            "exports.handleEvent = (event: any, context) => context.initialization.word + event.username",
        ));
        spec.functions.push(inline(
            "UserSentMessageEvent",
            "javascript",
            "const handleEvent = async (event, context) => [event.message.body, context.function.name]",
        ));
        spec.initialization_script = "const word: string = 'hello ';\nmodule.exports = { word };".to_owned();
    });
    let version = server.publish(request).await.expect("publishes");
    assert!(version.has_initialization_script);
    let described: Vec<_> =
        version.functions.iter().map(|f| (f.trigger_type.as_str(), f.description.as_str())).collect();
    assert_eq!(described, [(LOGIN, "says hello"), (SENT, "says hello")]);
    let app = server.app("demo");
    assert_eq!(app.login("jane").await.json(), "hello jane");
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    wait_until("the event ran", async || app.history().await.iter().any(|row| row.result_json == r#"["hi","greets"]"#))
        .await;
    server.stop().await;
}

#[tokio::test]
async fn a_whole_project_shares_its_library_initialization_and_environment() {
    let server = TestServer::start().await;
    let files = [
        (
            "functions/UserAttemptedStartSession.ts",
            "import { shout } from '../lib/text';\nimport type { Greeting } from '../lib/types';\n\
             export async function handleEvent(event, context) {\n  const { greeting, loaded }: Greeting = context.initialization;\n  \
             return { text: shout(`${greeting} ${event.username}`), loaded, env: process.env.PLACE, same: context.env.PLACE };\n}",
        ),
        (
            "functions/UserSentMessage.js",
            "const { shout } = require('../lib/text');\nmodule.exports = (event) => shout(event.message.body);",
        ),
        (
            "lib/text.ts",
            "let count = 0;\nexport function shout(text: string) { count += 1; return text.toUpperCase() + '!'; }",
        ),
        ("lib/types.ts", "export interface Greeting { greeting: string; loaded: number }"),
        ("lib/words.json", r#"{ "greeting": "hello" }"#),
        (
            "init.ts",
            "const words = require('./lib/words.json');\n\
             const loaded = await new Promise<number>((done) => setTimeout(() => done(42), 5));\n\
             module.exports = { greeting: words.greeting, loaded };",
        ),
        (
            "package.json",
            r#"{ "name": "whole", "private": true, "scripts": { "install": "exit 1" }, "dependencies": {} }"#,
        ),
        ("README.md", "Not code."),
    ];
    let request = with(request("whole", &files), |spec| spec.environment = map(&[("PLACE", "here")]));
    let (version, progress) = server.publish_with_progress(request).await.expect("publishes");
    let mut phases: Vec<_> = progress.iter().map(|step| step.phase.as_str()).collect();
    phases.dedup();
    assert_eq!(phases, ["validate", "transpile", "install", "verify", "store", "activate"]);
    assert!(progress.iter().all(|step| step.at.is_some() && !step.message.is_empty()));
    assert_eq!(messages(&progress, "install"), ["no dependencies"]);
    assert_eq!((version.number, version.state(), version.active), (1, proto::VersionState::Ready, true));
    let app = server.app("whole");
    let expected = json!({ "text": "HELLO JANE!", "loaded": 42, "env": "here", "same": "here" });
    assert_eq!(app.login("jane").await.json(), expected);
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    wait_until("the event ran", async || app.history().await.iter().any(|row| row.result_json == r#""HI!""#)).await;
    server.stop().await;
}

#[tokio::test]
async fn stacks_are_in_the_tenants_own_lines_also_where_typescript_had_to_be_transformed() {
    let server = TestServer::start().await;
    let library = "export enum Colour {\n  Red = 'red',\n  Blue = 'blue',\n}\n\nexport class Painter {\n  constructor(private readonly colour: Colour) {}\n\n  \
                   paint(): never {\n    throw new TypeError(`no ${this.colour} paint`);\n  }\n}\n";
    let function = "import { Colour, Painter } from '../lib/paint';\n\ninterface Wish {\n  username: string;\n}\n\n\
                    export function handleEvent(event: Wish) {\n  return new Painter(Colour.Blue).paint();\n}\n";
    let app = server
        .deploy("paint", &[("functions/UserAttemptedStartSession.ts", function), ("lib/paint.ts", library)])
        .await;
    let answer = app.login("jane").await;
    let failure = answer.failure();
    assert_eq!(
        (failure.kind(), failure.name.as_str(), failure.message.as_str()),
        (ErrorKind::Thrown, "TypeError", "no blue paint")
    );
    let frames: Vec<_> = failure.stack.lines().skip(1).map(str::trim).collect();
    assert_eq!(frames.len(), 2, "{}", failure.stack);
    assert!(frames[0].contains("lib/paint.ts:10:"), "{}", failure.stack);
    assert!(frames[1].contains("functions/UserAttemptedStartSession.ts:8:"), "{}", failure.stack);
    assert!(!failure.stack.contains(&server.data().display().to_string()), "{}", failure.stack);
    server.stop().await;
}

#[tokio::test]
async fn what_only_typescript_has_runs_or_is_refused_with_its_place() {
    let server = TestServer::start().await;
    let files = [
        (
            "functions/UserAttemptedStartSession.ts",
            "import { Shape, area, Unit } from '../lib/shapes';\nimport greet from '../lib/greet';\nexport { Shape };\n\
             export const handleEvent = (event: { username: string }): Shape => ({ area: area(3), unit: Unit.Metre, text: greet(event.username) });",
        ),
        (
            "lib/shapes.ts",
            "interface Shape { area: number; unit: string; text: string }\nenum Unit { Metre = 'm' }\n\
             namespace Squares { export const of = (side: number) => side * side; }\nconst area = Squares.of;\nexport { Shape, Unit, area };",
        ),
        ("lib/greet.cts", "import os = require('os');\nexport = (name: string) => os.EOL.trim() + `hi ${name}`;"),
    ];
    let app = server.deploy("demo", &files).await;
    assert_eq!(app.login("jane").await.json(), json!({ "area": 9, "unit": "m", "text": "hi jane" }));
    for (source, wanted, place) in [
        ("@log class A {}\nexports.handleEvent = () => 1;", "SYNTAX_ERROR", ":1:1: Decorators"),
        ("import 'os';\nexport default class { run() {} }", "INVALID_HANDLER", ":2:1: The handler is a class"),
        (
            "export const handleEvent = () => 1;\nexport { Nowhere };",
            "EXPORT_NOT_FOUND",
            ":2:10: There is nothing named",
        ),
    ] {
        let message = server.refuse(login("demo", source), Code::InvalidArgument, wanted).await;
        assert!(message.contains(&format!("functions/UserAttemptedStartSession.ts{place}")), "{message}");
        assert!(message.contains('^'), "{message}");
    }
    server.stop().await;
}

/// What we put before a file's first line is not the tenant's.
#[tokio::test]
async fn columns_on_the_first_line_are_the_tenants_own() {
    let server = TestServer::start().await;
    let library = "const { EOL } = require('os'); export const fail = () => { throw new Error(typeof EOL + __filename.length); };";
    let function = "import { fail } from '../lib/fail.mjs'; const os = require('os'); export const handleEvent = () => os && fail();";
    let files = [("functions/UserAttemptedStartSession.ts", function), ("lib/fail.mjs", library)];
    let app = server.deploy("demo", &files).await;
    let answer = app.login("jane").await;
    let frames: Vec<_> = answer.failure().stack.lines().skip(1).map(str::trim).collect();
    let thrown = library.find("new Error").expect("there") + 1;
    let called = function.find("fail();").expect("there") + 1;
    assert!(frames[0].ends_with(&format!("lib/fail.mjs:1:{thrown})")), "{frames:?}");
    assert!(frames[1].contains(&format!("functions/UserAttemptedStartSession.ts:1:{called}")), "{frames:?}");

    let init = "await 0; throw new Error('late');\n";
    let files = [("functions/UserAttemptedStartSession.ts", "export const handleEvent = () => 1"), ("init.js", init)];
    let message = server.refuse(request("late", &files), Code::FailedPrecondition, "VERIFICATION_FAILED").await;
    assert!(message.contains("init.js:1:16"), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn a_syntax_error_is_shown_with_its_place_before_anything_is_installed() {
    let server = TestServer::start().await;
    server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    let files = [
        ("functions/UserAttemptedStartSession.ts", "export const handleEvent = () => 2"),
        ("lib/broken.ts", "export const one = 1;\nexport const two: number = ;\n"),
        ("package.json", r#"{ "dependencies": { "is-number": "7.0.0" } }"#),
    ];
    let (progress, result) = server.publish_steps(request("demo", &files)).await;
    let status = result.expect_err("a syntax error");
    assert_eq!(reason(&status), (Code::InvalidArgument, "SYNTAX_ERROR".to_owned()));
    let message = status.message();
    assert!(message.starts_with("lib/broken.ts:2:28: "), "{message}");
    assert!(message.contains("> 2 | export const two: number = ;\n    |                            ^"), "{message}");
    assert!(messages(&progress, "install").is_empty(), "{progress:?}");
    assert_eq!(server.app("demo").versions().await.len(), 1);
    server.assert_serves("demo", 1).await;
    server.assert_tidy("demo").await;
    server.stop().await;
}

#[tokio::test]
async fn a_broken_import_names_the_file_and_the_line_that_wants_it() {
    let server = TestServer::start().await;
    let source = "// first\nimport { gone } from '../lib/gone';\nexport const handleEvent = () => gone();";
    let message = server.refuse(login("demo", source), Code::InvalidArgument, "MODULE_NOT_FOUND").await;
    assert!(message.starts_with("functions/UserAttemptedStartSession.ts:2:22: "), "{message}");
    assert!(message.contains("../lib/gone"), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn the_callers_mistakes_are_refused_and_leave_nothing() {
    let server = TestServer::start().await;
    type Change = fn(&mut proto::VersionSpec);
    let mistakes: [(Change, &str); 20] = [
        (|spec| add(spec, "../escape.ts", ""), "INVALID_PATH"),
        (|spec| add(spec, "lib/../../escape.ts", ""), "INVALID_PATH"),
        (|spec| add(spec, "/etc/passwd", ""), "INVALID_PATH"),
        (|spec| add(spec, "node_modules/ms/index.js", ""), "INVALID_PATH"),
        (|spec| add(spec, "functions/NoSuchTrigger.ts", ""), "UNKNOWN_TRIGGER_TYPE"),
        (|spec| add(spec, "functions/UserAttemptedStartSession.js", ""), "DUPLICATE_FUNCTION"),
        (|spec| ["init.ts", "init.js"].iter().for_each(|path| add(spec, path, "")), "INVALID_INITIALIZATION_SCRIPT"),
        (|spec| spec.environment = map(&[("NODE_OPTIONS", "--inspect")]), "FORBIDDEN_VARIABLE"),
        (|spec| spec.environment = map(&[("LD_PRELOAD", "/tmp/x.so")]), "FORBIDDEN_VARIABLE"),
        (|spec| spec.environment = map(&[("npm_config_registry", "http://x")]), "FORBIDDEN_VARIABLE"),
        (|spec| spec.environment = map(&[("NOT-A-NAME", "x")]), "INVALID_ENVIRONMENT"),
        (|spec| spec.limits = Some(proto::Limits { memory_bytes: 1 << 20, ..Default::default() }), "INVALID_LIMIT"),
        (|spec| spec.limits = Some(proto::Limits { concurrency: 101, ..Default::default() }), "INVALID_LIMIT"),
        (|spec| spec.limits = Some(proto::Limits { workers_max: 65, ..Default::default() }), "INVALID_LIMIT"),
        (|spec| spec.dependencies = map(&[("evil", "file:../../etc")]), "INVALID_DEPENDENCY"),
        (|spec| spec.dependencies = map(&[("evil", "git+https://example.com/x.git")]), "INVALID_DEPENDENCY"),
        (|spec| spec.scripts_allowed = vec!["../x".to_owned()], "INVALID_DEPENDENCY"),
        (|spec| add(spec, "package.json", "{ no"), "INVALID_PACKAGE_JSON"),
        (|spec| add(spec, "package-lock.json", "{}"), "INVALID_LOCKFILE"),
        (|spec| spec.files.clear(), "NO_FUNCTIONS"),
    ];
    let fine = || login("demo", "export const handleEvent = () => 1");
    for (change, wanted) in mistakes {
        server.refuse(with(fine(), change), Code::InvalidArgument, wanted).await;
    }
    for app_id in ["", "../x", "a b", &"a".repeat(200)] {
        let request = proto::PublishVersionRequest { app_id: app_id.to_owned(), ..fine() };
        server.refuse(request, Code::InvalidArgument, "INVALID_APP_ID").await;
    }
    let no_spec = proto::PublishVersionRequest { spec: None, ..fine() };
    server.refuse(no_spec, Code::InvalidArgument, "NO_SPEC").await;
    let long_key = |length| proto::PublishVersionRequest { idempotency_key: "k".repeat(length), ..fine() };
    server.refuse(long_key(257), Code::InvalidArgument, "KEY_TOO_LONG").await;
    let request = proto::GetAppRequest { app_id: "demo".to_owned() };
    let unknown = server.apps().get_app(request).await.expect_err("no app came of it");
    assert_eq!(reason(&unknown), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    server.publish(long_key(256)).await.expect("the longest key is fine");
    server.assert_tidy("demo").await;
    server.stop().await;
}

fn add(spec: &mut proto::VersionSpec, path: &str, text: &'static str) {
    spec.files.insert(path.to_owned(), Bytes::from_static(text.as_bytes()));
}

#[tokio::test]
async fn sources_are_bounded() {
    let server = TestServer::start().await;
    let sized = |sizes: &[usize]| {
        with(login("demo", "export const handleEvent = () => 1"), |spec| {
            for (number, size) in sizes.iter().enumerate() {
                spec.files.insert(format!("data/{number}.txt"), Bytes::from(vec![b'x'; *size]));
            }
        })
    };
    const FILE_MAX: usize = 4 << 20;
    let version = server.publish(sized(&[FILE_MAX])).await.expect("as large as a file may be");
    assert!(version.size_bytes > FILE_MAX as u64);
    server.refuse(sized(&[FILE_MAX + 1]), Code::InvalidArgument, "TOO_LARGE").await;
    server.refuse(sized(&[FILE_MAX; 6]), Code::InvalidArgument, "TOO_LARGE").await;
    server.refuse(sized(&[1; 2000]), Code::InvalidArgument, "TOO_LARGE").await;
    server.publish(sized(&[1; 1999])).await.expect("as many as there may be");
    let message = server.refuse(sized(&[FILE_MAX; 9]), Code::InvalidArgument, "REQUEST_TOO_LARGE").await;
    assert!(message.contains(&(32 << 20).to_string()), "it says publish_bytes_max: {message}");
    let event = json!({ "username": "x".repeat(20 << 20) }).to_string();
    let status = server.app("demo").invoke(LOGIN, &event).await.expect_err("no event is so large");
    assert_eq!(reason(&status), (Code::InvalidArgument, "REQUEST_TOO_LARGE".to_owned()));
    assert_eq!(server.app("demo").versions().await.len(), 2);
    server.stop().await;
}

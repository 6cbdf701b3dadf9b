//! Invoke: who decides, what is skipped, what is refused, and what comes back untouched.

use bytes::Bytes;
use chatfn::proto::{
    self, DecidedBy, ErrorKind, FailureAction, FailurePolicy, InvocationStatus, Verdict, invoke_response::Outcome,
};
use serde_json::json;
use std::time::Duration;
use tonic::Code;

use crate::harness::{Answered, LOGIN, SENT, SENT_EVENT, TestServer, reason, wait_until};
use crate::pool::{Gate, hold, until_busy};
use crate::publish_request::Publish;

const DECIDES: &str = "export const handleEvent = (event, context) => {
    switch (event.username) {
        case 'return': return { welcome: true };
        case 'deny': return context.deny('banned', { code: 'BANNED', data: { until: 7 } });
        case 'deny plainly': return context.deny('no');
        case 'throw': throw new Error('oops');
        case 'exit': process.exit(1);
        case 'bad': return 1n;
        case 'spin': while (true) {}
    }
}";

#[tokio::test]
async fn a_function_decides_by_returning_or_denying_and_its_policy_decides_its_failures() {
    let server = TestServer::start().await;
    let policy = |on_error: FailureAction, on_timeout: FailureAction| FailurePolicy {
        on_error: on_error.into(),
        on_timeout: on_timeout.into(),
        ..Default::default()
    };
    let (allow, deny, default) = (FailureAction::Allow, FailureAction::Deny, FailureAction::Unspecified);
    let table = [
        ("default", policy(default, default), Verdict::Deny, Verdict::Deny),
        ("strict", policy(deny, deny), Verdict::Deny, Verdict::Deny),
        ("lenient", policy(allow, deny), Verdict::Allow, Verdict::Deny),
        ("patient", policy(deny, allow), Verdict::Deny, Verdict::Allow),
    ];
    for (name, policy, on_error, on_timeout) in table {
        let app = Publish::login(name, DECIDES).timeout(Duration::from_secs(1)).policy(policy).on(&server).await;
        let returned = app.login("return").await;
        assert_eq!((returned.verdict(), returned.decided_by()), (Verdict::Allow, DecidedBy::Function));
        let denied = app.login("deny").await;
        assert_eq!((denied.verdict(), denied.decided_by()), (Verdict::Deny, DecidedBy::Function));
        let Some(Outcome::Denied(denial)) = denied.outcome else { panic!("denied") };
        assert_eq!(
            (denial.reason.as_str(), denial.code.as_str(), &denial.data_json[..]),
            ("banned", "BANNED", &b"{\"until\":7}"[..])
        );
        for case in ["throw", "exit", "bad"] {
            let failed = app.login(case).await;
            assert_eq!((failed.verdict(), failed.decided_by()), (on_error, DecidedBy::Policy), "{name}: {case}");
            failed.failure();
        }
        let late = app.login("spin").await;
        assert_eq!((late.verdict(), late.decided_by()), (on_timeout, DecidedBy::Policy), "{name}");
        assert_eq!(late.failure().kind(), ErrorKind::TimedOut);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_plain_denial_has_neither_code_nor_data() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, DECIDES).await;
    let Some(Outcome::Denied(denial)) = app.login("deny plainly").await.outcome else { panic!("denied") };
    assert_eq!((denial.reason.as_str(), denial.code.as_str(), denial.data_json.len()), ("no", "", 0));
    server.stop().await;
}

#[tokio::test]
async fn a_denial_stands_whatever_follows() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = async (event, context) => {
        const deny = () => context.deny(event.username);
        switch (event.username) {
            case 'caught': try { deny(); } catch {} return 'allowed';
            case 'not awaited': Promise.resolve().then(deny); return new Promise(() => {});
            case 'exit': try { deny(); } catch {} return process.exit(0);
            case 'throw': try { deny(); } catch {} throw new Error('oops');
            case 'bad result': try { deny(); } catch {} return 1n;
        }
    }";
    let policy = FailurePolicy { on_error: FailureAction::Allow.into(), ..Default::default() };
    let app = Publish::login("demo", source).policy(policy).on(&server).await;
    for case in ["caught", "not awaited", "exit", "throw", "bad result"] {
        let answer = app.login(case).await;
        assert_eq!((answer.verdict(), answer.decided_by()), (Verdict::Deny, DecidedBy::Function), "{case}");
        assert!(matches!(answer.outcome, Some(Outcome::Denied(denial)) if denial.reason == case), "{case}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_default_result_stands_in_where_the_policy_allows() {
    let server = TestServer::start().await;
    let policy = FailurePolicy {
        on_error: FailureAction::Allow.into(),
        default_json: Bytes::from_static(b"{ \"guest\" : 1.0 }"),
        ..Default::default()
    };
    let app = Publish::login("demo", DECIDES).timeout(Duration::from_secs(1)).policy(policy).on(&server).await;
    let allowed = app.login("throw").await;
    assert_eq!((allowed.verdict(), allowed.decided_by()), (Verdict::Allow, DecidedBy::Policy));
    let Some(Outcome::Result(result)) = &allowed.outcome else { panic!("a result: {allowed:?}") };
    assert_eq!(&result.json[..], b"{ \"guest\" : 1.0 }");
    let recorded = app.invocation(&allowed.invocation_id).await;
    assert_eq!(recorded.error.expect("what really happened").message, "oops");
    let denied = app.login("spin").await;
    assert_eq!((denied.verdict(), denied.failure().kind()), (Verdict::Deny, ErrorKind::TimedOut));
    server.stop().await;
}

fn skipped(answer: &proto::InvokeResponse) -> &str {
    assert_eq!((answer.verdict(), answer.decided_by()), (Verdict::Allow, DecidedBy::Policy));
    assert_eq!(answer.invocation_id, "");
    match &answer.outcome {
        Some(Outcome::Skipped(skipped)) => &skipped.reason,
        other => panic!("not skipped: {other:?}"),
    }
}

#[tokio::test]
async fn an_event_that_nobody_handles_is_skipped_and_allowed() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", DECIDES)
        .disabled()
        .function("SystemTriggeredEvent", "exports.handleEvent = () => 1")
        .on(&server)
        .await;
    assert_eq!(skipped(&app.login("return").await), "FUNCTION_DISABLED");
    assert_eq!(skipped(&app.invoke(SENT, SENT_EVENT).await.expect("skipped")), "NO_FUNCTION");
    let mut inactive = Publish::login("inactive", DECIDES).0;
    inactive.activate = Some(false);
    server.publish(inactive).await.expect("publishes");
    assert_eq!(skipped(&server.app("inactive").login("return").await), "NO_ACTIVE_VERSION");
    assert!(app.history().await.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_version_can_be_pinned() {
    let server = TestServer::start().await;
    let version =
        |number: u32| format!("export const handleEvent = (event, context) => [{number}, context.function.version]");
    server.deploy_function("demo", LOGIN, &version(1)).await;
    let app = server.deploy_function("demo", LOGIN, &version(2)).await;
    let newest = app.login("jane").await;
    assert_eq!((newest.version, newest.json()), (2, json!([2, 2])));
    let mut request = app.call(LOGIN, r#"{"username":"jane"}"#);
    request.version = Some(1);
    let pinned = app.send(request.clone()).await.expect("an answer");
    assert_eq!((pinned.version, pinned.json()), (1, json!([1, 1])));
    request.version = Some(3);
    let unknown = app.send(request.clone()).await.expect_err("no such version");
    assert_eq!(reason(&unknown), (Code::NotFound, "VERSION_NOT_FOUND".to_owned()));
    request.version = Some(0);
    assert_eq!(app.send(request).await.expect_err("no number").code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test]
async fn a_trigger_type_may_be_spelled_in_three_ways() {
    let server = TestServer::start().await;
    let app =
        server.deploy_function("demo", LOGIN, "export const handleEvent = (event, context) => context.trigger").await;
    for spelling in [LOGIN, "UserAttemptedStartSessionEvent", "User Attempted Start Session"] {
        let answer = app.invoke(spelling, r#"{"username":"jane"}"#).await.expect(spelling);
        assert_eq!(answer.json(), json!({ "type": LOGIN, "blocking": true }));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_callers_mistake_is_refused_by_its_name() {
    let server = TestServer::with(&["event_bytes_max=1000"]).await;
    let app =
        server.deploy_function("demo", LOGIN, "export const handleEvent = (event) => event.username.length").await;
    let user = |bytes: usize| format!("{{\"username\":\"{}\"}}", "x".repeat(bytes - 15));
    let table = [
        ("no JSON", LOGIN, "{\"username\":}".to_owned(), Code::InvalidArgument, "INVALID_JSON"),
        ("nothing", LOGIN, String::new(), Code::InvalidArgument, "INVALID_JSON"),
        ("two values", LOGIN, "{\"username\":\"a\"} {}".to_owned(), Code::InvalidArgument, "INVALID_JSON"),
        ("a field is missing", LOGIN, "{\"name\":\"jane\"}".to_owned(), Code::InvalidArgument, "SCHEMA_MISMATCH"),
        ("another type", LOGIN, "{\"username\":7}".to_owned(), Code::InvalidArgument, "SCHEMA_MISMATCH"),
        ("no object", LOGIN, "[]".to_owned(), Code::InvalidArgument, "SCHEMA_MISMATCH"),
        ("an unknown trigger", "UserDidNothing", "{}".to_owned(), Code::InvalidArgument, "UNKNOWN_TRIGGER_TYPE"),
        ("no trigger", "", "{}".to_owned(), Code::InvalidArgument, "UNKNOWN_TRIGGER_TYPE"),
        ("too large", LOGIN, user(1001), Code::InvalidArgument, "EVENT_TOO_LARGE"),
        ("far too large", LOGIN, user(500_000), Code::InvalidArgument, "EVENT_TOO_LARGE"),
    ];
    for (case, trigger_type, event, code, name) in table {
        let status = app.invoke(trigger_type, &event).await.expect_err(case);
        assert_eq!(reason(&status), (code, name.to_owned()), "{case}");
    }
    assert_eq!(app.invoke(LOGIN, &user(1000)).await.expect("fits exactly").json(), json!(985));
    let mut invalid_text = app.call(LOGIN, "");
    invalid_text.event_json = Bytes::from_static(b"{\"username\":\"\xff\"}");
    assert_eq!(
        reason(&app.send(invalid_text).await.expect_err("no UTF-8")),
        (Code::InvalidArgument, "INVALID_JSON".to_owned())
    );
    let unknown = server.app("nobody").invoke(LOGIN, r#"{"username":"jane"}"#).await.expect_err("no such app");
    assert_eq!(reason(&unknown), (Code::NotFound, "APP_NOT_FOUND".to_owned()));
    let unnameable = server.app("no/app").invoke(LOGIN, r#"{"username":"jane"}"#).await.expect_err("no name");
    assert_eq!(reason(&unnameable), (Code::InvalidArgument, "INVALID_APP_ID".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn a_key_has_at_most_256_bytes() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, "export const handleEvent = () => 1").await;
    for (bytes, fits) in [(256, true), (257, false)] {
        let key = "k".repeat(bytes);
        let mut idempotent = app.call(LOGIN, r#"{"username":"jane"}"#);
        idempotent.idempotency_key = key.clone();
        let mut ordered = app.call(LOGIN, r#"{"username":"jane"}"#);
        ordered.ordering_key = key;
        for request in [idempotent, ordered] {
            match app.send(request).await {
                Ok(_) => assert!(fits),
                Err(status) => {
                    assert_eq!((fits, reason(&status)), (false, (Code::InvalidArgument, "KEY_TOO_LONG".to_owned())))
                }
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn json_passes_through_byte_for_byte() {
    let server = TestServer::start().await;
    let app = server
        .deploy_function("demo", LOGIN, "export const handleEvent = (event) => event.half ? '\\ud83d' : event")
        .await;
    // As JSON.stringify writes it, so that equal bytes come back.
    let event = r#"{"username":"jäne 🙂 \u0000\u001f\"\\/ é","big":123456789012345680000,"small":1e-7,"list":[1.5,-0.25,null,true],"__proto__":{"a":1},"":""}"#;
    let answer = app.invoke(LOGIN, event).await.expect("an answer");
    let Some(Outcome::Result(result)) = &answer.outcome else { panic!("a result: {answer:?}") };
    assert_eq!(std::str::from_utf8(&result.json).expect("UTF-8"), event);
    let recorded = app.invocation(&answer.invocation_id).await;
    assert_eq!((&recorded.event_json[..], &recorded.result_json), (event.as_bytes(), &result.json));
    let half = app.invoke(LOGIN, r#"{"username":"jane","half":true}"#).await.expect("an answer");
    let Some(Outcome::Result(result)) = &half.outcome else { panic!("a result: {half:?}") };
    assert_eq!(&result.json[..], br#""\ud83d""#, "half an emoji");
    let odd = "{ \"username\" : \"\\u006aane\",\n \"n\" : 1.50e+03 }";
    let answer = app.invoke(LOGIN, odd).await.expect("an answer");
    assert_eq!(&app.invocation(&answer.invocation_id).await.event_json[..], odd.as_bytes());
    server.stop().await;
}

#[tokio::test]
async fn a_call_runs_on_and_is_recorded_although_its_caller_hangs_up() {
    let server = TestServer::start().await;
    let gate = Gate::new(&server);
    let app = gate.function("demo").on(&server).await;
    let call = hold(&app, 1);
    until_busy(&app, 1).await;
    drop(call);
    gate.open();
    wait_until("it is recorded", async || app.history().await[0].status() == InvocationStatus::Succeeded).await;
    assert_eq!(app.pool().await.workers_idle, 1);
    server.stop().await;
}

//! What functions write, line by line, stored and as it comes.

use std::time::Duration;

use chatfn::proto::{self, LogLevel};
use tonic::Code;

use crate::harness::{LOGIN, SENT, SENT_EVENT, TestApp, TestServer, reason, wait_until};
use crate::publish_request::Publish;

const WRITES: &str = "export const handleEvent = (event) => {
    console.debug('a debug line');
    console.log('hello', event.username, { n: 1 });
    console.info('two\\nlines');
    console.warn('a warning');
    console.error(new Error('an error').message);
    process.stdout.write('on stdout\\nunfinished');
    process.stderr.write('on stderr\\n');
    return 'done';
}";

async fn logs_of(app: &TestApp, username: &str) -> Vec<proto::LogEntry> {
    let answer = app.login(username).await;
    app.invocation(&answer.invocation_id).await.logs
}

async fn tail(server: &TestServer, request: proto::TailLogsRequest) -> Vec<String> {
    let mut lines = server.invocations().tail_logs(request).await.expect("lines").into_inner();
    let mut texts = Vec::new();
    while let Some(line) = lines.message().await.expect("a line") {
        texts.push(line.entry.expect("an entry").text);
    }
    texts
}

fn of(app: &TestApp) -> proto::TailLogsRequest {
    proto::TailLogsRequest { app_id: app.id.clone(), ..Default::default() }
}

#[tokio::test]
async fn lines_have_their_level_their_source_and_their_order() {
    let server = TestServer::start().await;
    let app = server.deploy_function("demo", LOGIN, WRITES).await;
    let answer = app.login("jane").await;
    let logs = app.invocation(&answer.invocation_id).await.logs;
    let console: Vec<_> =
        logs.iter().filter(|line| line.source == "console").map(|line| (line.level(), line.text.as_str())).collect();
    assert_eq!(
        console,
        [
            (LogLevel::Debug, "a debug line"),
            (LogLevel::Info, "hello jane { n: 1 }"),
            (LogLevel::Info, "two\nlines"),
            (LogLevel::Warn, "a warning"),
            (LogLevel::Error, "an error"),
        ]
    );
    let of = |source: &str| -> Vec<_> {
        logs.iter().filter(|line| line.source == source).map(|line| (line.level(), line.text.clone())).collect()
    };
    assert_eq!(of("stdout"), [(LogLevel::Info, "on stdout".to_owned()), (LogLevel::Info, "unfinished".to_owned())]);
    assert_eq!(of("stderr"), [(LogLevel::Error, "on stderr".to_owned())]);
    for line in &logs {
        assert_eq!((line.app_id.as_str(), line.version, line.trigger_type.as_str()), ("demo", 1, LOGIN));
        assert_eq!(line.invocation_id, answer.invocation_id);
        assert!(line.at.is_some());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_log_is_cut_at_its_limits_and_says_so_once() {
    let server = TestServer::with(&["log_lines_max=5", "log_bytes_max=2000", "log_line_bytes_max=1000"]).await;
    let source = "export const handleEvent = (event) => {
        const [how, count, bytes] = event.username.split(' ');
        for (let n = 0; n < Number(count); n += 1) {
            if (how === 'console') console.log('x'.repeat(Number(bytes)));
            else process.stdout.write('x'.repeat(Number(bytes)) + '\\n');
        }
    }";
    let app = server.deploy_function("demo", LOGIN, source).await;
    for how in ["console", "stdout"] {
        // Lines in all, and whether the last one says that some are missing.
        for (amount, lines, cut) in
            [("5 10", 5, false), ("6 10", 6, true), ("50 10", 6, true), ("2 1000", 2, false), ("3 1000", 3, true)]
        {
            let logs = logs_of(&app, &format!("{how} {amount}")).await;
            let said: Vec<_> = logs.iter().filter(|line| line.text.contains("truncated")).collect();
            assert_eq!((logs.len(), said.len()), (lines, usize::from(cut)), "{how} {amount}: {logs:?}");
            assert_eq!(logs.last().expect("a line").text.contains("truncated"), cut, "{how} {amount}");
        }
        assert_eq!(logs_of(&app, &format!("{how} 1 1000")).await[0].text, "x".repeat(1000));
        let long = logs_of(&app, &format!("{how} 1 1001")).await.remove(0).text;
        assert!(long.starts_with(&"x".repeat(1000)) && long.ends_with("more]"), "{how}: {long}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_last_lines_before_an_end_are_kept() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = (event) => {
        console.log('on the console');
        process.stdout.write('on stdout');
        if (event.username === 'kill') process.kill(process.pid, 'SIGKILL');
        if (event.username === 'exit') process.exit(1);
        while (event.username === 'spin') {}
        return new Promise(() => {});
    }";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(1)).on(&server).await;
    for case in ["kill", "exit", "spin", "wait"] {
        let answer = app.login(case).await;
        wait_until("both lines are there", async || {
            let logs = app.invocation(&answer.invocation_id).await.logs;
            ["on the console", "on stdout"].iter().all(|text| logs.iter().any(|line| line.text == *text))
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test]
async fn lines_outside_of_an_invocation_are_the_apps() {
    let server = TestServer::start().await;
    let app = Publish::login("demo", "export const handleEvent = () => 1")
        .initialization("console.log('initializing')")
        .on(&server)
        .await;
    app.login("jane").await;
    let mut lines = server.invocations().tail_logs(of(&app)).await.expect("lines").into_inner();
    let entry = lines.message().await.expect("a line").expect("a line").entry.expect("an entry");
    assert_eq!(
        (entry.text.as_str(), entry.invocation_id.as_str(), entry.trigger_type.as_str()),
        ("initializing", "", "")
    );
    server.stop().await;
}

#[tokio::test]
async fn the_tail_shows_the_newest_lines_that_pass_its_filters() {
    let server = TestServer::start().await;
    let both =
        Publish::login("demo", WRITES).function(SENT, "export const handleEvent = () => { console.log('sent'); }");
    let app = both.on(&server).await;
    let answer = app.login("jane").await;
    app.invoke(SENT, SENT_EVENT).await.expect("accepted");
    wait_until("the event ran", async || tail(&server, of(&app)).await.contains(&"sent".to_owned())).await;
    assert_eq!(tail(&server, proto::TailLogsRequest { tail_lines: 1, ..of(&app) }).await, ["sent"]);
    let warnings = proto::TailLogsRequest { level: LogLevel::Warn.into(), ..of(&app) };
    let mut texts = tail(&server, warnings).await;
    texts.sort();
    assert_eq!(texts, ["a warning", "an error", "on stderr"]);
    assert_eq!(
        tail(&server, proto::TailLogsRequest { trigger_type: "User Sent Message".into(), ..of(&app) }).await,
        ["sent"]
    );
    let of_one = proto::TailLogsRequest { invocation_id: answer.invocation_id, ..of(&app) };
    assert_eq!(tail(&server, of_one).await.len(), 8);
    assert_eq!(tail(&server, proto::TailLogsRequest { version: 2, ..of(&app) }).await, [""; 0]);
    for (request, code, name) in [
        (proto::TailLogsRequest { app_id: "nobody".into(), ..of(&app) }, Code::NotFound, "APP_NOT_FOUND"),
        (proto::TailLogsRequest { tail_lines: 1001, ..of(&app) }, Code::InvalidArgument, "INVALID_TAIL_LINES"),
        (proto::TailLogsRequest { level: 9, ..of(&app) }, Code::InvalidArgument, "INVALID_FILTER"),
    ] {
        let status = server.invocations().tail_logs(request).await.map(|_| ()).expect_err("refused");
        assert_eq!(reason(&status), (code, name.to_owned()));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_follower_sees_stored_lines_then_new_ones_and_only_those_it_asked_for() {
    let server = TestServer::start().await;
    let source = "export const handleEvent = async (event) => {
        console.log('quiet', event.username);
        console.warn('loud', event.username);
        if (event.username === 'slow') await new Promise((resolve) => setTimeout(resolve, 60_000));
    }";
    let app = Publish::login("demo", source).timeout(Duration::from_secs(120)).on(&server).await;
    let other = server.deploy_function("other", LOGIN, source).await;
    app.login("before").await;
    let request = proto::TailLogsRequest { follow: true, level: LogLevel::Warn.into(), ..of(&app) };
    let mut lines = server.invocations().tail_logs(request).await.expect("follows").into_inner();
    let mut next = async || lines.message().await.expect("a line").expect("no end").entry.expect("an entry").text;
    assert_eq!(next().await, "loud before");
    other.login("elsewhere").await;
    app.login("after").await;
    assert_eq!(next().await, "loud after");
    // Not only once its invocation is over.
    let slow = {
        let app = app.clone();
        tokio::spawn(async move { app.invoke(LOGIN, r#"{"username":"slow"}"#).await })
    };
    assert_eq!(next().await, "loud slow");
    assert!(!slow.is_finished());
    let _ = server.crash();
    let _ = slow.await;
}

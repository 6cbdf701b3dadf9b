//! `chatfn logs`: filters, following, a reader that goes away, a connection that breaks.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::cli::{chatfn, command};
use crate::harness::{LOGIN, TestApp, TestServer, wait_until};

const TALKS: &str = "export const handleEvent = (event) => {
    console.log('hello ' + event.username + '\\nand more');
    console.warn('careful ' + event.username);
};";

/// `chatfn logs demo -f --tail 10`, with the lines it prints.
struct Follower {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Follower {
    fn start(address: &str) -> Self {
        let mut logs = command(address, &["logs", "demo", "-f", "--tail", "10"]);
        let mut child = logs.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    /// The next line's text, without what stands before it.
    async fn next(&mut self) -> String {
        let mut lines = self.lines.take().expect("open");
        let read = move || {
            let mut line = String::new();
            lines.read_line(&mut line).expect("reads");
            (lines, line)
        };
        let (lines, line) = tokio::task::spawn_blocking(read).await.expect("joins");
        self.lines = Some(lines);
        line.trim_end().rsplit("  ").next().unwrap_or_default().to_owned()
    }

    async fn end(mut self) -> Option<i32> {
        wait_until("it ends", async || self.child.try_wait().expect("wait").is_some()).await;
        self.child.wait().expect("ended").code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn talkative(server: &TestServer) -> TestApp {
    let app = server.deploy_function("demo", LOGIN, TALKS).await;
    app.login("jane").await;
    app
}

#[tokio::test]
async fn stored_lines_are_printed_as_text_or_json_and_filtered() {
    let server = TestServer::start().await;
    let app = talkative(&server).await;
    let ran = chatfn(&server, &["logs", "demo"]).await.done();
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    assert!(lines[0].ends_with("Z INFO  v1 UserAttemptedStartSession  hello jane"), "{ran:?}");
    assert_eq!(lines[1], "    and more");
    assert!(lines[2].ends_with("Z WARN  v1 UserAttemptedStartSession  careful jane"), "{ran:?}");
    let ran = chatfn(&server, &["logs", "demo", "--level", "warn", "--json"]).await.done();
    assert_eq!(ran.json()["text"], "careful jane");
    let id = app.history().await[0].invocation_id.clone();
    app.login("joe").await;
    let ran = chatfn(&server, &["logs", "demo", "--invocation", &id, "--json"]).await.done();
    let texts = ran.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["text"].clone());
    assert_eq!(texts.collect::<Vec<_>>(), ["hello jane\nand more", "careful jane"]);
    assert_eq!(chatfn(&server, &["logs", "demo", "--tail", "1"]).await.done().out.lines().count(), 1);
    for (args, code) in [(&["--tail", "0"], 2), (&["--level", "loud"], 2), (&["--trigger", "Nothing"], 1)] {
        let ran = chatfn(&server, &[&["logs", "demo"][..], args].concat()).await;
        assert_eq!(ran.code, Some(code), "{ran:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn following_ends_quietly_with_ctrl_c_and_when_nobody_reads() {
    let server = TestServer::start().await;
    talkative(&server).await;
    let mut follower = Follower::start(&server.address);
    assert_eq!(follower.next().await, "hello jane");
    kill(Pid::from_raw(follower.child.id().cast_signed()), Signal::SIGINT).expect("signal");
    assert_eq!(follower.end().await, Some(0));

    let mut follower = Follower::start(&server.address);
    assert_eq!(follower.next().await, "hello jane");
    let mut said = BufReader::new(follower.child.stderr.take().expect("piped"));
    drop(follower.lines.take()); // And no line comes any more.
    assert_eq!(follower.end().await, Some(0));
    let mut text = String::new();
    said.read_line(&mut text).expect("reads");
    assert_eq!(text, "");
    server.stop().await;
}

/// Stands between a client and the service, and breaks connections.
struct Link {
    address: String,
    breaks: Arc<Notify>,
}

impl Link {
    async fn to(server: &TestServer) -> Self {
        let target = server.address.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let breaks = Arc::new(Notify::new());
        let broken = Arc::clone(&breaks);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, broken) = (target.clone(), Arc::clone(&broken));
                tokio::spawn(async move {
                    let mut service = TcpStream::connect(target).await.expect("connects");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut service) => {}
                        () = broken.notified() => {}
                    }
                });
            }
        });
        Self { address, breaks }
    }
}

#[tokio::test]
async fn following_goes_on_after_a_broken_connection_without_a_line_twice() {
    let server = TestServer::start().await;
    let app = talkative(&server).await;
    let link = Link::to(&server).await;
    let mut follower = Follower::start(&link.address);
    for line in ["hello jane", "and more", "careful jane"] {
        assert_eq!(follower.next().await, line);
    }
    let mut said = BufReader::new(follower.child.stderr.take().expect("piped"));
    link.breaks.notify_waiters();
    app.login("joe").await; // Perhaps while nobody listens.
    for line in ["hello joe", "and more", "careful joe"] {
        assert_eq!(follower.next().await, line);
    }
    let mut text = String::new();
    said.read_line(&mut text).expect("reads");
    assert!(text.contains("trying again"), "{text}");
    app.login("jim").await;
    assert_eq!(follower.next().await, "hello jim");
    drop(follower);
    server.stop().await;
}

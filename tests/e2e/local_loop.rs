//! `chatfn init`, `run` and `dev`, as their user types them: no service runs, stdout is a pipe.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use chatfn::proto;
use chatfn::proto::invocation_service_client::InvocationServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Status;

use crate::harness::{Answered, LOGIN, SENT, binary, wait_until};

/// The SDK would be fetched by npm; here nobody uses it.
const WITHOUT_SDK: [&str; 2] = ["--set", "default_dependencies={}"];

/// A project that was just made.
fn project() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().expect("temp dir");
    let directory = parent.path().join("my chat");
    let output = chatfn(&["init"], &directory, &WITHOUT_SDK).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    let next = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(next.contains("chatfn run ") && next.contains("chatfn dev "), "{next}");
    (parent, directory)
}

fn chatfn(before: &[&str], directory: &Path, after: &[&str]) -> Command {
    let mut command = binary();
    command.args(before).arg(directory).args(after).stdin(Stdio::null());
    command.current_dir(directory.parent().expect("a parent")); // Where no chatfn.toml is.
    command
}

async fn run(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = chatfn(&["run"], directory, &[arguments, &WITHOUT_SDK].concat());
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("joins");
    let Output { status, stdout, stderr } = output;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn write(directory: &Path, name: &str, content: &str) {
    fs::write(directory.join(name), content).expect("write");
}

#[tokio::test]
async fn a_new_project_runs_at_once_and_is_not_overwritten() {
    let (_parent, directory) = project();
    let (code, out, err) = run(&directory, &[LOGIN]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.starts_with("UserAttemptedStartSession  ok  ALLOW by FUNCTION\n  result   {\"username\":\"jane\","),
        "{out}"
    );
    assert!(out.contains("\n  log      jane starts a session\n") && out.contains("\n  timings  queue "), "{out}");

    let (code, out, err) = run(&directory, &["UserSentMessageEvent", "--json"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&report["result"], &report["verdict"]), (&json!({ "seen": 42 }), &Value::Null), "{report}");
    assert_eq!(report["logs"][0]["text"], "attempt 1: jane wrote hello");
    assert_eq!((&report["trigger_type"], &report["version"]), (&SENT.into(), &2.into()), "the data is kept");

    let before = fs::read(directory.join("init.ts")).expect("read");
    write(&directory, "init.ts", "// mine\n");
    let init = |after: &[&str]| chatfn(&["init"], &directory, &[after, &WITHOUT_SDK].concat()).output().expect("runs");
    let refused = init(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("init.ts, ") && said.contains("--force"), "{said}");
    assert_eq!(fs::read(directory.join("init.ts")).expect("read"), b"// mine\n");
    assert!(init(&["--force"]).status.success());
    assert_eq!(fs::read(directory.join("init.ts")).expect("read"), before);
}

#[tokio::test]
async fn run_tells_by_its_exit_code_who_failed() {
    let (_parent, directory) = project();
    write(&directory, "nobody.json", r#"{ "username": " " }"#);
    let nobody = directory.join("nobody.json").display().to_string();
    let (code, out, _) = run(&directory, &[LOGIN, "--event", &nobody]).await;
    assert_eq!(code, Some(0), "a denial is an answer: {out}");
    assert!(
        out.starts_with(
            "UserAttemptedStartSession  DENIED  DENY by FUNCTION\n  denied   a user name is needed (NO_USERNAME)\n"
        ),
        "{out}"
    );

    // The environment comes from .env; what fails says where.
    write(&directory, ".env", "# local\nexport GREETING='good day'\n");
    let throws = "export function handleEvent() {\n  console.error(process.env.GREETING);\n  throw new RangeError('too far');\n}\n";
    write(&directory, "functions/UserSentMessage.ts", throws);
    let (code, out, err) = run(&directory, &[SENT]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(
        out.contains("  error    THROWN RangeError: too far\n") && out.contains("functions/UserSentMessage.ts:3:9"),
        "{out}"
    );
    assert!(out.contains("  ERROR    good day\n"), "{out}");

    write(&directory, "functions/UserSentMessage.ts", "export const handleEvent = () => {\n  return 1 +;\n};\n");
    let (code, out, err) = run(&directory, &[SENT]).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("functions/UserSentMessage.ts:2:13") && err.contains("> 2 |   return 1 +;\n"), "{err}");

    fs::remove_file(directory.join("functions/UserSentMessage.ts")).expect("remove");
    write(&directory, "bad.json", "{");
    let bad = directory.join("bad.json").display().to_string();
    for (arguments, says) in [
        (&[SENT][..], "UserSentMessage has no function: write functions/UserSentMessage.ts"),
        (&["UserSneezed"], "there is no trigger type \"UserSneezed\"; there are SystemTriggeredEvent"),
        (&[LOGIN, "--event", "gone.json"], "read --event gone.json"),
        (&[LOGIN, "--event", &bad], "(INVALID_JSON)"),
    ] {
        let (code, out, err) = run(&directory, arguments).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.contains(says), "{arguments:?}: {err}");
    }
    let (code, _, err) = run(&directory.join("gone"), &[LOGIN]).await;
    assert!(code == Some(1) && err.contains("`chatfn init "), "{err}");
}

/// What the directory of these tests is called as an app.
const APP: &str = "my-chat";

async fn login(address: String) -> Result<proto::InvokeResponse, Status> {
    let mut client = InvocationServiceClient::connect(address).await.expect("connects");
    let request = proto::InvokeRequest {
        app_id: APP.to_owned(),
        trigger_type: LOGIN.to_owned(),
        event_json: r#"{"username":"jane"}"#.into(),
        ..Default::default()
    };
    client.invoke(request).await.map(tonic::Response::into_inner)
}

/// A running `chatfn dev`.
struct Dev {
    process: Child,
    said: Arc<Mutex<String>>,
    directory: PathBuf,
}

impl Dev {
    fn start(directory: &Path) -> Self {
        let mut command = chatfn(&["dev"], directory, &[&["--listen", "127.0.0.1:0"][..], &WITHOUT_SDK].concat());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let said = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().expect("piped")), Box::new(process.stderr.take().expect("piped"))];
        for pipe in pipes {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    *said.lock().expect("lock") += &(line + "\n");
                }
            });
        }
        Self { process, said, directory: directory.to_owned() }
    }

    fn said(&self) -> String {
        self.said.lock().expect("lock").clone()
    }

    async fn says(&self, text: &str) {
        wait_until(&format!("{text:?} is printed"), async || {
            assert!(Path::new(&format!("/proc/{}", self.process.id())).exists());
            self.said().contains(text)
        })
        .await;
    }

    fn address(&self) -> String {
        let said = self.said();
        let address = said.split("app my-chat at ").nth(1).and_then(|rest| rest.split(';').next());
        address.expect("an address").to_owned()
    }

    async fn login(&self) -> proto::InvokeResponse {
        login(self.address()).await.expect("an answer")
    }

    /// Ctrl-C; nothing of it is left.
    async fn interrupt(mut self) {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGINT).expect("signal");
        let mut ended = None;
        wait_until("it ends", async || {
            ended = self.process.try_wait().expect("wait");
            ended.is_some()
        })
        .await;
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{}", self.said());
        let left = processes_that_see(&self.directory);
        assert!(left.is_empty(), "left over: {left:?}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// By their command line or their mounts.
fn processes_that_see(directory: &Path) -> Vec<String> {
    let needle = directory.join(".chatfn").display().to_string().replace(' ', "\\040");
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let sees = |path: &Path, file| fs::read_to_string(path.join(file)).is_ok_and(|text: String| text.contains(&needle));
    let of_it = entries.map(|entry| entry.path()).filter(|path| sees(path, "mountinfo") || sees(path, "cmdline"));
    of_it.map(|path| path.display().to_string()).collect()
}

#[tokio::test]
async fn dev_serves_what_is_saved_and_keeps_serving_when_that_is_broken() {
    let (_parent, directory) = project();
    let function = format!("functions/{LOGIN}.ts");
    let dev = Dev::start(&directory);
    dev.says("version 1 serves UserAttemptedStartSession, UserSentMessage (").await;
    assert_eq!(dev.login().await.json()["username"], "jane");
    dev.says("UserAttemptedStartSession ok ").await;
    dev.says("  log      jane starts a session\n").await;

    write(&directory, &function, "export const handleEvent = () => 'changed'");
    dev.says("version 2 serves ").await;
    assert_eq!(dev.login().await.json(), "changed");

    write(&directory, &function, "export const handleEvent = () => {\n  return 1 +;\n}");
    dev.says("functions/UserAttemptedStartSession.ts:2:13").await;
    dev.says("> 2 |   return 1 +;\n").await;
    assert_eq!(dev.login().await.json(), "changed", "the version before goes on");

    // An event that is saved runs; so does what is new in a directory that is new.
    write(
        &directory,
        "events/UserSentMessage.json",
        r#"{"user":{"name":"joe"},"channel":{},"message":{"id":5,"type":"TEXT","body":"hi \u001b[2J"}}"#,
    );
    dev.says("  result   {\"seen\":5}\n  log      attempt 1: joe wrote hi \u{fffd}[2J\n").await;
    write(&directory, "events/UserReadMessage.json", r#"{"user":{},"message":{},"receipt":1}"#);
    dev.says("UserReadMessage has no function: write functions/UserReadMessage.ts").await;
    write(&directory, "events/UserAttemptedStartSession.json", "{}");
    dev.says("events/UserAttemptedStartSession.json: ").await;
    fs::create_dir(directory.join("lib")).expect("directory");
    write(&directory, "lib/words.ts", "export const word = process.env.WORD");
    write(&directory, ".env", "WORD=secret");
    write(&directory, &function, "import { word } from '../lib/words';\nexport const handleEvent = () => word");
    wait_until("the word is served", async || dev.login().await.json() == "secret").await;
    let types = fs::read_to_string(directory.join("chat-functions.d.ts")).expect("read");
    assert!(types.contains("WORD") && !types.contains("secret"), "types of the environment's names");
    assert!(!dev.said().contains('\u{1b}'));
    let (code, _, err) = run(&directory, &[LOGIN]).await;
    assert!(code == Some(1) && err.contains("this project runs already"), "{err}");
    dev.interrupt().await;
}

#[tokio::test]
async fn a_second_interrupt_does_not_wait_for_functions() {
    let (_parent, directory) = project();
    let waits = "export const handleEvent = () => { console.log('waits'); return new Promise(() => setTimeout(() => {}, 60000)); };";
    write(&directory, &format!("functions/{LOGIN}.ts"), waits);
    let mut dev = Dev::start(&directory);
    dev.says("version 1 serves ").await;
    let address = dev.address();
    let call = tokio::spawn(async move { login(address).await });
    wait_until("the function runs", async || {
        let mut client = InvocationServiceClient::connect(dev.address()).await.expect("connects");
        let request = proto::ListInvocationsRequest { app_id: APP.to_owned(), ..Default::default() };
        !client.list_invocations(request).await.expect("a list").into_inner().invocations.is_empty()
    })
    .await;
    let pid = Pid::from_raw(dev.process.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("signal");
    let mut ended = None;
    wait_until("it ends", async || {
        let _ = kill(pid, Signal::SIGINT); // Until the second one is taken.
        ended = dev.process.try_wait().expect("wait");
        ended.is_some()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(1), "{}", dev.said());
    wait_until("nothing is left", async || processes_that_see(&directory).is_empty()).await;
    assert!(call.await.expect("joins").is_err(), "its caller hears of it");
}

/// As the project's own README tells its user.
#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "npm, as users run it")]
async fn a_new_project_passes_its_own_type_check() {
    let parent = tempfile::tempdir().expect("temp dir");
    let directory = parent.path().join("typed");
    let made = chatfn(&["init"], &directory, &[]).output().expect("runs");
    assert!(made.status.success(), "{made:?}");
    let npm = |arguments: &[&str]| {
        let mut command = Command::new("npm");
        let output = command.args(arguments).current_dir(&directory).output().expect("npm runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (installed, said) = npm(&["install", "--no-audit", "--no-fund"]);
    assert!(installed, "{said}");
    let (right, said) = npm(&["run", "check"]);
    assert!(right, "{said}");
    write(
        &directory,
        "functions/UserSentMessage.ts",
        "export const handleEvent = (event: UserSentMessageEvent, { ChatKitty }: Context) =>\n  ChatKitty.Channels.sendChannelMessage(event.chanel.id, { type: 'TEXT', body: 'x' });\n",
    );
    let (right, said) = npm(&["run", "check"]);
    assert!(!right && said.contains("functions/UserSentMessage.ts(2,") && said.contains("'chanel'"), "{said}");
}

#[tokio::test]
async fn dev_tells_type_errors_of_what_serves_with_their_frames() {
    let (_parent, directory) = project();
    let dev = Dev::start(&directory);
    dev.says("version 1 serves ").await;
    let function = format!("functions/{LOGIN}.ts");
    let wrong = "export function handleEvent(event: UserAttemptedStartSessionEvent) {\n  return event.usernam;\n}";
    write(&directory, &function, wrong);
    dev.says("version 2 serves ").await;
    dev.says("functions/UserAttemptedStartSession.ts:2:16: TS2551").await;
    dev.says("> 2 |   return event.usernam;\n").await;
    dev.says("type errors: 1; it serves all the same\n").await;
    write(&directory, &function, &wrong.replace("usernam;", "username;"));
    dev.says("the types are right\n").await;
    dev.interrupt().await;
}

/// It asks nobody for a token.
#[tokio::test]
async fn dev_listens_on_loopback_only() {
    let (_parent, directory) = project();
    let token = directory.join("token");
    write(&directory, "token", "a-token-of-the-operator-with-enough-characters");
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    let set = format!("operator_token_file={}", token.display());
    let mut command = chatfn(&["dev"], &directory, &["--listen", "0.0.0.0:0", "--set", &set]);
    let output = command.output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("loopback addresses only"), "{said}");
}

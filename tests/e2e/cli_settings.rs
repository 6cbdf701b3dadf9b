//! Where commands find the service, the token and the app; and completions.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::cli::{Ran, chatfn, ended, project};
use crate::harness::{LOGIN, TestServer, binary};

const TOKEN: &str = "a-token-of-the-operator-with-enough-characters";

/// Profiles and the command of somebody who has them.
struct User {
    home: TempDir,
}

impl User {
    fn with(profiles: &str) -> Self {
        let home = project(&[(".config/chatfn/profiles.toml", profiles)]);
        let user = Self { home };
        std::fs::set_permissions(user.file(), std::fs::Permissions::from_mode(0o600)).expect("chmod");
        user
    }

    fn file(&self) -> std::path::PathBuf {
        self.home.path().join(".config/chatfn/profiles.toml")
    }

    async fn runs(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = binary();
        command.args(args).env_remove("XDG_CONFIG_HOME").env("HOME", self.home.path()).envs(variables.iter().copied());
        ended(command, "").await
    }
}

async fn guarded(directory: &Path) -> TestServer {
    let file = directory.join("token");
    std::fs::write(&file, TOKEN).expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    TestServer::with(&[&format!("operator_token_file={}", file.display())]).await
}

#[tokio::test]
async fn flags_win_over_variables_which_win_over_profiles() {
    let directory = tempfile::tempdir().expect("temp dir");
    let server = guarded(directory.path()).await;
    let address = &server.address;
    let user = User::with(&format!(
        "[profiles.default]\naddress = \"{address}\"\ntoken = \"{TOKEN}\"\napp = \"nobody\"\n\n[profiles.nowhere]\naddress = \"http://127.0.0.1:1\"\ntoken = \"wrong\"\n"
    ));
    let apps = ["apps", "list"];
    user.runs(&apps, &[]).await.done();
    let nowhere = user.runs(&apps, &[("CHATFN_PROFILE", "nowhere")]).await;
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
    assert!(nowhere.err.contains("http://127.0.0.1:1 (from the profile \"nowhere\")"), "{nowhere:?}");
    user.runs(&["apps", "list", "--profile", "default"], &[("CHATFN_PROFILE", "nowhere")]).await.done();
    let both = [("CHATFN_PROFILE", "nowhere"), ("CHATFN_ADDRESS", address.as_str())];
    let withheld = user.runs(&apps, &both).await;
    assert_eq!(withheld.code, Some(1), "{withheld:?}");
    for part in ["is not sent to", "(UNAUTHENTICATED)", "CHATFN_TOKEN"] {
        assert!(withheld.err.contains(part), "no {part:?} in {withheld:?}");
    }
    user.runs(&apps, &[&both[..], &[("CHATFN_TOKEN", TOKEN)]].concat()).await.done();
    let wrong = user.runs(&["apps", "list", "--token", "wrong"], &[("CHATFN_TOKEN", TOKEN)]).await;
    assert!(wrong.code == Some(1) && !wrong.err.contains(TOKEN), "{wrong:?}");
    user.runs(&["apps", "list", "--address", address, "--token", TOKEN], &[("CHATFN_ADDRESS", "127.0.0.1:1")])
        .await
        .done();

    let letters = ["events", "dead-letters"];
    for (variables, app) in [(&[][..], "nobody"), (&[("CHATFN_APP", "somebody")], "somebody")] {
        let ran = user.runs(&letters, variables).await;
        assert!(ran.code == Some(1) && ran.err.contains(app) && ran.err.contains("(APP_NOT_FOUND)"), "{ran:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_profile_file_that_is_wrong_or_open_is_told_of_without_its_secrets() {
    let directory = tempfile::tempdir().expect("temp dir");
    let server = guarded(directory.path()).await;
    let address = [("CHATFN_ADDRESS", server.address.as_str())];
    let user = User::with(&format!("[profiles.default]\ntoken = \"{TOKEN}\"\n"));
    let quiet = user.runs(&["apps"], &address).await.done();
    assert_eq!(quiet.err, "");
    std::fs::set_permissions(user.file(), std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let warned = user.runs(&["apps"], &address).await.done();
    assert!(warned.err.contains("others can read the tokens in ") && warned.err.contains("chmod 600"), "{warned:?}");
    let unknown = user.runs(&["apps", "--profile", "other"], &address).await;
    assert!(
        unknown.code == Some(1)
            && unknown.err.contains("no profile \"other\"")
            && unknown.err.contains("it has default"),
        "{unknown:?}"
    );
    for (wrong, line) in [
        ("[profiles.default]\ntoken = hidden", 2),
        ("[profiles.default]\ntokn = \"hidden\"", 2),
        ("[profiles.default]\n\ntoken = [\"hidden\"]", 3),
    ] {
        let ran = User::with(wrong).runs(&["apps"], &address).await;
        assert!(ran.code == Some(1) && ran.err.contains(&format!("profiles.toml:{line}: ")), "{wrong}: {ran:?}");
        assert!(!ran.err.contains("hidden"), "{ran:?}");
    }
    let nameless = User::with("").runs(&["events", "dead-letters"], &address).await;
    assert!(nameless.code == Some(2) && nameless.err.contains("CHATFN_APP"), "{nameless:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_service_that_is_not_there_is_told_of_with_what_to_check() {
    let user = User::with("");
    for command in [&["apps"][..], &["versions", "demo"], &["logs", "demo", "-f"], &["invoke", "demo", LOGIN]] {
        let ran = user.runs(command, &[("CHATFN_ADDRESS", "http://127.0.0.1:1")]).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for part in ["cannot reach the service at http://127.0.0.1:1", "check that it runs", "refused"] {
            assert!(ran.err.contains(part), "no {part:?} in {ran:?}");
        }
    }
    let ran = user.runs(&["apps"], &[("CHATFN_ADDRESS", "https://127.0.0.1:1")]).await;
    assert!(ran.code == Some(1) && ran.err.contains("--tls-ca"), "{ran:?}");
}

#[tokio::test]
async fn completions_know_the_commands() {
    for (shell, check) in [("bash", &["bash", "-n"][..]), ("zsh", &[]), ("fish", &[])] {
        let ran = User::with("").runs(&["completions", shell], &[]).await.done();
        for command in ["publish", "rollback", "invocations", "dead-letters", "profile"] {
            assert!(ran.out.contains(command), "{shell}: no {command}");
        }
        assert!(!ran.out.contains("broker"), "{shell}");
        if let [program, flag] = check {
            assert_eq!(shell_reads(program, flag, &ran.out).await, Some(0));
        }
    }
    let ran = User::with("").runs(&["completions", "tcsh"], &[]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
}

async fn shell_reads(program: &str, flag: &str, script: &str) -> Option<i32> {
    #[allow(clippy::disallowed_methods, reason = "it reads what is meant for it")]
    let mut command = Command::new(program);
    command.arg(flag);
    ended(command, script).await.code
}

#[tokio::test]
async fn the_service_knows_the_names_of_the_clients_variables() {
    let directory = tempfile::tempdir().expect("temp dir");
    let variables = [("CHATFN_PROFILE", "work"), ("CHATFN_APP", "demo"), ("CHATFN_ADDRESS", "http://127.0.0.1:1")];
    let settings = ["listen=127.0.0.1:0"];
    let server = TestServer::with_environment("default_dependencies = {}\n", &variables, &settings).await;
    drop(directory);
    chatfn(&server, &["apps"]).await.done();
    server.stop().await; // Without a WARN.
}

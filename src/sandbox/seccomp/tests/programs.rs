//! The other half: under the filters, real programs still work.

use std::env;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::waitpid;
use nix::unistd::{chdir, dup2_stderr, dup2_stdout, pipe2};

use super::*;
use crate::sandbox::seccomp::NODE_DESCRIPTOR;
use crate::sandbox::testing::{at_least, c_string, start};

const WORKOUT: &str = include_str!("../workout.mjs");

/// Starts the program as the broker does, by descriptor, and allows each of its connects. Returns how it ended and what it printed.
fn run(
    policy: Policy,
    program: &Path,
    arguments: &[&str],
    environment: &[String],
    directory: &Path,
) -> (WaitStatus, String) {
    let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(program).unwrap();
    let (output, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let arguments: Vec<_> = arguments.iter().map(|text| c_string(text)).collect();
    let environment: Vec<_> = environment.iter().map(|text| c_string(text)).collect();
    let filters = Filters::build(policy).unwrap();
    let child = start(|| {
        let pointers = |texts: &[std::ffi::CString]| -> Vec<_> {
            texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        chdir(directory).unwrap();
        dup2_stdout(&into).unwrap();
        dup2_stderr(&into).unwrap();
        let program = at_least(&file, NODE_DESCRIPTOR);
        assert_eq!(program.as_raw_fd(), NODE_DESCRIPTOR);
        let inherited = unsafe_close_on_exec();
        assert_eq!(inherited, 0);
        setrlimit(Resource::RLIMIT_NOFILE, 256, 256).unwrap();
        set_no_new_privs();
        assert!(filters.install().unwrap().is_none(), "with the supervisor, Node is tried through the front door");
        // SAFETY: both arrays end with a null pointer and their texts live until the exec.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                NODE_DESCRIPTOR,
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        254
    });
    drop(into);
    let mut printed = String::new();
    File::from(output).read_to_string(&mut printed).unwrap();
    (waitpid(child, None).unwrap(), printed)
}

fn unsafe_close_on_exec() -> libc::c_long {
    // SAFETY: changes a flag of descriptors; whoever owns them in this child is about to be replaced.
    unsafe { libc::syscall(libc::SYS_close_range, 3, 999, libc::CLOSE_RANGE_CLOEXEC) }
}

/// The one on the path, and those that CHATFN_TEST_NODES names, separated by colons.
fn nodes() -> Vec<PathBuf> {
    let others = env::var("CHATFN_TEST_NODES").unwrap_or_default();
    let others = others.split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    [on_path("node")].into_iter().chain(others).collect()
}

fn on_path(name: &str) -> PathBuf {
    env::split_paths(&env::var_os("PATH").unwrap())
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .unwrap()
}

#[test]
fn node_does_everything_but_start_programs() {
    for node in nodes() {
        for policy in [WORKER, INSTALL] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("workout.mjs"), WORKOUT).unwrap();
            let environment = [
                format!("WORKOUT_TMP={}", directory.path().display()),
                format!("SUBPROCESSES={}", u8::from(policy.subprocesses)),
                format!("DATAGRAMS={}", u8::from(policy.connect == Connect::Kernel)),
            ];
            let (status, printed) = run(policy, &node, &["node", "workout.mjs"], &environment, directory.path());
            assert_eq!((status_code(status), printed.as_str()), (Ok(0), "ok\n"), "{} under {policy:?}", node.display());
        }
    }
}

#[test]
fn shells_and_npm_run_in_an_install() {
    let directory = tempfile::tempdir().unwrap();
    let environment = [
        format!("PATH={}", env::var("PATH").unwrap()),
        format!("HOME={}", directory.path().display()),
        "npm_config_update_notifier=false".to_owned(),
    ];
    let manifest =
        r#"{"name":"a","version":"1.0.0","scripts":{"hello":"cat package.json | wc -l && echo script-ran"}}"#;
    std::fs::write(directory.path().join("package.json"), manifest).unwrap();
    let script = "set -e; ulimit -n >/dev/null; (echo sub | grep sub); npm --version; npm run -s hello; npm ls; kill -0 $$; echo done";
    let (status, printed) = run(INSTALL, Path::new("/bin/sh"), &["sh", "-c", script], &environment, directory.path());
    assert_eq!(status_code(status), Ok(0), "{printed}");
    assert!(printed.contains("script-ran") && printed.ends_with("done\n"), "{printed}");
}

fn status_code(status: WaitStatus) -> Result<i32, WaitStatus> {
    match status {
        WaitStatus::Exited(_, code) => Ok(code),
        other => Err(other),
    }
}

//! Each in a forked child, on this kernel. Where it is too old for a claim, the claim's test says so and checks nothing.

use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use libc::{EACCES, EPERM};
use nix::sys::signal::kill;
use nix::sys::wait::WaitStatus;
use nix::unistd::{getpid, getppid};
use tempfile::TempDir;

use super::*;
use crate::sandbox::testing::{c_string, errno_of, exited, in_child, io_errno, set_no_new_privs};

/// What `run` returns in a child under the rules. 200: the rules were not put in force as asked.
fn under(rules: &Rules, run: impl FnOnce() -> i32) -> i32 {
    exited(in_child(|| {
        set_no_new_privs();
        match restrict(rules) {
            Ok(enforced) if enforced.status == Status::Full && enforced.scopes => run(),
            _ => 200,
        }
    }))
}

fn this_kernel_can(what: &str, abi_min: u32) -> bool {
    let can = abi().is_ok_and(|abi| abi >= abi_min);
    if !can {
        eprintln!("skipped: {what} needs Landlock ABI {abi_min}");
    }
    can
}

fn system() -> Vec<PathBuf> {
    ["/usr", "/lib", "/lib64", "/bin"].map(PathBuf::from).to_vec()
}

fn directories() -> (TempDir, Rules) {
    let root = tempfile::tempdir().unwrap();
    for name in ["read", "run", "write", "install", "outside"] {
        let directory = root.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), "secret").unwrap();
        fs::copy("/bin/true", directory.join("true")).unwrap();
    }
    let path = |name: &str| root.path().join(name);
    let rules = Rules {
        read_only: vec![path("read")],
        execute: [system(), vec![path("run")]].concat(),
        write: vec![path("write")],
        write_execute: vec![path("install")],
        devices: vec!["/dev/null".into()],
        optional: vec!["/lib64".into()],
        tcp: None,
    };
    (root, rules)
}

fn execute(path: &Path) -> i32 {
    let path = c_string(path.to_str().unwrap());
    let arguments = [path.as_ptr(), std::ptr::null()];
    // SAFETY: the path and the arguments live until the exec, which ends this child with 0.
    errno_of(unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), arguments[1..].as_ptr()) }.into())
}

#[test]
fn it_is_in_force_in_full() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (_root, rules) = directories();
    assert_eq!(under(&rules, || 0), 0);
}

#[test]
fn files_outside_are_neither_read_nor_written() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (root, rules) = directories();
    let file = |name: &str| root.path().join(name).join("file");
    let read = |path: PathBuf| under(&rules, || io_errno(fs::read(&path)));
    let write = |path: PathBuf| under(&rules, || io_errno(OpenOptions::new().write(true).open(&path)));
    let make = |path: PathBuf| under(&rules, || io_errno(File::create(path.with_file_name("new"))));

    assert_eq!(read(file("outside")), EACCES);
    assert_eq!(read("/etc/hostname".into()), EACCES);
    assert_eq!(write(file("outside")), EACCES);
    assert_eq!(make(file("outside")), EACCES);
    assert_eq!(read(format!("/proc/{}/environ", getpid()).into()), EACCES);

    for name in ["read", "run"] {
        assert_eq!(read(file(name)), 0);
        assert_eq!(write(file(name)), EACCES);
        assert_eq!(make(file(name)), EACCES);
    }
    for name in ["write", "install"] {
        assert_eq!(read(file(name)), 0);
        assert_eq!(write(file(name)), 0);
        assert_eq!(make(file(name)), 0);
    }
}

#[test]
fn files_move_within_what_may_be_written_and_not_out_of_it() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (root, rules) = directories();
    let write = root.path().join("write");
    fs::create_dir(write.join("below")).unwrap();
    assert_eq!(under(&rules, || io_errno(fs::rename(write.join("file"), write.join("below/file")))), 0);
    assert_ne!(under(&rules, || io_errno(fs::rename(write.join("below/file"), root.path().join("outside/new")))), 0);
    // Not to where it could be executed, either.
    assert_ne!(under(&rules, || io_errno(fs::rename(write.join("true"), root.path().join("install/new")))), 0);
}

#[test]
fn programs_are_executed_where_allowed_only() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (root, rules) = directories();
    let program = |name: &str| root.path().join(name).join("true");
    assert!(fs::metadata(program("write")).unwrap().permissions().mode() & 0o111 != 0);
    for (name, expected) in [("run", 0), ("install", 0), ("read", EACCES), ("write", EACCES), ("outside", EACCES)] {
        assert_eq!(under(&rules, || execute(&program(name))), expected, "{name}");
    }
}

/// What seccomp cannot: see `an_absolute_path_passes_by_the_descriptor_of_node` there. The program and the interpreter that its ELF
/// header names are all that has to be executable.
#[test]
fn one_program_can_be_the_only_one() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (root, rules) = directories();
    let program = root.path().join("run/true");
    let interpreter = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(PathBuf::from);
    let rules = Rules {
        read_only: [system(), vec![root.path().to_owned()]].concat(),
        execute: [vec![program.clone()], interpreter.to_vec()].concat(),
        optional: [rules.optional, interpreter.to_vec()].concat(),
        ..Rules::default()
    };
    assert_eq!(under(&rules, || execute(&program)), 0);
    assert_eq!(under(&rules, || execute(Path::new("/bin/true"))), EACCES);
    assert_eq!(under(&rules, || execute(Path::new("/bin/sh"))), EACCES);
}

#[test]
fn no_device_node_is_made_and_listed_devices_work() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (root, rules) = directories();
    for name in ["write", "install"] {
        let node = c_string(root.path().join(name).join("device").to_str().unwrap());
        // SAFETY: `node` lives through the call.
        let make =
            || errno_of(unsafe { libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)) }.into());
        assert_eq!(under(&rules, make), EACCES);
    }
    assert_eq!(under(&rules, || io_errno(File::create("/dev/null"))), 0);
    assert_eq!(under(&rules, || io_errno(File::open("/dev/zero"))), EACCES);
}

#[test]
fn tcp_reaches_the_listed_ports_only() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let (open, closed) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (open, closed) = (open.local_addr().unwrap(), closed.local_addr().unwrap());
    let limited = |bind| Rules { tcp: Some(Tcp { connect: vec![open.port()], bind }), ..Rules::default() };

    assert_eq!(under(&limited(false), || io_errno(TcpStream::connect(open))), 0);
    assert_eq!(under(&limited(false), || io_errno(TcpStream::connect(closed))), EACCES);
    assert_eq!(under(&limited(false), || io_errno(TcpListener::bind("127.0.0.1:0"))), EACCES);
    assert_eq!(under(&limited(false), || io_errno(TcpListener::bind(open))), EACCES);
    assert_eq!(under(&limited(true), || io_errno(TcpListener::bind("127.0.0.1:0"))), 0);
    assert_eq!(under(&limited(true), || io_errno(TcpStream::connect(closed))), EACCES);
    let free = Rules::default();
    assert_eq!(under(&free, || io_errno(TcpListener::bind("127.0.0.1:0"))), 0);
    assert_eq!(under(&free, || io_errno(TcpStream::connect(closed))), 0);
}

#[test]
fn signals_and_abstract_sockets_stay_within() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    let name = SocketAddr::from_abstract_name(format!("chatfn-test-{}", getpid())).unwrap();
    let _server = UnixListener::bind_addr(&name).unwrap();
    let rules = Rules::default();
    assert_eq!(under(&rules, || kill(getppid(), None).map_or_else(|errno| errno as i32, |()| 0)), EPERM);
    assert_eq!(under(&rules, || kill(getpid(), None).map_or_else(|errno| errno as i32, |()| 0)), 0);
    assert_eq!(under(&rules, || io_errno(UnixStream::connect_addr(&name))), EPERM);
    // The control: without rules it is there.
    assert_eq!(exited(in_child(|| io_errno(UnixStream::connect_addr(&name)))), 0);
}

#[test]
fn a_missing_path_is_an_error_unless_it_is_optional() {
    let missing = PathBuf::from("/nowhere/at/all");
    let mut rules = Rules { read_only: vec![missing.clone()], ..Rules::default() };
    let err = rules.prepare().unwrap_err();
    assert!(
        matches!(&err, Error::Open { path, source } if *path == missing && source.kind() == io::ErrorKind::NotFound),
        "{err:?}"
    );
    rules.optional.push(missing);
    rules.prepare().unwrap();
}

#[test]
fn rules_that_were_prepared_hold_after_the_uid_is_dropped() {
    if !this_kernel_can("scoping", 6) {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root to drop it");
    }
    let root = tempfile::tempdir().unwrap();
    let (closed, open) = (root.path().join("closed"), root.path().join("closed/open"));
    fs::create_dir_all(&open).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let rules = Rules { read_only: vec![open], ..Rules::default() };
    let status = in_child(|| {
        let prepared = rules.prepare().unwrap();
        nix::unistd::setuid(65534.into()).unwrap();
        // This uid could not have opened the path.
        assert!(matches!(rules.prepare(), Err(Error::Open { .. })));
        set_no_new_privs();
        i32::from(prepared.restrict().unwrap().status != Status::Full)
    });
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
}

/// As for workers with a root of their own: one rule on `/`, and others below it.
#[test]
fn an_older_kernel_is_held_to_what_it_knows() {
    if !this_kernel_can("anything", 1) {
        return;
    }
    let (root, rules) = directories();
    let path = |name: &str| root.path().join(name);
    let rules = Rules { read_only: vec!["/".into()], write: vec![path("write")], tcp: None, ..rules };
    let in_force = |run: &dyn Fn() -> i32| {
        exited(in_child(|| {
            set_no_new_privs();
            match restrict(&rules) {
                Ok(enforced) if enforced.status != Status::None => run(),
                other => {
                    eprintln!("{other:?}");
                    200
                }
            }
        }))
    };
    assert_eq!(in_force(&|| io_errno(fs::read(path("outside/file")))), 0);
    assert_eq!(in_force(&|| io_errno(File::create(path("outside/new")))), EACCES);
    assert_eq!(in_force(&|| io_errno(File::create(path("write/new")))), 0);
    let node = c_string(path("write").join("device").to_str().unwrap());
    // SAFETY: `node` lives through the call.
    let make = || errno_of(unsafe { libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o400, libc::makedev(1, 3)) }.into());
    assert_eq!(in_force(&make), EACCES);
}

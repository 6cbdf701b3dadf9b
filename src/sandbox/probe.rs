//! Finds out what works on this machine: a child, confined like every other, tries what is forbidden and tells what happened.
//!
//! Configuration says what was meant; only an attempt says what holds. [`Attempt`] is what runs in the child, [`prove`] what the
//! broker makes of it.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode as Permissions, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{getpid, getuid, pipe2};
use serde::{Deserialize, Serialize};

use super::attach::attach;
use super::launch::Launcher;
use super::message::ChildId;
use super::plan::{Become, Stdio};
use super::spec::{Exit, ExitStatus, Limits, Network, Profile, Spec};
use crate::model::{Layer, LayerName};

/// Ids of the service's children count from 1.
const PROBE: ChildId = ChildId(0);
const PROBE_MEMORY_BYTES: u64 = 64 << 20;
/// More than any child may have.
const DESCRIPTORS_TRIED: i32 = 4096;
/// A file beside the root: readable by everybody but children.
const CANARY: &str = "canary";

/// What a probe child attempts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attempt {
    /// Each thing that a layer forbids, and last the one that ends it.
    Forbidden { canary_port: u16, canary: &'static str },
    /// To use more memory than its cgroup has.
    Memory,
}

/// One line of what a probe child says.
#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    layer: LayerName,
    holds: bool,
    proof: String,
}

impl Attempt {
    /// What seccomp would hide behind its own refusal.
    pub(super) fn before_seccomp(self) {
        let Self::Forbidden { canary, .. } = self else { return };
        say(landlock(canary));
        say(environment());
    }

    pub(super) fn run(self) -> ! {
        match self {
            Self::Forbidden { canary_port, .. } => {
                say(filesystem());
                say(user());
                say(processes());
                say(network(canary_port));
                say(capabilities());
                say(rlimits());
                // The end: what seccomp kills for.
                // SAFETY: takes no pointer; if it returns, seccomp does not work.
                let result = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
                say(finding(
                    LayerName::Seccomp,
                    false,
                    format!("ptrace returned {result} instead of ending the probe"),
                ));
            }
            Self::Memory => use_memory(),
        }
        // SAFETY: ends this copy without running what the original still needs.
        unsafe { libc::_exit(0) }
    }
}

fn say(finding: Finding) {
    let line = serde_json::to_string(&finding).unwrap_or_default();
    let _ = writeln!(io::stdout(), "{line}");
}

fn finding(layer: LayerName, holds: bool, proof: String) -> Finding {
    Finding { layer, holds, proof }
}

fn outcome<T, E: Display>(result: Result<T, E>) -> String {
    result.map_or_else(|err| err.to_string(), |_| "succeeded".to_owned())
}

/// With a root of its own the canary is out of sight, so that another thing that only Landlock forbids has to do: a device node. It
/// takes a privilege as well, but Landlock is asked first and has another answer (`do_mknodat`). Not the node 0, 0, which takes none:
/// some kernels, Debian's 6.1 among them, let Landlock treat it as a file, as overlayfs marks deletions with it.
fn landlock(canary: &str) -> Finding {
    if Path::new("/app").is_dir() && !Path::new(canary).exists() {
        let made = mknod("/tmp/probe", SFlag::S_IFCHR, Permissions::S_IRUSR, makedev(1, 3));
        let proof = format!("making a device node in /tmp: {} (without Landlock: {})", outcome(made), Errno::EPERM);
        return finding(LayerName::Landlock, made == Err(Errno::EACCES), proof);
    }
    let read = fs::read(canary);
    let denied = read.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::PermissionDenied);
    finding(LayerName::Landlock, denied, format!("reading a file outside of what it was given: {}", outcome(read)))
}

/// What Node will have: nothing but 0, 1 and 2 here, as this child has no protocol. (The one for `/proc/self/fd` itself closes.)
fn environment() -> Finding {
    let inherited = |descriptor: &i32| {
        // SAFETY: asks for a flag of a descriptor, which may be none.
        let flags = unsafe { libc::fcntl(*descriptor, libc::F_GETFD) };
        flags >= 0 && flags & libc::FD_CLOEXEC == 0
    };
    let open: Vec<i32> = (0..DESCRIPTORS_TRIED).filter(inherited).collect();
    let proof = format!("{} variables of the broker's, descriptors {open:?} stay open", std::env::vars_os().count());
    finding(LayerName::Environment, open == [0, 1, 2] && std::env::vars_os().next().is_none(), proof)
}

fn filesystem() -> Finding {
    let shadow = fs::metadata("/etc/shadow");
    let written = File::create("/probe");
    let hidden = shadow.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::NotFound);
    let sealed = written.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::ReadOnlyFilesystem);
    let proof = format!("looking at /etc/shadow: {}; creating a file in /: {}", outcome(shadow), outcome(written));
    finding(LayerName::Filesystem, hidden && sealed, proof)
}

fn user() -> Finding {
    let own = fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid());
    let (uid, groups) = (getuid(), nix::unistd::getgroups().unwrap_or_default());
    let proof = format!("uid {uid}, {} other groups, /proc/self belongs to {own}", groups.len());
    // Whether it is a uid that nobody else has is known to the broker, which gave it.
    finding(LayerName::User, !uid.is_root() && groups.is_empty(), proof)
}

fn processes() -> Finding {
    let visible = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = visible.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    let seen = others.count();
    let pid = getpid();
    finding(
        LayerName::Processes,
        pid.as_raw() <= 2 && seen <= 2,
        format!("it is process {pid} and sees {seen} in /proc"),
    )
}

fn network(port: u16) -> Finding {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connected = TcpStream::connect_timeout(&address, Duration::from_millis(500));
    let proof = format!("connecting to a listener on the host's 127.0.0.1: {}", outcome(connected.as_ref()));
    finding(LayerName::Network, connected.is_err(), proof)
}

fn capabilities() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(|| "unknown".to_owned(), |value| value.trim_matches([':', '\t', ' ']).to_owned())
    };
    let none = |value: &str| !value.is_empty() && value.chars().all(|digit| digit == '0');
    let (effective, permitted, new_privileges) = (of("CapEff"), of("CapPrm"), of("NoNewPrivs"));
    let holds = none(&effective) && none(&permitted) && new_privileges == "1";
    let proof = format!("CapEff {effective}, CapPrm {permitted}, CapBnd {}, NoNewPrivs {new_privileges}", of("CapBnd"));
    finding(LayerName::Capabilities, holds, proof)
}

fn rlimits() -> Finding {
    let bytes = usize::try_from(PROBE_MEMORY_BYTES * 2).unwrap_or(usize::MAX);
    let mapped = map(bytes);
    let proof =
        format!("mapping {} MiB with RLIMIT_DATA at {}: {}", bytes >> 20, PROBE_MEMORY_BYTES >> 20, outcome(mapped));
    finding(LayerName::Rlimits, mapped.is_err(), proof)
}

/// Anonymous, private and writable: what RLIMIT_DATA counts since Linux 4.7 (getrlimit(2)).
fn map(bytes: usize) -> Result<*mut u8, Errno> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping; nothing of ours is replaced.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(address.cast()) }
}

fn use_memory() {
    let bytes = usize::try_from(PROBE_MEMORY_BYTES * 2).unwrap_or(usize::MAX);
    if let Ok(address) = map(bytes) {
        for page in (0..bytes).step_by(4096) {
            // SAFETY: inside of the mapping just made.
            unsafe { address.add(page).write_volatile(1) };
        }
    }
}

/// Starts the probe children and tells what holds, and whether a running child can be shown more.
///
/// # Errors
/// A child could not even be confined: the mode does not work here.
pub(super) fn prove(launcher: &mut Launcher) -> io::Result<(Vec<Layer>, Result<(), String>)> {
    let canary_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let canary = launcher.settings.root.with_file_name(CANARY);
    leave_canary(&canary)?;
    let canary_text: &'static str = Box::leak(canary.display().to_string().into_boxed_str()); // Once in a broker's life.
    let attempt = Attempt::Forbidden { canary_port: canary_listener.local_addr()?.port(), canary: canary_text };
    let Probed { said, exit, attached } = run(launcher, attempt, PROBE_MEMORY_BYTES)?;
    let _ = fs::remove_file(&canary);
    let mut findings: Vec<Finding> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if findings.is_empty() {
        return Err(io::Error::other(format!("the probe said nothing: {:?}", exit.status)));
    }
    if let ExitStatus::Signal(signal) = exit.status {
        let name = Signal::try_from(signal).map_or("an unknown signal", Signal::as_str);
        findings.push(finding(
            LayerName::Seccomp,
            signal == libc::SIGSYS,
            format!("calling ptrace ended the probe by {name}"),
        ));
    }
    let mut layers: Vec<Layer> = findings
        .into_iter()
        .map(|Finding { layer, holds, proof }| Layer { name: layer, active: holds, proof })
        .collect();
    if launcher.cgroups.is_some() {
        layers.push(memory(launcher)?);
    }
    Ok((layers, attached))
}

/// Never through a link: the directory is the service's, and we may have privileges that it has not.
fn leave_canary(path: &Path) -> io::Result<()> {
    let _ = fs::remove_file(path); // Left by a broker that was killed.
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(b"if a child can read this, Landlock does not work\n")
}

fn memory(launcher: &mut Launcher) -> io::Result<Layer> {
    // RLIMIT_DATA out of the way: the cgroup's limit is what is tried.
    let Probed { exit, .. } = run(launcher, Attempt::Memory, PROBE_MEMORY_BYTES * 4)?;
    let (used, limit, peak) = ((PROBE_MEMORY_BYTES * 2) >> 20, PROBE_MEMORY_BYTES >> 20, exit.peak_memory_bytes >> 20);
    let ended = if exit.memory_limit_hit { "the kernel ended it" } else { "nothing ended it" };
    let proof = format!("using {used} MiB with its cgroup's limit at {limit} MiB: {ended}, its peak was {peak} MiB");
    Ok(Layer { name: LayerName::Memory, active: exit.memory_limit_hit, proof })
}

/// What became of a probe child.
struct Probed {
    said: String,
    exit: Exit,
    attached: Result<(), String>,
}

fn run(launcher: &mut Launcher, attempt: Attempt, data_bytes: u64) -> io::Result<Probed> {
    let (read, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (_null, stderr) = pipe2(OFlag::O_CLOEXEC)?;
    let (stdout, stderr) = (away(stdout)?, away(stderr)?);
    let spec = Spec {
        profile: Profile::Worker,
        args: Vec::new(),
        environment: Default::default(),
        mounts: Vec::new(),
        directory: "/".into(),
        scratch: None,
        limits: Limits {
            memory_bytes: PROBE_MEMORY_BYTES,
            data_bytes,
            cpu_millis: 0,
            pids: 64,
            tmp_bytes: 1 << 20,
            open_files: 256,
            file_bytes: 1 << 20,
            cpu_time: None,
        },
        network: Network::Nothing,
        protocol: false,
    };
    let running = launcher.launch(PROBE, &spec, Stdio { stdout, stderr, protocol: None }, Become::Probe(attempt))?;
    // Nothing to show it: whether its namespace can be entered is the question, which takes CAP_SYS_CHROOT besides what a mode takes.
    let attached = match &running.mounts {
        Some(namespace) => attach(namespace, &[]).map_err(|err| format!("enter its mount namespace: {err}")),
        None => Err("it has no root of its own".to_owned()),
    };
    let mut said = String::new();
    File::from(read).take(64 << 10).read_to_string(&mut said)?;
    let status = match waitpid(running.pid, None)? {
        WaitStatus::Signaled(_, signal, _) => ExitStatus::Signal(signal as i32),
        WaitStatus::Exited(_, code) => ExitStatus::Code(code),
        _ => ExitStatus::Unknown,
    };
    // Where it had an init, that one's word counts.
    Ok(Probed { said, exit: launcher.bury(running, Exit { status, ..Exit::UNKNOWN }), attached })
}

/// The low numbers are the child's.
fn away(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, fcntl};
    use std::os::fd::FromRawFd;
    let raw = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(super::child::DESCRIPTOR_MIN))?;
    // SAFETY: `fcntl` has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

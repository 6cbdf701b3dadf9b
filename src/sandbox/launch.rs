//! Starts one child, in the broker. The numbered steps run between fork and exec.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid, setsid};

use super::{ResourceLimits, Spec};

/// Where the shim looks for the protocol.
const PROTOCOL_READ: RawFd = 3;
const PROTOCOL_WRITE: RawFd = 4;
/// The broker keeps everything of its own at or above this one, so that moving the protocol to 3 and 4 hits nothing.
pub(super) const DESCRIPTOR_MIN: RawFd = 10;

/// Starts the child; descriptors come in the order 1, 2 and, with a protocol, 3, 4. Returns its pid.
pub(super) fn launch(spec: &Spec, descriptors: Vec<OwnedFd>) -> io::Result<u32> {
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let (stdout, stderr) = (next()?, next()?);
    let protocol = if spec.protocol { Some((next()?, next()?)) } else { None };
    let limits = spec.limits;
    let broker = getpid();
    #[expect(clippy::disallowed_methods, reason = "the sandbox is where processes start")]
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(&spec.environment)
        .current_dir(&spec.directory)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    // SAFETY: the broker has one thread, so no lock can be held across the fork; the steps only make system calls.
    unsafe {
        command.pre_exec(move || confine(limits, protocol.as_ref(), broker));
    }
    // The broker reaps by pid and reports the end; `Child` would add nothing but a second owner.
    command.spawn().map(|child| child.id())
}

/// In the child, before exec. The order matters where a step says so.
fn confine(limits: ResourceLimits, protocol: Option<&(OwnedFd, OwnedFd)>, broker: Pid) -> io::Result<()> {
    // 1. A session of its own: no terminal, and no signal from the service's process group.
    setsid()?;
    // 2. The protocol leaves 0 and 1 before any tenant code can exist. `dup2` clears close-on-exec; everything else keeps it.
    if let Some((read, write)) = protocol {
        move_to(read, PROTOCOL_READ)?;
        move_to(write, PROTOCOL_WRITE)?;
    }
    // 3. Limits, after the last step that opens a descriptor.
    restrict(limits)?;
    // 4. The kernel's choice when memory runs out: a worker, never the service. Raising needs no privilege.
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    // 5. Nothing that is executed from here gains privileges.
    prctl::set_no_new_privs()?;
    // 6. Last, as a change of credentials would clear it: die with the broker. It may be gone already: then the signal never comes.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != broker {
        return Err(io::Error::other("the broker is gone"));
    }
    Ok(())
}

fn move_to(descriptor: &OwnedFd, number: RawFd) -> io::Result<()> {
    // Away from 3 and 4 first: the descriptor of one may stand where the other goes.
    let away = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_MIN))?;
    // SAFETY: plain dup2 of a descriptor that we own onto a number that nothing of ours uses (see DESCRIPTOR_MIN).
    if unsafe { libc::dup2(away, number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    debug_assert_ne!(descriptor.as_raw_fd(), number);
    Ok(())
}

fn restrict(limits: ResourceLimits) -> io::Result<()> {
    let set = |resource, value| setrlimit(resource, value, value).map_err(io::Error::from);
    set(Resource::RLIMIT_CORE, 0)?;
    set(Resource::RLIMIT_NOFILE, limits.open_files)?;
    if let Some(bytes) = limits.file_bytes {
        set(Resource::RLIMIT_FSIZE, bytes)?;
    }
    if let Some(cpu) = limits.cpu {
        set(Resource::RLIMIT_CPU, cpu.as_secs().max(1))?;
    }
    if let Some(bytes) = limits.data_bytes {
        set(Resource::RLIMIT_DATA, bytes)?;
    }
    Ok(())
}

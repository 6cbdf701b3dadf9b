//! Which system calls a child may make.
//!
//! Up to seven filters are stacked. The kernel asks all of them at each call and takes the sternest answer: kill, then an error, then
//! the question to the broker, then yes. Each filter has one answer for what it matches and one for the rest, so each has one reason
//! to exist; [`Filters::install`] lists them. What they say stands in [`rules`], the system calls by name in
//! [`syscalls`](super::syscalls).
//!
//! Not here: which files (Landlock, mounts), which addresses (network namespace, Landlock, the egress supervisor), how much (rlimits,
//! cgroups).

mod rules;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use nix::unistd::getpid;
use seccompiler::{BackendError, BpfProgram};

use super::egress;

/// Where the program to execute stands open, close-on-exec, when a child without subprocesses calls `execveat`. RLIMIT_NOFILE must be
/// at most this, so that nobody can put another file there later.
pub(super) const NODE_DESCRIPTOR: RawFd = 1000;

/// What filters depend on. Few values, so that the broker can keep the filters of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Policy {
    /// Whether the child may start programs: npm and its shells may, workers may not.
    pub subprocesses: bool,
    pub connect: Connect,
    /// Whether it has no root of its own: files of the service, whose user it shares, are then within reach of what Landlock does not
    /// cover.
    pub shares_root: bool,
}

/// Who decides on a `connect(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Connect {
    /// The kernel: a network namespace or Landlock's port rules.
    Kernel,
    /// The egress supervisor, through the listener. What sends without connecting stays in the child's network namespace, so this is
    /// for children that have one.
    Supervisor,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("compile a seccomp filter")]
    Compile(#[from] BackendError),
}

/// The filters of one policy, compiled.
#[derive(Debug, Clone)]
pub(super) struct Filters {
    subprocesses: bool,
    no_subprocesses: Option<BpfProgram>,
    /// What Landlock does not cover, where it alone stands before others' files.
    others_files: Vec<BpfProgram>,
    killed: BpfProgram,
    connect: Connect,
    allowed: BpfProgram,
}

impl Filters {
    /// Takes 0.1 ms; meant to be done once for each policy, in the broker.
    pub(super) fn build(policy: Policy) -> Result<Filters, Error> {
        Ok(Filters {
            subprocesses: policy.subprocesses,
            no_subprocesses: if policy.subprocesses { None } else { Some(rules::no_subprocesses()?) },
            others_files: match policy.shares_root {
                true => vec![rules::no_attributes()?, rules::no_paths_for_sockets()?],
                false => Vec::new(),
            },
            killed: rules::killed()?,
            connect: policy.connect,
            allowed: rules::allowed(policy)?,
        })
    }

    /// Restricts this thread, and whatever it becomes or starts, for good. For the child, with no_new_privs set, as the last step
    /// before exec: afterwards only what Node itself needs still works. The first filter is compiled here and allocates, which is
    /// fine in the child of a single-threaded broker.
    ///
    /// With [`Connect::Supervisor`] it returns the listener, close-on-exec. The caller sends it on (`sendmsg` still works)
    /// before it execs; once nobody holds it, every `connect` answers ENOSYS. On an error the child must end: some filters may hold.
    pub(super) fn install(&self) -> io::Result<Option<OwnedFd>> {
        // 1. Signals to the own process only. Not prebuilt: it holds the pid, as the child's own namespace counts it.
        if !self.subprocesses {
            let pid = getpid().as_raw().cast_unsigned();
            install(&rules::signals_to(pid).map_err(io::Error::other)?)?;
        }
        // 2. No processes. Before the allow list: of two errors the kernel returns that of the filter installed last, and there these
        //    calls must pass to come out as EACCES.
        if let Some(program) = &self.no_subprocesses {
            install(program)?;
        }
        for program in &self.others_files {
            install(program)?;
        }
        // 3. What ends the process. Its place does not matter, as nothing is sterner.
        install(&self.killed)?;
        // 4. The questions to the egress supervisor. At most one filter of a process can have a listener: EBUSY means that a container
        //    runtime above us has one already.
        let listener = match self.connect {
            Connect::Kernel => None,
            Connect::Supervisor => Some(egress::filter::install()?),
        };
        // 5. The allow list, last, as it refuses seccomp(2) itself.
        install(&self.allowed)?;
        Ok(listener)
    }
}

fn install(program: &BpfProgram) -> io::Result<()> {
    // The kernel's limit of 4096 steps is checked when a filter is compiled.
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `program` describes `len` steps that live through the call, in the kernel's layout (`repr(C)` on both sides); the kernel
    // copies them and writes nothing, so casting away `const` is sound.
    let returned = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

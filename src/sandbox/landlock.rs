//! Which files a child may reach and, where no network namespace decides it, which TCP ports; and that its signals and abstract
//! sockets stay within it. Needs no privilege, so it holds in every mode.
//!
//! Rules are attached to files, not to names, so the paths are opened in the child: after its mounts, as the same path means another
//! file before, and before its uid is dropped, as that uid may be unable to walk to a directory that it is meant to use. The rules
//! are put in force later, after no_new_privs. Hence two steps: [`Rules::prepare`], then [`Prepared::restrict`].
//!
//! Landlock does not cover UDP, `stat` and `chdir` outside, and `listen` without `bind`; sockets with a path only where the kernel is
//! newer than ABI 8. Its port rules do not hold for MPTCP nor, on some kernels, for TCP Fast Open: the seccomp filters refuse both.

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use nix::errno::Errno;

/// The first that scopes signals and abstract sockets: what a kernel must have for [`Status::Full`]. Linux 6.12.
const ABI_WANTED: ABI = ABI::V6;

/// Also closes sockets with a path outside, where the kernel can. Linux 7.1.
const ABI_WITH_UNIX_SOCKETS: (u32, ABI) = (9, ABI::V9);

/// What may be reached; nothing else may. A rule on a directory holds for all that is below it, mounts that come later included.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// Read files, list directories.
    pub read_only: Vec<PathBuf>,
    /// The same, and execute: the program itself and its ELF interpreter need it, shared libraries do not.
    pub execute: Vec<PathBuf>,
    /// Everything but executing and making device nodes.
    pub write: Vec<PathBuf>,
    /// Everything but making device nodes.
    pub write_execute: Vec<PathBuf>,
    /// Read, write and `ioctl` existing files, such as `/dev/null`.
    pub devices: Vec<PathBuf>,
    /// Which of the above may be missing. Any other that is makes [`Rules::prepare`] fail: a forgotten path would be found much later,
    /// by a tenant.
    pub optional: Vec<PathBuf>,
    /// `None` leaves TCP to other layers.
    pub tcp: Option<Tcp>,
}

/// Ports only: Landlock knows no addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Tcp {
    pub connect: Vec<u16>,
    /// Whether to bind to any port, or to none.
    pub bind: bool,
}

/// What the kernel holds the child to from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Enforced {
    /// 0 if the kernel has no Landlock, or it is switched off.
    pub abi: u32,
    pub status: Status,
    /// Signals and abstract sockets stay within. Without this, and without other means, tenants of one uid can reach each other.
    pub scopes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Full,
    /// The kernel is older than what we ask for.
    Partial,
    None,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("build the Landlock rules")]
    Ruleset(#[from] RulesetError),
}

/// The version of the kernel's Landlock, for the start-up report. ENOSYS: not built in; EOPNOTSUPP: switched off.
pub(super) fn abi() -> Result<u32, Errno> {
    /// LANDLOCK_CREATE_RULESET_VERSION of linux/landlock.h.
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel takes no ruleset, so a null pointer of size 0 is what it asks for; it only returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    Errno::result(version).map(|version| u32::try_from(version).unwrap_or(0))
}

/// [`Rules::prepare`] and [`Prepared::restrict`] at once, where no uid is dropped between them.
#[cfg(test)]
pub(super) fn restrict(rules: &Rules) -> Result<Enforced, Error> {
    rules.prepare()?.restrict()
}

/// Rules that know their files. Holds one descriptor, close-on-exec.
#[derive(Debug)]
pub(super) struct Prepared {
    abi: u32,
    ruleset: RulesetCreated,
}

impl Rules {
    /// Opens every path in turn, each only until its rule is added. Allocates, so for a child of a single-threaded process.
    pub(super) fn prepare(&self) -> Result<Prepared, Error> {
        let abi = abi().unwrap_or(0);
        let target = if abi >= ABI_WITH_UNIX_SOCKETS.0 { ABI_WITH_UNIX_SOCKETS.1 } else { ABI_WANTED };
        let mut ruleset = self.ruleset(target)?;
        for (access, paths) in self.accesses(target) {
            for path in paths {
                if let Some(file) = self.open(path)? {
                    ruleset = ruleset.add_rule(PathBeneath::new(file, fitting(path, access)))?;
                }
            }
        }
        for port in self.tcp.iter().flat_map(|tcp| &tcp.connect) {
            ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
        Ok(Prepared { abi, ruleset })
    }

    /// What is asked about at all: what is not handled here stays free.
    fn ruleset(&self, target: ABI) -> Result<RulesetCreated, RulesetError> {
        let mut ruleset =
            Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(target))?;
        if let Some(tcp) = &self.tcp {
            ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
            if !tcp.bind {
                ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
            }
        }
        ruleset.scope(Scope::Signal | Scope::AbstractUnixSocket)?.create()
    }

    fn accesses(&self, target: ABI) -> [(BitFlags<AccessFs>, &[PathBuf]); 5] {
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        // Device nodes can neither be made nor, so, be there: no need to let them be controlled.
        let everything = AccessFs::from_all(target) & !make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev});
        [
            (read, &self.read_only),
            (read | AccessFs::Execute, &self.execute),
            (everything & !BitFlags::from(AccessFs::Execute), &self.write),
            (everything, &self.write_execute),
            // Truncate: shells open `> /dev/null` with O_TRUNC.
            (make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev}), &self.devices),
        ]
    }

    fn open(&self, path: &Path) -> Result<Option<PathFd>, Error> {
        match PathFd::new(path) {
            Ok(file) => Ok(Some(file)),
            Err(PathFdError::OpenCall { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    && self.optional.iter().any(|optional| optional == path) =>
            {
                Ok(None)
            }
            Err(PathFdError::OpenCall { source, path, .. }) => Err(Error::Open { path, source }),
            Err(other) => Err(Error::Open { path: path.to_owned(), source: io::Error::other(other) }),
        }
    }
}

/// Without the rights that only a directory can have, if the path is none: the kernel refuses such a rule, and the crate would drop
/// them itself but count that as a rule that is enforced in part.
fn fitting(path: &Path, access: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    if path.is_dir() { access } else { access & AccessFs::from_file(ABI_WITH_UNIX_SOCKETS.1) }
}

impl Prepared {
    /// From here on, for this thread and all that it becomes or starts. After no_new_privs (set here too if it is not, as the kernel
    /// insists) and before the seccomp filters, which refuse it.
    pub(super) fn restrict(self) -> Result<Enforced, Error> {
        let status = match self.ruleset.restrict_self()?.ruleset {
            RulesetStatus::FullyEnforced => Status::Full,
            RulesetStatus::PartiallyEnforced => Status::Partial,
            RulesetStatus::NotEnforced => Status::None,
        };
        let scopes = status != Status::None && self.abi >= ABI_WANTED as u32;
        Ok(Enforced { abi: self.abi, status, scopes })
    }
}

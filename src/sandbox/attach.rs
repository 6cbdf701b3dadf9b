//! Shows a running child more directories: what turns a generic worker into an app's in a tenth of a millisecond.
//!
//! A child in a root of its own cannot be given a path, as it does not see ours. Its mount namespace can be entered for the moment
//! of one system call instead (isolation.md 7.2): `open_tree` here, `setns` there, `move_mount`, and back. The way in is a descriptor
//! that the child handed over when it was still ours: to open it from outside takes the right to debug the child.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};

use super::mounts::{self, Forbid};
use super::spec::Mount;

/// Mounts each at its target in the root of this mount namespace. For a process with one thread: the root and the namespace are the
/// process's.
///
/// # Errors
/// A directory could not be mounted; earlier ones stay. Not being able to come back ends the process: it would go on in a tenant's
/// root.
pub(super) fn attach(namespace: &OwnedFd, mounts: &[Mount]) -> io::Result<()> {
    let trees = mounts.iter().map(|mount| {
        let forbid = if mount.writable { Forbid::NOTHING } else { Forbid::WRITING };
        Ok((mounts::detached_exactly(&mount.source, forbid)?, &mount.target))
    });
    let trees = trees.collect::<io::Result<Vec<_>>>()?;
    let home = File::open("/proc/self/ns/mnt")?;
    // Coming back leads to the namespace's root, which is not ours where the service runs under chroot.
    let root = File::open("/")?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let attached = trees.iter().try_for_each(|(tree, target)| mounts::attach(tree, target));
    if let Err(err) = come_back(&home, &root) {
        eprintln!("chatfn-broker: leave a child's mount namespace: {err}");
        std::process::abort();
    }
    attached
}

fn come_back(home: &File, root: &File) -> nix::Result<()> {
    setns(home, CloneFlags::CLONE_NEWNS)?;
    nix::unistd::fchdir(root)?;
    nix::unistd::chroot(".")
}

//! The system calls that build a root: bind, remount, attach, pivot. Errors name the call and the path.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

// From linux/mount.h; the libc crate has none of them.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// What a mount forbids besides set-user-ID programs, which none ever allows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Forbid {
    pub writing: bool,
    pub executing: bool,
    pub devices: bool,
}

impl Forbid {
    pub(super) const WRITING: Self = Self { writing: true, executing: false, devices: true };
    pub(super) const NOTHING: Self = Self { writing: false, executing: false, devices: true };
    /// A device node is there to be opened; nothing else can happen to it.
    pub(super) const DEVICE: Self = Self { writing: false, executing: true, devices: false };

    fn attributes(self) -> u64 {
        let mut attributes = MOUNT_ATTR_NOSUID;
        if self.writing {
            attributes |= MOUNT_ATTR_RDONLY;
        }
        if self.executing {
            attributes |= MOUNT_ATTR_NOEXEC;
        }
        if self.devices {
            attributes |= MOUNT_ATTR_NODEV;
        }
        attributes
    }
}

/// Nothing that is mounted from here on reaches another namespace, nor the other way round.
pub(super) fn make_private() -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(at("make mounts private", Path::new("/")))
}

pub(super) fn mount_tmpfs(target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options)).map_err(at("mount a tmpfs at", target))
}

/// Of the process's own pid namespace, and without anything that is not about processes.
pub(super) fn mount_proc(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), target, Some("proc"), flags, Some("subset=pid")).map_err(at("mount proc at", target))
}

/// A mount that stands nowhere yet: `source` with everything mounted below it.
///
/// `open_tree(2)` and `mount_setattr(2)`: made so that it is never visible without its restrictions.
pub(super) fn detached(source: &Path, forbid: Forbid) -> io::Result<OwnedFd> {
    let path = c_path(source)?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
    // SAFETY: `path` is a live C string; the call returns a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let tree = owned(raw).map_err(|err| named("open_tree", source, &err))?;
    restrict(&tree, forbid, AT_RECURSIVE).map_err(|err| named("mount_setattr", source, &err))?;
    Ok(tree)
}

/// As [`detached`], of a directory that its path leads to without any link. For what the service names: it owns the directories on the
/// way, so that a check of the path, made earlier, says nothing about what it leads to now.
pub(super) fn detached_exactly(source: &Path, forbid: Forbid) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let directory = openat2(AT_FDCWD, source, how).map_err(at("open without links", source))?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: an empty path with a live descriptor; the call returns a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags) };
    let tree = owned(raw).map_err(|err| named("open_tree", source, &err))?;
    restrict(&tree, forbid, AT_RECURSIVE).map_err(|err| named("mount_setattr", source, &err))?;
    Ok(tree)
}

/// Puts a detached mount in its place.
pub(super) fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let to = c_path(target)?;
    let flags = MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both paths are live C strings, the first an empty one, so that the descriptor itself is meant.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    };
    check(moved).map_err(|err| named("move_mount to", target, &err))
}

pub(super) fn bind(source: &Path, target: &Path, forbid: Forbid) -> io::Result<()> {
    attach(&detached(source, forbid)?, target)
}

/// No writing below `target` from now on, through this mount; those below it keep what they allow, such as the devices.
pub(super) fn seal(target: &Path) -> io::Result<()> {
    let path = nix::fcntl::open(target, nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty())?;
    restrict(&path, Forbid::WRITING, 0).map_err(|err| named("mount_setattr", target, &err))
}

/// Makes `root`, a mount point, the root directory, and leaves nothing of the old one reachable.
pub(super) fn change_root(root: &Path) -> io::Result<()> {
    nix::unistd::chdir(root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and is detached from there.
    if nix::unistd::pivot_root(".", ".").is_ok() {
        umount2(".", MntFlags::MNT_DETACH).map_err(at("detach", Path::new("the old root")))?;
    } else {
        // Container runtimes' seccomp profiles refuse pivot_root even with CAP_SYS_ADMIN (isolation.md 0). The old root is then
        // hidden below the new one, and chroot keeps everybody without CAP_SYS_CHROOT above it.
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(at("move", root))?;
        nix::unistd::chroot(".")?;
    }
    Ok(nix::unistd::chdir("/")?)
}

fn restrict(mount: &impl AsRawFd, forbid: Forbid, reach: libc::c_uint) -> io::Result<()> {
    let attributes = MountAttributes { set: forbid.attributes(), clear: 0, propagation: 0, user_namespace: 0 };
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | reach;
    // SAFETY: an empty path with a live descriptor, and a structure of the size that is told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn owned(raw: libc::c_long) -> io::Result<OwnedFd> {
    check(raw)?;
    // SAFETY: the call that returned it made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).map_err(io::Error::other)?) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn at<'a>(action: &'a str, path: &'a Path) -> impl FnOnce(nix::Error) -> io::Error + use<'a> {
    move |err| named(action, path, &io::Error::from(err))
}

fn named(action: &str, path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{action} {}: {err}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_became_a_link_after_its_check_is_not_shown() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped, because mounting takes root");
            return;
        }
        let directory = tempfile::tempdir().expect("temp dir");
        let root = directory.path().canonicalize().expect("a path");
        let (tree, link) = (root.join("app/tree"), root.join("app/link"));
        std::fs::create_dir_all(&tree).expect("make");
        std::os::unix::fs::symlink("/etc", &link).expect("link");
        std::os::unix::fs::symlink(root.join("app"), root.join("way")).expect("link");
        assert!(detached_exactly(&tree, Forbid::WRITING).is_ok());
        for path in [link, root.join("way/tree")] {
            let refused = detached_exactly(&path, Forbid::WRITING).expect_err("a link");
            assert!(refused.to_string().contains("Too many levels of symbolic links"), "{refused}");
        }
    }
}

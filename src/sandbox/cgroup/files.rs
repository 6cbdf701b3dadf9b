//! Reads and writes the files of a cgroup, and kills what is in one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Error;

pub(super) const PROCS: &str = "cgroup.procs";
/// Descriptors that one round of [`kill_members`] holds.
const PIDFDS_MAX: usize = 64;

fn error(action: &str, path: &Path, err: &io::Error) -> Error {
    Error::new(action, path, err.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// In one write(2), as these files want it. Never creates: that would turn a missing file's ENOENT into EACCES.
pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|err| error(&format!("write {value} to"), path, &err))
}

/// For what older kernels or other configurations do not have.
pub(super) fn write_if_present(path: &Path, value: &str) -> Result<(), Error> {
    match write(path, value) {
        Err(err) if err.errno == Errno::ENOENT => Ok(()),
        written => written,
    }
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|err| error("read", path, &err))
}

pub(super) fn read_number(path: &Path) -> Result<Option<u64>, Error> {
    match read(path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(err) if err.errno == Errno::ENOENT => Ok(None),
        Err(err) => Err(err),
    }
}

/// The number after `key` in a file of lines `key number`.
pub(super) fn read_keyed(path: &Path, key: &str) -> Result<Option<u64>, Error> {
    let text = read(path)?;
    Ok(text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()))
}

pub(super) fn open_to_write(path: &Path) -> Result<OwnedFd, Error> {
    let file = OpenOptions::new().write(true).open(path).map_err(|err| error("open", path, &err))?;
    Ok(file.into())
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let file = fs::File::open(path).map_err(|err| error("open", path, &err))?;
    Ok(file.into())
}

pub(super) fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir(path).map_err(|err| error("mkdir", path, &err))
}

/// Gone already is what we want.
pub(super) fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(error("rmdir", path, &err)),
        _ => Ok(()),
    }
}

/// Names of the directories in it, that is of its child groups. None if it cannot be read: for clearing away only.
pub(super) fn directories(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The processes in these groups, each of which may miss one that is on its way between them.
pub(super) fn members(groups: &[PathBuf]) -> Result<Vec<i32>, Error> {
    let mut pids: Vec<i32> = Vec::new();
    for group in groups {
        match read(&group.join(PROCS)) {
            // 0 is a process that our pid namespace does not show. To kill(2) it would be ourselves.
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0)),
            Err(err) if matches!(err.errno, Errno::ENOENT | Errno::ENODEV) => {} // Removed meanwhile.
            Err(err) => return Err(err),
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// SIGKILLs every process in these groups, once.
///
/// A fork storm uses pids up quickly, so between the list and the signal a number may have become a stranger's. Hence: list, hold each
/// by a pidfd, list again, and signal only what is still listed – what the pidfd holds then is a member, or dead.
pub(super) fn kill_members(groups: &[PathBuf]) -> Result<(), Error> {
    for pids in members(groups)?.chunks(PIDFDS_MAX) {
        let mut held = Vec::with_capacity(pids.len());
        for pid in pids {
            match open_pidfd(*pid) {
                Ok(pidfd) => held.push((*pid, pidfd)),
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(Error::new("pidfd_open of a process in", &groups[0], errno)),
            }
        }
        let still = members(groups)?;
        for (_, pidfd) in held.iter().filter(|(pid, _)| still.binary_search(pid).is_ok()) {
            match send_sigkill(pidfd) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(Error::new("kill a process in", &groups[0], errno)),
            }
        }
    }
    Ok(())
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers; close-on-exec is implied (pidfd_open(2)).
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn send_sigkill(pidfd: &OwnedFd) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and a null siginfo stands for what kill(2) sends.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, no_info, 0) })
        .map(drop)
}

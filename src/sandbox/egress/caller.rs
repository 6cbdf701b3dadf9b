//! Looking into a stopped caller: its memory and its descriptors.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// `sizeof(struct sockaddr_storage)`: `move_addr_to_kernel` refuses more.
const ADDRESS_BYTES_MAX: usize = 128;

/// A thread whose call waits for us. What it shares with other threads, memory and descriptors, may change under our eyes: take
/// everything once, check [`super::notify::Listener::is_waiting`], then use the copies.
pub(super) struct Caller {
    thread: Pid,
    pidfd: OwnedFd,
}

impl Caller {
    pub(super) fn open(thread: i32) -> Result<Self, Errno> {
        // By the thread (Linux 6.9), or by its process where the kernel knows only those. The same descriptors either way, unless
        // a program unshares them between its threads; then it may confuse itself, but each answer still goes by what we looked at.
        let pidfd = pidfd_open(thread, libc::PIDFD_THREAD).or_else(|err| match err {
            Errno::EINVAL => pidfd_open(process_of(thread)?, 0),
            err => Err(err),
        })?;
        Ok(Self { thread: Pid::from_raw(thread), pidfd })
    }

    /// The file behind one of its descriptors. It stays that file, whatever the caller does to the number.
    pub(super) fn descriptor(&self, number: RawFd) -> Result<OwnedFd, Errno> {
        // SAFETY: plain integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), number, 0) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) })
    }

    /// A copy of the address that a call points at.
    pub(super) fn address(&self, pointer: u64, length: u64) -> Result<Vec<u8>, Errno> {
        // The kernel takes an int: what stands above its 32 bits is ignored there too.
        let length = usize::try_from(length as u32 as i32).map_err(|_| Errno::EINVAL)?;
        if length > ADDRESS_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let mut bytes = vec![0; length];
        if length == 0 {
            return Ok(bytes);
        }
        let base = usize::try_from(pointer).map_err(|_| Errno::EFAULT)?;
        let read =
            process_vm_readv(self.thread, &mut [IoSliceMut::new(&mut bytes)], &[RemoteIoVec { base, len: length }])?;
        if read == length { Ok(bytes) } else { Err(Errno::EFAULT) }
    }
}

fn pidfd_open(pid: i32, flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) })
}

fn process_of(thread: i32) -> Result<i32, Errno> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).map_err(|_| Errno::ESRCH)?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|pid| pid.trim().parse().ok()).ok_or(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_memory_and_descriptors_can_be_read() {
        let (ours, _peer) = std::os::unix::net::UnixStream::pair().expect("pair");
        let raw = ours.as_raw_fd();
        let bytes = [7u8; 16];
        let pointer = bytes.as_ptr() as u64;
        let thread = std::thread::spawn(move || {
            let caller = Caller::open(nix::unistd::gettid().as_raw()).expect("open");
            assert_eq!(caller.address(pointer, 16).expect("read"), [7u8; 16]);
            assert_eq!(caller.address(8, 16), Err(Errno::EFAULT));
            assert_eq!(caller.address(pointer, 129), Err(Errno::EINVAL));
            assert_eq!(caller.address(pointer, u64::from(u32::MAX)), Err(Errno::EINVAL));
            assert_eq!(caller.address(pointer, 0).expect("empty"), Vec::<u8>::new());
            assert_eq!(caller.descriptor(100_000).err(), Some(Errno::EBADF));
            caller.descriptor(raw).expect("descriptor");
            process_of(nix::unistd::gettid().as_raw()).expect("process")
        });
        assert_eq!(thread.join().expect("thread"), nix::unistd::getpid().as_raw());
    }
}

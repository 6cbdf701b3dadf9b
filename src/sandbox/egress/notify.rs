//! The kernel's side of a seccomp listener (linux/seccomp.h, kernel/seccomp.c): receive a stopped call, answer it, put a descriptor
//! into the caller's table. No decisions here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// A system call that waits for us.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notification {
    /// Names the waiting call, never reused: an answer to one that is gone is ENOENT, not somebody else's answer.
    pub id: u64,
    /// The *thread*, as our pid namespace knows it (`task_pid_vnr` at the time we receive); 0 if it does not.
    pub thread: i32,
    pub call: i64,
    pub arguments: [u64; 6],
}

pub(super) struct Listener(OwnedFd);

impl Listener {
    pub(super) fn new(listener: OwnedFd) -> Self {
        // Wakes the other side on this very CPU: each answer is a hand-over (Linux 6.6; without it, only slower).
        const SYNC_WAKE_UP: u64 = 1;
        // SAFETY: this ioctl takes its flags by value.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        Self(listener)
    }

    /// The next waiting call. ENOENT: its caller was killed between poll and now.
    pub(super) fn receive(&self) -> Result<Notification, Errno> {
        // SAFETY: plain data, and the kernel demands zeroes.
        let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: `raw` is what this request writes; its size was compared with the kernel's at start.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut raw) })?;
        let native = raw.data.arch == NATIVE_ARCH;
        Ok(Notification {
            id: raw.id,
            thread: raw.pid.cast_signed(),
            // Numbers of another architecture mean other calls; none has this one.
            call: if native { i64::from(raw.data.nr) } else { -1 },
            arguments: raw.data.args,
        })
    }

    /// Whether the call still waits. Whatever was read by thread id before this says yes, was read from that caller: the thread
    /// cannot have ended, so its id cannot have been reused.
    pub(super) fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the request reads one u64.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
    }

    /// Makes the call return. An error means that nobody waits any more, which needs nothing from us.
    pub(super) fn answer(&self, id: u64, result: Result<(), Errno>) {
        // Never SECCOMP_USER_NOTIF_FLAG_CONTINUE: see the module's documentation.
        let error = result.err().map_or(0, |errno| -(errno as i32));
        let mut response = libc::seccomp_notif_resp { id, val: 0, error, flags: 0 };
        // SAFETY: the request reads one response.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    }

    /// Puts `descriptor` in place of the caller's `number`. The caller's kernel side does it: this waits until that has run, which
    /// a CPU quota can delay. Its RLIMIT_NOFILE holds (EBADF). Always close-on-exec, as Node's sockets are.
    pub(super) fn replace(&self, id: u64, descriptor: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
        let request = libc::seccomp_notif_addfd {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: descriptor.as_raw_fd().cast_unsigned(),
            newfd: number.cast_unsigned(),
            newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
        };
        loop {
            // SAFETY: the request reads one `seccomp_notif_addfd`.
            let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request) };
            match Errno::result(done) {
                Err(Errno::EINTR) => {}
                done => return done.map(drop),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Compares the kernel's structures with the ones we were compiled with, so that it can never write past ours.
pub(super) fn check_kernel() -> io::Result<()> {
    // SAFETY: plain data.
    let mut sizes: libc::seccomp_notif_sizes = unsafe { std::mem::zeroed() };
    // SAFETY: the operation writes one `seccomp_notif_sizes`.
    Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) })?;
    let same = usize::from(sizes.seccomp_notif) == size_of::<libc::seccomp_notif>()
        && usize::from(sizes.seccomp_notif_resp) == size_of::<libc::seccomp_notif_resp>();
    if same { Ok(()) } else { Err(io::Error::other("this kernel's seccomp notifications have another layout")) }
}

/// AUDIT_ARCH_* of linux/audit.h: the ELF machine, 64 bit, little endian.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE_ARCH: u32 = 62 | 0xc000_0000;
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE_ARCH: u32 = 183 | 0xc000_0000;

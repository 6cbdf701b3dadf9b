//! What a child must not have: capabilities, groups, the service's user, limits above its own.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use super::settings::Identity;
use super::spec::Limits;

/// capabilities(7): the version with 64 bits, in two halves.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// As capget(2) and capset(2) take it.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Whether this process has the capability (capabilities(7) numbers).
pub(super) fn has_capability(capability: u32) -> bool {
    let mut header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: both structures are as capget(2) wants them for this version.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    result == 0 && data[(capability / 32) as usize].effective & (1 << (capability % 32)) != 0
}

pub(super) const CAP_SETGID: u32 = 6;
pub(super) const CAP_SETUID: u32 = 7;
pub(super) const CAP_SYS_ADMIN: u32 = 21;

/// Takes every capability away, for good, and becomes `identity` where there is one to become.
pub(super) fn drop_all(identity: Option<&Identity>) -> io::Result<()> {
    // 1. The bounding set first: that takes CAP_SETPCAP, which is about to go. Without it nothing is to be gained by exec either,
    //    as no_new_privs follows.
    for capability in 0..64 {
        // SAFETY: plain numbers. It fails past the last capability, and without CAP_SETPCAP.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
    // 2. Groups before the user: setgroups(2) takes CAP_SETGID. A change from 0 to another user clears the capabilities.
    if let Some(identity) = identity {
        let (uid, gid) = (Uid::from_raw(identity.user), Gid::from_raw(identity.group));
        let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    // 3. In a user namespace of our own the user stays the same, and so would the capabilities.
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [Data::default(); 2];
    // SAFETY: both structures are as capset(2) wants them for this version.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// For the service, once its broker is ready, and while it has one thread: capabilities and no_new_privs are a thread's own.
///
/// Whom nobody told to become somebody else stays root with root's powers: the data directory is full of other users' files then.
pub(super) fn lock_down(identity: Option<&Identity>) -> io::Result<()> {
    if identity.is_some() || !geteuid().is_root() {
        drop_all(identity)?;
    }
    prctl::set_no_new_privs()?;
    // Nobody of the same user looks into its memory (npm runs as the service's user where that is not root). After the change of
    // user, which sets it as fs.suid_dumpable says.
    Ok(prctl::set_dumpable(false)?)
}

/// Hard and soft alike. Only ever lowers: raising takes CAP_SYS_RESOURCE, which even root may lack.
pub(super) fn restrict(limits: &Limits, user_of_its_own: bool) -> io::Result<()> {
    let set = |resource, value: u64| -> io::Result<()> {
        let (_, hard) = getrlimit(resource)?;
        Ok(setrlimit(resource, value.min(hard), value.min(hard))?)
    };
    set(Resource::RLIMIT_CORE, 0)?;
    set(Resource::RLIMIT_MEMLOCK, 64 << 10)?;
    set(Resource::RLIMIT_MSGQUEUE, 0)?;
    set(Resource::RLIMIT_NOFILE, limits.open_files)?;
    set(Resource::RLIMIT_FSIZE, limits.file_bytes)?;
    set(Resource::RLIMIT_DATA, limits.data_bytes)?;
    if let Some(cpu) = limits.cpu_time {
        set(Resource::RLIMIT_CPU, cpu.as_secs().max(1))?;
    }
    // Counted per user: with a user that others have too, their processes would use it up (isolation.md 1.4).
    if user_of_its_own {
        set(Resource::RLIMIT_NPROC, u64::from(limits.pids))?;
    }
    Ok(())
}

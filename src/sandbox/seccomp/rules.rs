//! What each filter says. Pure: policy in, program out.
//!
//! A filter sees the registers of a call and nothing behind a pointer, so whatever must be checked has to stand in a register; a call
//! that hides its arguments in memory (`clone3`, `sendmsg` with an address) is refused or made harmless at another place. Arguments
//! that the kernel takes as `int` are compared by their lower 32 bits, as the kernel itself drops the rest.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{NODE_DESCRIPTOR, Policy};
use crate::sandbox::syscalls::{ALLOWED, ALLOWED_WITH_SUBPROCESSES, ATTRIBUTES, FORKS, KILLED, SIGNALS};

/// `clone` makes a view of its own of something. Needs privileges, except for `CLONE_NEWUSER`, which gives them all.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

/// The type of a socket, without the flags that may be or-ed to it.
const SOCKET_TYPE: u32 = 0xf;

/// TCP_ULP of linux/tcp.h, which puts TLS or SMC under a socket.
const TCP_ULP: i32 = 31;

/// TCGETS2 of asm-generic/ioctls.h: what newer C libraries ask instead of TCGETS to find out whether a descriptor is a terminal.
const TCGETS2: u32 = 0x802c_542a;

/// Of this process and of what it wants to be: nothing that another layer relies on. Not PR_SET_PDEATHSIG, which would cut the tie to
/// the broker; not PR_SET_DUMPABLE, PR_SET_SECCOMP or PR_SET_MM.
const PRCTL: [i32; 5] =
    [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_CAPBSET_READ, libc::PR_GET_DUMPABLE];

/// A list of what is allowed, as there is no end to what drivers understand. No TIOCSTI or TIOCLINUX (type into the terminal that
/// started us), no FIOSETOWN or SIOCSPGRP (see [`signals_by_descriptor`]).
const IOCTL: [u32; 13] = [
    libc::FIONBIO as u32,
    libc::FIOCLEX as u32,
    libc::FIONCLEX as u32,
    libc::FIONREAD as u32,
    libc::TCGETS as u32,
    TCGETS2,
    libc::TCSETS as u32,
    libc::TCSETSW as u32,
    libc::TCSETSF as u32,
    libc::TIOCGWINSZ as u32,
    libc::TIOCGPGRP as u32,
    libc::SIOCGIFNAME as u32,
    libc::SIOCGIFINDEX as u32,
];

/// The calls that may go through; every other answers ENOSYS.
pub(super) fn allowed(policy: Policy) -> Result<BpfProgram, BackendError> {
    let mut table = Table::default();
    for number in ALLOWED.into_iter().flatten() {
        table.always(*number);
    }
    processes(&mut table, policy.subprocesses)?;
    sockets(&mut table)?;
    memory(&mut table)?;
    other_processes(&mut table)?;
    signals_by_descriptor(&mut table)?;
    for option in PRCTL {
        table.when(libc::SYS_prctl, vec![equal(0, option as u32)?])?;
    }
    for request in IOCTL {
        table.when(libc::SYS_ioctl, vec![equal(1, request)?])?;
    }
    table.compile(SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

/// The calls that end the process.
pub(super) fn killed() -> Result<BpfProgram, BackendError> {
    let mut table = Table::default();
    for number in KILLED.into_iter().flatten() {
        table.always(*number);
    }
    table.compile(SeccompAction::KillProcess, SeccompAction::Allow)
}

/// New processes answer EACCES: Node then emits `'error'` on the child, as for a program that is not there. At ENOSYS or EPERM `spawn`
/// throws instead, which code that was written for a usual machine does not expect.
pub(super) fn no_subprocesses() -> Result<BpfProgram, BackendError> {
    let mut table = Table::default();
    for number in FORKS {
        table.always(*number);
    }
    table.when(libc::SYS_clone, vec![bits(0, libc::CLONE_THREAD as u32, 0)?])?;
    table.compile(SeccompAction::Errno(libc::EACCES as u32), SeccompAction::Allow)
}

/// Owners, modes and times of files stay as they are, though the calls say otherwise: Landlock lets every process change them, wherever
/// the files are, and those of the service belong to the user of this one. An error would be more honest, but what copies files sets
/// these too (`fs.copyFile`, `tar`, npm) and would fail, although the files of one's own do not need it: nobody else gets to them.
pub(super) fn no_attributes() -> Result<BpfProgram, BackendError> {
    let mut table = Table::default();
    for number in ATTRIBUTES.into_iter().flatten() {
        table.always(*number);
    }
    table.compile(SeccompAction::Errno(0), SeccompAction::Allow)
}

/// No sockets that could connect by a path, which Landlock covers only since ABI 9: the machine's services listen on such. EACCES, as the
/// egress supervisor answers elsewhere.
pub(super) fn no_paths_for_sockets() -> Result<BpfProgram, BackendError> {
    let mut table = Table::default();
    table.when(libc::SYS_socket, vec![equal(0, libc::AF_UNIX as u32)?])?;
    table.compile(SeccompAction::Errno(libc::EACCES as u32), SeccompAction::Allow)
}

/// Signals go to the own process only: others answer EPERM.
///
/// `tgkill` names the process first and the thread second, and the kernel checks that they belong together: so `raise`, `abort` and
/// `pthread_kill` of glibc keep working on every thread. `tkill` has the thread alone, of whatever process: allowed only for the main
/// thread, whose number is the process's. musl's `pthread_kill` so reaches no other thread; its `abort` then crashes, as it should.
pub(super) fn signals_to(pid: u32) -> Result<BpfProgram, BackendError> {
    let mut table = Table::default();
    for number in SIGNALS {
        table.when(*number, vec![not_equal(0, pid)?])?;
    }
    table.compile(SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// Without subprocesses forks are still let through here: [`no_subprocesses`] answers them, and of two errors the kernel takes that
/// of the filter that was installed last, which is this one.
fn processes(table: &mut Table, subprocesses: bool) -> Result<(), BackendError> {
    for number in FORKS {
        table.always(*number);
    }
    table.when(libc::SYS_clone, vec![bits(0, NEW_NAMESPACES, 0)?])?;
    if subprocesses {
        for number in ALLOWED_WITH_SUBPROCESSES {
            table.always(*number);
        }
        return Ok(());
    }
    // The exec that starts Node. Its descriptor is closed by that exec and is above RLIMIT_NOFILE, so it cannot be made again. What is
    // left: the kernel ignores the descriptor when the path is absolute, and a filter cannot read the path. So a tenant that runs native
    // code can become another program (never start one); which, is up to Landlock's execute rules.
    table.when(libc::SYS_execveat, vec![equal(0, NODE_DESCRIPTOR as u32)?, equal(4, libc::AT_EMPTY_PATH as u32)?])
}

/// Streams and datagrams of the internet and of this machine, and what `os.networkInterfaces` asks the kernel through.
///
/// Protocols are named, since Landlock's port rules and every other thought about TCP do not hold for MPTCP, SMC or SCTP. TCP Fast Open
/// is a connect by another name, which passes by Landlock on some kernels.
fn sockets(table: &mut Table) -> Result<(), BackendError> {
    let kinds = [
        (libc::AF_UNIX, libc::SOCK_STREAM, 0),
        (libc::AF_UNIX, libc::SOCK_DGRAM, 0),
        (libc::AF_INET, libc::SOCK_STREAM, 0),
        (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        (libc::AF_INET6, libc::SOCK_STREAM, 0),
        (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        (libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_ROUTE),
        (libc::AF_INET, libc::SOCK_DGRAM, 0),
        (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        (libc::AF_INET6, libc::SOCK_DGRAM, 0),
        (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    ];
    for (family, kind, protocol) in kinds {
        let conditions = vec![equal(0, family as u32)?, bits(1, SOCKET_TYPE, kind as u32)?, equal(2, protocol as u32)?];
        table.when(libc::SYS_socket, conditions)?;
    }
    // A pair of datagram sockets could still send to any other that has a name.
    table.when(
        libc::SYS_socketpair,
        vec![equal(0, libc::AF_UNIX as u32)?, bits(1, SOCKET_TYPE, libc::SOCK_STREAM as u32)?],
    )?;
    for (number, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        table.when(number, vec![bits(flags, libc::MSG_FASTOPEN as u32, 0)?])?;
    }
    // Everything but TLS or SMC in the kernel, which nothing here uses and which are large.
    table.when(libc::SYS_setsockopt, vec![not_equal(1, libc::SOL_TCP as u32)?])?;
    table.when(libc::SYS_setsockopt, vec![not_equal(2, TCP_ULP as u32)?])
}

/// No shared memory without a file: RLIMIT_DATA, the limit where there is no cgroup, counts private memory only.
fn memory(table: &mut Table) -> Result<(), BackendError> {
    table.when(libc::SYS_mmap, vec![bits(3, libc::MAP_SHARED as u32, 0)?])?;
    table.when(libc::SYS_mmap, vec![bits(3, libc::MAP_ANONYMOUS as u32, 0)?])
}

/// Calls that read or set something of oneself, and of any other process of the same uid if given its number: a tenant could lower the
/// service's limits until it dies, where the two share a uid.
fn other_processes(table: &mut Table) -> Result<(), BackendError> {
    table.when(libc::SYS_prlimit64, vec![equal(0, 0)?])?;
    table.when(libc::SYS_setpriority, vec![equal(0, libc::PRIO_PROCESS)?, equal(1, 0)?])
}

/// `fcntl`, but for what lets a descriptor send any signal to any process of the same uid: that passes by [`signals_to`].
fn signals_by_descriptor(table: &mut Table) -> Result<(), BackendError> {
    /// Of asm-generic/fcntl.h; libc has neither.
    const F_SETSIG: u32 = 10;
    const F_SETOWN_EX: u32 = 15;
    table.when(
        libc::SYS_fcntl,
        vec![not_equal(1, libc::F_SETOWN as u32)?, not_equal(1, F_SETSIG)?, not_equal(1, F_SETOWN_EX)?],
    )
}

/// System calls and, for each, the conditions of which one must hold; none at all always holds.
#[derive(Default)]
struct Table(BTreeMap<i64, Vec<SeccompRule>>);

impl Table {
    fn always(&mut self, number: i64) {
        let former = self.0.insert(number, Vec::new());
        debug_assert!(
            former.is_none_or(|rules| rules.is_empty()),
            "{number} is allowed both always and by its arguments"
        );
    }

    /// Adds an alternative, all of whose conditions must hold.
    fn when(&mut self, number: i64, conditions: Vec<SeccompCondition>) -> Result<(), BackendError> {
        let former = self.0.get(&number);
        debug_assert!(
            former.is_none_or(|rules| !rules.is_empty()),
            "{number} is allowed both always and by its arguments"
        );
        self.0.entry(number).or_default().push(SeccompRule::new(conditions)?);
        Ok(())
    }

    /// The program begins with a check of the architecture, which kills. x32 calls pass as x86_64 with numbers of their own, so they
    /// match nothing and meet `otherwise`: fine as long as one filter refuses what it does not know.
    fn compile(self, on_match: SeccompAction, otherwise: SeccompAction) -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(self.0, otherwise, on_match, architecture()?)?.try_into()
    }
}

fn architecture() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

fn equal(argument: u8, value: u32) -> Result<SeccompCondition, BackendError> {
    condition(argument, Eq, value)
}

fn not_equal(argument: u8, value: u32) -> Result<SeccompCondition, BackendError> {
    condition(argument, Ne, value)
}

/// The argument's bits under `mask` are those of `value`.
fn bits(argument: u8, mask: u32, value: u32) -> Result<SeccompCondition, BackendError> {
    condition(argument, MaskedEq(u64::from(mask)), value)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, u64::from(value))
}

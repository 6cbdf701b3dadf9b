//! What a child does to itself between clone and exec. The steps are numbered; where their order matters, the step says why.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode as Permissions;
use nix::unistd::{ForkResult, Pid, fork, setsid};

use super::egress;
use super::landlock::Rules;
use super::plan::{Become, Layout, Plan, Stdio};
use super::privileges;
use super::root::NODE;
use super::spec::Network;
use super::status::Speaker;
use super::users::User;

/// Where the shim looks for the protocol.
const PROTOCOL_READ: RawFd = 3;
const PROTOCOL_WRITE: RawFd = 4;
/// Ours until exec: above what a child gets.
pub(super) const DESCRIPTOR_MIN: RawFd = 10;
/// Node's own file. No descriptor of a child's can have this number, as RLIMIT_NOFILE is lower: what seccomp lets it execute is
/// this file and, once that is closed by exec, nothing (isolation.md 0).
pub(super) const PROGRAM: RawFd = 1000;
/// Where npm finds its registry, in a network namespace of its own.
pub const REGISTRY_PORT: u16 = 4873;
/// Of a child that could not become Node; the reason travels over the status socket.
const EXIT_NOT_STARTED: i32 = 111;

/// Becomes Node, or says why not and ends.
pub(super) fn become_node(mut plan: Plan<'_>, status: Speaker) -> ! {
    let Err(problem) = confine(&mut plan, &status);
    status.failed(&problem);
    // SAFETY: ends this copy without running what the original still needs: destructors, buffers.
    unsafe { libc::_exit(EXIT_NOT_STARTED) }
}

fn confine(plan: &mut Plan<'_>, status: &Speaker) -> Result<Infallible, String> {
    plan.watch.lap("clone into namespaces");
    let resolver = take_place(plan, status)?;
    give_up_powers(plan, status)?;
    if let Become::Probe(attempt) = plan.become_ {
        attempt.before_seccomp();
    }
    // 14. System calls, last: hardly anything of the above is allowed afterwards.
    if let Some(filters) = plan.filters
        && let Some(connects) = filters.install().map_err(at("filter its system calls"))?
    {
        status.connects(&connects, &resolver).map_err(at("hand over its connections"))?;
    }
    plan.watch.lap("seccomp");
    status.costs(plan.watch.costs()).map_err(at("tell what it took"))?;
    // 15. Become Node.
    match plan.become_ {
        Become::Node => execute(plan).map_err(at("execute Node")),
        Become::Probe(attempt) => attempt.run(),
    }
}

/// Where it lives: what still takes privileges. Returns the sockets where it will look names up.
fn take_place(plan: &mut Plan<'_>, status: &Speaker) -> Result<Vec<OwnedFd>, String> {
    let spec = plan.spec;
    // 1. Into its cgroup, by descriptors that the broker opened: everything from here on is counted.
    if let Some(entry) = &plan.entry {
        entry.enter_self().map_err(at("enter the cgroup"))?;
        plan.watch.lap("enter its cgroup");
    }
    // 2. The kernel's choice when memory runs out: a child, never the service. Needs the host's /proc. Raising takes no privilege, but
    //    its own files there, which are root's while nobody may look into it, as into the broker.
    prctl::set_dumpable(true).map_err(at("be seen"))?;
    std::fs::write("/proc/self/oom_score_adj", "1000").map_err(at("write oom_score_adj"))?;
    // 3. A session of its own: no terminal, and no signal from the service's process group.
    setsid().map_err(at("begin a session"))?;
    nix::sys::stat::umask(Permissions::S_IWGRP | Permissions::S_IWOTH);
    // 4. Its descriptors, before anything of the tenant's exists.
    arrange(&plan.stdio).map_err(at("arrange descriptors"))?;
    plan.watch.lap("descriptors");
    // 5. A root of its own, and what is in it.
    let mut resolver = Vec::new();
    if let Layout::Root(root) = plan.layout {
        if spec.network == Network::Nothing {
            // By the host's /proc, and while we may: others' namespaces take CAP_SYS_PTRACE, which the broker may lack.
            let namespace = File::open("/proc/self/ns/mnt").map_err(at("open its mount namespace"))?;
            status.mounts(&namespace.into()).map_err(at("hand over its mount namespace"))?;
        }
        let owner = plan.user.as_ref().map(User::identity);
        root.enter(spec.profile, &spec.mounts, spec.limits.tmp_bytes, owner.as_ref()).map_err(at("make its root"))?;
        plan.watch.lap("root");
        resolver = set_up_network(&spec.network, status).map_err(at("set up its network"))?;
        nix::unistd::sethostname("sandbox").map_err(at("set its host name"))?;
        plan.watch.lap("network");
    }
    std::env::set_current_dir(&spec.directory).map_err(at("enter its directory"))?;
    // 6. Node's file, by the path in the new root; then every other descriptor closes at exec.
    open_program(plan).map_err(at("open Node"))?;
    close_at_exec().map_err(at("close descriptors"))?;
    Ok(resolver)
}

/// What it must not be able to do any more, most general first.
fn give_up_powers(plan: &mut Plan<'_>, status: &Speaker) -> Result<(), String> {
    // 7. The files that Landlock is to know: in the new root, and while we may still walk to all of them.
    let landlock = plan.landlock.as_ref().map(Rules::prepare).transpose().map_err(at("prepare Landlock"))?;
    plan.watch.lap("Landlock's rules");
    // 8. Limits, after the last step that opens a descriptor with a high number.
    let user_of_its_own = plan.user.as_ref().is_some_and(User::is_own);
    privileges::restrict(&plan.spec.limits, user_of_its_own).map_err(at("set its limits"))?;
    // 9. No privilege any more.
    let identity = plan.user.as_ref().map(User::identity);
    privileges::drop_all(identity.as_ref()).map_err(at("drop privileges"))?;
    plan.watch.lap("limits and privileges");
    // 10. In its process namespace, process 1 is special: no signal without a handler reaches it, `abort` included, and it must reap
    //     those that lose their parent. Node is neither used to the one nor does it do the other.
    if plan.layout.is_root() {
        leave_init_behind(plan).map_err(at("start its init"))?;
        plan.watch.lap("init");
    }
    // 11. Die with the parent. After the change of user, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("bind its life to the broker's"))?;
    if !status.is_heard() {
        return Err("the broker is gone".to_owned());
    }
    // 12. Nothing that is executed from here gains privileges; the next two steps ask for it.
    prctl::set_no_new_privs().map_err(at("set no_new_privs"))?;
    // 13. Landlock, before seccomp forbids its system calls.
    if let Some(landlock) = landlock {
        landlock.restrict().map_err(at("restrict itself by Landlock"))?;
        plan.watch.lap("Landlock");
    }
    Ok(())
}

/// 0 is /dev/null, 1 and 2 are log pipes, 3 and 4 the protocol where there is one. Everything else stands at or above
/// [`DESCRIPTOR_MIN`], so nothing is hit on the way.
fn arrange(stdio: &Stdio) -> io::Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Permissions::empty())?;
    move_to(&null, 0)?;
    move_to(&stdio.stdout, 1)?;
    move_to(&stdio.stderr, 2)?;
    if let Some((read, write)) = &stdio.protocol {
        move_to(read, PROTOCOL_READ)?;
        move_to(write, PROTOCOL_WRITE)?;
    }
    Ok(())
}

/// A copy under this number that stays open at exec.
fn move_to(descriptor: &OwnedFd, number: RawFd) -> io::Result<()> {
    // Away from the low numbers first: dup2 onto itself would leave close-on-exec set.
    let away = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_MIN))?;
    // SAFETY: plain dup2 of a descriptor of ours onto a number that nothing of ours uses (see `arrange`).
    if unsafe { libc::dup2(away, number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A network namespace starts with its loopback interface down. npm's gets a socket on which the service answers, the others' get
/// those on which the egress supervisor does, both by port numbers that take a privilege or might be taken later.
fn set_up_network(network: &Network, status: &Speaker) -> io::Result<Vec<OwnedFd>> {
    raise_loopback()?;
    if let Network::Registry { port } = network {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
        status.listener(&OwnedFd::from(listener))?;
        return Ok(Vec::new());
    }
    Ok(egress::resolver::bind()?.into_fds().into())
}

/// netdevice(7): SIOCSIFFLAGS.
fn raise_loopback() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: a live socket, and the structure that this request takes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn open_program(plan: &Plan<'_>) -> io::Result<()> {
    let path = if plan.layout.is_root() { Path::new(NODE) } else { plan.node };
    let program = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Permissions::empty())?;
    // SAFETY: plain dup3 of a descriptor of ours; nothing of ours has this number.
    if unsafe { libc::dup3(program.as_raw_fd(), PROGRAM, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whatever was inherited or opened on the way, by mistake included.
fn close_at_exec() -> io::Result<()> {
    let first = PROTOCOL_WRITE + 1;
    // SAFETY: marks descriptors; none is closed under anybody's hands.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// This process stays as process 1 of its namespace, reaps, and ends with its child, whose end it tells; the child returns from here.
fn leave_init_behind(plan: &Plan<'_>) -> io::Result<()> {
    // SAFETY: one thread.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } => {
            // It is a copy of the broker, with the broker's memory: nobody of the same user may look into it.
            let _ = prctl::set_dumpable(false);
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            let _ = prctl::set_name(c"init");
            reap_until(child, plan.end.as_raw_fd())
        }
    }
}

fn reap_until(child: Pid, end: RawFd) -> ! {
    // Its descriptors would keep its child's pipes open, and the status socket.
    // SAFETY: nothing that has a descriptor is used from here on, but `end`.
    unsafe {
        if end > 0 {
            libc::syscall(libc::SYS_close_range, 0, end - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, end + 1, u32::MAX, 0);
    }
    loop {
        let mut status: libc::c_int = 0;
        // SAFETY: a pointer to a live local.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if pid == child.as_raw() {
            // SAFETY: an open descriptor and a live local; then ends this copy without running what the original still needs.
            unsafe {
                libc::write(end, (&raw const status).cast(), size_of::<libc::c_int>());
                libc::_exit(0)
            }
        }
    }
}

fn execute(plan: &Plan<'_>) -> io::Result<Infallible> {
    let text = |text: &[u8]| CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut argv = vec![text(b"node")?];
    for arg in &plan.spec.args {
        argv.push(text(arg.as_bytes())?);
    }
    let mut envp = Vec::new();
    for (name, value) in &plan.spec.environment {
        envp.push(text(format!("{name}={value}").as_bytes())?);
    }
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&argv), pointers(&envp));
    // SAFETY: both arrays end in null and point to C strings that live until the call, which only returns if it failed.
    unsafe {
        libc::syscall(libc::SYS_execveat, PROGRAM, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH);
    }
    Err(io::Error::last_os_error())
}

fn at<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> String {
    move |err| format!("{step}: {err}")
}

//! The supervisor's process: gives up what it does not need, then starts and stops a thread per worker as the broker says.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid, pipe2};

use super::control::{Descriptors, Request, receive};
use super::host::Host;
use super::policy::Policy;
use super::worker::Worker;

/// Calls nest a few levels; the largest thing on the stack is a datagram.
const STACK_BYTES: usize = 256 << 10;
/// Per worker: the listener, the resolver, its questions and connections.
const DESCRIPTORS_MAX: u64 = 65_536;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_LAST: libc::c_ulong = 63;

/// The supervisor's whole life: until the broker closes its socket, or dies.
///
/// # Errors
/// Only while it sets itself up, or when the socket fails. Either way every listener closes, and workers have no network.
pub(super) fn serve(socket: &OwnedFd, broker: Pid, resolv_conf: PathBuf) -> io::Result<()> {
    confine(socket, broker)?;
    let mut workers = Workers { host: Arc::new(Host::new(resolv_conf)?), running: HashMap::new() };
    while let Some((request, descriptors)) = receive(socket.as_fd())? {
        match request {
            // Not started: its listener closes right here, so it has no network instead of waiting for one.
            Request::Add { worker, policy } => drop(workers.add(worker, policy, descriptors)),
            Request::Remove { worker } => workers.remove(worker),
        }
    }
    Ok(())
}

struct Workers {
    host: Arc<Host>,
    running: HashMap<u64, (JoinHandle<()>, OwnedFd)>,
}

impl Workers {
    fn add(&mut self, id: u64, policy: Policy, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        // Those whose processes all ended need no `Remove`.
        self.running.retain(|_, (thread, _)| !thread.is_finished());
        let descriptors = Descriptors::from_received(descriptors).ok_or(io::ErrorKind::InvalidData)?;
        let (removed, keep) = pipe2(OFlag::O_CLOEXEC)?;
        let worker = Worker::new(policy, Arc::clone(&self.host), descriptors, removed)?;
        let name = format!("egress-{id}");
        let thread = thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || worker.run())?;
        self.running.insert(id, (thread, keep)); // One of the same id before it is removed thereby.
        Ok(())
    }

    /// Does not wait: the thread may be stuck for as long as the worker can keep it so.
    fn remove(&mut self, id: u64) {
        self.running.remove(&id);
    }
}

/// Keeps the right to look into workers (their memory and descriptors) and to connect sockets, and nothing else that can be dropped.
fn confine(socket: &OwnedFd, broker: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != broker {
        return Err(io::Error::other("the broker died before its egress supervisor was ready"));
    }
    prctl::set_name(c"chatfn-egress")?;
    close_all_but(socket)?;
    SigSet::all().thread_unblock()?; // The broker takes its signals by descriptor; ours do what they do by default.
    std::env::set_current_dir("/")?;
    for (resource, limit) in
        [(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX), (Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_MEMLOCK, 0)]
    {
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, limit.min(hard), limit.min(hard))?;
    }
    prctl::set_no_new_privs()?;
    drop_capabilities()?;
    prctl::set_dumpable(false)?;
    Ok(())
}

/// What the broker had open is none of its business: above all the ends of workers' pipes, which would never close. Only stderr stays.
fn close_all_but(socket: &OwnedFd) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for stdio in [0, 1] {
        // SAFETY: replaces our own stdin and stdout, which this process does not use.
        nix::errno::Errno::result(unsafe { libc::dup2(null.as_raw_fd(), stdio) })?;
    }
    drop(null);
    let keep = socket.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, keep.saturating_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: everything in this forked process that owned one of these descriptors is never used again.
            nix::errno::Errno::result(unsafe { libc::close_range(first, last, 0) })?;
        }
    }
    Ok(())
}

/// Keeps CAP_SYS_PTRACE where there is one: workers run under other uids. Without (a service that is not root), they are children
/// in user namespaces that our uid owns, and that suffices (`cap_capable`).
fn drop_capabilities() -> io::Result<()> {
    for capability in 0..=CAP_LAST {
        // SAFETY: plain integers. Fails for capabilities that the kernel does not know, or without CAP_SETPCAP: nothing to drop.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let mut sets = [CapSets::default(); 2];
    // SAFETY: version 3 reads the header and writes two sets.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    nix::errno::Errno::result(got)?;
    let kept = sets[0].permitted & (1 << CAP_SYS_PTRACE);
    let sets = [CapSets { effective: kept, permitted: kept, inheritable: 0 }, CapSets::default()];
    // SAFETY: version 3 reads the header and two sets.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    nix::errno::Errno::result(set)?;
    Ok(())
}

/// linux/capability.h, version 3.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapSets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

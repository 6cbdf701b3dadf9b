//! Control groups: how much memory, how many processes and how much CPU a worker may have, and how all of it is ended at once.
//!
//! Owns directories in the cgroup file systems, and nothing else: no process is started or reaped here. Works with cgroup v2 ([`v2`])
//! and, on machines that still have it, v1 ([`v1`]); [`mounts`] finds out where this process stands in either, [`owner`] names our
//! directories so that what a SIGKILLed service left behind is known for what it is, [`files`] reads, writes and kills.
//! Facts come from the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/*.rst` beside it, or were measured where it says so.
//!
//! One group's life: [`Cgroups::create`], then [`Group::entry`] as the child starts, [`Group::set_limits`] as a reserve worker
//! gets its app, [`Group::kill`] until its processes are gone, [`Group::usage`], and it is removed when dropped. For the single-threaded
//! broker: nothing here waits, except [`Cgroups::open`] and [`Cgroups::close`], which may take a while and say how long.

mod files;
mod mounts;
mod owner;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

use owner::Owner;

/// For what is left at the start or the end: processes die within milliseconds, unless one sits in a system call that no signal ends.
const CLEAR_MAX: Duration = Duration::from_secs(2);
const CLEAR_POLL: Duration = Duration::from_millis(1);

/// What a group may use. `None`: no limit of its own. Those of a missing layer are left out: see [`Layers`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Anonymous memory, tmpfs, page cache and kernel memory together; with swap counted (v1) or forbidden (v2).
    pub memory_bytes: Option<u64>,
    /// Threads count: Node has 11 once it has used its thread pool.
    pub pids: Option<u32>,
    /// 1000 is one CPU. Below 10 is 10: the kernel's smallest quota is 1 ms (of our 100).
    pub cpu_millis: Option<u32>,
}

/// What a group has used since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// `None`: no memory layer, or v2 on a kernel before 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// Above 0: the kernel killed for this group's memory limit. v2 then kills all of the group, v1 only one process. Not a number of
    /// processes: with `memory.oom.group` some kernels count the first victim twice (seen on 6.1).
    pub oom_kills: u64,
    /// `None` on v1 unless cpuacct is mounted together with cpu. Then `wait4` knows, for what was reaped.
    pub cpu_time: Option<Duration>,
}

/// What the start-up report says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layers {
    pub version: Version,
    pub memory: Layer,
    pub pids: Layer,
    pub cpu: Layer,
    /// How everything in a group is ended. Never missing, but without `cgroup.kill`, pids or freezer it may lose against a fork storm.
    pub kill: Layer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Version {
    V1,
    V2,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Layer {
    /// By which means.
    Active(String),
    /// Why.
    Missing(String),
}

impl Layer {
    pub(super) fn is_active(&self) -> bool {
        matches!(self, Self::Active(_))
    }
}

/// No limit at all can be had from cgroups here. Says why, in words for whoever runs the service.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unavailable(pub String);

/// One step on one file that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {errno}{}", path.display(), hint(*errno))]
pub(super) struct Error {
    action: String,
    path: PathBuf,
    errno: Errno,
}

impl Error {
    fn new(action: impl Into<String>, path: impl Into<PathBuf>, errno: Errno) -> Self {
        Self { action: action.into(), path: path.into(), errno }
    }

    #[cfg(test)]
    pub(super) fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<Error> for io::Error {
    fn from(err: Error) -> Self {
        Self::new(Self::from(err.errno).kind(), err)
    }
}

/// What the usual refusals mean for whoever runs the service.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => {
            " (the container's cgroup file system is read-only: it takes a privileged container, or containerd's cgroup_writable)"
        }
        Errno::EACCES | Errno::EPERM => {
            " (this user may not: run as root, or delegate the group, e.g. systemd's Delegate=yes)"
        }
        _ => "",
    }
}

/// How a child gets into its group. Either way before it runs a tenant's instruction, so that nothing of it is unlimited.
#[derive(Debug)]
pub(super) enum Entry {
    /// Born there: `CLONE_INTO_CGROUP` with this directory. v2 with clone3 only.
    IntoCgroup(OwnedFd),
    /// The child calls [`Entry::enter_self`], as its first step.
    ///
    /// Opened by the broker: the child may see no cgroup file system by then, and the kernel judges a move by who opened the file, not
    /// by who writes (since 5.16, "Use open-time credentials for process migraton perm checks").
    ///
    /// The first write after a quiet time was measured to take up to 22 ms, those right after it 0.01–0.04 ms: a move takes the
    /// kernel's lock on all forks and exits, which is tuned for those, so that the first to write waits for an RCU grace period (what
    /// v2's mount option favordynmods gives up). So on v1, workers should enter in reserve and not while a caller waits.
    Procs(Vec<OwnedFd>),
}

impl Entry {
    /// In the child, single-threaded: moves itself. Makes one system call per descriptor and allocates nothing.
    pub(super) fn enter_self(&self) -> io::Result<()> {
        let Self::Procs(procs) = self else { return Ok(()) };
        for descriptor in procs {
            // "0" is the writer, which knows neither its pid outside of its namespace nor needs to.
            nix::unistd::write(descriptor, b"0")?;
        }
        Ok(())
    }
}

/// The part of a cgroup tree below which our groups stand.
trait Tree {
    fn create(&self, id: &str) -> Result<Box<dyn Leaf>, Error>;
    /// The groups that stand below `owner`'s directory, whoever made them.
    fn leaves(&self, owner: &str) -> Vec<Box<dyn Leaf>>;
    /// Names of directories beside our own.
    fn siblings(&self) -> Vec<String>;
    /// Removes `owner`'s directory, which has to be empty.
    fn remove(&self, owner: &str) -> Result<(), Error>;
    /// Undoes what opening did beside our own directory.
    fn restore(&self);
}

/// One group, in every hierarchy that it stands in.
trait Leaf {
    fn set_limits(&self, limits: &Limits) -> Result<(), Error>;
    fn entry(&self, clone3: bool) -> Result<Entry, Error>;
    #[cfg(test)]
    fn enter(&self, pid: Pid) -> Result<(), Error>;
    fn kill(&self) -> Result<(), Error>;
    fn is_empty(&self) -> Result<bool, Error>;
    fn usage(&self) -> Result<Usage, Error>;
    /// Whether nothing of it is left. Keeps in mind what it has removed.
    fn remove(&mut self) -> Result<bool, Error>;
}

/// Our part of the cgroup tree. Belongs to one thread of one process, whose end makes everything in it stale.
pub(super) struct Cgroups {
    tree: Box<dyn Tree>,
    layers: Layers,
    owner: Owner,
    abandoned: Abandoned,
}

/// Groups that were dropped before they could be removed.
type Abandoned = Rc<RefCell<Vec<Box<dyn Leaf>>>>;

impl Cgroups {
    /// Takes its place in the cgroup tree, proves it by making a group and limiting it, and clears away what dead owners of the same
    /// `name` left: their processes are killed. Takes milliseconds, and up to [`CLEAR_MAX`] for each dead owner whose do not end.
    ///
    /// On v2 this process and `service` (which may be empty) move into a leaf `chatfn-service`: a group with processes of its own
    /// cannot limit its children. All processes of the present group have to be among them: an init of the container, too.
    ///
    /// `name` keeps services apart that share a cgroup. They have to see each other's pids, or the later takes the other's for stale.
    ///
    /// # Errors
    /// Neither version gives a single one of memory, pids and cpu.
    pub(super) fn open(name: &str, service: &[Pid]) -> Result<Self, Unavailable> {
        let owner = Owner::of_this_process(name)?;
        let place = mounts::read()?;
        let (tree, layers) = Self::open_tree(&place, &owner, service)?;
        let cgroups = Self { tree, layers, owner, abandoned: Abandoned::default() };
        cgroups.remove_stale();
        Ok(cgroups)
    }

    /// v2 where it has the memory controller; on "hybrid" machines that one is v1's, and v2 is there for systemd alone.
    fn open_tree(
        place: &mounts::Place,
        owner: &Owner,
        service: &[Pid],
    ) -> Result<(Box<dyn Tree>, Layers), Unavailable> {
        let no_v2 = match &place.unified {
            None => "cgroup v2 is not mounted".to_owned(),
            Some(Err(reason)) => format!("cgroup v2: {reason}"),
            Some(Ok(own)) if !v2::controllers(own).iter().any(|controller| controller == "memory") => {
                format!("cgroup v2 at {}: it has no memory controller", own.display())
            }
            Some(Ok(own)) => {
                let mut moving = vec![getpid()];
                moving.extend_from_slice(service);
                match v2::open(own, owner, &moving) {
                    Ok((tree, layers)) => return Ok((Box::new(tree), layers)),
                    Err(err) => format!("cgroup v2 at {}: {err}", own.display()),
                }
            }
        };
        match v1::open(&place.legacy, owner) {
            Ok((tree, layers)) => Ok((Box::new(tree), layers)),
            Err(no_v1) => Err(Unavailable(format!("{no_v2}; {no_v1}"))),
        }
    }

    pub(super) fn layers(&self) -> &Layers {
        &self.layers
    }

    /// `id` (letters, digits, `-`, `_`) must not be in use. Costs 0.05 ms (v2) to 0.2 ms (v1).
    ///
    /// # Errors
    /// A limit that the kernel does not take, for example more CPU on v1 than an enclosing group has. No group remains then.
    pub(super) fn create(&self, id: &str, limits: &Limits) -> Result<Group, Error> {
        if !owner::is_plain(id) {
            return Err(Error::new("make group", id, Errno::EINVAL));
        }
        let group = Group { leaf: Some(self.tree.create(id)?), abandoned: Rc::clone(&self.abandoned) };
        group.set_limits(limits)?;
        Ok(group)
    }

    /// Tries again to kill and remove the groups that were dropped. To be called now and then. Returns how many remain.
    pub(super) fn sweep(&self) -> usize {
        self.abandoned.borrow_mut().retain_mut(|leaf| !end(leaf.as_mut()));
        self.abandoned.borrow().len()
    }

    /// Kills and removes everything below, then our place itself. Takes at most [`CLEAR_MAX`].
    ///
    /// # Errors
    /// Something does not end. The next [`Cgroups::open`] of this name will try again.
    pub(super) fn close(self) -> Result<(), Error> {
        self.abandoned.borrow_mut().clear(); // The tree knows them all.
        let removed = self.clear(&self.owner.directory());
        self.tree.restore();
        removed
    }

    fn remove_stale(&self) {
        for name in self.tree.siblings() {
            if self.owner.is_stale(&name) {
                let _ = self.clear(&name); // What does not end now is as stale at the next start.
            }
        }
    }

    fn clear(&self, owner: &str) -> Result<(), Error> {
        let mut leaves = self.tree.leaves(owner);
        let give_up = Instant::now() + CLEAR_MAX;
        loop {
            leaves.retain_mut(|leaf| !end(leaf.as_mut()));
            match self.tree.remove(owner) {
                Err(err) if err.errno == Errno::EBUSY && Instant::now() < give_up => thread::sleep(CLEAR_POLL),
                removed => return removed,
            }
        }
    }
}

/// One attempt, without waiting: whether nothing of the group is left.
fn end(leaf: &mut dyn Leaf) -> bool {
    if leaf.is_empty().is_ok_and(|empty| !empty) {
        let _ = leaf.kill(); // Refused: then removing is, too, and there is another attempt.
    }
    leaf.remove().unwrap_or(false)
}

/// A group of one worker. Dropping it kills what is in it and leaves the removal to [`Cgroups::sweep`].
pub(super) struct Group {
    /// `None` once it is somebody else's to remove.
    leaf: Option<Box<dyn Leaf>>,
    abandoned: Abandoned,
}

/// What became of [`Group::remove`].
#[cfg(test)]
pub(super) enum Removal {
    Removed,
    /// Something in it still runs, or has ended so recently that the kernel is not done with it. Try again in a few milliseconds.
    NotYet(Group),
}

impl Group {
    fn leaf(&self) -> &dyn Leaf {
        self.leaf.as_deref().expect("only `remove` and `drop` take it, and both consume the group")
    }

    /// Changes all limits, of the running processes as well: three or four writes, 0.05 ms.
    ///
    /// # Errors
    /// Among others EBUSY on v1, where memory cannot be limited below what is in use and cannot be reclaimed. v2 kills instead.
    pub(super) fn set_limits(&self, limits: &Limits) -> Result<(), Error> {
        self.leaf().set_limits(limits)
    }

    /// For one child that is about to start. `clone3`: whether the kernel has it (a container's seccomp filter may say ENOSYS).
    pub(super) fn entry(&self, clone3: bool) -> Result<Entry, Error> {
        self.leaf().entry(clone3)
    }

    /// Moves a process in from outside. It and its threads only: what it has forked before stays where it is.
    #[cfg(test)]
    pub(super) fn enter(&self, pid: Pid) -> Result<(), Error> {
        self.leaf().enter(pid)
    }

    /// Kills everything in it. Returns at once; call it again every few milliseconds until it is empty.
    ///
    /// Lifts the CPU quota first: a throttled process gets its signal only when it runs next, and a `while (true)` under 50 % took
    /// 50 ms to die where 4 ms are enough. The group cannot be used again: nothing can fork in it any more.
    ///
    /// A child that has yet to call [`Entry::enter_self`] is not in it, so this misses it: signal the child itself as well.
    pub(super) fn kill(&self) -> Result<(), Error> {
        self.leaf().kill()
    }

    /// Whether no process runs in it. A zombie does not count.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> Result<bool, Error> {
        self.leaf().is_empty()
    }

    pub(super) fn usage(&self) -> Result<Usage, Error> {
        self.leaf().usage()
    }

    /// # Errors
    /// Something else than a group that is still in use. [`Cgroups::sweep`] will try again.
    #[cfg(test)]
    pub(super) fn remove(mut self) -> Result<Removal, Error> {
        let Some(leaf) = self.leaf.as_mut() else { return Ok(Removal::Removed) };
        if leaf.remove()? {
            self.leaf = None;
            return Ok(Removal::Removed);
        }
        Ok(Removal::NotYet(self))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut leaf) = self.leaf.take() else { return };
        if !end(leaf.as_mut()) {
            self.abandoned.borrow_mut().push(leaf);
        }
    }
}

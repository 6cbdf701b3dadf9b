//! How the broker starts a child, in the mode that it found to work: what each needs is taken here, and given back at its end.

use std::collections::HashMap;
use std::collections::hash_map;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getegid, geteuid, pipe2};

use super::cgroup::{self, Cgroups, Entry, Group};
use super::child;
use super::clone::{self, Cloned};
use super::costs::{Costs, Stopwatch};
use super::egress::{self, Supervisor};
use super::message::ChildId;
use super::plan::{self, Become, Layout, Plan, Stdio};
use super::root::{self, Root};
use super::seccomp::{Filters, Policy};
use super::settings::{Identity, Settings};
use super::spec::{Exit, ExitStatus, Limits, Mount, Network, Profile, Spec};
use super::status::{self, Said};
use super::users::{User, Users};
use crate::model::Mode;

/// What children are started with.
pub(super) struct Launcher {
    pub(super) settings: Settings,
    /// Whom the service runs as.
    service: Identity,
    pub(super) mode: Mode,
    pub(super) root: Option<Root>,
    users: Option<Users>,
    pub(super) cgroups: Option<Cgroups>,
    pub(super) supervisor: Option<Supervisor>,
    /// Node's loader, if it has one (ld.so(8)).
    interpreter: Option<PathBuf>,
    /// Built once each.
    filters: HashMap<Policy, Filters>,
}

/// A child that runs.
pub(super) struct Running {
    pub(super) id: ChildId,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// On which its init tells how Node ended.
    end: OwnedFd,
    user: Option<User>,
    pub(super) group: Option<Group>,
    /// Asks about its connections; with the supervisor as soon as it may have any.
    connects: Option<egress::Descriptors>,
    /// The supervisor has got that. No other one can take it over.
    pub(super) let_out: bool,
    /// It is being ended, for no fault of its own.
    pub(super) withdrawn: bool,
    /// Where it can be shown more, once: see [`super::Child::attach`].
    pub(super) mounts: Option<OwnedFd>,
    /// Where the service answers npm, until it was handed on.
    pub(super) listener: Option<OwnedFd>,
    pub(super) costs: Costs,
}

impl Launcher {
    pub(super) fn new(settings: Settings, mode: Mode, root: Option<Root>) -> Self {
        let service = settings.service.clone().unwrap_or_else(own_identity);
        let users = (mode == Mode::Full).then(|| Users::new(service.user));
        let interpreter = root::interpreter(&settings.node);
        Self {
            settings,
            service,
            mode,
            root,
            users,
            cgroups: None,
            supervisor: None,
            interpreter,
            filters: HashMap::new(),
        }
    }

    /// Starts a child and returns once it runs Node, or could not.
    ///
    /// # Errors
    /// What the child could not do, in its words; nothing is left of it.
    pub(super) fn launch(&mut self, id: ChildId, spec: &Spec, stdio: Stdio, become_: Become) -> io::Result<Running> {
        self.check_mounts(&spec.mounts)?;
        let user = self.take_user(spec)?;
        let mut watch = Stopwatch::start();
        let started = self.create_group(id, &spec.limits).and_then(|group| {
            watch.lap("make a cgroup");
            // If it fails, the group ends by being dropped.
            let running = self.start(id, spec, stdio, (user.clone(), group.as_ref()), become_, watch)?;
            Ok(Running { group, ..running })
        });
        if started.is_err() {
            self.give_back(user);
        }
        let mut running = started?;
        if let Err(err) = self.let_out(&mut running, &spec.network) {
            let exit = self.reap_now(&running);
            self.bury(running, exit);
            return Err(err);
        }
        Ok(running)
    }

    /// Whom a child becomes; `None`: it stays the broker's user.
    ///
    /// What npm writes the service must be able to rename and to remove. Root can; any other service has npm run as its own user,
    /// kept from it by the namespaces and by Landlock. Where there are no users of their own at all, the service's is better than a
    /// privileged broker's.
    fn take_user(&mut self, spec: &Spec) -> io::Result<Option<User>> {
        let service = User::Service(self.service.clone());
        let Some(users) = &mut self.users else {
            return Ok((self.service.user != own_identity().user).then_some(service));
        };
        if spec.profile == Profile::Install && self.service.user != 0 {
            return Ok(Some(service));
        }
        // What it may write belongs to it: a project on which npm worked before belongs to that run's user.
        let writable: Vec<&Path> =
            spec.mounts.iter().filter(|mount| mount.writable).map(|mount| mount.source.as_path()).collect();
        let owner = writable.first().map(fs::symlink_metadata).transpose()?.map(|metadata| metadata.uid());
        let user = owner.filter(|owner| users.take_this(*owner)).or_else(|| users.take());
        let user = user.ok_or_else(|| io::Error::other("no user is left for another child"))?;
        if let Err(err) = writable.iter().try_for_each(|directory| give(directory, user)) {
            users.give_back(user);
            return Err(err);
        }
        Ok(Some(User::Own(user)))
    }

    fn give_back(&mut self, user: Option<User>) {
        if let (Some(users), Some(User::Own(user))) = (&mut self.users, user) {
            users.give_back(user);
        }
    }

    fn create_group(&self, id: ChildId, limits: &Limits) -> io::Result<Option<Group>> {
        let Some(cgroups) = &self.cgroups else { return Ok(None) };
        Ok(Some(cgroups.create(&format!("worker-{}", id.0), &group_limits(limits))?))
    }

    fn start(
        &mut self,
        id: ChildId,
        spec: &Spec,
        stdio: Stdio,
        (user, group): (Option<User>, Option<&Group>),
        become_: Become,
        watch: Stopwatch,
    ) -> io::Result<Running> {
        let policy = plan::seccomp_policy(self.mode, spec.profile, self.supervisor.is_some());
        self.build_filters(policy)?;
        let entry = group.map(|group| group.entry(clone::has_clone3())).transpose()?;
        let (born_in, entry) = match entry {
            Some(Entry::IntoCgroup(directory)) => (Some(directory), None),
            entry => (None, entry),
        };
        let (end, told) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let plan = Plan {
            end: told,
            spec,
            node: &self.settings.node,
            layout: self.root.as_ref().map_or(Layout::Host, Layout::Root),
            stdio,
            user: user.clone(),
            entry,
            landlock: (self.mode != Mode::None)
                .then(|| plan::landlock_rules(self.mode, spec, &self.settings.node, self.interpreter.as_deref())),
            filters: self.filters.get(&policy).filter(|_| self.mode != Mode::None),
            become_,
            watch,
        };
        let (hearer, speaker) = status::pair()?;
        let namespaces = if self.mode.has_root() { clone::NAMESPACES } else { 0 };
        let (pid, pidfd) = match clone::clone(namespaces, born_in.as_ref().map(AsFd::as_fd))? {
            Cloned::Child => {
                drop(hearer); // Its end in this copy would hide the broker's death.
                child::become_node(plan, speaker)
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((plan, speaker));
        let mut running = Running {
            id,
            pid,
            pidfd,
            end,
            user,
            group: None,
            connects: None,
            let_out: false,
            withdrawn: false,
            mounts: None,
            listener: None,
            costs: Costs::default(),
        };
        match hear(&hearer, &mut running) {
            Ok(()) => Ok(running),
            Err(err) => {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                Err(err)
            }
        }
    }

    fn build_filters(&mut self, policy: Policy) -> io::Result<()> {
        if let hash_map::Entry::Vacant(place) = self.filters.entry(policy) {
            place.insert(Filters::build(policy).map_err(io::Error::other)?);
        }
        Ok(())
    }

    /// The service is not trusted to choose what a child sees: it may have been taken over.
    pub(super) fn check_mounts(&self, mounts: &[Mount]) -> io::Result<()> {
        for mount in mounts {
            let real = mount.source.canonicalize().map_err(|err| named(&mount.source, &err))?;
            // Itself, not what a link leads to: see `mounts::detached_exactly`.
            let allowed = real == mount.source && self.settings.sources.iter().any(|source| real.starts_with(source));
            let known = Mount::TARGETS.iter().any(|target| Path::new(target) == mount.target);
            if !allowed || !known {
                let text = format!("{} must not be shown to a child at {}", real.display(), mount.target.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
        }
        Ok(())
    }

    /// Hands its connections to the supervisor, if it is to have any.
    pub(super) fn let_out(&mut self, running: &mut Running, network: &Network) -> io::Result<()> {
        let Network::Egress(policy) = network else { return Ok(()) };
        if let (Some(supervisor), Some(connects)) = (&self.supervisor, running.connects.take()) {
            running.let_out = true;
            supervisor.add(running.id.0, policy, connects).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// SIGKILLs it and everything in it.
    pub(super) fn kill(&self, running: &mut Running) {
        if let Some(group) = &running.group
            && let Err(err) = group.kill()
        {
            eprintln!("chatfn-broker: kill a cgroup: {err}");
        }
        // SAFETY: a live descriptor and no siginfo.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, running.pidfd.as_raw_fd(), libc::SIGKILL, 0, 0) };
    }

    fn reap_now(&self, running: &Running) -> Exit {
        let _ = kill(running.pid, Signal::SIGKILL);
        let _ = waitpid(running.pid, None);
        Exit::UNKNOWN
    }

    /// What is known of a child that was reaped; gives back what it had.
    pub(super) fn bury(&mut self, running: Running, exit: Exit) -> Exit {
        let mut exit = running.told(exit);
        if running.withdrawn {
            exit.status = ExitStatus::Withdrawn;
        }
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.remove(running.id.0); // It is gone: so is what was to be removed.
        }
        if let Some(group) = &running.group
            && let Ok(usage) = group.usage()
        {
            exit.memory_limit_hit = usage.oom_kills > 0;
            exit.peak_memory_bytes = exit.peak_memory_bytes.max(usage.memory_peak_bytes.unwrap_or(0));
            exit.cpu_time = exit.cpu_time.max(usage.cpu_time.unwrap_or_default());
        }
        drop(running.group);
        self.give_back(running.user);
        exit
    }

    /// Removes what could not be removed at once: the kernel takes some milliseconds for a group whose last process has just ended.
    pub(super) fn tidy(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.sweep();
        }
    }

    /// # Errors
    /// The kernel cannot ask it, or it could not be started.
    pub(super) fn start_supervisor(&mut self) -> io::Result<Pid> {
        let supervisor = egress::start()?;
        let pid = supervisor.pid();
        self.supervisor = Some(supervisor);
        Ok(pid)
    }

    pub(super) fn lacks_supervisor(&self) -> bool {
        self.supervisor.as_ref().is_some_and(Supervisor::has_ended)
    }

    /// The broker's children that are none of the service's.
    pub(super) fn helpers(&self) -> Option<Pid> {
        self.supervisor.as_ref().map(Supervisor::pid)
    }

    /// Everything is dead and buried: removes what was made for it.
    pub(super) fn close(&mut self) {
        self.supervisor = None;
        if let Some(cgroups) = self.cgroups.take()
            && let Err(err) = cgroups.close()
        {
            eprintln!("chatfn-broker: remove its cgroups: {err}");
        }
    }
}

impl Running {
    /// With Node's own end, where its init saw it: what was reaped is the init.
    fn told(&self, mut exit: Exit) -> Exit {
        let mut status = [0u8; size_of::<libc::c_int>()];
        if let Ok(length) = nix::unistd::read(&self.end, &mut status)
            && length == status.len()
        {
            exit.status = ExitStatus::from_wait(libc::c_int::from_ne_bytes(status));
        }
        exit
    }
}

/// The broker's.
fn own_identity() -> Identity {
    Identity { user: geteuid().as_raw(), group: getegid().as_raw(), groups: Vec::new() }
}

/// Until it runs, or could not.
fn hear(hearer: &status::Hearer, running: &mut Running) -> io::Result<()> {
    loop {
        match hearer.next()? {
            Said::Nothing => return Ok(()),
            Said::Failed(problem) => return Err(io::Error::other(problem)),
            Said::Listener(listener) => running.listener = Some(listener),
            Said::Connects(connects) => running.connects = Some(connects),
            Said::Mounts(mounts) => running.mounts = Some(mounts),
            Said::Costs(costs) => running.costs = costs,
        }
    }
}

pub(super) fn group_limits(limits: &Limits) -> cgroup::Limits {
    cgroup::Limits {
        memory_bytes: Some(limits.memory_bytes),
        pids: Some(limits.pids),
        cpu_millis: (limits.cpu_millis > 0).then_some(limits.cpu_millis),
    }
}

/// The directory and what stands in it; what stands deeper was made by its user.
fn give(directory: &Path, user: u32) -> io::Result<()> {
    lchown(directory, Some(user), Some(user))?;
    for entry in fs::read_dir(directory)? {
        lchown(entry?.path(), Some(user), Some(user))?;
    }
    Ok(())
}

fn named(path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

//! cgroup v2: one hierarchy with all controllers; a group is one directory.
//!
//! ```text
//! <base>                                   the group that the service was started in
//! ├── chatfn-service                       this process and the service
//! └── chatfn-<name>-<pid>-<start time>     ours
//!     └── <id>                             a worker
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::files::{self, PROCS};
use super::owner::Owner;
use super::{CLEAR_MAX, CLEAR_POLL, Entry, Error, Layer, Layers, Leaf, Limits, Tree, Unavailable, Usage, Version};

const SERVICE: &str = "chatfn-service";
const SUBTREE: &str = "cgroup.subtree_control";
/// Those that limit.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// The second number of `cpu.max`, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// The controllers that the group of this process may give to its children.
pub(super) fn controllers(own: &Path) -> Vec<String> {
    words(&base_of(own).join("cgroup.controllers"))
}

fn words(file: &Path) -> Vec<String> {
    files::read(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// An earlier start may have moved what started us: a supervisor that starts the service again, or a shell.
fn base_of(own: &Path) -> &Path {
    match own.parent() {
        Some(parent) if own.file_name().is_some_and(|name| name == SERVICE) => parent,
        _ => own,
    }
}

/// Our place.
pub(super) struct Unified {
    base: PathBuf,
    owner: String,
    /// What is to be disabled again for the children of `base`.
    enabled: Vec<&'static str>,
}

/// Moves the processes of `moving` into a leaf, passes the controllers on and makes a group to prove that they limit.
///
/// "Non-root cgroups can distribute domain resources to their children only when they don't have any processes of their own"
/// (`cgroup-v2.rst`, No Internal Process Constraint): hence the leaf.
///
/// # Errors
/// One of the steps was refused. Everything is as it was before.
pub(super) fn open(own: &Path, owner: &Owner, moving: &[Pid]) -> Result<(Unified, Layers), Unavailable> {
    open_with(own, owner, moving, &controllers(own))
}

pub(super) fn open_with(
    own: &Path,
    owner: &Owner,
    moving: &[Pid],
    available: &[String],
) -> Result<(Unified, Layers), Unavailable> {
    let mut tree = Unified { base: base_of(own).to_owned(), owner: owner.directory(), enabled: Vec::new() };
    let wanted: Vec<_> = CONTROLLERS.into_iter().filter(|one| available.iter().any(|other| other == one)).collect();
    let layers = tree.move_away(moving).and_then(|()| tree.pass_on(&wanted)).and_then(|()| Ok(tree.prove(&wanted)?));
    match layers {
        Ok(layers) => Ok((tree, layers)),
        Err(err) => {
            let _ = files::remove_directory(&tree.parent()); // The reason to report is the first.
            tree.restore();
            Err(err)
        }
    }
}

impl From<Error> for Unavailable {
    fn from(err: Error) -> Self {
        Self(err.to_string())
    }
}

impl Unified {
    fn parent(&self) -> PathBuf {
        self.base.join(&self.owner)
    }

    fn move_away(&self, moving: &[Pid]) -> Result<(), Unavailable> {
        let service = self.base.join(SERVICE);
        match files::make_directory(&service) {
            Err(err) if err.errno != Errno::EEXIST => return Err(err.into()),
            _ => {}
        }
        for pid in moving {
            files::write(&service.join(PROCS), &pid.to_string())?;
        }
        Ok(())
    }

    /// From `base` to our directory, and from there to the workers' groups.
    fn pass_on(&mut self, wanted: &[&'static str]) -> Result<(), Unavailable> {
        let enabled = self.ours_to_enable(wanted);
        let give_up = Instant::now() + CLEAR_MAX;
        loop {
            match enable(&self.base, wanted) {
                Err(err) if err.errno == Errno::EBUSY => {
                    let others = files::members(std::slice::from_ref(&self.base))?;
                    // None is listed, but one holds it: it is dying, maybe a service that has just been killed.
                    if others.is_empty() && Instant::now() < give_up {
                        thread::sleep(CLEAR_POLL);
                        continue;
                    }
                    let others = describe(&others);
                    return Err(Unavailable(format!("{err}: other processes are in that group: {others}")));
                }
                passed => break passed?,
            }
        }
        self.enabled = enabled;
        files::make_directory(&self.parent())?;
        Ok(enable(&self.parent(), wanted)?)
    }

    /// Below the root all of them: as the service stood in `base`, nothing can have been passed on from there, unless by an earlier
    /// service whose end nobody noticed. The root may have both, so there only what is missing.
    fn ours_to_enable(&self, wanted: &[&'static str]) -> Vec<&'static str> {
        let is_root = !self.base.join("cgroup.type").exists(); // "exists on non-root cgroups"
        let before = if is_root { words(&self.base.join(SUBTREE)) } else { Vec::new() };
        wanted.iter().filter(|one| !before.iter().any(|other| other == *one)).copied().collect()
    }

    /// Nothing less than a limited group proves it: the files may be there and read-only.
    fn prove(&self, wanted: &[&'static str]) -> Result<Layers, Error> {
        let mut probe = self.leaf(&self.owner, "probe");
        files::make_directory(&probe.path)?;
        let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(8), cpu_millis: Some(100) };
        let proved = probe.set_limits(&limits).and_then(|()| probe.entry(false).map(drop));
        let layer = |controller: &str, file: &str| match wanted.contains(&controller) {
            true if probe.path.join(file).exists() => Layer::Active(file.to_owned()),
            true => Layer::Missing(format!("cgroup v2 {controller}: {file} is missing in a new group")),
            false => Layer::Missing(format!("cgroup v2 {controller}: not given to {}", self.base.display())),
        };
        let (memory, pids, cpu) = (layer("memory", "memory.max"), layer("pids", "pids.max"), layer("cpu", "cpu.max"));
        let kill = Layer::Active(match (probe.path.join("cgroup.kill").exists(), pids.is_active()) {
            (true, _) => "cgroup.kill".to_owned(),
            (false, true) => "pids.max 0, then SIGKILL to all".to_owned(),
            (false, false) => "cgroup.freeze, then SIGKILL to all".to_owned(),
        });
        probe.remove().and(proved)?;
        Ok(Layers { version: Version::V2, memory, pids, cpu, kill })
    }

    fn leaf(&self, owner: &str, id: &str) -> Directory {
        Directory { path: self.base.join(owner).join(id) }
    }
}

fn enable(group: &Path, controllers: &[&str]) -> Result<(), Error> {
    if controllers.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    files::write(&group.join(SUBTREE), &list.join(" "))
}

/// "12 (bash), 13 (sleep)"
fn describe(pids: &[i32]) -> String {
    let mut text = String::new();
    for pid in pids.iter().take(8) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{pid} ({})", name.trim()); // To a String: cannot fail.
    }
    text
}

impl Tree for Unified {
    fn create(&self, id: &str) -> Result<Box<dyn Leaf>, Error> {
        let leaf = self.leaf(&self.owner, id);
        files::make_directory(&leaf.path)?;
        Ok(Box::new(leaf))
    }

    fn leaves(&self, owner: &str) -> Vec<Box<dyn Leaf>> {
        let ids = files::directories(&self.base.join(owner));
        ids.into_iter().map(|id| Box::new(self.leaf(owner, &id)) as Box<dyn Leaf>).collect()
    }

    fn siblings(&self) -> Vec<String> {
        files::directories(&self.base)
    }

    fn remove(&self, owner: &str) -> Result<(), Error> {
        files::remove_directory(&self.base.join(owner))
    }

    /// Takes back what was passed on, then the processes, in this order: with controllers passed on, `base` takes no process.
    /// EBUSY if another service beside us has passed them on in turn; then all of it stays, and is the other's to undo.
    fn restore(&self) {
        let list: Vec<_> = self.enabled.iter().map(|controller| format!("-{controller}")).collect();
        if !list.is_empty() && files::write(&self.base.join(SUBTREE), &list.join(" ")).is_err() {
            return;
        }
        let service = self.base.join(SERVICE);
        for pid in files::members(std::slice::from_ref(&service)).unwrap_or_default() {
            let _ = files::write(&self.base.join(PROCS), &pid.to_string()); // Ended meanwhile, or see above.
        }
        let _ = files::remove_directory(&service);
    }
}

/// One group.
struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Files of controllers that were not passed on are missing, and limits that nobody has to keep are left out.
    fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        files::write_if_present(&self.path.join(file), value)
    }
}

impl Leaf for Directory {
    fn set_limits(&self, limits: &Limits) -> Result<(), Error> {
        let text = |limit: Option<u64>| limit.map_or_else(|| "max".to_owned(), |value| value.to_string());
        // First: memory that is over the limit would go to swap rather than be refused.
        self.write("memory.swap.max", if limits.memory_bytes.is_some() { "0" } else { "max" })?;
        // A worker that lost one process is broken: better none of it lives.
        self.write("memory.oom.group", "1")?;
        self.write("memory.max", &text(limits.memory_bytes))?;
        self.write("pids.max", &text(limits.pids.map(u64::from)))?;
        let quota = limits.cpu_millis.map(|millis| u64::from(millis.max(10)) * (PERIOD_US / 1000));
        self.write("cpu.max", &format!("{} {PERIOD_US}", text(quota)))
    }

    fn entry(&self, clone3: bool) -> Result<Entry, Error> {
        if clone3 {
            return Ok(Entry::IntoCgroup(files::open_directory(&self.path)?));
        }
        Ok(Entry::Procs(vec![files::open_to_write(&self.path.join(PROCS))?]))
    }

    #[cfg(test)]
    fn enter(&self, pid: Pid) -> Result<(), Error> {
        files::write(&self.path.join(PROCS), &pid.to_string())
    }

    fn kill(&self) -> Result<(), Error> {
        self.write("cpu.max", &format!("max {PERIOD_US}"))?;
        match files::write(&self.path.join("cgroup.kill"), "1") {
            Err(err) if err.errno == Errno::ENOENT => kill_one_by_one(&self.path),
            killed => killed, // Forks under way included: the kernel kills those, too.
        }
    }

    fn is_empty(&self) -> Result<bool, Error> {
        Ok(files::read_keyed(&self.path.join("cgroup.events"), "populated")? == Some(0))
    }

    fn usage(&self) -> Result<Usage, Error> {
        let memory_events = self.path.join("memory.events");
        let oom_kills = if memory_events.exists() { files::read_keyed(&memory_events, "oom_kill")? } else { None };
        Ok(Usage {
            memory_peak_bytes: files::read_number(&self.path.join("memory.peak"))?,
            oom_kills: oom_kills.unwrap_or(0),
            cpu_time: files::read_keyed(&self.path.join("cpu.stat"), "usage_usec")?.map(Duration::from_micros),
        })
    }

    fn remove(&mut self) -> Result<bool, Error> {
        match files::remove_directory(&self.path) {
            Ok(()) => Ok(true),
            Err(err) if err.errno == Errno::EBUSY => Ok(false),
            Err(err) => Err(err),
        }
    }
}

/// Before 5.14, which brought cgroup.kill: forbid forks, by pids or by freezing, then kill one by one. Unlike v1's, "processes in the
/// frozen cgroup can be killed by a fatal signal" (`cgroup-v2.rst`), so nothing has to be thawed.
pub(super) fn kill_one_by_one(group: &Path) -> Result<(), Error> {
    let pids = group.join("pids.max");
    if pids.exists() {
        files::write(&pids, "0")?;
    } else {
        files::write(&group.join("cgroup.freeze"), "1")?;
    }
    let groups = [group.to_owned()];
    files::kill_members(&groups).and_then(|()| files::kill_members(&groups))
}

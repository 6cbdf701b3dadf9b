//! cgroup v1: one hierarchy per controller (or per few that are mounted together), and a group is a directory in each.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
#[cfg(test)]
use nix::unistd::Pid;

use super::files::{self, PROCS};
use super::mounts::Legacy;
use super::owner::Owner;
use super::{Entry, Error, Layer, Layers, Leaf, Limits, Tree, Unavailable, Usage, Version};

/// Of `cpu.cfs_period_us`, which we leave at the kernel's default: 100 ms.
const QUOTA_US_PER_MILLI: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
    /// Only read, so only where it comes with [`Controller::Cpu`]: a hierarchy of its own would cost each worker another move.
    Cpuacct,
    Freezer,
}

impl Controller {
    const LIMITING: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Freezer => "freezer",
        }
    }
}

/// Our place in every hierarchy that we can use.
pub(super) struct Hierarchies {
    list: Vec<Hierarchy>,
    owner: String,
}

struct Hierarchy {
    controllers: Vec<Controller>,
    /// The group that this process stands in. Ours is a directory in it, named after the owner.
    own: PathBuf,
}

/// Takes a place in each hierarchy that lets us.
///
/// # Errors
/// None of them gives a limit.
pub(super) fn open(legacy: &[Legacy], owner: &Owner) -> Result<(Hierarchies, Layers), Unavailable> {
    let mut tree = Hierarchies { list: Vec::new(), owner: owner.directory() };
    let layers = Controller::LIMITING.map(|controller| tree.take(legacy, controller));
    if !layers.iter().any(Layer::is_active) {
        let reasons = layers.into_iter().filter_map(|layer| match layer {
            Layer::Missing(reason) => Some(reason),
            Layer::Active(_) => None,
        });
        return Err(Unavailable(reasons.collect::<Vec<_>>().join("; ")));
    }
    let kill = tree.kill_layer(legacy, layers[1].is_active());
    let [memory, pids, cpu] = layers;
    Ok((tree, Layers { version: Version::V1, memory, pids, cpu, kill }))
}

impl Hierarchies {
    /// Uses `controller` if a group can really be made and limited there.
    fn take(&mut self, legacy: &[Legacy], controller: Controller) -> Layer {
        let name = controller.name();
        if self.list.iter().any(|hierarchy| hierarchy.controllers.contains(&controller)) {
            return Layer::Active(format!("cgroup v1 {name}")); // Mounted together with one that we have.
        }
        let Some(found) = legacy.iter().find(|one| one.controllers.iter().any(|other| other == name)) else {
            return Layer::Missing(format!("cgroup v1 {name} is not mounted"));
        };
        let own = match &found.own {
            Ok(own) => own.clone(),
            Err(reason) => return Layer::Missing(format!("cgroup v1 {name}: {reason}")),
        };
        let known = [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Cpuacct, Controller::Freezer];
        let controllers = known.into_iter().filter(|one| found.controllers.iter().any(|other| other == one.name()));
        let hierarchy = Hierarchy { controllers: controllers.collect(), own };
        match hierarchy.prove(&self.owner) {
            Ok(()) => {
                self.list.push(hierarchy);
                Layer::Active(format!("cgroup v1 {name}"))
            }
            Err(err) => Layer::Missing(format!("cgroup v1 {name}: {err}")),
        }
    }

    /// A freezer only where pids is missing: [`Leaf::kill`] needs either, and each hierarchy costs a worker another move.
    fn kill_layer(&mut self, legacy: &[Legacy], pids: bool) -> Layer {
        if pids {
            return Layer::Active("pids.max 0, then SIGKILL to all".to_owned());
        }
        match self.take(legacy, Controller::Freezer) {
            Layer::Active(_) => Layer::Active("freezer, then SIGKILL to all".to_owned()),
            Layer::Missing(reason) => {
                Layer::Active(format!("repeated SIGKILL to all, which a fork storm may outrun: {reason}"))
            }
        }
    }

    fn leaf(&self, owner: &str, id: &str) -> Directories {
        let directory = |one: &Hierarchy| (one.controllers.clone(), one.own.join(owner).join(id));
        Directories { list: self.list.iter().map(directory).collect() }
    }
}

impl Hierarchy {
    /// Makes our directory, and for a moment a group in it: nothing less proves that limits can be set.
    fn prove(&self, owner: &str) -> Result<(), Error> {
        let directory = self.own.join(owner);
        files::make_directory(&directory)?;
        let mut probe = Directories { list: vec![(self.controllers.clone(), directory.join("probe"))] };
        let proved = probe.make().and_then(|()| {
            probe.set_limits(&Limits { memory_bytes: Some(64 << 20), pids: Some(8), cpu_millis: Some(100) })?;
            probe.entry(false).map(drop)
        });
        let proved = probe.remove().and(proved);
        if proved.is_err() {
            let _ = files::remove_directory(&directory); // The reason to report is the first.
        }
        proved
    }
}

impl Tree for Hierarchies {
    fn create(&self, id: &str) -> Result<Box<dyn Leaf>, Error> {
        let mut leaf = self.leaf(&self.owner, id);
        leaf.make()?;
        Ok(Box::new(leaf))
    }

    fn leaves(&self, owner: &str) -> Vec<Box<dyn Leaf>> {
        let mut ids: Vec<String> = self.list.iter().flat_map(|one| files::directories(&one.own.join(owner))).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().map(|id| Box::new(self.leaf(owner, &id)) as Box<dyn Leaf>).collect()
    }

    fn siblings(&self) -> Vec<String> {
        let mut names: Vec<String> = self.list.iter().flat_map(|one| files::directories(&one.own)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn remove(&self, owner: &str) -> Result<(), Error> {
        self.list.iter().try_for_each(|one| files::remove_directory(&one.own.join(owner)))
    }

    fn restore(&self) {}
}

/// One group: its directory in each hierarchy. Some may be missing, of a stale one.
struct Directories {
    list: Vec<(Vec<Controller>, PathBuf)>,
}

impl Directories {
    fn make(&mut self) -> Result<(), Error> {
        for index in 0..self.list.len() {
            if let Err(err) = files::make_directory(&self.list[index].1) {
                self.list.truncate(index); // Only what we have made is ours to remove.
                let _ = self.remove();
                return Err(err);
            }
        }
        Ok(())
    }

    fn file(&self, controller: Controller, name: &str) -> Option<PathBuf> {
        let (_, directory) = self.list.iter().find(|(controllers, _)| controllers.contains(&controller))?;
        Some(directory.join(name))
    }

    /// Writes where the controller is in use, and has the file.
    fn write(&self, controller: Controller, name: &str, value: &str) -> Result<(), Error> {
        self.file(controller, name).map_or(Ok(()), |file| files::write_if_present(&file, value))
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.list.iter().map(|(_, directory)| directory.clone()).collect()
    }

    /// Memory alone, and memory and swap together (`memsw`, absent where swap is not accounted): the same, so that there is no swap.
    /// The kernel refuses a moment in which memsw is the smaller, so raising and lowering need opposite orders.
    fn limit_memory(&self, bytes: Option<u64>) -> Result<(), Error> {
        let value = bytes.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
        let (memory, with_swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        match self.write(Controller::Memory, memory, &value) {
            Err(err) if err.errno == Errno::EINVAL => {
                self.write(Controller::Memory, with_swap, &value)?;
                self.write(Controller::Memory, memory, &value)
            }
            Ok(()) => self.write(Controller::Memory, with_swap, &value),
            refused => refused,
        }
    }
}

impl Leaf for Directories {
    fn set_limits(&self, limits: &Limits) -> Result<(), Error> {
        self.limit_memory(limits.memory_bytes)?;
        let pids = limits.pids.map_or_else(|| "max".to_owned(), |pids| pids.to_string());
        self.write(Controller::Pids, "pids.max", &pids)?;
        let quota = limits.cpu_millis.map(|millis| u64::from(millis.max(10)) * QUOTA_US_PER_MILLI);
        let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
        self.write(Controller::Cpu, "cpu.cfs_quota_us", &quota)
    }

    fn entry(&self, _clone3: bool) -> Result<Entry, Error> {
        let open = |directory: &PathBuf| files::open_to_write(&directory.join(PROCS));
        Ok(Entry::Procs(self.paths().iter().map(open).collect::<Result<_, _>>()?))
    }

    #[cfg(test)]
    fn enter(&self, pid: Pid) -> Result<(), Error> {
        self.paths().iter().try_for_each(|directory| files::write(&directory.join(PROCS), &pid.to_string()))
    }

    /// Nothing can fork once pids.max is 0: "it is possible to have pids.current > pids.max", but "not possible to violate a cgroup
    /// policy through fork() or clone()" (`cgroup-v1/pids.rst`). Nor can what is frozen. A fork under way is over by the second
    /// round, or fails as a signal is pending.
    fn kill(&self) -> Result<(), Error> {
        self.write(Controller::Cpu, "cpu.cfs_quota_us", "-1")?;
        self.write(Controller::Pids, "pids.max", "0")?;
        self.write(Controller::Freezer, "freezer.state", "FROZEN")?;
        let groups = self.paths();
        let killed = files::kill_members(&groups).and_then(|()| files::kill_members(&groups));
        // Thawed in any case: a frozen process does not take its SIGKILL.
        self.write(Controller::Freezer, "freezer.state", "THAWED").and(killed)
    }

    fn is_empty(&self) -> Result<bool, Error> {
        Ok(files::members(&self.paths())?.is_empty())
    }

    fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        if let Some(file) = self.file(Controller::Memory, "memory.max_usage_in_bytes") {
            usage.memory_peak_bytes = files::read_number(&file)?;
        }
        if let Some(file) = self.file(Controller::Memory, "memory.oom_control") {
            usage.oom_kills = files::read_keyed(&file, "oom_kill")?.unwrap_or(0); // Since 4.13.
        }
        if let Some(file) = self.file(Controller::Cpuacct, "cpuacct.usage") {
            usage.cpu_time = files::read_number(&file)?.map(Duration::from_nanos);
        }
        Ok(usage)
    }

    fn remove(&mut self) -> Result<bool, Error> {
        while let Some((_, directory)) = self.list.last() {
            match files::remove_directory(directory) {
                Ok(()) => self.list.pop(),
                Err(err) if err.errno == Errno::EBUSY => return Ok(false),
                Err(err) => return Err(err),
            };
        }
        Ok(true)
    }
}

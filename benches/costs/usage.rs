//! What processes took, as the kernel counts it (proc(5)).

use std::collections::HashSet;
use std::fs;
use std::ops::Sub;

use crate::Result;

/// Of a tree of processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU time of the service's own processes, in µs.
    pub service_cpu: f64,
    /// Of the functions' Node processes.
    pub workers_cpu: f64,
    /// Of PostgreSQL's processes; 0 with SQLite, which runs inside the service.
    pub database_cpu: f64,
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            service_cpu: self.service_cpu - before.service_cpu,
            workers_cpu: self.workers_cpu - before.workers_cpu,
            database_cpu: self.database_cpu - before.database_cpu,
        }
    }
}

/// Of processes that are alive, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// The service's share: what several processes share counts for each in part.
    pub service: f64,
    /// What is each worker's alone, on average: what one more of them takes.
    pub worker_private: f64,
    /// With its part of what they share.
    pub worker_share: f64,
    pub workers: usize,
}

/// `service`: the process that was started; `postmaster`: PostgreSQL's first process.
pub fn usage(service: u32, postmaster: Option<u32>) -> Result<Usage> {
    let all = processes()?;
    let mut usage = Usage::default();
    for process in below(&all, service) {
        *(if process.is_worker() { &mut usage.workers_cpu } else { &mut usage.service_cpu }) += process.cpu_micros()?;
    }
    if let Some(postmaster) = postmaster {
        for process in below(&all, postmaster) {
            usage.database_cpu += process.cpu_micros()?;
        }
    }
    Ok(usage)
}

pub fn memory(service: u32) -> Result<Memory> {
    let all = processes()?;
    let mut memory = Memory::default();
    for process in below(&all, service) {
        let (share, private) = process.memory()?;
        if process.is_worker() {
            memory.workers += 1;
            memory.worker_share += share;
            memory.worker_private += private;
        } else {
            memory.service += share;
        }
    }
    let workers = memory.workers.max(1) as f64;
    memory.worker_share /= workers;
    memory.worker_private /= workers;
    Ok(memory)
}

pub fn parent_of(pid: u32) -> Result<u32> {
    let found = processes()?.into_iter().find(|process| process.pid == pid);
    Ok(found.ok_or_else(|| format!("process {pid} is gone"))?.parent)
}

struct Process {
    pid: u32,
    parent: u32,
    name: String,
}

impl Process {
    fn is_worker(&self) -> bool {
        self.name.starts_with("node")
    }

    /// Of all its threads that are alive; what its ended children took is in neither of the places where it could be read exactly.
    fn cpu_micros(&self) -> Result<f64> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread may end meanwhile.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(nanos as f64 / 1000.0)
    }

    /// Its share, and what is its own alone.
    fn memory(&self) -> Result<(f64, f64)> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let kib = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
        };
        Ok((kib("Pss:") * 1024.0, (kib("Private_Clean:") + kib("Private_Dirty:")) * 1024.0))
    }
}

fn processes() -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name stands in parentheses and may hold some itself.
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let parent = stat[close + 1..].split_whitespace().nth(1).unwrap_or_default().parse()?;
        all.push(Process { pid, parent, name: stat[open + 1..close].to_owned() });
    }
    Ok(all)
}

/// This process and all that descend from it.
fn below(all: &[Process], root: u32) -> Vec<&Process> {
    let mut pids = HashSet::from([root]);
    // Until a turn finds nobody new: parents may stand behind their children.
    while all.iter().filter(|process| pids.contains(&process.parent)).any(|process| !pids.contains(&process.pid)) {
        pids.extend(
            all.iter().filter(|process| pids.contains(&process.parent)).map(|process| process.pid).collect::<Vec<_>>(),
        );
    }
    all.iter().filter(|process| pids.contains(&process.pid)).collect()
}

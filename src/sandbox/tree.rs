//! Finds and ends processes that lost their parent. As the subreaper the broker inherits them all.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A fork storm that outruns this is left to the next sweep; the pids cgroup of the isolation issue ends it for good.
const SWEEP_MAX: Duration = Duration::from_secs(2);

/// Ends every child of `broker` that is not in `known`, with all of its descendants. No orphan is legitimate: a process that
/// outlives its parent has tried to leave its worker.
///
/// Stopping before killing keeps a storm from forking between two looks: a stopped process cannot fork.
pub(super) fn end_orphans(broker: Pid, known: &BTreeSet<Pid>) {
    let give_up = Instant::now() + SWEEP_MAX;
    loop {
        let tree = Tree::read();
        let orphans: Vec<Pid> = tree.children(broker).filter(|pid| !known.contains(pid)).collect();
        if orphans.is_empty() {
            return;
        }
        let doomed: Vec<Pid> = orphans.iter().flat_map(|orphan| tree.descendants(*orphan)).collect();
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &doomed {
                let _ = kill(*pid, signal); // Gone already is what we want.
            }
        }
        for orphan in orphans {
            reap(orphan, give_up);
        }
        if Instant::now() > give_up {
            return;
        }
    }
}

fn reap(pid: Pid, give_up: Instant) {
    while let Ok(WaitStatus::StillAlive) = waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        if Instant::now() > give_up {
            return; // In uninterruptible sleep; the next sweep meets it again.
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Who is whose child, at one moment.
struct Tree(HashMap<Pid, Vec<Pid>>);

impl Tree {
    fn read() -> Self {
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        for entry in entries {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(parent) = parent_of(pid) {
                children.entry(Pid::from_raw(parent)).or_default().push(Pid::from_raw(pid));
            }
        }
        Self(children)
    }

    fn children(&self, parent: Pid) -> impl Iterator<Item = Pid> + '_ {
        self.0.get(&parent).into_iter().flatten().copied()
    }

    /// `root` and all below it.
    fn descendants(&self, root: Pid) -> Vec<Pid> {
        let mut found = vec![root];
        let mut next = 0;
        while next < found.len() {
            found.extend(self.children(found[next]));
            next += 1;
        }
        found
    }
}

/// proc(5), `/proc/pid/stat`: the parent is the second field after the name, which may itself hold spaces and brackets.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_whitespace().nth(1)?.parse().ok()
}

//! How much memory this process may use at all: the machine's, or less where a control group says so. A container sees the whole
//! machine in /proc/meminfo, and is killed at its own limit.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Where /proc/meminfo does not tell.
const UNKNOWN_BYTES: u64 = 1 << 30;

/// The smallest of the machine's memory and all limits of the control groups that this process is in, in bytes; `root` is `/`.
pub(super) fn available(root: &Path) -> u64 {
    let limits = groups(root).into_iter().flat_map(|group| group.limits());
    limits.chain(machine(root)).min().unwrap_or(UNKNOWN_BYTES)
}

fn machine(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.split_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// A control group of this process, in one hierarchy.
struct Group {
    mount: PathBuf,
    path: PathBuf,
    file: &'static str,
}

/// From /proc/self/cgroup: `0::/path` is version 2, `4:memory:/path` is version 1's memory controller.
fn groups(root: &Path) -> Vec<Group> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mount = root.join("sys/fs/cgroup");
    let group = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (mount, file) = match controllers {
            "" => (mount.clone(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        // Seen from within a namespace a path may start with `/..`: what is above is not mounted.
        let normal = |part: &Component<'_>| matches!(part, Component::Normal(_));
        Some(Group { mount, path: Path::new(path).components().filter(normal).collect(), file })
    };
    text.lines().filter_map(group).collect()
}

impl Group {
    /// Its own limit and those of all groups above it, the mount's own included: in a container without a namespace for control groups
    /// the path is the host's, and the container's group is what is mounted.
    fn limits(&self) -> Vec<u64> {
        let read = |group: &Path| fs::read_to_string(self.mount.join(group).join(self.file)).ok();
        // No limit is the word `max` in version 2, and a huge number in version 1, which is no minimum.
        self.path.ancestors().filter_map(|group| read(group)?.trim().parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       4096 kB\nMemFree: 7 kB\n");

    fn available_with(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().expect("temp dir");
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make");
            fs::write(path, content).expect("write");
        }
        available(root.path())
    }

    #[test]
    fn without_control_groups_it_is_the_machines() {
        assert_eq!(available_with(&[MEMINFO]), 4 << 20);
        assert_eq!(available_with(&[]), UNKNOWN_BYTES);
    }

    #[test]
    fn the_smallest_limit_above_the_process_counts() {
        let group = ("proc/self/cgroup", "0::/pods/chatfn\n");
        let own = ("sys/fs/cgroup/pods/chatfn/memory.max", "max\n");
        let above = ("sys/fs/cgroup/pods/memory.max", "2000000\n");
        let sibling = ("sys/fs/cgroup/pods/other/memory.max", "1\n");
        assert_eq!(available_with(&[MEMINFO, group, own]), 4 << 20);
        assert_eq!(available_with(&[MEMINFO, group, own, above, sibling]), 2_000_000);
        let own = ("sys/fs/cgroup/pods/chatfn/memory.max", "1500000\n");
        assert_eq!(available_with(&[MEMINFO, group, own, above]), 1_500_000);
        let own = ("sys/fs/cgroup/pods/chatfn/memory.max", "999999999999\n");
        assert_eq!(available_with(&[MEMINFO, group, own]), 4 << 20, "more than the machine has");
    }

    #[test]
    fn a_container_finds_its_limit_at_the_mount() {
        let mount = ("sys/fs/cgroup/memory.max", "1000000\n");
        for path in ["0::/\n", "0::/../../docker/0123\n", "0::/docker/0123\n"] {
            assert_eq!(available_with(&[MEMINFO, ("proc/self/cgroup", path), mount]), 1_000_000, "{path}");
        }
    }

    #[test]
    fn version_1_has_its_own_names() {
        let group = ("proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/docker/0123\n0::/a\n");
        let limit = |bytes| ("sys/fs/cgroup/memory/docker/0123/memory.limit_in_bytes", bytes);
        assert_eq!(available_with(&[MEMINFO, group, limit("3000000\n")]), 3_000_000);
        assert_eq!(available_with(&[MEMINFO, group, limit("9223372036854771712\n")]), 4 << 20);
    }
}

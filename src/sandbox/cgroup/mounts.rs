//! Finds the directories that stand for this process's own cgroup, from `/proc/self/mountinfo` and `/proc/self/cgroup`.
//!
//! Paths in the latter count from the root of the hierarchy (or of the cgroup namespace); a mount may show only a part of it, and says
//! in its fourth field which. Both formats: proc_pid_mountinfo(5), cgroups(7).

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Unavailable;

/// Where this process stands.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Its directory in v2, or why there is none. `None`: v2 is not mounted.
    pub unified: Option<Result<PathBuf, String>>,
    pub legacy: Vec<Legacy>,
}

/// One v1 hierarchy.
#[derive(Debug)]
pub(super) struct Legacy {
    /// By the kernel's names: "memory", "cpu", …
    pub controllers: Vec<String>,
    pub own: Result<PathBuf, String>,
}

pub(super) fn read() -> Result<Place, Unavailable> {
    let text = |path| fs::read_to_string(path).map_err(|err| Unavailable(format!("read {path}: {err}")));
    Ok(parse(&text("/proc/self/mountinfo")?, &text("/proc/self/cgroup")?))
}

fn parse(mountinfo: &str, cgroup: &str) -> Place {
    let mut place = Place::default();
    for line in mountinfo.lines() {
        let Some((kind, mount)) = Mount::parse(line) else { continue };
        match kind {
            "cgroup2" if place.unified.is_none() => {
                place.unified = own_path(cgroup, "").map(|path| mount.directory_of(path));
            }
            "cgroup" => {
                let controllers: Vec<String> = mount.options.split(',').map(str::to_owned).collect();
                let seen = place.legacy.iter().any(|other| other.controllers == controllers);
                let path = controllers.iter().find_map(|controller| own_path(cgroup, controller));
                if let (false, Some(path)) = (seen, path) {
                    place.legacy.push(Legacy { own: mount.directory_of(path), controllers });
                }
            }
            _ => {}
        }
    }
    place
}

/// The path in the line `id:controllers:path`. v2's has no controllers; so `""` finds it, and only it.
fn own_path<'a>(cgroup: &'a str, controller: &str) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

struct Mount<'a> {
    root: PathBuf,
    point: PathBuf,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<(&'a str, Self)> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        Some((kind, Self { root, point, options: filesystem.nth(1)? }))
    }

    fn directory_of(&self, own: &str) -> Result<PathBuf, String> {
        let below = Path::new(own).strip_prefix(&self.root).ok();
        match below {
            // `/..` stands for what is above the root of a cgroup namespace.
            Some(below) if !below.components().any(|part| part == Component::ParentDir) => {
                Ok(self.point.components().chain(below.components()).collect())
            }
            _ => Err(format!("the own group {own} is outside of what {} shows", self.point.display())),
        }
    }
}

/// Spaces and the like are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_v2_stands_at_the_mount() {
        let place = parse(
            "40 30 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n",
            "0::/\n",
        );
        assert_eq!(place.unified, Some(Ok(PathBuf::from("/sys/fs/cgroup"))));
        assert!(place.legacy.is_empty());
    }

    #[test]
    fn a_docker_container_with_v1_sees_only_its_own_part() {
        let place = parse(
            "36 35 0:31 /docker/ab /sys/fs/cgroup/memory rw shared:1 master:2 - cgroup cgroup rw,memory\n\
             37 35 0:32 /docker/ab /sys/fs/cgroup/cpu\\040x rw - cgroup cgroup rw,cpu,cpuacct\n\
             38 35 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
            "3:memory:/docker/ab/inner\n2:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n",
        );
        let memory = &place.legacy[0];
        assert_eq!(memory.own, Ok(PathBuf::from("/sys/fs/cgroup/memory/inner")));
        assert!(memory.controllers.iter().any(|controller| controller == "memory"));
        assert_eq!(place.legacy[1].own, Ok(PathBuf::from("/sys/fs/cgroup/cpu x")));
        assert_eq!(place.unified, None);
    }

    #[test]
    fn a_group_outside_of_the_mount_is_a_reason() {
        for (root, own) in [("/docker/ab", "/docker/abc"), ("/", "/../other")] {
            let place = parse(&format!("40 30 0:28 {root} /cg rw - cgroup2 cgroup rw\n"), &format!("0::{own}\n"));
            let reason = place.unified.unwrap().unwrap_err();
            assert!(reason.contains(own) && reason.contains("/cg"), "{reason}");
        }
    }
}

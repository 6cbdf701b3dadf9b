//! Names our directories after the process that owns them, so that a later one can tell whether it is still there.

use std::fs;

use nix::unistd::getpid;

use super::Unavailable;

const PREFIX: &str = "chatfn-";

/// `chatfn-<name>-<pid>-<start time>`. A pid alone would come back; with its start time, in clock ticks since boot, it is unique, and a
/// reboot clears all cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    name: String,
    pid: i32,
    started: u64,
}

impl Owner {
    pub(super) fn of_this_process(name: &str) -> Result<Self, Unavailable> {
        if !is_plain(name) {
            return Err(Unavailable(format!("{name:?} cannot name a cgroup: letters, digits, - and _ can")));
        }
        let pid = getpid().as_raw();
        let started = start_time(pid)
            .ok_or_else(|| Unavailable(format!("/proc/{pid}/stat does not tell when this process started")))?;
        Ok(Self { name: name.to_owned(), pid, started })
    }

    pub(super) fn directory(&self) -> String {
        format!("{PREFIX}{}-{}-{}", self.name, self.pid, self.started)
    }

    /// Whether this directory is of a service of the same name whose owner is dead. Anything that we would not have made is not.
    pub(super) fn is_stale(&self, directory: &str) -> bool {
        Self::parse(directory)
            .is_some_and(|other| other.name == self.name && start_time(other.pid) != Some(other.started))
    }

    fn parse(directory: &str) -> Option<Self> {
        let mut parts = directory.strip_prefix(PREFIX)?.rsplitn(3, '-');
        let started = parts.next()?.parse().ok()?;
        let pid = parts.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let owner = Self { name: parts.next()?.to_owned(), pid, started };
        (owner.directory() == directory).then_some(owner)
    }
}

/// Neither a path nor, as those all have a dot or `_` among lower-case words of the kernel's, likely one of its files' names.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// proc(5): field 22 of `/proc/pid/stat`, counted after the name, which may itself hold spaces and brackets. A zombie has none: it
/// owns nothing any more.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_owner_of_the_same_name_is_stale() {
        let owner = Owner::of_this_process("a-b").unwrap();
        assert_eq!(Owner::parse(&owner.directory()), Some(owner.clone()));
        let pid = owner.pid;
        let cases = [
            (owner.directory(), false),
            (format!("chatfn-a-b-{pid}-1"), true),
            ("chatfn-a-b-999999999-5".to_owned(), true),
            ("chatfn-a-999999999-5".to_owned(), false),
            ("chatfn-a-b-999999999-05".to_owned(), false),
            ("chatfn-a-b--1-5".to_owned(), false),
            ("chatfn-a-b-0-5".to_owned(), false),
            ("chatfn-a-b".to_owned(), false),
            ("chatfn-service".to_owned(), false),
            ("a-b-999999999-5".to_owned(), false),
        ];
        for (directory, stale) in cases {
            assert_eq!(owner.is_stale(&directory), stale, "{directory}");
        }
    }

    #[test]
    fn a_name_is_not_a_path() {
        for name in ["", ".", "..", "a/b", "/", "a.b", "a b", "ä"] {
            assert!(!is_plain(name), "{name}");
        }
        assert!(is_plain("Worker_1-2"));
    }
}

//! All that a child needs to know about itself, put together by the broker before it clones: afterwards nobody can be asked.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::cgroup::Entry;
use super::costs::Stopwatch;
use super::egress::policy::{Egress, Rule};
use super::landlock::{Rules, Tcp};
use super::root::{NODE, Root};
use super::seccomp::{Connect, Filters, Policy};
use super::spec::{Network, Profile, Spec};
use super::users::User;
use crate::model::Mode;

/// What its files are.
#[derive(Clone, Copy)]
pub(super) enum Layout<'a> {
    /// A root and namespaces of its own.
    Root(&'a Root),
    /// The host's.
    Host,
}

impl Layout<'_> {
    pub(super) fn is_root(&self) -> bool {
        matches!(self, Self::Root(_))
    }
}

pub(super) struct Stdio {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Read and write end.
    pub protocol: Option<(OwnedFd, OwnedFd)>,
}

pub(super) struct Plan<'a> {
    pub spec: &'a Spec,
    pub node: &'a Path,
    pub layout: Layout<'a>,
    pub stdio: Stdio,
    /// A pipe, on which its init tells how it ended.
    pub end: OwnedFd,
    /// The user to become; `None`: it stays the broker's.
    pub user: Option<User>,
    /// How it gets into its group, unless it is born there.
    pub entry: Option<Entry>,
    pub landlock: Option<Rules>,
    pub filters: Option<&'a Filters>,
    pub become_: Become,
    pub watch: Stopwatch,
}

/// What a child does once it is confined.
#[derive(Debug, Clone, Copy)]
pub(super) enum Become {
    Node,
    /// Tries what is forbidden, and says on its stdout how that went.
    Probe(super::probe::Attempt),
}

/// Which system calls a child of this profile may make.
pub(super) fn seccomp_policy(mode: Mode, profile: Profile, connects: bool) -> Policy {
    // npm has its registry's socket in its own namespace, and nowhere else to go.
    let asks = connects && profile != Profile::Install && mode.has_root();
    Policy {
        subprocesses: profile.subprocesses(),
        connect: if asks { Connect::Supervisor } else { Connect::Kernel },
        shares_root: !mode.has_root(),
    }
}

/// Not `/dev/zero`: mapped shared and writable it is memory that RLIMIT_DATA does not count.
const DEVICES: [&str; 1] = ["/dev/null"];
/// Of the host, where a child has no root of its own: what Node loads, and what it reads to find hosts and certificates.
const HOST_LIBRARIES: [&str; 4] = ["/usr/lib", "/usr/lib64", "/lib", "/lib64"];
const HOST_PROGRAMS: [&str; 3] = ["/usr", "/bin", "/sbin"];
const HOST_FILES: [&str; 9] = [
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/ld.so.cache",
    "/proc/self",
    "/dev/urandom",
];
const EGRESS_PORTS: [u16; 2] = [80, 443];

/// What a child may do with files, and with TCP where no namespace and no supervisor stands in between.
pub(super) fn landlock_rules(mode: Mode, spec: &Spec, node: &Path, interpreter: Option<&Path>) -> Rules {
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let mut rules = Rules { devices: paths(&DEVICES), ..Rules::default() };
    let mut writable: Vec<PathBuf> = Vec::new();
    if mode.has_root() {
        // Node alone can be executed, with what loads it: seccomp cannot see a path that is given with Node's descriptor.
        rules.read_only = paths(&["/"]);
        rules.execute = match (spec.profile, interpreter) {
            (Profile::Worker, Some(interpreter)) => vec![PathBuf::from(NODE), interpreter.to_owned()],
            _ => paths(&["/"]),
        };
        writable.push("/tmp".into());
        writable.extend(spec.mounts.iter().filter(|mount| mount.writable).map(|mount| mount.target.clone()));
    } else {
        rules.execute = paths(if spec.profile.subprocesses() { &HOST_PROGRAMS } else { &[] });
        rules.execute.push(node.to_owned());
        rules.execute.extend(interpreter.map(Path::to_owned));
        rules.read_only = paths(&HOST_FILES);
        rules.read_only.extend(paths(&HOST_LIBRARIES));
        rules.read_only.extend(spec.mounts.iter().map(|mount| mount.source.clone()));
        writable.extend(spec.scratch.clone());
        writable.extend(spec.mounts.iter().filter(|mount| mount.writable).map(|mount| mount.source.clone()));
        rules.tcp = Some(Tcp { connect: tcp_ports(&spec.network), bind: false });
    }
    if spec.profile.subprocesses() {
        rules.write_execute = writable;
    } else {
        rules.write = writable;
    }
    // Of the host's, whatever a distribution has.
    rules.optional = paths(&HOST_LIBRARIES);
    rules.optional.extend(paths(&HOST_PROGRAMS));
    rules.optional.extend(paths(&HOST_FILES));
    rules
}

fn tcp_ports(network: &Network) -> Vec<u16> {
    match network {
        Network::Nothing => Vec::new(),
        Network::Egress(policy) => match &policy.egress {
            Egress::None => Vec::new(),
            Egress::Public { allow } => EGRESS_PORTS.into_iter().chain(ports(allow)).collect(),
            Egress::Dedicated { allow, .. } => ports(allow).collect(),
        },
        Network::Registry { port } => vec![*port],
    }
}

/// Landlock knows no addresses.
fn ports(rules: &[Rule]) -> impl Iterator<Item = u16> {
    rules.iter().flat_map(|rule| rule.ports.iter().copied())
}

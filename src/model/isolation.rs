//! How much confinement there is: the modes, the layers, and the report that says which of them work here, and how that is known.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which mechanisms confine a child. Chosen by trying, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Namespaces, a root and a user of its own for each child: the service was started with the privileges that this takes.
    Full,
    /// The same without a user of its own, by an unprivileged user namespace.
    Userns,
    /// Without namespaces: Landlock and seccomp on the host's files, as in a restricted Kubernetes pod.
    Landlock,
    /// Nothing but limits. Only where the operator insists.
    None,
}

impl Mode {
    /// Best first.
    pub const CHOICES: [Self; 3] = [Self::Full, Self::Userns, Self::Landlock];

    /// Whether a child has a root directory, and with it namespaces, of its own.
    pub fn has_root(self) -> bool {
        matches!(self, Self::Full | Self::Userns)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Userns => "userns",
            Self::Landlock => "landlock",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One mechanism, by the name that `isolation.require` knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerName {
    Broker,
    Filesystem,
    User,
    Processes,
    Network,
    Egress,
    Landlock,
    Seccomp,
    Capabilities,
    Rlimits,
    Environment,
    Memory,
    Cpu,
    Pids,
}

impl LayerName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Filesystem => "filesystem",
            Self::User => "user",
            Self::Processes => "processes",
            Self::Network => "network",
            Self::Egress => "egress",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Capabilities => "capabilities",
            Self::Rlimits => "rlimits",
            Self::Environment => "environment",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    /// What its absence means, in plain words.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::Broker => "every start of a worker copies the service's memory, and workers may outlive it",
            Self::Filesystem => "tenants' code sees the host's directory tree; Landlock decides what it can read there",
            Self::User => "workers share one user; Landlock scopes and the process namespace keep them apart",
            Self::Processes => "tenants' code sees, and without Landlock or seccomp can signal, the host's processes",
            Self::Network => {
                "tenants' code is in the host's network: Landlock ports and a NetworkPolicy are all that stops it"
            }
            Self::Egress => {
                "nobody decides about connections: with a network namespace functions reach nothing, without one any address on ports 80 and 443"
            }
            Self::Landlock => "one line of defence less: files, signals and abstract sockets rest on the other layers",
            Self::Seccomp => "tenants' code can make every system call: the kernel's whole surface is open to it",
            Self::Capabilities => "tenants' code keeps privileges of the service's user",
            Self::Rlimits => "a worker's memory, descriptors and files have no limit of their own",
            Self::Environment => "the service's environment and descriptors can reach tenants' code",
            Self::Memory => {
                "RLIMIT_DATA per process is the only limit on memory; a worker with subprocesses can exceed it"
            }
            Self::Cpu => "limits.cpu_millis is not enforced: one worker can take every core until its timeout",
            Self::Pids => {
                "limits.pids_max rests on RLIMIT_NPROC where workers have users of their own, and else on nothing"
            }
        }
    }

    /// What an operator can change.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Broker | Self::Capabilities | Self::Rlimits | Self::Environment => {
                "this should not happen: please report it"
            }
            Self::Filesystem | Self::Processes | Self::Network => {
                "start chatfn as root (it drops to `user`), or allow unprivileged user namespaces (kernel.apparmor_restrict_unprivileged_userns=0); \
                 in Kubernetes use the chart's `hardened` profile"
            }
            Self::User => "start chatfn as root (it drops to `user`)",
            Self::Egress => "it takes a network namespace for each worker (see `network`), and Linux 5.19 or newer",
            Self::Landlock => "use Linux 6.12 or newer (ABI 6) with `landlock` among the kernel's lsm= list",
            Self::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
            Self::Memory | Self::Cpu | Self::Pids => {
                "make the cgroup tree writable for chatfn: systemd `Delegate=yes`, or a container runtime with writable cgroups"
            }
        }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One mechanism, and whether it works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub name: LayerName,
    pub active: bool,
    /// What was tried and what happened.
    pub proof: String,
}

/// What confines children on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub mode: Mode,
    pub layers: Vec<Layer>,
    /// Why each better mode is not the one, with the kernel's own reason.
    pub refused: Vec<(Mode, String)>,
    /// 0: none.
    pub landlock_abi: u32,
    /// Why a running child cannot be shown an app's files here; `None`: it can.
    pub no_attach: Option<String>,
}

impl Report {
    pub fn is_active(&self, name: LayerName) -> bool {
        self.layers.iter().any(|layer| layer.name == name && layer.active)
    }

    /// Whether workers of different apps are kept from each other: by users of their own, by namespaces, or by Landlock's scopes
    /// (ABI 6), without which workers of one user can open each other's memory (isolation.md 0).
    pub fn separates_tenants(&self) -> bool {
        self.is_active(LayerName::User)
            || (self.is_active(LayerName::Filesystem) && self.is_active(LayerName::Processes))
            || (self.is_active(LayerName::Landlock) && self.landlock_abi >= 6)
    }

    /// One line for the log.
    pub fn summary(&self) -> String {
        let names = |active: bool| {
            let of = self.layers.iter().filter(move |layer| layer.active == active);
            of.map(|layer| layer.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        match names(false) {
            missing if missing.is_empty() => format!("mode {}: {}", self.mode, names(true)),
            missing => format!("mode {}: {} – not active: {missing}", self.mode, names(true)),
        }
    }
}

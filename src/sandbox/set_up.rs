//! The broker's first act: finds the best mode that works on this machine, by making it work and proving it.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, getegid, geteuid, getpid};

use super::cgroup::{self, Cgroups};
use super::launch::Launcher;
use super::privileges::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, has_capability};
use super::root::Root;
use super::settings::Settings;
use super::{egress, landlock, mounts, probe};
use crate::model::{Layer, LayerName, Mode, Report};

/// In the order in which they are told.
const LAYERS: [LayerName; 14] = [
    LayerName::Broker,
    LayerName::Filesystem,
    LayerName::User,
    LayerName::Processes,
    LayerName::Network,
    LayerName::Egress,
    LayerName::Landlock,
    LayerName::Seccomp,
    LayerName::Capabilities,
    LayerName::Rlimits,
    LayerName::Environment,
    LayerName::Memory,
    LayerName::Cpu,
    LayerName::Pids,
];

/// # Errors
/// No mode that the settings allow works; with the reasons.
pub(super) fn set_up(settings: Settings) -> Result<(Launcher, Report), String> {
    // First, as a user namespace would take the right to it away.
    let service = Pid::from_raw(settings.service_pid.cast_signed());
    let mut cgroups = Some(Cgroups::open(&settings.name, &[service]).map_err(|err| err.to_string()));
    let choices = settings.mode.map_or_else(|| Mode::CHOICES.to_vec(), |mode| vec![mode]);
    let mut refused = Vec::new();
    for mode in choices {
        let tried = prepare(&settings, mode).and_then(|root| {
            let mut launcher = Launcher::new(settings.clone(), mode, root);
            let (available, missing) = match cgroups.take() {
                Some(Ok(available)) => (Some(available), None),
                Some(Err(reason)) => (None, Some(reason)),
                None => (None, Some("lost while an earlier mode was tried".to_owned())),
            };
            launcher.cgroups = available;
            match probe::prove(&mut launcher) {
                Ok((proven, attached)) => Ok((launcher, (proven, attached), missing)),
                Err(err) => {
                    cgroups = Some(launcher.cgroups.take().ok_or_else(|| missing.unwrap_or_default()));
                    Err(err)
                }
            }
        });
        match tried {
            Ok((launcher, proven, missing)) => return Ok(finish(launcher, proven, missing.as_deref(), refused)),
            Err(err) => refused.push((mode, err.to_string())),
        }
    }
    let reasons: Vec<_> = refused.iter().map(|(mode, reason)| format!("mode {mode}: {reason}")).collect();
    Err(format!("no way to confine children works here – {}", reasons.join("; ")))
}

/// The broker's own namespaces, and the root for its children, where the mode has one.
fn prepare(settings: &Settings, mode: Mode) -> io::Result<Option<Root>> {
    match mode {
        Mode::Full => {
            for (capability, name) in
                [(CAP_SYS_ADMIN, "CAP_SYS_ADMIN"), (CAP_SETUID, "CAP_SETUID"), (CAP_SETGID, "CAP_SETGID")]
            {
                if !has_capability(capability) {
                    return Err(io::Error::other(format!("it takes {name}")));
                }
            }
            unshare(CloneFlags::CLONE_NEWNS).map_err(named("unshare(CLONE_NEWNS)"))?;
        }
        Mode::Userns => {
            // One namespace, one user: npm could not be the service's, and so the service not remove what npm wrote.
            if settings.service.as_ref().is_some_and(|service| service.user != geteuid().as_raw()) {
                return Err(io::Error::other(
                    "it is for a service that is started as its own user, not as root with `user`",
                ));
            }
            enter_user_namespace()?;
        }
        Mode::Landlock => {
            let abi = landlock::abi().map_err(named("landlock_create_ruleset"))?;
            if abi == 0 {
                return Err(io::Error::other("the kernel has no Landlock"));
            }
            return Ok(None);
        }
        Mode::None => return Ok(None),
    }
    mounts::make_private()?;
    Root::stage(&settings.root, &settings.node, &egress::resolver::ADDRESS.ip().to_string()).map(Some)
}

/// All privileges in a namespace of our own, and none outside of it. Its one user is the one we are (user_namespaces(7)).
fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(named("unshare(CLONE_NEWUSER)"))?;
    // While a group map is missing nobody may drop groups; afterwards nobody may again, as that would get around what a group forbids.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// With the layers that are proven by being there.
fn finish(
    mut launcher: Launcher,
    (proven, attached): (Vec<Layer>, Result<(), String>),
    no_cgroups: Option<&str>,
    refused: Vec<(Mode, String)>,
) -> (Launcher, Report) {
    let mut found = proven;
    let mode = launcher.mode;
    for layer in &mut found {
        layer.active &= belongs_to(mode, layer.name);
    }
    let proof = format!("process {}, one thread, apart from the service", getpid());
    found.push(Layer { name: LayerName::Broker, active: true, proof });
    found.push(start_supervisor(&mut launcher));
    found.extend(cgroup_layers(launcher.cgroups.as_ref(), no_cgroups));
    let layers = LAYERS.iter().filter_map(|name| found.iter().find(|layer| layer.name == *name).cloned()).collect();
    let report =
        Report { mode, layers, refused, landlock_abi: landlock::abi().unwrap_or(0), no_attach: attached.err() };
    (launcher, report)
}

/// Whether what a probe could not do was for this layer: a refusal by Landlock is no namespace.
fn belongs_to(mode: Mode, layer: LayerName) -> bool {
    match layer {
        LayerName::Filesystem | LayerName::Processes | LayerName::Network => mode.has_root(),
        LayerName::User => mode == Mode::Full,
        _ => true,
    }
}

fn start_supervisor(launcher: &mut Launcher) -> Layer {
    let name = LayerName::Egress;
    if !launcher.mode.has_root() {
        let proof = "no network namespace to stand in for".to_owned();
        return Layer { name, active: false, proof };
    }
    match launcher.start_supervisor() {
        Ok(pid) => {
            Layer { name, active: true, proof: format!("process {pid} decides about every connection, and makes it") }
        }
        Err(err) => Layer { name, active: false, proof: format!("start its supervisor: {err}") },
    }
}

/// The memory layer is proven by a probe, where there is one to prove.
fn cgroup_layers(cgroups: Option<&Cgroups>, missing: Option<&str>) -> Vec<Layer> {
    let layer = |name, found: Option<&cgroup::Layer>| match found {
        Some(cgroup::Layer::Active(means)) => {
            Layer { name, active: true, proof: format!("a group of its own took a limit: {means}") }
        }
        Some(cgroup::Layer::Missing(reason)) => Layer { name, active: false, proof: reason.clone() },
        None => Layer { name, active: false, proof: missing.unwrap_or("no cgroups").to_owned() },
    };
    let layers = cgroups.map(Cgroups::layers);
    vec![
        layer(LayerName::Memory, layers.map(|layers| &layers.memory)),
        layer(LayerName::Cpu, layers.map(|layers| &layers.cpu)),
        layer(LayerName::Pids, layers.map(|layers| &layers.pids)),
    ]
}

fn named(call: &'static str) -> impl FnOnce(nix::Error) -> io::Error {
    move |err| io::Error::new(io::Error::from(err).kind(), format!("{call}: {err}"))
}

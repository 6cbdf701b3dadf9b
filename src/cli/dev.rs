//! `chatfn dev`: a project that serves while it is written. Start reading at [`serve`].

mod types;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::client::{plain, refused};
use super::local::{Local, Options, show};
use super::{init, project};
use crate::declarations;
use crate::proto;
use crate::proto::invoke_response::Outcome;
use watch::Watch;

/// Run a project in the real sandbox, and reload it on save.
///
/// Saving a file in events/ runs the function of that trigger type with it. Other programs reach the service at the address that is
/// printed. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project
    directory: PathBuf,
    /// Address and port of the service [default: 127.0.0.1:7400, or another port if that is taken]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    options: Options,
}

/// Kept for a look at what the one before did.
const VERSIONS_KEPT: u64 = 3;
const LOG_INTERVAL: Duration = Duration::from_millis(100);
/// Of invocations, in one look.
const LOG_PAGE: u32 = 200;

/// # Errors
/// No service can run here.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let usual = SocketAddr::from(([127, 0, 0, 1], 7400));
    let free = || if TcpListener::bind(usual).is_ok() { usual } else { ([127, 0, 0, 1], 0).into() };
    let listen = args.listen.unwrap_or_else(free);
    args.options.serve(&args.directory, listen, ExitCode::SUCCESS, async |local| serve(local).await)
}

async fn serve(local: &Local) -> anyhow::Result<ExitCode> {
    // Before the first look: what is written meanwhile is not missed.
    let watch = Watch::new(&local.directory);
    say(format_args!(
        "app {} at http://{}; save a file to reload, an event in events/ to run it; Ctrl-C ends\n",
        local.app, local.address
    ));
    let (serving, served) = tokio::sync::watch::channel(None);
    tokio::select! {
        () = reload(local, &watch, &serving) => {}
        () = types::check(local, served) => {}
        () = log(local) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Publishes what changed and runs events that were saved, for ever. What serves goes to `serving`.
async fn reload(local: &Local, watch: &Watch, serving: &tokio::sync::watch::Sender<Option<proto::VersionSpec>>) {
    let (mut served, mut failed) = (None, false);
    let mut running = FuturesUnordered::new();
    let mut events = project::sample_events(&local.directory).unwrap_or_default();
    let mut problem = String::new();
    loop {
        let noticed = Instant::now();
        match local.read() {
            Ok(spec) if served.as_ref() != Some(&spec) => {
                let spec = with_types(local, spec);
                served = Some(spec.clone());
                failed = !publish(local, spec.clone(), noticed).await;
                if !failed {
                    serving.send_replace(Some(spec));
                }
                problem.clear();
            }
            Ok(_) => problem.clear(),
            Err(err) => once(&mut problem, &format!("{err:#}")),
        }
        match project::sample_events(&local.directory) {
            Ok(now) => {
                for (trigger_type, event) in changed(&events, &now) {
                    running.push(trigger(local, trigger_type.to_owned(), event.to_owned()));
                }
                events = now;
            }
            Err(err) => once(&mut problem, &format!("{err:#}")),
        }
        // What runs meanwhile keeps nobody from saving.
        let mut saved = std::pin::pin!(watch.changed());
        let written = loop {
            tokio::select! {
                written = &mut saved => break written,
                Some(()) = running.next() => {}
            }
        };
        if written && failed {
            served = None; // Saved once more, be it the same: perhaps the registry is there again.
        }
    }
}

/// A look that finds the same problem again says nothing.
fn once(problem: &mut String, found: &str) {
    if problem != found {
        say(format_args!("{}\n", plain(found)));
        found.clone_into(problem);
    }
}

/// Keeps the types of the environment's names as they are now, if the project has such a file.
fn with_types(local: &Local, mut spec: proto::VersionSpec) -> proto::VersionSpec {
    let names = spec.environment.keys().map(String::as_str);
    let types = init::types(&local.config, &local.catalogue, names);
    if let Some(present) = spec.files.get_mut(declarations::FILE_NAME)
        && *present != types.as_bytes()
        && std::fs::write(local.directory.join(declarations::FILE_NAME), &types).is_ok()
    {
        *present = types.into();
    }
    spec
}

/// Whether the version serves.
async fn publish(local: &Local, spec: proto::VersionSpec, noticed: Instant) -> bool {
    let published = local.publish(spec, |line| say(format_args!("install  {line}\n")));
    match published.await {
        Ok(version) => {
            let functions: Vec<&str> =
                version.functions.iter().map(|function| function.trigger_type.as_str()).collect();
            let took = noticed.elapsed().as_millis();
            say(format_args!("version {} serves {} ({took} ms)\n", version.number, functions.join(", ")));
            local.forget_versions(version.number, VERSIONS_KEPT).await;
            true
        }
        Err(err) => {
            say(format_args!("not published, the version before goes on:\n{err:#}\n"));
            false
        }
    }
}

/// Events that are new or other than before, by trigger type.
fn changed<'a>(
    before: &BTreeMap<String, String>,
    now: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let other = now.iter().filter(|(trigger_type, event)| before.get(*trigger_type) != Some(event));
    let others: Vec<_> = other.map(|(trigger_type, event)| (trigger_type.as_str(), event.as_str())).collect();
    others.into_iter()
}

/// What comes of it is in the log, as of everybody's invocations.
async fn trigger(local: &Local, trigger_type: String, event: String) {
    let trigger_type = trigger_type.as_str();
    match local.invoke(trigger_type, &event).await {
        Ok(response) => {
            if let Some(Outcome::Skipped(_)) = response.outcome {
                say(format_args!(
                    "events/{0}.json: {0} has no function: write functions/{0}.ts\n",
                    plain(trigger_type)
                ));
            }
        }
        Err(status) => say(format_args!("events/{}.json: {:#}\n", plain(trigger_type), refused(&status))),
    }
}

/// Prints what ran, whoever asked for it, for ever.
async fn log(local: &Local) {
    let began = SystemTime::now();
    let mut printed: VecDeque<String> = VecDeque::new();
    let mut ticks = tokio::time::interval(LOG_INTERVAL);
    loop {
        ticks.tick().await;
        let request =
            proto::ListInvocationsRequest { app_id: local.app.clone(), page_size: LOG_PAGE, ..Default::default() };
        // NOT_FOUND before the first publish.
        let Ok(listed) = local.invocations().list_invocations(request).await else { continue };
        for invocation in listed.into_inner().invocations.iter().rev() {
            let created = invocation.created_at.and_then(|at| SystemTime::try_from(at).ok());
            let is_new = created.is_some_and(|at| at >= began) && !printed.contains(&invocation.invocation_id);
            if !is_new || invocation.finished_at.is_none() {
                continue;
            }
            printed.push_back(invocation.invocation_id.clone());
            if printed.len() > 2 * LOG_PAGE as usize {
                printed.pop_front();
            }
            if let Ok(invocation) = local.invocation(&invocation.invocation_id).await {
                show(&invocation);
            }
        }
    }
}

fn show(invocation: &proto::Invocation) {
    let run = show::millis(invocation.timings.unwrap_or_default().run);
    let attempt = if invocation.attempt > 1 { format!(" attempt {}", invocation.attempt) } else { String::new() };
    let cold = if invocation.cold_start { " (cold start)" } else { "" };
    say(format_args!(
        "{} {}{attempt} {run}{cold}\n{}",
        invocation.trigger_type,
        show::word(invocation),
        show::outcome(invocation, show::BRIEF_BYTES_MAX)
    ));
}

/// With the time of day, in UTC. Whoever closed the pipe reads no more, and that is all right.
fn say(text: impl Display) {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time = now.get(11..19).unwrap_or_default();
    let mut out = io::stdout().lock();
    let _ = write!(out, "{time} {text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_that_are_new_or_other_run() {
        let events = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, event)| ((*name).to_owned(), (*event).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let (before, now) =
            (events(&[("A", "1"), ("B", "1"), ("C", "1")]), events(&[("A", "1"), ("B", "2"), ("D", "1")]));
        assert_eq!(changed(&before, &now).collect::<Vec<_>>(), [("B", "2"), ("D", "1")]);
    }
}

//! `chatfn run`: one function of a project, once, in the real sandbox; no service has to run.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tonic::Code;

use super::client::refused;
use super::local::{Local, Options, show};
use crate::model::Catalogue;
use crate::proto;
use crate::proto::invoke_response::Outcome;

/// Run one function of a project once.
///
/// Exit code 0: it answered, also with a denial, which is an answer. 1: it failed, or the project cannot be published. 2: there is no
/// such function, or no such event.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project
    directory: PathBuf,
    /// Its trigger type
    trigger_type: String,
    /// File with the event as JSON; `-` reads it from stdin [default: events/TRIGGER.json, else the trigger type's sample]
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

const USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;
/// Above what any service takes.
const EVENT_BYTES_MAX: u64 = 64 << 20;

/// # Errors
/// The project cannot be run.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let listen = ([127, 0, 0, 1], 0).into();
    args.options.serve(&args.directory, listen, ExitCode::from(INTERRUPTED), async |local| once(args, local).await)
}

async fn once(args: &Args, local: &Local) -> anyhow::Result<ExitCode> {
    let usage = |problem: String| {
        eprintln!("chatfn: {problem}");
        Ok(ExitCode::from(USAGE))
    };
    let Some(trigger) = local.catalogue.find(&args.trigger_type) else {
        let names: Vec<&str> = local.catalogue.iter().map(|trigger| trigger.trigger_type.as_str()).collect();
        return usage(format!("there is no trigger type {:?}; there are {}", args.trigger_type, names.join(", ")));
    };
    let trigger_type = trigger.trigger_type.as_str();
    let sample = trigger.sample.as_ref().map(ToString::to_string);
    let event = match event(args.event.as_deref(), &local.directory, trigger_type, sample) {
        Ok(event) => event,
        Err(err) => return usage(format!("{err:#}")),
    };
    let mut spec = local.read()?;
    if !trigger.blocking {
        // Once: what fails must not run again with the next command.
        let retry = Some(proto::RetryPolicy { max_attempts: 1, ..Default::default() });
        let own = spec.functions.iter().position(|function| function.trigger_type == trigger_type);
        match own {
            Some(at) => spec.functions[at].retry = retry,
            None if has_function(&spec, trigger_type, &local.catalogue) => spec.functions.push(proto::FunctionSpec {
                trigger_type: trigger_type.to_owned(),
                retry,
                ..Default::default()
            }),
            None => {}
        }
    }
    let version = local.publish(spec, |line| eprintln!("install  {line}")).await?;
    let response = match local.invoke(trigger_type, &event).await {
        Ok(response) => response,
        Err(status) if status.code() == Code::InvalidArgument => return usage(format!("{:#}", refused(&status))),
        Err(status) => return Err(refused(&status)),
    };
    let invocation = match &response.outcome {
        Some(Outcome::Skipped(_)) => {
            return usage(format!("{trigger_type} has no function: write functions/{trigger_type}.ts"));
        }
        Some(Outcome::Accepted(accepted)) => local.attempt(&accepted.event_id).await?,
        Some(Outcome::Result(_) | Outcome::Denied(_) | Outcome::Error(_)) => {
            local.invocation(&response.invocation_id).await?
        }
        None => bail!("the service answered without an outcome"),
    };
    let (verdict, decided_by) = verdict(&response);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&show::json(&invocation, &verdict, &decided_by))?);
    } else {
        let verdict = if verdict.is_empty() { String::new() } else { format!("  {verdict} by {decided_by}") };
        println!("{trigger_type}  {}{verdict}", show::word(&invocation));
        print!("{}", show::outcome(&invocation, usize::MAX));
        println!("  timings  {}", show::timings(&invocation));
    }
    local.forget_versions(version.number, 1).await;
    Ok(if invocation.error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Among the files, under any spelling.
fn has_function(spec: &proto::VersionSpec, trigger_type: &str, catalogue: &Catalogue) -> bool {
    let names =
        spec.files.keys().filter_map(|path| path.strip_prefix("functions/")?.split_once('.').map(|(name, _)| name));
    names.filter_map(|name| catalogue.find(name)).any(|trigger| trigger.trigger_type.as_str() == trigger_type)
}

/// Empty for triggers that nobody waits for.
fn verdict(response: &proto::InvokeResponse) -> (String, String) {
    let short = |name: &str, prefix: &str| match name.trim_start_matches(prefix) {
        "UNSPECIFIED" => String::new(),
        name => name.to_owned(),
    };
    (short(response.verdict().as_str_name(), "VERDICT_"), short(response.decided_by().as_str_name(), "DECIDED_BY_"))
}

fn event(file: Option<&Path>, project: &Path, trigger_type: &str, sample: Option<String>) -> anyhow::Result<String> {
    let Some(file) = file else {
        let path = project.join(format!("events/{trigger_type}.json"));
        return match (File::open(&path), sample) {
            (Ok(file), _) => read(file).with_context(|| format!("read {}", path.display())),
            (Err(err), Some(sample)) if err.kind() == ErrorKind::NotFound => Ok(sample),
            (Err(err), _) => Err(err).with_context(|| format!("read {}: name an event with --event", path.display())),
        };
    };
    if file == Path::new("-") {
        return read(io::stdin().lock()).context("read the event from stdin");
    }
    let name = || format!("read --event {}", file.display());
    read(File::open(file).with_context(name)?).with_context(name)
}

fn read(from: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.take(EVENT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > EVENT_BYTES_MAX {
        bail!("the event is larger than {} MiB", EVENT_BYTES_MAX >> 20);
    }
    Ok(text)
}

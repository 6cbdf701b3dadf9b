//! `chatfn diff`: what one version has that another has not.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use similar::TextDiff;
use tonic::transport::Channel;

use super::client::{Connection, block_on, plain, refused};
use super::output::{DIFFERS, json_line, say};
use super::versions;
use crate::proto;
use crate::proto::version_service_client::VersionServiceClient;

/// Lines around a change.
const CONTEXT: usize = 3;
const INLINE_INITIALIZATION: &str = "init (inline)";

#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)] // `version` is one of the app's here.
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// The older version
    from: u64,
    /// The newer version
    to: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// A version as people compare it: named texts.
struct Side {
    /// Sources, by path.
    sources: BTreeMap<String, String>,
    /// Everything else: `dependencies ms` → `2.1.3`.
    facts: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Changed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
}

#[derive(Serialize)]
struct Shown<'a> {
    app_id: &'a str,
    from: u64,
    to: u64,
    sources: BTreeMap<&'a str, Changed<'a>>,
    facts: BTreeMap<&'a str, Changed<'a>>,
}

/// Exit code 3 if they differ.
///
/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = versions::client(&args.connection).await?;
        let from = side(args, &mut client, args.from).await?;
        let to = side(args, &mut client, args.to).await?;
        let (sources, facts) = (changed(&from.sources, &to.sources), changed(&from.facts, &to.facts));
        let same = sources.is_empty() && facts.is_empty();
        if args.json {
            let shown = Shown { app_id: &args.app, from: args.from, to: args.to, sources, facts };
            say(&json_line(&shown)?)?;
        } else if same {
            say(&format!(
                "versions {} and {} do not differ (values of variables are not compared)",
                args.from, args.to
            ))?;
        } else {
            facts.iter().try_for_each(|(name, change)| say(&plain(&fact(name, change))))?;
            sources.iter().try_for_each(|(path, change)| say(&plain(&hunks(path, change))))?;
        }
        Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
    })
}

async fn side(args: &Args, client: &mut VersionServiceClient<Channel>, version: u64) -> anyhow::Result<Side> {
    let request = proto::GetVersionRequest { app_id: args.app.clone(), version };
    let answer = client.get_version(args.connection.request(request)?).await;
    let built = answer.map_err(|status| refused(&status))?.into_inner().version.context("a version")?;
    let request = proto::GetVersionSpecRequest { app_id: args.app.clone(), version };
    let answer = client.get_version_spec(args.connection.request(request)?).await;
    let spec = answer.map_err(|status| refused(&status))?.into_inner().spec.context("a spec")?;
    let mut facts = facts(&built);
    facts.extend(spec.scripts_allowed.iter().map(|name| (format!("scripts of {name}"), "allowed".to_owned())));
    Ok(Side { facts, sources: sources(spec) })
}

/// Files that are no text are compared by what they are.
fn sources(spec: proto::VersionSpec) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("binary, {} bytes, blake3:{}\n", bytes.len(), blake3::hash(bytes).to_hex()),
    };
    let mut sources: BTreeMap<_, _> = spec.files.iter().map(|(path, bytes)| (path.clone(), text(bytes))).collect();
    for function in spec.functions {
        if let Some(proto::function_spec::Code::Source(source)) = function.code {
            sources.insert(format!("{} (inline)", function.trigger_type), source);
        }
    }
    if !spec.initialization_script.is_empty() {
        sources.insert(INLINE_INITIALIZATION.to_owned(), spec.initialization_script);
    }
    sources
}

fn facts(version: &proto::Version) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for function in &version.functions {
        let mut settings = function.clone();
        settings.code = None;
        let trigger_type = std::mem::take(&mut settings.trigger_type);
        facts.insert(format!("function {trigger_type}"), format!("{settings:?}"));
    }
    facts.extend(version.dependencies.iter().map(|(name, of)| (format!("dependency {name}"), of.clone())));
    facts.extend(version.environment_names.iter().map(|name| (format!("variable {name}"), "set".to_owned())));
    facts.insert("limits".to_owned(), version.limits.as_ref().map(|limits| format!("{limits:?}")).unwrap_or_default());
    facts.insert("node".to_owned(), version.node_version.clone());
    facts
}

fn changed<'a>(from: &'a BTreeMap<String, String>, to: &'a BTreeMap<String, String>) -> BTreeMap<&'a str, Changed<'a>> {
    let names: BTreeSet<_> = from.keys().chain(to.keys()).collect();
    let changes = names.into_iter().filter(|name| from.get(*name) != to.get(*name)).map(|name| {
        let change = Changed { from: from.get(name).map(String::as_str), to: to.get(name).map(String::as_str) };
        (name.as_str(), change)
    });
    changes.collect()
}

fn fact(name: &str, change: &Changed<'_>) -> String {
    match (change.from, change.to) {
        (None, to) => format!("+ {name}: {}", to.unwrap_or_default()),
        (from, None) => format!("- {name}: {}", from.unwrap_or_default()),
        (Some(from), Some(to)) => format!("~ {name}: {from} → {to}"),
    }
}

/// As `diff -u` prints them.
fn hunks(path: &str, change: &Changed<'_>) -> String {
    let name = |side: Option<&str>| side.map_or("/dev/null", |_| path).to_owned();
    let (from, to) = (change.from.unwrap_or_default(), change.to.unwrap_or_default());
    let diff = TextDiff::from_lines(from, to);
    let unified = diff.unified_diff().context_radius(CONTEXT).header(&name(change.from), &name(change.to)).to_string();
    unified.trim_end().to_owned()
}

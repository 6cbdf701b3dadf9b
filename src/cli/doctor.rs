//! `chatfn doctor`: what confines tenants' code on this machine, how that is known, and what to change.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::config::{Config, parse_override};
use crate::host::{self, Host};
use crate::model::Report;
use crate::sandbox::Sandbox;

/// Exit code 0: the service would start here and keep apps apart. 1: it would not, and why.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Configuration file [default: chatfn.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting of the configuration, for example isolation.mode=landlock; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// # Errors
/// Nothing can be found out: the configuration is wrong, Node is missing, or no mode works at all.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let overrides = args.overrides.iter().map(|text| parse_override(text)).collect::<Result<Vec<_>, _>>()?;
    let mut config = Config::load(args.config.as_deref(), &overrides)?;
    let data = tempfile::tempdir().context("make a temporary directory")?;
    config.data_dir = data.path().join("data");
    config.user = None; // Of no consequence to what confines children, and it could not remove what is made here for the trial.
    let host = Host::prepare(&config)?;
    let sandbox = Sandbox::start(host.sandbox_settings(&config)).context("start the sandbox broker")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = runtime.block_on(host::check_node(&sandbox))?;
    let report = sandbox.report();
    let refusal = host::check_isolation(&config, report).err().map(|err| err.to_string());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(report, &node, refusal.as_deref()))?);
    } else {
        print(report, &node, refusal.as_deref());
    }
    Ok(if refusal.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_json(report: &Report, node: &str, refusal: Option<&str>) -> serde_json::Value {
    let layers = report.layers.iter().map(|layer| {
        json!({
            "name": layer.name.as_str(),
            "active": layer.active,
            "proof": layer.proof,
            "consequence": (!layer.active).then(|| layer.name.consequence()),
            "advice": (!layer.active).then(|| layer.name.advice()),
        })
    });
    let refused = report.refused.iter().map(|(mode, reason)| json!({ "mode": mode.as_str(), "reason": reason }));
    json!({
        "mode": report.mode.as_str(),
        "node": node,
        "separates_tenants": report.separates_tenants(),
        "would_start": refusal.is_none(),
        "refusal": refusal,
        "layers": layers.collect::<Vec<_>>(),
        "modes_refused": refused.collect::<Vec<_>>(),
    })
}

fn print(report: &Report, node: &str, refusal: Option<&str>) {
    println!("Node {node} runs in its sandbox; mode {}.\n", report.mode);
    for (index, layer) in report.layers.iter().enumerate() {
        let mark = if layer.active { "active" } else { "MISSING" };
        // Without cgroups three layers are missing for one reason, and that is long.
        let same = report.layers[..index].iter().find(|earlier| earlier.proof == layer.proof);
        let proof = same.map_or_else(|| layer.proof.clone(), |earlier| format!("as {}", earlier.name.as_str()));
        println!("{:>14}  {mark:8} {proof}", layer.name.as_str());
        if !layer.active {
            println!("{:>14}           means: {}", "", layer.name.consequence());
            println!("{:>14}           to change it: {}", "", layer.name.advice());
        }
    }
    for (mode, reason) in &report.refused {
        println!("\nMode {mode} does not work here: {reason}");
    }
    match refusal {
        None => println!("\nApps are kept apart, and nothing that is required is missing."),
        Some(refusal) => println!("\nThe service would not start: {refusal}"),
    }
}

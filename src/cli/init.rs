//! `chatfn init`: a project that runs at once.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;

use super::local;
use crate::config::{Config, parse_override};
use crate::declarations;
use crate::model::Catalogue;

/// Write a project with two functions, sample events, types and a README
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory; made if it is not there
    directory: PathBuf,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
    /// Configuration file of the service, for its own trigger types and SDK [default: chatfn.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting of the configuration; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

const FILES: [(&str, &str); 6] = [
    ("functions/UserAttemptedStartSession.ts", include_str!("init/project/functions/UserAttemptedStartSession.ts")),
    ("functions/UserSentMessage.ts", include_str!("init/project/functions/UserSentMessage.ts")),
    ("init.ts", include_str!("init/project/init.ts")),
    ("tsconfig.json", include_str!("init/project/tsconfig.json")),
    (".gitignore", include_str!("init/project/gitignore")),
    ("README.md", include_str!("init/project/README.md")),
];
const TYPESCRIPT: &str = "6.0.3";
const NODE_TYPES: &str = "^20";

/// # Errors
/// A file is there already, or one cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let overrides = args.overrides.iter().map(|text| parse_override(text)).collect::<Result<Vec<_>, _>>()?;
    let config = Config::load(args.config.as_deref(), &overrides)?;
    let files = project(&args.directory, &config)?;
    let present: Vec<&str> = files
        .iter()
        .filter(|(name, _)| args.directory.join(name).symlink_metadata().is_ok())
        .map(|(name, _)| name.as_str())
        .collect();
    if !present.is_empty() && !args.force {
        let directory = args.directory.display();
        bail!("{directory} has {} already: name another directory, or use --force to overwrite", present.join(", "));
    }
    for (name, content) in &files {
        write(&args.directory.join(name), content)?;
    }
    let directory = args.directory.display();
    println!("Wrote {} files into {directory}. Next:\n", files.len());
    println!("  chatfn run {directory} UserAttemptedStartSession   # runs it once, with its sample event");
    println!("  chatfn dev {directory}                             # reloads on save");
    println!("  cd {directory} && npm install && npm run check     # types, as editors see them");
    Ok(())
}

fn project(directory: &Path, config: &Config) -> anyhow::Result<Vec<(String, String)>> {
    let catalogue = Catalogue::new(&config.trigger_types)?;
    let mut files: Vec<_> = FILES.map(|(name, content)| (name.to_owned(), content.to_owned())).to_vec();
    files.push(("package.json".to_owned(), package(directory, config)?));
    files.push((declarations::FILE_NAME.to_owned(), types(config, &catalogue, [])));
    for trigger in catalogue.iter() {
        if let Some(sample) = &trigger.sample {
            let event = serde_json::to_string_pretty(sample)? + "\n";
            files.push((format!("events/{}.json", trigger.trigger_type), event));
        }
    }
    Ok(files)
}

/// Ambient types for this service's trigger types and SDK.
pub(super) fn types<'a>(
    config: &Config,
    catalogue: &Catalogue,
    environment: impl IntoIterator<Item = &'a str>,
) -> String {
    declarations::declarations(catalogue, declarations::Sdk::of(&config.sdk).as_ref(), environment)
}

fn package(directory: &Path, config: &Config) -> anyhow::Result<String> {
    let package = json!({
        "name": local::app_id(directory).to_lowercase(),
        "private": true,
        "scripts": { "check": "tsc" },
        "dependencies": config.default_dependencies,
        "devDependencies": { "@types/node": NODE_TYPES, "typescript": TYPESCRIPT },
    });
    Ok(serde_json::to_string_pretty(&package)? + "\n")
}

/// A link in the file's place is replaced, not followed: it may lead anywhere.
fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let write = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::remove_file(path) {
            Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        fs::write(path, content)
    };
    write().with_context(|| format!("write {}", path.display()))
}

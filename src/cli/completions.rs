//! `chatfn completions`: what a shell needs to complete our commands.

use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use super::Cli;
use super::output::say;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Known,
}

/// Those that we try out.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

/// # Errors
/// It cannot be printed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    // Generators offer hidden commands too.
    let visible =
        Cli::command().get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect::<Vec<_>>();
    let mut command = Command::new("chatfn").version(env!("CARGO_PKG_VERSION")).propagate_version(true);
    command = command.subcommands(visible);
    let mut script = Vec::new();
    generate(shell, &mut command, "chatfn", &mut script);
    say(String::from_utf8(script)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

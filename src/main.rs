//! Arguments → one command.

use std::process::ExitCode;

use chatfn::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    Cli::parse().run()
}

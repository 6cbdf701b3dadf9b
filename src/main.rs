//! Arguments → one command.

use std::process::ExitCode;

use chatfn::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    chatfn::tls::install_provider();
    Cli::parse().run()
}

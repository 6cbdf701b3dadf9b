//! Arguments → configuration → one command.

use std::process::ExitCode;

use chatfn::cli::{Cli, Command, bench, demo, serve};
use clap::Parser;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::SandboxBroker => chatfn::sandbox::serve_broker().map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("chatfn: {err:#}");
            ExitCode::FAILURE
        }
    }
}

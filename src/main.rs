//! Arguments → configuration → one command.

use std::process::ExitCode;

use chatfn::cli::{Cli, Command, bench, credentials, demo, dev, doctor, events, init, run, serve};
use clap::Parser;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Run(args) => return ended(run::run(&args)),
        Command::Dev(args) => return ended(dev::run(&args)),
        Command::Demo(args) => demo::run(&args),
        Command::Doctor(args) => return ended(doctor::run(&args)),
        Command::Events(args) => return ended(events::run(&args)),
        Command::Credentials(args) => return ended(credentials::run(&args)),
        Command::Bench(args) => bench::run(&args),
        Command::SandboxBroker => chatfn::sandbox::serve_broker().map_err(anyhow::Error::from),
    };
    ended(result.map(|()| ExitCode::SUCCESS))
}

fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|err| {
        eprintln!("chatfn: {err:#}");
        ExitCode::FAILURE
    })
}

//! The command line: one file per command, named as the user types it.

pub mod bench;
mod client;
pub mod demo;
pub mod doctor;
pub mod events;
pub mod project;
pub mod serve;

use clap::{Parser, Subcommand};

/// The self-hosted runtime for chat functions.
#[derive(Debug, Parser)]
#[command(name = "chatfn", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service.
    Serve(serve::Args),
    /// Publish an example app into a service of its own, invoke its functions, and show what happened.
    Demo(demo::Args),
    /// Tell what confines tenants' code on this machine, and prove it.
    Doctor(doctor::Args),
    /// Show queued events of a running service; list, redrive and purge dead letters.
    Events(events::Args),
    /// Load a running service at a fixed rate and print latencies.
    Bench(bench::Args),
    /// The process that starts and ends workers. Started by the service itself.
    #[command(hide = true)]
    SandboxBroker,
}

//! The command line: one file per command, named as the user types it. What they share: [`client`] (a service and the way to it),
//! [`profile`], [`project`] (a directory to publish), [`output`] (lines, tables, JSON, exit codes), [`show`] (as people read it),
//! [`json`] (as scripts do).

mod activate;
mod apps;
mod audit;
mod backup;
mod bench;
mod client;
mod completions;
mod configured;
mod credentials;
mod demo;
mod dev;
mod diff;
mod doctor;
mod env;
mod environment;
mod events;
mod init;
mod invocations;
mod invoke;
mod json;
mod keys;
mod local;
mod logs;
mod migrate;
mod output;
mod profile;
mod progress;
mod project;
mod publish;
mod replay;
mod restore;
mod rollback;
mod run;
mod serve;
mod show;
mod test;
mod tls;
mod trial;
mod versions;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The self-hosted runtime for chat functions.
#[derive(Debug, Parser)]
#[command(name = "chatfn", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
enum Command {
    /// Run the service.
    Serve(serve::Args),
    /// Write a project that runs at once.
    Init(init::Args),
    /// Run one function of a project once, in a sandbox of its own; no service has to run.
    Run(run::Args),
    /// Run a project in a sandbox of its own and reload it on save; no service has to run.
    Dev(dev::Args),
    /// Publish an example app into a service of its own, invoke its functions, and show what happened.
    Demo(demo::Args),
    /// Tell what confines tenants' code on this machine, and prove it.
    Doctor(doctor::Args),
    /// Publish a directory as a version of an app.
    Publish(publish::Args),
    /// List an app's versions, or show one in full.
    Versions(versions::Args),
    /// Make a version serve.
    Activate(activate::Args),
    /// Go back to a version before the active one.
    Rollback(rollback::Args),
    /// Show what differs between two versions of an app.
    Diff(diff::Args),
    /// Set, remove and list an app's environment variables.
    Env(env::Args),
    /// Run a draft of a function once against the active version's runtime.
    Test(test::Args),
    /// Run recorded invocations against another version, and show what comes out otherwise.
    Replay(replay::Args),
    /// Report an event, and show what its function says.
    Invoke(invoke::Args),
    /// Show what functions log; follow it with -f.
    Logs(logs::Args),
    /// List what ran, or show one invocation in full.
    Invocations(invocations::Args),
    /// Show queued events of a running service; list, redrive and purge dead letters.
    Events(events::Args),
    /// List apps, show or delete one.
    Apps(apps::Args),
    /// Create, list and revoke credentials: who may act for an app.
    Credentials(credentials::Args),
    /// List who changed what: publishes, activations, credentials, variables.
    Audit(audit::Args),
    /// Make keys that secrets are encrypted with, and move to the current one.
    Keys(keys::Args),
    /// Bring the database up to date, before services of a new version start.
    Migrate(migrate::Args),
    /// Back a service on SQLite up while it runs: its database and what its versions run from.
    Backup(backup::Args),
    /// Restore a backup into an empty data directory.
    Restore(restore::Args),
    /// Load a running service at a fixed rate and print latencies.
    Bench(bench::Args),
    /// Print a completion script: `source <(chatfn completions bash)`
    Completions(completions::Args),
    /// The process that starts and ends workers. Started by the service itself.
    #[command(hide = true)]
    SandboxBroker,
}

impl Cli {
    /// Runs the command; says on stderr what went wrong.
    #[must_use]
    pub fn run(self) -> ExitCode {
        output::ended(self.command.run())
    }
}

impl Command {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let done = |()| ExitCode::SUCCESS;
        match self {
            Self::Serve(args) => serve::run(args).map(done),
            Self::Init(args) => init::run(args).map(done),
            Self::Run(args) => run::run(args),
            Self::Dev(args) => dev::run(args),
            Self::Demo(args) => demo::run(args).map(done),
            Self::Doctor(args) => doctor::run(args),
            Self::Publish(args) => publish::run(args),
            Self::Versions(args) => versions::run(args),
            Self::Activate(args) => activate::run(args),
            Self::Rollback(args) => rollback::run(args),
            Self::Diff(args) => diff::run(args),
            Self::Env(args) => env::run(args),
            Self::Test(args) => test::run(args),
            Self::Replay(args) => replay::run(args),
            Self::Invoke(args) => invoke::run(args),
            Self::Logs(args) => logs::run(args),
            Self::Invocations(args) => invocations::run(args),
            Self::Events(args) => events::run(args),
            Self::Apps(args) => apps::run(args),
            Self::Credentials(args) => credentials::run(args),
            Self::Audit(args) => audit::run(args),
            Self::Keys(args) => keys::run(args),
            Self::Migrate(args) => migrate::run(args),
            Self::Backup(args) => backup::run(args),
            Self::Restore(args) => restore::run(args),
            Self::Bench(args) => bench::run(args).map(done),
            Self::Completions(args) => completions::run(args),
            Self::SandboxBroker => crate::sandbox::serve_broker().map(done).map_err(anyhow::Error::from),
        }
    }
}

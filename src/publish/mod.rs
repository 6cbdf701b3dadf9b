//! From a request's sources to a version.
//!
//! The pure front half: [`Project::check`] refuses what a request says wrongly; [`transpile()`] makes its sources loadable by
//! Node 20. Everything that comes in is hostile: it is bounded, and nothing of it may panic. The back half, [`Publisher`], installs,
//! verifies, stores and activates. Start reading at `publisher.rs`.

mod analysis;
mod changes;
mod compile;
mod diagnostics;
mod environment;
mod error;
mod functions;
mod layer;
mod link;
mod lockfile;
mod modules;
mod npm;
mod package;
mod prescan;
mod progress;
mod project;
mod publisher;
mod refusals;
mod registry;
mod resolve;
mod sources;
#[cfg(test)]
mod tests;
mod transpile;
mod turns;
mod typecheck;
mod types;

pub use changes::{Changes, Edit};
pub use diagnostics::Diagnostic;
pub use error::InvalidSpec;
pub use functions::{BatchSpec, Code, FailurePolicySpec, FunctionDecl, RetrySpec};
pub use layer::Installer;
pub use npm::{InstallError, InstallLimits, Npm};
pub use package::PackageJson;
pub use progress::Step;
pub use project::{Project, ProjectSpec};
pub use publisher::{
    Content, Draft, Error, Publisher, Rehearsed, ReplayRequest, ReplaySummary, Request, Settings, Verification,
};
pub use registry::{Limits as RegistryLimits, Proxy, Registries};
pub use sources::SourceLimits;
pub use transpile::{Built, ModuleKind, Unit, transpile};
pub use typecheck::{Error as TypeCheckError, Report as TypeReport, TypeCheck, TypeDiagnostic};

//! Why a request's sources are refused: always the caller's mistake.

use super::diagnostics::Diagnostic;
use crate::model::LimitsError;

/// What a publish request says wrongly. Untrusted names are shortened before they get in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("file {path:?}: {problem}")]
    Path { path: String, problem: &'static str },
    #[error("file {path:?}: {problem}")]
    UnsupportedFile { path: String, problem: &'static str },
    #[error("{what} is too large: {actual}, at most {limit} allowed")]
    TooLarge { what: String, actual: u64, limit: u64 },
    #[error("{place}: {name:?} is not a trigger type: use one of {known}{hint}")]
    UnknownTriggerType { place: String, name: String, known: String, hint: &'static str },
    #[error("trigger type {trigger_type} has two functions, {first} and {second}: keep one")]
    DuplicateFunction { trigger_type: String, first: String, second: String },
    #[error("function {trigger_type}: {problem}")]
    EntryNotFound { trigger_type: String, problem: String },
    #[error("function {trigger_type}: {problem}")]
    Function { trigger_type: String, problem: String },
    #[error(
        "there is no function: add functions/<TriggerType>.ts (or .js) to the files, or a function with inline source"
    )]
    NoFunctions,
    #[error("initialization script: {0}")]
    Initialization(String),
    #[error("dependency {name:?}: {problem}")]
    Dependency { name: String, problem: String },
    #[error("package.json: {0}")]
    PackageJson(String),
    #[error("package-lock.json: {0}")]
    Lockfile(String),
    #[error(
        "environment variable {name:?} is not allowed: it would change how the runtime itself works; use another name"
    )]
    ForbiddenVariable { name: String },
    #[error("environment variable {name:?}: {problem}")]
    Environment { name: String, problem: String },
    #[error(transparent)]
    Limit(#[from] LimitsError),
    #[error("{first} and {second} both become {emitted}: rename one of them")]
    DuplicateModule { first: String, second: String, emitted: String },
    #[error("{}", joined(.diagnostics))]
    Syntax { diagnostics: Vec<Diagnostic> },
    #[error("the sources could not be compiled: {0}")]
    Compiler(String),
}

impl InvalidSpec {
    /// Stable: clients branch on it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Path { .. } => "INVALID_PATH",
            Self::UnsupportedFile { .. } => "UNSUPPORTED_FILE",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::UnknownTriggerType { .. } => "UNKNOWN_TRIGGER_TYPE",
            Self::DuplicateFunction { .. } => "DUPLICATE_FUNCTION",
            Self::EntryNotFound { .. } => "ENTRY_NOT_FOUND",
            Self::Function { .. } => "INVALID_FUNCTION",
            Self::NoFunctions => "NO_FUNCTIONS",
            Self::Initialization(_) => "INVALID_INITIALIZATION_SCRIPT",
            Self::Dependency { .. } => "INVALID_DEPENDENCY",
            Self::PackageJson(_) => "INVALID_PACKAGE_JSON",
            Self::Lockfile(_) => "INVALID_LOCKFILE",
            Self::ForbiddenVariable { .. } => "FORBIDDEN_VARIABLE",
            Self::Environment { .. } => "INVALID_ENVIRONMENT",
            Self::Limit(_) => "INVALID_LIMIT",
            Self::DuplicateModule { .. } => "DUPLICATE_MODULE",
            Self::Syntax { diagnostics } => diagnostics.first().map_or("SYNTAX_ERROR", |first| first.code),
            Self::Compiler(_) => "COMPILER_FAILED",
        }
    }
}

fn joined(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A piece of untrusted text that fits into a message.
pub(super) fn short(text: &str) -> String {
    let mut short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

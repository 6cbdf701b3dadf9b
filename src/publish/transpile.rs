//! A checked project to a set of files that Node 20 loads.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::compile::compile;
use super::diagnostics::Diagnostic;
use super::error::InvalidSpec;
use super::link::link;
use super::modules::{Module, Role};
use super::project::Project;
use super::resolve::Names;
use super::sources::{is_code, is_declaration};

/// How the shim loads a file (node-shim/PROTOCOL.md, "Module kinds").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    Cjs,
    CjsAsync,
    Esm,
}

impl ModuleKind {
    /// As the worker protocol spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cjs => "cjs",
            Self::CjsAsync => "cjs-async",
            Self::Esm => "esm",
        }
    }
}

/// One source that is code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub source: String,
    pub emitted: String,
    pub kind: ModuleKind,
    /// Where lines moved: from the emitted file to the source. `None`: each line is where it was.
    pub map: Option<String>,
    /// Columns that what we put before the first line takes.
    pub prefix: u32,
}

/// What is loaded in place of the sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// By emitted path.
    pub files: BTreeMap<String, Bytes>,
    /// By source path.
    pub units: Vec<Unit>,
}

impl Built {
    /// What became of a source, e.g. of a function's entry.
    pub fn unit(&self, source: &str) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.source == source)
    }
}

const PACKAGE: &str = "package.json";

/// Errors told of all files.
const ERRORS_MAX: usize = 20;

/// For all files; looked at between them. Hostile code of the size allowed may take the parser minutes.
const TIME_MAX: Duration = Duration::from_secs(30);

/// What the deepest source that passes the pre-scan needs, with a margin; only touched pages are ever backed by memory.
pub(super) const STACK_BYTES: usize = 256 << 20;

/// Strips types and rewrites modules. Blocks for as long as that takes (a few milliseconds for a usual project): call it
/// where blocking is allowed.
///
/// # Errors
/// [`InvalidSpec::Syntax`] with all that is wrong with the sources; two sources that become the same file.
pub fn transpile(project: &Project) -> Result<Built, InvalidSpec> {
    // Its own thread, for the stack.
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("transpile".to_owned()).stack_size(STACK_BYTES);
        let running = worker
            .spawn_scoped(scope, || build(project))
            .map_err(|err| InvalidSpec::Compiler(format!("no thread: {err}")))?;
        running.join().unwrap_or_else(|panic| Err(InvalidSpec::Compiler(panic_message(&*panic))))
    })
}

fn build(project: &Project) -> Result<Built, InvalidSpec> {
    let mut modules = compile_all(project)?;
    let mut names = Names::default();
    let mut sources_of: BTreeMap<String, String> = BTreeMap::new();
    let mut copied = BTreeMap::new();
    let emitted = modules.iter().map(|module| (module.script.path.clone(), module.emitted.clone()));
    let others = project.files.iter().filter(|(path, _)| is_copied(path));
    for (path, content) in others.clone() {
        copied.insert(path.clone(), content.clone());
    }
    for (path, emitted) in emitted.chain(others.map(|(path, _)| (path.clone(), path.clone()))) {
        if let Some(first) = sources_of.insert(emitted.clone(), path.clone()) {
            return Err(InvalidSpec::DuplicateModule { first, second: path, emitted });
        }
        names.0.insert(path, emitted);
    }
    if project.files.contains_key(PACKAGE) {
        names.0.insert(PACKAGE.to_owned(), PACKAGE.to_owned());
    }
    copied.insert(PACKAGE.to_owned(), project.package.emitted().into());
    finish(link(&mut modules, &names), ())?;
    emit_all(modules, &names, copied)
}

fn is_copied(path: &str) -> bool {
    !is_code(path) && !is_declaration(path) && !matches!(path, PACKAGE | "package-lock.json")
}

fn compile_all(project: &Project) -> Result<Vec<Module>, InvalidSpec> {
    let mut modules = Vec::new();
    let mut diagnostics = Vec::new();
    let started = Instant::now();
    for (path, content) in project.files.iter().filter(|(path, _)| is_code(path)) {
        if started.elapsed() > TIME_MAX {
            return Err(InvalidSpec::Compiler("they take longer than 30 s to read: make them simpler".to_owned()));
        }
        let role = Role {
            function: project.functions.iter().any(|function| function.entry == *path),
            init: project.init.as_deref() == Some(path),
        };
        // swc asserts a lot about what it parses; a bug in it is the caller's syntax error, not our crash.
        let compiled =
            catch_unwind(AssertUnwindSafe(|| compile(path, content).and_then(|script| Module::new(script, role))));
        match compiled {
            Ok(Ok(module)) => modules.push(module),
            Ok(Err(errors)) => diagnostics.extend(errors),
            Err(_) => diagnostics.push(Diagnostic::at(path, "", 1, 1, "The compiler could not read this file")),
        }
    }
    finish(diagnostics, modules)
}

fn emit_all(modules: Vec<Module>, names: &Names, mut files: BTreeMap<String, Bytes>) -> Result<Built, InvalidSpec> {
    let mut units = Vec::new();
    let mut diagnostics = Vec::new();
    for module in modules {
        match module.emit(names) {
            Ok(text) => {
                let prefix = module.prefix().len() as u32; // ASCII.
                files.insert(module.emitted.clone(), Bytes::from(text));
                let Module { script, kind, emitted, .. } = module;
                units.push(Unit { source: script.path, emitted, kind, map: script.map, prefix });
            }
            Err(errors) => diagnostics.extend(errors),
        }
    }
    finish(diagnostics, Built { files, units })
}

fn finish<T>(mut diagnostics: Vec<Diagnostic>, done: T) -> Result<T, InvalidSpec> {
    diagnostics.truncate(ERRORS_MAX);
    if diagnostics.is_empty() { Ok(done) } else { Err(InvalidSpec::Syntax { diagnostics }) }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}

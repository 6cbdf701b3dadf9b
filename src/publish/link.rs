//! Follows the names that files import and export to where they come from. What is only a type there is left out, as tsc does;
//! what nobody has is an error with its place, not one of Node's at load.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::analysis::BindingKind;
use super::diagnostics::Diagnostic;
use super::modules::Module;
use super::resolve::{Names, is_relative};
use super::sources::is_typescript;
use super::transpile::ModuleKind;
use super::types::Types;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Value,
    Type,
    Missing,
    /// CommonJS, a package, data: only loading it would tell.
    Unknown,
}

/// Names followed in one project, each through one file: a hostile one could ask for millions.
const STEPS_MAX: usize = 1_000_000;

struct Linker<'a> {
    modules: &'a [Module],
    names: &'a Names,
    by_emitted: BTreeMap<&'a str, usize>,
    types: Vec<OnceCell<Types>>,
    /// By module: exported name → index of its export; local name → import and binding.
    exports: Vec<HashMap<&'a str, usize>>,
    locals: Vec<HashMap<&'a str, (usize, usize)>>,
    steps_left: Cell<usize>,
}

/// A place in a script and what is wrong there.
type Problem = (usize, String);

/// What is to be left out of one file, or is wrong with it.
#[derive(Default)]
struct Found {
    exports: BTreeSet<usize>,
    imports: Vec<(usize, usize)>,
    problems: Vec<Problem>,
}

/// Leaves types out; returns what is imported or exported and is nowhere.
pub(super) fn link(modules: &mut [Module], names: &Names) -> Vec<Diagnostic> {
    let linker = Linker::new(modules, names);
    let found: Vec<Found> = (0..modules.len()).map(|at| linker.check(at)).collect();
    let mut diagnostics = Vec::new();
    for (module, found) in modules.iter_mut().zip(found) {
        diagnostics
            .extend(module.script.diagnose(found.problems).into_iter().map(|one| one.with_code("EXPORT_NOT_FOUND")));
        if !found.exports.is_empty() || !found.imports.is_empty() {
            module.elide_types(&found.exports, &found.imports);
        }
    }
    diagnostics
}

impl<'a> Linker<'a> {
    fn new(modules: &'a [Module], names: &'a Names) -> Self {
        let exports = |module: &'a Module| {
            let exports = module.script.facts.exports.iter().enumerate();
            exports.map(|(at, export)| (export.exported.as_str(), at)).collect()
        };
        let locals = |module: &'a Module| {
            let imports = module.script.facts.imports.iter().enumerate();
            let bindings = imports.flat_map(|(at, import)| {
                import.bindings.iter().enumerate().map(move |(nth, binding)| (binding.local.as_str(), (at, nth)))
            });
            bindings.collect()
        };
        Self {
            modules,
            names,
            by_emitted: modules.iter().enumerate().map(|(at, module)| (module.emitted.as_str(), at)).collect(),
            types: modules.iter().map(|_| OnceCell::new()).collect(),
            exports: modules.iter().map(exports).collect(),
            locals: modules.iter().map(locals).collect(),
            steps_left: Cell::new(STEPS_MAX),
        }
    }

    fn check(&self, at: usize) -> Found {
        let module = &self.modules[at];
        let typescript = is_typescript(&module.script.path);
        let mut found = Found::default();
        for (index, export) in module.script.facts.exports.iter().enumerate() {
            match self.export(at, index, &mut BTreeSet::new()) {
                Meaning::Type if typescript => drop(found.exports.insert(index)),
                Meaning::Value | Meaning::Unknown => {}
                missing => {
                    found.problems.push((export.range.start, problem(&export.name, export.source.as_deref(), missing)));
                }
            }
        }
        for (index, import) in module.script.facts.imports.iter().enumerate() {
            for (nth, binding) in import.bindings.iter().enumerate() {
                // What TypeScript does not use is left out already.
                if binding.kind != BindingKind::Named || (typescript && !binding.used) {
                    continue;
                }
                match self.of_file(at, &import.source, &binding.imported, &mut BTreeSet::new()) {
                    Meaning::Type if typescript => found.imports.push((index, nth)),
                    Meaning::Value | Meaning::Unknown => {}
                    missing => {
                        let problem = problem(&binding.imported, Some(&import.source), missing);
                        found.problems.push((binding.range.start, problem));
                    }
                }
            }
        }
        found
    }

    /// Of one name in an `export { … }`.
    fn export(&self, at: usize, index: usize, seen: &mut BTreeSet<(usize, String)>) -> Meaning {
        let module = &self.modules[at];
        let export = &module.script.facts.exports[index];
        if let Some(source) = &export.source {
            return self.of_file(at, source, &export.name, seen);
        }
        if !export.bound {
            let declared = || self.types(at).declared.contains(&export.name);
            let is_type = is_typescript(&module.script.path) && declared();
            return if is_type { Meaning::Type } else { Meaning::Missing };
        }
        let imported = self.locals[at].get(export.name.as_str()).map(|(import, nth)| {
            let import = &module.script.facts.imports[*import];
            (import, &import.bindings[*nth])
        });
        match imported {
            Some((import, binding)) if binding.kind == BindingKind::Named => {
                self.of_file(at, &import.source, &binding.imported, seen)
            }
            _ => Meaning::Value,
        }
    }

    /// What `from` gets by this name from a file that it names.
    fn of_file(&self, from: usize, source: &str, name: &str, seen: &mut BTreeSet<(usize, String)>) -> Meaning {
        let path = &self.modules[from].script.path;
        let target = Some(source).filter(|source| is_relative(source));
        let target = target.and_then(|source| self.names.resolve(path, source));
        match target.and_then(|emitted| self.by_emitted.get(emitted)) {
            Some(target) => self.exported(*target, name, seen),
            None => Meaning::Unknown, // A file that is not there is told elsewhere.
        }
    }

    fn exported(&self, at: usize, name: &str, seen: &mut BTreeSet<(usize, String)>) -> Meaning {
        let steps = self.steps_left.get();
        if name == "default" || steps == 0 || !seen.insert((at, name.to_owned())) {
            return Meaning::Unknown;
        }
        self.steps_left.set(steps - 1);
        let module = &self.modules[at];
        let facts = &module.script.facts;
        if let Some(index) = self.exports[at].get(name) {
            return self.export(at, *index, seen);
        }
        if facts.exported.contains(name) || module.adds_export(name) {
            return Meaning::Value;
        }
        if is_typescript(&module.script.path) && self.types(at).exported.contains(name) {
            return Meaning::Type;
        }
        if module.kind != ModuleKind::Esm {
            return Meaning::Unknown;
        }
        let stars = facts.stars.iter().map(|source| self.of_file(at, source, name, seen));
        stars.into_iter().find(|meaning| *meaning != Meaning::Missing).unwrap_or(Meaning::Missing)
    }

    fn types(&self, at: usize) -> &Types {
        self.types[at].get_or_init(|| Types::of(&self.modules[at].script.original))
    }
}

fn problem(name: &str, source: Option<&str>, meaning: Meaning) -> String {
    let (name, source) = (super::error::short(name), source.map(super::error::short));
    match (source, meaning) {
        (Some(source), Meaning::Type) => format!("{name:?} is only a type in {source:?}: JavaScript has no types"),
        (Some(source), _) => format!("{source:?} exports nothing named {name:?}"),
        (None, _) => format!("There is nothing named {name:?} here to export"),
    }
}

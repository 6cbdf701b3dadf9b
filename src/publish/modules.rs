//! Decides how Node shall load a file, and patches its text for that: byte edits that keep every line where it is.

use std::collections::BTreeSet;
use std::ops::Range;

use super::analysis::{BindingKind, Form, Import, Specifier};
use super::compile::Script;
use super::diagnostics::Diagnostic;
use super::resolve::{Names, is_relative, relative};
use super::sources::{extension, is_typescript};
use super::transpile::ModuleKind;

/// What a file is to the runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Role {
    pub function: bool,
    pub init: bool,
}

/// Replaces bytes of a script's text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edit {
    range: Range<usize>,
    text: String,
}

/// A script that knows what it becomes; only its references to others are left to rewrite.
#[derive(Debug)]
pub(super) struct Module {
    pub script: Script,
    pub kind: ModuleKind,
    pub emitted: String,
    role: Role,
    elided: Vec<Edit>,
}

impl Module {
    pub fn new(script: Script, role: Role) -> Result<Self, Vec<Diagnostic>> {
        let elided = if is_typescript(&script.path) { elide(&script) } else { Vec::new() };
        if let Some(at) = script.facts.class_as_handler().filter(|_| role.function) {
            let problem = "The handler is a class: export a function (event, context) instead".to_owned();
            let diagnostics = script.diagnose(vec![(at, problem)]);
            return Err(diagnostics.into_iter().map(|one| one.with_code("INVALID_HANDLER")).collect());
        }
        let left = script.facts.declarations.iter().find(|range| !is_blanked(&elided, range));
        let left = left.map(|range| range.start);
        let kind = decide(&script, left, role).map_err(|problem| script.diagnose(vec![problem]))?;
        let emitted = emitted_path(&script.path, kind);
        Ok(Self { script, kind, emitted, role, elided })
    }

    /// Whether the runtime's own lines export it.
    pub fn adds_export(&self, name: &str) -> bool {
        self.kind == ModuleKind::Esm && self.own_names().any(|own| own == name)
    }

    /// Leaves out what turned out to name types only: exports by their index, and names of imports (which import, which name).
    pub fn elide_types(&mut self, exports: &BTreeSet<usize>, imports: &[(usize, usize)]) {
        for (import, binding) in imports {
            self.script.facts.imports[*import].bindings[*binding].used = false;
        }
        self.elided = elide(&self.script);
        self.elided.extend(elide_exports(&self.script, exports));
    }

    /// The text to load, or what it names and nobody has.
    pub fn emit(&self, names: &Names) -> Result<String, Vec<Diagnostic>> {
        let mut edits = self.elided.clone();
        let mut missing = Vec::new();
        for specifier in &self.script.facts.specifiers {
            if !is_relative(&specifier.value) || is_blanked(&self.elided, &specifier.range) {
                continue;
            }
            match names.resolve(&self.script.path, &specifier.value) {
                Some(target) => edits.push(self.rewrite(specifier, target)),
                None if specifier.form == Form::Static => {
                    let problem = format!("There is no file {:?} in the project", specifier.value);
                    missing.push((specifier.range.start, problem));
                }
                None => {}
            }
        }
        if !missing.is_empty() {
            let diagnostics = self.script.diagnose(missing);
            return Err(diagnostics.into_iter().map(|one| one.with_code("MODULE_NOT_FOUND")).collect());
        }
        let text = &self.script.text;
        if text.starts_with("#!") {
            let end = text.find(['\n', '\r', '\u{2028}', '\u{2029}']).unwrap_or(text.len());
            edits.push(blank(text, 0..end));
        }
        Ok(self.wrap(&apply(text, edits)))
    }

    fn rewrite(&self, specifier: &Specifier, target: &str) -> Edit {
        let mut path = relative(&self.emitted, target);
        if specifier.form != Form::Require {
            // An import names a URL.
            path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
        }
        let quote = if self.script.text[specifier.range.clone()].starts_with('"') { '"' } else { '\'' };
        let path = path.replace(quote, if quote == '"' { "\\\"" } else { "\\'" });
        // TypeScript lets JSON be imported just so, Node wants it said.
        let json = target.ends_with(".json") && specifier.form == Form::Static && !specifier.attributes;
        let attributes = if json { " with { type: 'json' }" } else { "" };
        Edit { range: specifier.range.clone(), text: format!("{quote}{path}{quote}{attributes}") }
    }

    fn wrap(&self, text: &str) -> String {
        let (prefix, suffix) = (self.prefix(), if self.kind == ModuleKind::CjsAsync { ASYNC_SUFFIX } else { "" });
        let footer = if self.kind == ModuleKind::Esm { self.esm_footer() } else { self.cjs_footer() };
        format!("{prefix}{text}{footer}{suffix}")
    }

    /// What stands before the text, on its first line: ASCII.
    pub fn prefix(&self) -> String {
        match self.kind {
            ModuleKind::Esm => self.esm_prefix(),
            ModuleKind::Cjs => String::new(),
            ModuleKind::CjsAsync => "const __chatfnLoading = (async () => { ".to_owned(),
        }
    }

    /// What CommonJS gives a file and ES modules do not.
    fn esm_prefix(&self) -> String {
        let free = |name: &str| self.script.facts.free.contains(name);
        let mut prefix = String::new();
        if free("require") {
            prefix.push_str("import { createRequire as __chatfnCreateRequire } from 'node:module'; ");
            prefix.push_str("const require = __chatfnCreateRequire(import.meta.url); ");
        }
        if free("__filename") {
            prefix.push_str("const __filename = import.meta.filename; ");
        }
        if free("__dirname") {
            prefix.push_str("const __dirname = import.meta.dirname; ");
        }
        prefix
    }

    fn esm_footer(&self) -> String {
        let names: Vec<&str> = self.own_names().filter(|name| !self.script.facts.exported.contains(*name)).collect();
        if names.is_empty() { String::new() } else { format!("\nexport {{ {} }};", names.join(", ")) }
    }

    /// Leaves alone what the tenant put in place of the exports: a function is a handler itself, and the rest may be frozen.
    fn cjs_footer(&self) -> String {
        if self.script.facts.declared.contains("module") {
            return String::new(); // It is not the module's.
        }
        let export = |name: &str| {
            format!(
                "\n;if (typeof module.exports === 'object' && module.exports !== null && Object.isExtensible(module.exports) && module.exports.{name} === undefined) module.exports.{name} = {name};"
            )
        };
        self.own_names().map(export).collect()
    }

    /// What the runtime looks for and the file declares, exported or not.
    fn own_names(&self) -> impl Iterator<Item = &'static str> {
        let wanted = [(self.role.function, "handleEvent"), (self.role.init, "initialize")];
        wanted
            .into_iter()
            .filter(|(wanted, name)| *wanted && self.script.facts.declared.contains(*name))
            .map(|(_, name)| name)
    }
}

/// The promise must be found on whatever the exports are once the file has run up to its first await: its code may have
/// replaced them, even by what can hold no property.
const ASYNC_SUFFIX: &str = "\n})();\nif (module.exports !== null && (typeof module.exports === 'object' || typeof module.exports === 'function') && Object.isExtensible(module.exports)) module.exports.__chatfnLoading = __chatfnLoading; else { const __chatfnValue = module.exports, __chatfnHolder = {}; module.exports = __chatfnHolder; __chatfnHolder.__chatfnLoading = __chatfnLoading.finally(() => { if (module.exports === __chatfnHolder) module.exports = __chatfnValue; }); }";

/// `left` is where the first import or export stands that was not elided.
fn decide(script: &Script, left: Option<usize>, role: Role) -> Result<ModuleKind, (usize, String)> {
    let facts = &script.facts;
    let is_async = facts.top_level_await.is_some();
    let common = facts.free.contains("module") || facts.free.contains("exports");
    let kind = match extension(&script.path) {
        "mts" | "mjs" => ModuleKind::Esm,
        "cts" | "cjs" => {
            if let Some(start) = left {
                let problem = format!("A .{} file is CommonJS: it cannot import or export", extension(&script.path));
                return Err((start, problem));
            }
            if is_async { ModuleKind::CjsAsync } else { ModuleKind::Cjs }
        }
        _ if left.is_some() || facts.import_meta => ModuleKind::Esm,
        // The runtime waits for functions and the initialization script; others can wait only as ES modules.
        _ if is_async && role == Role::default() && !common => ModuleKind::Esm,
        _ if is_async => ModuleKind::CjsAsync,
        _ => ModuleKind::Cjs,
    };
    match facts.top_level_return {
        Some(start) if kind == ModuleKind::Esm => Err((start, "Return statement is not allowed here".to_owned())),
        _ => Ok(kind),
    }
}

fn emitted_path(path: &str, kind: ModuleKind) -> String {
    let (stem, extension) = path.rsplit_once('.').unwrap_or((path, ""));
    let extension = match (kind, extension) {
        (ModuleKind::Esm, _) => "mjs",
        (_, "cts" | "cjs") => "cjs",
        _ => "js",
    };
    format!("{stem}.{extension}")
}

/// Blanks imports that no value is read from, as tsc does: what is left of a type would not be found at run time.
fn elide(script: &Script) -> Vec<Edit> {
    let text = script.text.as_str();
    let whole = |range: &Range<usize>| blank_statement(text, range);
    let mut edits: Vec<Edit> = script.facts.empty_exports.iter().map(whole).collect();
    for import in &script.facts.imports {
        let nothing = import.bindings.is_empty() && find_token(text, import.range.start..import.from, '{').is_none();
        if nothing || import.bindings.iter().all(|binding| binding.used) && !import.bindings.is_empty() {
            continue; // `import './x'` is wanted for its effects.
        }
        if import.bindings.iter().any(|binding| binding.used) {
            edits.extend(elide_bindings(text, import));
        } else {
            edits.push(whole(&import.range));
        }
    }
    edits
}

fn elide_exports(script: &Script, types: &BTreeSet<usize>) -> Vec<Edit> {
    let (text, all) = (script.text.as_str(), &script.facts.exports);
    // Declarations that export something besides.
    let kept: BTreeSet<usize> =
        all.iter().enumerate().filter(|(at, _)| !types.contains(at)).map(|(_, one)| one.declaration.start).collect();
    let mut gone = BTreeSet::new();
    let mut edits = Vec::new();
    for (at, export) in types.iter().map(|at| (*at, &all[*at])) {
        if kept.contains(&export.declaration.start) {
            let next = all.get(at + 1).filter(|next| next.declaration == export.declaration);
            let end = next.map_or(export.declaration.end, |next| next.range.start);
            let comma = find_token(text, export.range.end..end, ',').map_or(export.range.end, |comma| comma + 1);
            edits.push(blank(text, export.range.start..comma));
        } else if gone.insert(export.declaration.start) {
            edits.push(blank_statement(text, &export.declaration));
        }
    }
    edits
}

fn elide_bindings(text: &str, import: &Import) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (at, binding) in import.bindings.iter().enumerate().filter(|(_, binding)| !binding.used) {
        let Range { start, end } = binding.range;
        let next = import.bindings.get(at + 1).map_or(import.from, |next| next.range.start);
        let range = match binding.kind {
            // `import a, * as b`: the comma before it goes.
            BindingKind::Namespace => {
                let before = at.checked_sub(1).map_or(start, |at| import.bindings[at].range.end);
                find_token(text, before..start, ',').unwrap_or(start)..end
            }
            BindingKind::Default => start..find_token(text, end..import.from, ',').map_or(end, |comma| comma + 1),
            BindingKind::Named => start..find_token(text, end..next, ',').map_or(end, |comma| comma + 1),
        };
        edits.push(blank(text, range));
    }
    edits
}

/// Finds a character outside of comments.
fn find_token(text: &str, range: Range<usize>, token: char) -> Option<usize> {
    let mut at = range.start;
    while at < range.end {
        let rest = text.get(at..range.end)?;
        if rest.starts_with(token) {
            return Some(at);
        }
        at += if rest.starts_with("//") {
            rest.find(['\n', '\r', '\u{2028}', '\u{2029}']).unwrap_or(rest.len())
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.find("*/").map_or(rest.len(), |end| end + 4)
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
    }
    None
}

/// Spaces of the same width, counted as engines count columns; line ends stay.
fn blank(text: &str, range: Range<usize>) -> Edit {
    let spaces = text[range.clone()].chars().flat_map(|c| {
        let newline = matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}');
        std::iter::repeat_n(if newline { c } else { ' ' }, if newline { 1 } else { c.len_utf16() })
    });
    Edit { text: spaces.collect(), range }
}

fn blank_statement(text: &str, range: &Range<usize>) -> Edit {
    let mut edit = blank(text, range.clone());
    edit.text.replace_range(..1, ";"); // What stood before must not run into what comes after.
    edit
}

fn is_blanked(edits: &[Edit], range: &Range<usize>) -> bool {
    edits.iter().any(|edit| edit.range.start <= range.start && range.end <= edit.range.end)
}

fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| edit.range.start);
    let mut result = String::with_capacity(text.len() + 64);
    let mut done = 0;
    for edit in edits {
        result.push_str(&text[done..edit.range.start]);
        result.push_str(&edit.text);
        done = edit.range.end;
    }
    result.push_str(&text[done..]);
    result
}

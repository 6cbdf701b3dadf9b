//! One source file to JavaScript that was parsed: types stripped, unused imports of TypeScript elided.

use std::cell::RefCell;
use std::rc::Rc;

use swc_common::errors::{DiagnosticBuilder, Emitter, Handler};
use swc_common::sync::Lrc;
use swc_common::{FileName, GLOBALS, Globals, SourceFile, SourceMap, Spanned};
use swc_ecma_ast::{EsVersion, Program};
use swc_ecma_parser::error::Error;
use swc_ecma_parser::{EsSyntax, Syntax, parse_file_as_module, parse_file_as_program};
use swc_ts_fast_strip::{ErrorCode, Mode, Options, TransformConfig, operate};

use super::analysis::{Facts, analyse};
use super::diagnostics::{Diagnostic, position};
use super::prescan;
use super::sources::is_typescript;

/// Errors told of one file.
const ERRORS_MAX: usize = 10;

/// A file that parsed.
#[derive(Debug)]
pub(super) struct Script {
    pub path: String,
    pub original: String,
    /// JavaScript; where `map` is none, every character stands where it stood in `original`.
    pub text: String,
    pub map: Option<String>,
    pub facts: Facts,
}

/// A place in a text and what is wrong there.
type Problem = (usize, String);

/// Must run on a stack of [`super::transpile::STACK_BYTES`].
pub(super) fn compile(path: &str, bytes: &[u8]) -> Result<Script, Vec<Diagnostic>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let original = std::str::from_utf8(bytes).map_err(|err| {
        let text = String::from_utf8_lossy(bytes);
        vec![Diagnostic::syntax(path, &text, err.valid_up_to(), "The file is not UTF-8")]
    })?;
    let at_original =
        |problems: Vec<Problem>| diagnose(path, problems, |offset| (original, position(original, offset)));
    prescan::check(original, is_typescript(path))
        .map_err(|refusal| at_original(vec![(refusal.offset, refusal.message.to_owned())]))?;
    GLOBALS.set(&Globals::new(), || {
        let (text, map) =
            if is_typescript(path) { strip(path, original).map_err(at_original)? } else { (original.to_owned(), None) };
        let mut script =
            Script { path: path.to_owned(), original: original.to_owned(), text, map, facts: Facts::default() };
        script.facts = parse(&script.text).map_err(|problems| script.diagnose(problems))?;
        Ok(script)
    })
}

impl Script {
    /// Places in `text` are told in the tenant's own lines.
    pub fn diagnose(&self, problems: Vec<Problem>) -> Vec<Diagnostic> {
        let map = self.map.as_deref().and_then(crate::artifacts::SourceMap::parse);
        diagnose(&self.path, problems, |offset| {
            let (line, column) = position(&self.text, offset);
            match &map {
                Some(map) => (&self.original, map.lookup(line, column).unwrap_or((1, 1))),
                None => (&self.original, (line, column)),
            }
        })
    }
}

fn diagnose<'t>(
    path: &str,
    mut problems: Vec<Problem>,
    locate: impl Fn(usize) -> (&'t str, (u32, u32)),
) -> Vec<Diagnostic> {
    problems.sort();
    problems.dedup();
    problems.truncate(ERRORS_MAX);
    let tell = |(offset, message)| {
        let (text, (line, column)) = locate(offset);
        let at = text.split('\n').nth(line as usize - 1).and_then(|line| line.chars().nth(column as usize - 1));
        Diagnostic::at(path, text, line, column, plainly(message, at))
    };
    problems.into_iter().map(tell).collect()
}

/// Where swc names settings of its own, or says nothing of the cause.
fn plainly(message: String, at: Option<char>) -> String {
    if message.contains("explicitResourceManagement") {
        return "`using` is not supported: Node 20 does not have it".to_owned();
    }
    match at {
        Some('@') => "Decorators are not supported: Node does not have them".to_owned(),
        _ => message,
    }
}

/// Blanks the types out. What that cannot express (enums, namespaces, parameter properties) is transformed instead.
fn strip(path: &str, source: &str) -> Result<(String, Option<String>), Vec<Problem>> {
    let (stripped, problems) = run_swc(path, source, Mode::StripOnly);
    match stripped {
        Ok(done) => return Ok(done),
        Err(ErrorCode::UnsupportedSyntax) => {}
        Err(_) => return Err(problems),
    }
    let (transformed, problems) = run_swc(path, source, Mode::Transform);
    transformed.map_err(|_| problems)
}

type Stripped = Result<(String, Option<String>), ErrorCode>;

fn run_swc(path: &str, source: &str, mode: Mode) -> (Stripped, Vec<Problem>) {
    let sources = Lrc::new(SourceMap::default());
    let problems = Rc::new(RefCell::new(Vec::new()));
    let handler = Handler::with_emitter(false, false, Box::new(Collect(problems.clone())));
    let mut transform = TransformConfig::default();
    transform.typescript.no_empty_export = true;
    let options = Options {
        filename: Some(path.to_owned()),
        mode,
        transform: Some(transform),
        source_map: true,
        ..Options::default()
    };
    let result = operate(&sources, &handler, source.to_owned(), options);
    drop(handler);
    let mut problems = problems.take();
    match result {
        Ok(output) if problems.is_empty() => (Ok((output.code, output.map)), problems),
        Ok(_) => (Err(ErrorCode::InvalidSyntax), problems),
        Err(err) => {
            if problems.is_empty() {
                problems.push((0, err.message));
            }
            (Err(err.code), problems)
        }
    }
}

/// Keeps what swc would print.
struct Collect(Rc<RefCell<Vec<Problem>>>);

impl Emitter for Collect {
    fn emit(&mut self, diagnostic: &mut DiagnosticBuilder<'_>) {
        // The only file of its source map begins at 1.
        let offset = diagnostic.span.primary_span().map_or(0, |span| span.lo.0.saturating_sub(1) as usize);
        let mut problems = self.0.borrow_mut();
        if problems.len() < 100 {
            problems.push((offset, diagnostic.message()));
        }
    }
}

fn parse(text: &str) -> Result<Facts, Vec<Problem>> {
    let sources = SourceMap::default();
    let file = sources.new_source_file(FileName::Anon.into(), text.to_owned());
    let mut program = parse_with(&file, |file, syntax, errors| {
        parse_file_as_program(file, syntax, EsVersion::latest(), None, errors)
    })?;
    // `await (…)` and `await […]` are valid in a script as well, where they call and index something named await.
    if program.is_script() && text.contains("await") {
        let module = parse_with(&file, |file, syntax, errors| {
            parse_file_as_module(file, syntax, EsVersion::latest(), None, errors).map(Program::Module)
        });
        if let Ok(mut module) = module {
            let facts = analyse(&mut module, file.start_pos.0);
            if facts.top_level_await.is_some() {
                return Ok(facts);
            }
        }
    }
    Ok(analyse(&mut program, file.start_pos.0))
}

fn parse_with(
    file: &SourceFile,
    parse: impl FnOnce(&SourceFile, Syntax, &mut Vec<Error>) -> Result<Program, Error>,
) -> Result<Program, Vec<Problem>> {
    let syntax = EsSyntax { allow_return_outside_function: true, import_attributes: true, ..EsSyntax::default() };
    let mut errors = Vec::new();
    match parse(file, Syntax::Es(syntax), &mut errors) {
        Ok(program) if errors.is_empty() => return Ok(program),
        Ok(_) => {}
        Err(fatal) => errors.push(fatal),
    }
    let base = file.start_pos.0;
    let place = |error: Error| (error.span().lo.0.saturating_sub(base) as usize, error.kind().msg().into_owned());
    Err(errors.into_iter().map(place).collect())
}

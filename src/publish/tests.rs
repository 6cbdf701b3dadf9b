//! Whole projects, transpiled and then loaded by a real Node.

mod names;

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::Catalogue;

const FUNCTION: &str = "functions/UserSentMessage.ts";

fn project(files: &[(&str, &str)]) -> Project {
    let mut spec = ProjectSpec::default();
    for (path, text) in files {
        spec.files.insert((*path).to_owned(), Bytes::copy_from_slice(text.as_bytes()));
    }
    if !files.iter().any(|(path, _)| path.starts_with("functions/")) {
        spec.files.insert("functions/UserReadMessage.js".to_owned(), Bytes::new());
    }
    Project::check(spec, &Catalogue::new(&[]).expect("built in"), &SourceLimits::default(), &Registries::public())
        .expect("a project")
}

fn built(files: &[(&str, &str)]) -> Built {
    transpile(&project(files)).unwrap_or_else(|err| panic!("{err}"))
}

fn text<'a>(built: &'a Built, path: &str) -> &'a str {
    let bytes = built.files.get(path).unwrap_or_else(|| panic!("{path} in {:?}", built.files.keys()));
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// One file as a library file: its emitted path and text.
fn one(path: &str, source: &str) -> (String, String) {
    let built = built(&[(path, source)]);
    let emitted = built.unit(path).expect("a unit").emitted.clone();
    let text = text(&built, &emitted).to_owned();
    (emitted, text)
}

fn refused(files: &[(&str, &str)]) -> (Vec<Diagnostic>, &'static str) {
    let err = transpile(&project(files)).expect_err("refused");
    let reason = err.reason();
    match err {
        InvalidSpec::Syntax { diagnostics } => (diagnostics, reason),
        _ => (Vec::new(), reason),
    }
}

/// Loads one source of the project as the shim would, and prints what `script` says about its exports `m`.
#[allow(clippy::disallowed_methods, reason = "a test's own child, which ends by itself")]
fn node(files: &[(&str, &str)], source: &str, script: &str) -> String {
    let built = built(files);
    let directory = tempfile::tempdir().expect("a directory");
    for (path, content) in &built.files {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("create");
        std::fs::write(path, content).expect("write");
    }
    let unit = built.unit(source).expect("a unit");
    let load = match unit.kind {
        ModuleKind::Esm => format!("await import('./{}')", unit.emitted),
        ModuleKind::Cjs => format!("require('./{}')", unit.emitted),
        ModuleKind::CjsAsync => format!(
            "await (async () => {{ const f = require.resolve('./{}'); const p = require(f).__chatfnLoading; await p; const m = require(f); delete m.__chatfnLoading; return m }})()",
            unit.emitted
        ),
    };
    let main = format!("(async () => {{ const m = {load}; console.log({script}) }})()");
    std::fs::write(directory.path().join("main.js"), main).expect("write");
    let mut command = std::process::Command::new("node");
    let output = command.arg("main.js").current_dir(directory.path()).output().expect("run node");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}\n{:#?}", built.files);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn an_unexported_typescript_handler_runs() {
    let source = "interface E { a: number }\nasync function handleEvent(event: E, context: any): Promise<number> {\n  const fs = require('fs');\n  return event.a + (fs ? 1 : 0);\n}\n// the end";
    assert_eq!(node(&[(FUNCTION, source)], FUNCTION, "await m.handleEvent({a: 1})"), "2");
    for source in [
        "const handleEvent = async (e: any) => e.a",
        "let { handleEvent } = { handleEvent(e: any) { return e.a } }",
        "var handleEvent = (e: {a: number}) => e.a;",
    ] {
        assert_eq!(node(&[(FUNCTION, source)], FUNCTION, "await m.handleEvent({a: 5})"), "5", "{source}");
    }
}

#[test]
fn what_a_commonjs_file_exports_is_left_alone() {
    let file = "functions/UserSentMessage.js";
    for (source, script, expected) in [
        ("module.exports = async () => 7; function handleEvent() {}", "await m()", "7"),
        ("exports.handleEvent = () => 8; function handleEvent() {}", "m.handleEvent()", "8"),
        ("module.exports = null; function handleEvent() {}", "m", "null"),
        ("'use strict'; module.exports = Object.freeze({ a: 1 }); function handleEvent() {}", "m.a", "1"),
        ("module.exports = 'text'; function handleEvent() {}", "m", "text"),
        ("function handleEvent() { return 9 } module.exports = { a: 1 }", "m.handleEvent()", "9"),
        ("#!/usr/bin/env node\nreturn; function handleEvent() {}", "Object.keys(m).length", "0"),
    ] {
        assert_eq!(node(&[(file, source)], file, script), expected, "{source}");
    }
    // Only a function's file is searched for a handler.
    assert_eq!(one("lib/a.js", "function handleEvent() {}").1, "function handleEvent() {}");
}

#[test]
fn es_modules_without_extensions_load_and_unused_types_are_elided() {
    let files = [
        (
            FUNCTION,
            "import Default, { helper, type T } from '../lib/helper';\nimport { Event } from '../types';\nimport { Shape } from '../lib/shapes.js'\nimport * as all from '../lib';\nimport x from './_x.ts';\nimport data from '../data.json';\nasync function handleEvent(event: Event, s?: Shape) { const t: T = 1; return [helper(event), all.two, x, data.a, typeof Default].join() }\n",
        ),
        (
            "lib/helper.ts",
            "export type T = number;\nexport const helper = (event: { a: number }) => event.a;\nexport default class {}",
        ),
        ("lib/index.ts", "export * from './two'\nexport { type Shape } from './shapes';"),
        ("lib/two.js", "exports.two = 2;"),
        ("lib/shapes.ts", "export interface Shape { a: 1 }"),
        ("types.d.ts", "export interface Event { a: number }"),
        ("functions/_x.ts", "const x: string = 'x'; export default x"),
        ("data.json", "{\"a\": 4}"),
    ];
    assert_eq!(node(&files, FUNCTION, "await m.handleEvent({a: 1})"), "1,2,x,4,function");
    let built = built(&files);
    assert!(!built.files.contains_key("types.d.ts") && built.files.contains_key("data.json"));
    assert_eq!(built.unit("lib/shapes.ts").expect("a unit").kind, ModuleKind::Cjs);
    assert_eq!(built.unit(FUNCTION).expect("a unit").emitted, "functions/UserSentMessage.mjs");
}

#[test]
fn a_commonjs_file_requires_typescript() {
    let files = [
        (
            "functions/UserSentMessage.js",
            "const { add } = require('../lib/add');\nconst sub = require(\"../lib/sub.js\");\nconst esm = require('../lib/esm');\nexports.handleEvent = () => add(1, 2) + sub(5, 1) + esm.three + require(require.resolve('../lib/sub'))(1, 0);",
        ),
        ("lib/add.ts", "exports.add = (a: number, b: number) => a + b;"),
        ("lib/sub.cts", "export = (a: number, b: number) => a - b;"),
        ("lib/sub.ts", "module.exports = (a: number, b: number) => a - b;"),
        ("lib/esm.ts", "export const three: number = 3;"),
    ];
    assert_eq!(node(&files, "functions/UserSentMessage.js", "m.handleEvent()"), "11");
}

#[test]
fn an_initialization_script_awaits_at_its_top() {
    for (source, script, expected) in [
        (
            "const fs = require('fs');\nconst n: number = await Promise.resolve(3);\nmodule.exports = { n }; // done",
            "m.n",
            "3",
        ),
        (
            "#!/usr/bin/env node\n'use strict';\nexports.strict = (function () { return !this })();\nfor await (const x of [1]) exports.x = x;",
            "[m.strict, m.x]",
            "[ true, 1 ]",
        ),
        (
            "exports.early = 1;\nmodule.exports = () => 5;\nawait (async () => {})();\nmodule.exports.late = 2",
            "m.late",
            "2",
        ),
        ("module.exports = 7;\nawait null;", "m", "7"),
        ("module.exports = Object.freeze({ a: 1 });\nawait [1];\n", "m.a", "1"),
        ("await null; async function initialize() { return 4 }", "await m.initialize()", "4"),
        ("const x = 1; function initialize() { return x }", "m.initialize()", "1"),
        (
            "import fs from 'node:fs';\nconst p = require('node:path');\nexport const a = await fs.promises.readFile(p.join(__dirname, 'd.txt'), 'utf8');",
            "m.a",
            "hi",
        ),
        ("export const f = __filename.endsWith('init.mjs');", "m.f", "true"),
    ] {
        let files = [("init.ts", source), ("d.txt", "hi")];
        assert_eq!(node(&files, "init.ts", script), expected, "{source}");
    }
    let returns = [("init.js", "await null; if (1) return; exports.never = 1")];
    assert_eq!(node(&returns, "init.js", "m.never"), "undefined");
}

#[test]
fn enums_namespaces_and_parameter_properties_are_transformed_with_a_map() {
    let source = "import type { X } from './nowhere';\nimport { helper } from '../lib/h';\nenum Color { Red, Green = 5 }\nnamespace N { export const n = 2 }\n\n\nclass P { constructor(private a: number) {} get() { return this.a } }\nfunction handleEvent() { return [Color.Green, N.n, new P(3).get(), helper].join() }\nfunction fail() {\n  throw new Error('x')\n}";
    let files = [(FUNCTION, source), ("lib/h.ts", "export const helper: number = 4;")];
    assert_eq!(node(&files, FUNCTION, "m.handleEvent()"), "5,2,3,4");
    let built = built(&files);
    let unit = built.unit(FUNCTION).expect("a unit");
    let map = crate::artifacts::SourceMap::parse(unit.map.as_ref().expect("a map")).expect("parses");
    let emitted = text(&built, &unit.emitted);
    let (line, content) = emitted.lines().enumerate().find(|(_, line)| line.contains("throw")).expect("there");
    let column = content.find("throw").expect("there") + 1;
    assert_eq!(map.lookup(line as u32 + 1, column as u32), Some((10, 3)), "{emitted}");
    let assigned = "import fs = require('fs');\nexport = { handleEvent: () => typeof fs.readFileSync };";
    assert_eq!(node(&[(FUNCTION, assigned)], FUNCTION, "m.handleEvent()"), "function");
}

#[test]
fn lines_and_columns_stay() {
    let source = "import { A, b, type C } from './x';\nimport type D from './y';\nlet a: A<C, D> = b<A>('é'), /* ¡ */ c = a as any as string;\nfunction f(this: A, x?: number): x is 3 {\n\treturn !!x!;\n}\n";
    let (_, text) = one("lib/a.ts", &source.replace("./x", "node:x"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "import {    b,        } from 'node:x';");
    assert_eq!(lines[1].trim(), "");
    assert!(lines[2].contains("('é'), /* ¡ */ c = a"));
    let width = |line: &str| line.encode_utf16().count();
    for (line, original) in lines.iter().zip(source.lines()).skip(1) {
        assert_eq!(width(line), width(original), "{line}");
    }
}

#[test]
fn unused_imports_of_typescript_are_elided_and_no_others() {
    for (source, expected) in [
        ("import A from 'x'; let a: A;", ";                  let a   ;"),
        ("import A, { B } from 'x'; B();", "import    { B } from 'x'; B();"),
        ("import A, { B } from 'x'; A();", "import A, {   } from 'x'; A();"),
        ("import A, * as N from 'x'; A();", "import A         from 'x'; A();"),
        ("import A /*,*/, * as N from 'x'; N();", "import          * as N from 'x'; N();"),
        ("import { A /* , */ , B } from 'x'; B();", "import {             B } from 'x'; B();"),
        (
            "import { A as B, C } from 'x'; C(); { const B = 1; B }",
            "import {         C } from 'x'; C(); { const B = 1; B }",
        ),
        ("import 'x';", "import 'x';"),
        ("import {} from 'x';a", ";                  a"),
        ("import { A } from 'x'; export { A };", "import { A } from 'x'; export { A };"),
        ("import { A } from 'x'; export default { A };", "import { A } from 'x'; export default { A };"),
        ("import { A } from 'x'; A: for (;;) break A", ";                      A: for (;;) break A"),
        ("import { type A } from 'x'", ";                         "),
        ("a()\nimport {\n  A } from 'x'\n(b)()", "a()\n;       \n              \n(b)()"),
    ] {
        assert_eq!(one("lib/a.ts", source).1, expected, "{source}");
    }
    let source = "import { A } from 'x';\nimport B from './b.js';";
    let files = [("lib/a.js", source), ("lib/b.js", "exports.x = 1")];
    assert_eq!(text(&built(&files), "lib/a.mjs"), source);
}

#[test]
fn each_file_gets_its_kind() {
    use ModuleKind::{Cjs, CjsAsync, Esm};
    for (path, source, kind, emitted) in [
        ("a.js", "x", Cjs, "a.js"),
        ("a.ts", "export {}", Esm, "a.mjs"),
        ("a.js", "import.meta.url", Esm, "a.mjs"),
        ("a.js", "import('x')", Cjs, "a.js"),
        ("a.js", "await x", Esm, "a.mjs"),
        ("a.js", "exports.a = await x", CjsAsync, "a.js"),
        ("init.js", "await x", CjsAsync, "init.js"),
        ("init.js", "await (x)", CjsAsync, "init.js"),
        ("init.js", "await(x); var await", Cjs, "init.js"),
        ("init.js", "for await (const a of b) {}", CjsAsync, "init.js"),
        ("init.js", "async () => await x; class A { async b() { await x } }", Cjs, "init.js"),
        ("init.cjs", "await x", CjsAsync, "init.cjs"),
        ("a.mts", "x", Esm, "a.mjs"),
        ("a.mjs", "x", Esm, "a.mjs"),
        ("a.cts", "import type { A } from 'x'; x", Cjs, "a.cjs"),
        ("a.cjs", "with (a) { 010 }", Cjs, "a.cjs"),
        ("a.js", "return 1", Cjs, "a.js"),
        ("a.js", "({ get a() { return 1 }, set a(x) { return } })", Cjs, "a.js"),
    ] {
        let built = built(&[(path, source)]);
        let unit = built.unit(path).expect("a unit");
        assert_eq!((unit.kind, unit.emitted.as_str()), (kind, emitted), "{path}: {source}");
    }
    for (path, source, at) in
        [("a.cjs", "x\nimport 'x'", (2, 1)), ("a.cts", "export {}", (1, 1)), ("a.js", "export {}; return", (1, 12))]
    {
        let (diagnostics, reason) = refused(&[(path, source)]);
        assert_eq!((diagnostics[0].line, diagnostics[0].column, reason), (at.0, at.1, "SYNTAX_ERROR"), "{source}");
    }
}

#[test]
fn es_modules_get_what_commonjs_gives() {
    for (source, prefix) in [
        (
            "export {}; require('x')",
            "import { createRequire as __chatfnCreateRequire } from 'node:module'; const require =",
        ),
        ("export {}; typeof __dirname", "const __dirname ="),
        ("export {}; __filename", "const __filename ="),
        ("export {}; const require = 1; require", "export {}"),
        ("export function f(require) { require('x') }", "export function"),
        ("import x from 'x'; module.exports = x", "import x"),
        ("export {}; ({ require: 1 }).require", "export {}"),
    ] {
        assert!(one("a.js", source).1.starts_with(prefix), "{source}");
    }
    let function = |source| text(&built(&[(FUNCTION, source)]), "functions/UserSentMessage.mjs").to_owned();
    assert!(function("import 'x'; const handleEvent = 1 // c").ends_with("// c\nexport { handleEvent };"));
    for exported in [
        "export const handleEvent = 1",
        "const handleEvent = 1; export { handleEvent }",
        "const a = 1, handleEvent = 2; export { a as handleEvent }",
        "import { handleEvent } from 'x'; export { handleEvent }",
    ] {
        assert_eq!(function(exported), exported);
    }
}

#[test]
fn specifiers_are_rewritten_in_their_place() {
    let files = [
        (
            "a.ts",
            "import \"./b\";\nexport * from './it\\'s#1?.ts';\nimport('./b.js'); require('./b'); require('./none'); import('./none'); f.require('./b'); import 'b'; import '/x';",
        ),
        ("b.ts", "export {}"),
        ("it's#1?.ts", "export {}"),
    ];
    let expected = "import \"./b.mjs\";\nexport * from './it\\'s%231%3F.mjs';\nimport('./b.mjs'); require('./b.mjs'); require('./none'); import('./none'); f.require('./b'); import 'b'; import '/x';";
    assert!(text(&built(&files), "a.mjs").ends_with(expected), "{}", text(&built(&files), "a.mjs"));
    assert_eq!(
        one("a.js", "function f(require) { require('./functions/UserReadMessage') }").1,
        "function f(require) { require('./functions/UserReadMessage') }"
    );
}

#[test]
fn an_import_of_nothing_is_told_with_its_place() {
    for source in [
        "x;\nimport a from './none'; a",
        "x;\nexport * from '../../out'",
        "x;\nexport { a } from './types'",
        "x;\nimport './none'",
        "enum E { A }\nexport * from './none'",
    ] {
        let (diagnostics, reason) = refused(&[("lib/a.ts", source), ("lib/types.d.ts", "")]);
        assert_eq!((reason, diagnostics[0].line, diagnostics.len()), ("MODULE_NOT_FOUND", 2, 1), "{source}");
        assert!(diagnostics[0].column > 5 && diagnostics[0].message.contains("no file"), "{diagnostics:?}");
    }
}

#[test]
fn errors_carry_a_frame() {
    let (diagnostics, reason) = refused(&[(FUNCTION, "let a: string = 1;\n\nlet b = ;\n"), ("lib/b.js", "a b")]);
    assert_eq!(reason, "SYNTAX_ERROR");
    assert_eq!(
        diagnostics[0].to_string(),
        "functions/UserSentMessage.ts:3:9: Expression expected\n\n  1 | let a: string = 1;\n  2 |\n> 3 | let b = ;\n    |         ^\n  4 |\n"
    );
    assert_eq!((diagnostics[1].file.as_str(), diagnostics.len()), ("lib/b.js", 2));
    let many = "const a;\n".repeat(30);
    let files: Vec<(String, &str)> = (0..5).map(|n| (format!("lib/{n}.js"), many.as_str())).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    assert_eq!(refused(&files[..1]).0.len(), 10);
    assert_eq!(refused(&files).0.len(), 20);
    for (path, source) in [
        ("a.js", "let a: string"),
        ("a.ts", "@dec class A {}"),
        ("a.js", "<a/>"),
        ("a.ts", "return 1"),
        ("a.js", "if ("),
    ] {
        assert_eq!(refused(&[(path, source)]).1, "SYNTAX_ERROR", "{source}");
    }
    let mut project = project(&[]);
    project.files.insert("a.js".into(), Bytes::from_static(b"ok\n\xff"));
    assert!(transpile(&project).expect_err("no UTF-8").to_string().contains("a.js:2:1: The file is not UTF-8"));
}

#[test]
fn two_sources_cannot_become_one_file() {
    for files in
        [[("util.ts", ""), ("util.js", "")], [("a.ts", "export {}"), ("a.mjs", "")], [("a.cts", ""), ("a.cjs", "")]]
    {
        assert_eq!(refused(&files).1, "DUPLICATE_MODULE", "{files:?}");
    }
    built(&[
        ("a.ts", "export {}"),
        ("a.js", "1"),
        ("package.json", "{}"),
        ("package-lock.json", "{\"lockfileVersion\":3}"),
    ]);
}

#[test]
fn what_is_no_code_is_copied() {
    let files =
        built(&[("a.bin", "\u{1}"), ("package.json", "{}"), ("x.d.ts", "no code (("), ("README.md", "#")]).files;
    let paths: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(paths, ["README.md", "a.bin", "functions/UserReadMessage.js", "package.json"]);
}

/// Each of these overflowed the stack of an unbounded parser, or kept it busy for minutes.
#[test]
fn deep_and_long_sources_end_soon_and_harm_nobody() {
    let shapes = [
        "(",
        "[",
        "{",
        "a?b:",
        "!",
        "typeof ",
        "new ",
        "a=>",
        "a=",
        "a**",
        "a+",
        "a.",
        "a()",
        "`${",
        "if(a)",
        "if(a);else ",
        "a:",
        "do ",
        "class extends ",
        "function f(){",
        "<T>(",
        "A<",
        "A<b,",
        "a as ",
        "a!",
        "type A=B extends C?D:",
        "a`",
        "async(",
        "a?(",
        "({a:",
        "a ",
        "a;",
        "a,",
        "/",
        "}/",
        "'",
        "for(;;)a:",
        "yield ",
        "namespace a.",
        "\\",
        "<T><T>`&${",
    ];
    for shape in shapes {
        for (path, length) in [("a.ts", 1 << 20), ("a.js", 1 << 20), ("a.ts", 15_000), ("a.ts", 800)] {
            for (before, after) in [("", ""), ("x=", "y")] {
                let source = format!("{before}{}{after}", shape.repeat(length / shape.len()));
                let start = Instant::now();
                let _ = transpile(&project(&[(path, &source)]));
                assert!(start.elapsed() < Duration::from_secs(20), "{shape:?} {path} {length} {:?}", start.elapsed());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_make_it_panic(path in "[ab]\\.(ts|js|mts|cjs)", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut project = project(&[]);
        project.files.insert(path, bytes.into());
        let _ = transpile(&project).map_err(|err| err.to_string());
    }

    #[test]
    fn no_tokens_make_it_panic(path in "[ab]\\.(ts|js|mts|cjs)|init\\.ts", tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..40)) {
        let source = tokens.concat();
        let _ = transpile(&project(&[(&path, &source)])).map_err(|err| err.to_string());
    }
}

const TOKENS: &[&str] = &[
    "import ",
    "export ",
    "from ",
    "'./a'",
    "\"x\"",
    "a",
    "b",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    ":",
    "?",
    "=>",
    "=",
    "<",
    ">",
    "/",
    "//\n",
    "/*",
    "*/",
    "`",
    "${",
    "\\",
    "\n",
    "\u{2028}",
    "é",
    "😀",
    "type ",
    "as ",
    "enum ",
    "class ",
    "await ",
    "return ",
    "require",
    "default ",
    "* ",
    "function ",
    "handleEvent",
    "#!",
    "...",
    ".",
    "1",
    "async ",
    "for ",
    "of ",
    "interface ",
    "namespace ",
];

#[test]
fn what_is_handed_on_may_cross_threads() {
    fn plain<T: Send + Sync + 'static>() {}
    plain::<Project>();
    plain::<Built>();
    plain::<InvalidSpec>();
}

//! Names that lead to types, to classes, to what Node does not have, or nowhere.

use super::{FUNCTION, built, node, project, refused, text, transpile};

#[test]
fn what_node_does_not_have_is_said_so() {
    for (path, source, at, said) in [
        ("a.ts", "{ using a = f(); }", (1, 3), "`using` is not supported"),
        ("a.js", "async () => { await using a = g(); }", (1, 15), "`using` is not supported"),
        ("a.ts", "x\n  @dec class A {}", (2, 3), "Decorators are not supported"),
        ("a.js", "class A { @dec b() {} }", (1, 11), "Decorators are not supported"),
    ] {
        let (diagnostics, reason) = refused(&[(path, source)]);
        assert_eq!((reason, diagnostics[0].line, diagnostics[0].column), ("SYNTAX_ERROR", at.0, at.1), "{source}");
        assert!(diagnostics[0].message.contains(said), "{source}: {}", diagnostics[0].message);
    }
}

#[test]
fn a_class_is_no_handler() {
    for (source, at) in [
        ("export default class { handleEvent() {} }", (1, 1)),
        ("import 'os';\nexport default class Handler {}", (2, 1)),
        ("class Handler {}\nexport default Handler;", (1, 1)),
        ("export default (class {});", (1, 17)),
        ("export class handleEvent {}", (1, 8)),
        ("class handleEvent {}", (1, 1)),
    ] {
        let (diagnostics, reason) = refused(&[(FUNCTION, source)]);
        let found = (reason, diagnostics[0].line, diagnostics[0].column);
        assert_eq!(found, ("INVALID_HANDLER", at.0, at.1), "{source}");
        assert!(diagnostics[0].message.contains("class"), "{source}");
    }
    for source in [
        "export default class {} export const handleEvent = () => 1;",
        "class Other {}; export default () => new Other();",
        "export default class {} function handleEvent() {}",
    ] {
        built(&[(FUNCTION, source)]);
    }
    built(&[("lib/a.ts", "export default class {}")]);
}

#[test]
fn types_that_are_exported_by_name_are_left_out() {
    let files = [
        (
            FUNCTION,
            "import { I, one, Alias, E } from '../lib/all';\nimport { T } from '../lib/types';\nexport { T, I as Again };\n\
             const x: Alias = 1;\nexport const handleEvent = () => [one, x, E.A].join();",
        ),
        (
            "lib/all.ts",
            "export { I, one, type Alias } from './e';\nexport { E } from './more';\nexport * from './types';",
        ),
        ("lib/e.ts", "interface I { a: 1 }\ntype Alias = number;\nconst one = 1;\nexport { I, one, Alias };"),
        ("lib/more.ts", "import { Alias, one } from './e';\nenum E { A = 3 }\nexport { Alias, E, one };"),
        ("lib/types.ts", "export interface T { t: 1 }"),
        ("lib/only.ts", "enum Transformed {}\ninterface A {}\ndeclare const b: number;\nexport { A, b };"),
        ("lib/again.ts", "export { A } from './only';\nexport const here = 1"),
    ];
    assert_eq!(node(&files, FUNCTION, "await m.handleEvent()"), "1,1,3");
    assert_eq!(node(&files, "lib/again.ts", "Object.keys(m).join()"), "here");
    let built = built(&files);
    assert!(text(&built, "lib/e.mjs").ends_with("export {    one,       };"), "{}", text(&built, "lib/e.mjs"));
    assert_eq!(text(&built, "lib/more.mjs").lines().last().map(str::trim), Some("export {        E, one };"));
}

#[test]
fn a_name_that_is_nowhere_is_told_with_its_place() {
    for (path, source, at, said) in [
        ("lib/a.ts", "interface I {}\nexport { I, nope };", (2, 13), "nothing named \"nope\""),
        ("lib/a.js", "export { nope };", (1, 10), "nothing named \"nope\""),
        ("lib/a.ts", "export { nope } from './e';", (1, 10), "\"./e\" exports nothing"),
        ("lib/a.ts", "import { one,\n  nope } from './e';\nnope(one);", (2, 3), "\"./e\" exports nothing"),
        ("lib/a.js", "import { I } from './e.ts';\nI;", (1, 10), "only a type"),
    ] {
        let e = ("lib/e.ts", "export interface I {}\nexport const one = 1;");
        let (diagnostics, reason) = refused(&[(path, source), e]);
        assert_eq!((reason, diagnostics.len()), ("EXPORT_NOT_FOUND", 1), "{source}: {diagnostics:?}");
        assert_eq!((diagnostics[0].line, diagnostics[0].column), at, "{source}");
        assert!(diagnostics[0].message.contains(said), "{source}: {}", diagnostics[0].message);
        assert!(diagnostics[0].frame.contains('^'));
    }
    // Only loading CommonJS and packages tells what they export; a block's `var` is the file's.
    built(&[
        ("lib/a.ts", "import { x } from './c';\nimport { y } from 'y';\nimport { z } from './s';\nexport { x, y, z };"),
        ("lib/c.js", "Object.assign(exports, { x: 1 })"),
        ("lib/s.ts", "export * from 'somewhere';"),
        ("lib/v.js", "if (1) { var hoisted = 1; }\nexport { hoisted };"),
        ("lib/circle.ts", "export { q } from './circle';\nexport * from './circle';"),
    ]);
}

/// Were each looked for among all of them, or along all files anew, this would not end.
#[test]
fn names_without_number_are_followed_to_their_end() {
    let names: String = (0..200_000).map(|n| format!("a{n},")).collect();
    let (imports, exports) =
        (format!("import {{{names}}} from './b';export {{{names}}}"), format!("export {{{names}}}from'./a'"));
    let followed = transpile(&project(&[("a.ts", &imports), ("b.ts", &exports)]));
    assert!(followed.is_ok(), "they lead in a circle, which is for Node to refuse");
}

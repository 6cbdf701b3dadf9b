use super::*;

#[test]
fn usual_code_passes() {
    for text in [
        "#!/usr/bin/env node )\nlet a = b / c / d; f(x) / 2; a[0] / 2; `${a / 2}` / 2; 1. / 2; .5 / 2; this / 1 / ')';",
        "x = /[)\"'`/]/g.test(y) && /\\(/.exec(z); return /}/; typeof /'/; [/`/, /'/]; case /'/: ; a => /'/; (/'/)",
        "if (x) /[']/.test(y); while (a) /'/.exec(b); for await (const a of b) /'/.exec(a); a.if(x) / 2 / \"'\".length",
        "if (x) {}\n/^['\"]?(a|b)/.test(y)",
        "if (x) {}\n/[a-z]+(b)/.test(y); function f() {} /\\s(/.test(z)",
        "a++ / 2; a-- / 2 + b / 3; x = { return: 1 }.return / 2; o.typeof / '/'.length",
        "const t = `a ${`b ${'}'} c`} \\` ${{ a: 1 }.a} d`; // ` ' \" ( [ {\n/* ' ` ( */ /* **/ /**/ a",
        "let s = 'a\\\n(b', u = \"\\\"(\", v = '\u{2028}';",
        "type A<T> = Map<string, Set<T>>; let a: Array<Array<number>> = f<T>(x) >> 2; x! / 2; y as T / 2; let f = <T,>(x: T) => x;",
        "label: for (const [k, v] of Object.entries(x)) { continue label }\nx ? y : z ? a : b",
        "class A { #if(a) { return this.#if(a) / 2 / 'x'.length } get() { return 1 } static {} }",
        "é = 1 / 2; 日本 / 2 / ')'.length",
    ] {
        for typescript in [false, true] {
            assert_eq!(check(text, typescript), Ok(()), "{text}");
        }
    }
}

#[test]
fn each_bound_holds_on_both_sides() {
    let nested = |count: usize| format!("{}{}", "(".repeat(count), ")".repeat(count));
    let chained = |count: usize| format!("x = 1{}", "+1".repeat(count));
    let labels = |count: usize| format!("{}x", "if(a)b:".repeat(count));
    let angles = |count: usize| format!("x = {}y", "<T>(".repeat(count) + &")".repeat(count));
    let elses = |count: usize| format!("{};", "if (a) b; else ".repeat(count));
    let types = |count: usize| format!("let x: {}B", "A<".repeat(count));
    for (what, good, bad) in [
        ("Nested", nested(400), nested(401)),
        ("tokens", chained(9_998), chained(9_999)),
        ("labels", labels(100), labels(101)),
        ("assertions", angles(6), angles(7)),
        ("open", types(40), types(41)),
        ("else", elses(2000), elses(2001)),
    ] {
        assert_eq!(check(&good, true), Ok(()), "{what}");
        let refusal = check(&bad, true).expect_err(what);
        assert!(refusal.message.contains(what), "{refusal:?}");
    }
    // What ends a statement or an element ends the count.
    for text in
        ["x+1;".repeat(20_000), "f(1,".to_owned() + &"x+1,".repeat(20_000) + "1)", "const x = 1\n".repeat(10_000)]
    {
        assert_eq!(check(&text, true), Ok(()));
    }
    let generic = "a = <T>(x: T) => { return x }\n".repeat(50);
    assert_eq!(check(&format!("class A {{ {generic} }}; f({})", "<T>(x) => 1,".repeat(50)), true), Ok(()));
}

#[test]
fn nothing_hides_nesting() {
    let deep = "(".repeat(500);
    for hide in [
        "",
        "if (x) /`/; ",
        "f(x) / 1; ",
        "a++ /1; ",
        "x = {} /1; ",
        "`${1}`; ",
        "/* ` */ ",
        "// `\u{2028} ",
        "// `\r ",
        "'\\\n'; ",
        "x = 1. /1; ",
        "a.return /1; ",
        "x! /1; ",
        "/[/`]/; ",
        "/\\/`/; ",
        "'`'; ",
        "/*/ ` */ ",
        "a\u{a0}/1; ",
        "a\u{feff}/1; ",
    ] {
        let refusal = check(&format!("{hide}{deep}"), true).expect_err(hide);
        assert!(refusal.message.contains("Nested"), "{hide}: {refusal:?}");
    }
    for (unclear, message) in [
        ("x = {} /'/; '/", "unclear"),
        ("a++ /`/; `/", "unclear"),
        ("<!-- )", "HTML"),
        ("a\n--> )", "HTML"),
        ("'a\nb'", "string"),
        ("x = /a\n/", "regular"),
        ("`a", "template"),
        (")", "closes nothing"),
        ("(]", "does not match"),
        ("`${(}`", "does not match"),
    ] {
        let refusal = check(unclear, true).expect_err(unclear);
        assert!(refusal.message.contains(message), "{unclear}: {refusal:?}");
    }
    assert_eq!(check("x = (a", true), Ok(())); // The parser says it better.
}

//! The README's table of settings is the one in `src/config.rs`. `UPDATE_README=1 cargo test --test readme` writes it.

use std::fs;
use std::path::Path;

use chatfn::config::Config;

const START: &str = "by `UPDATE_README=1 cargo test --test readme` -->\n";
const END: &str = "<!-- end of configuration -->";

/// Each field with its doc comment, in the order of the source.
fn documented() -> Vec<(String, String)> {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config.rs")).expect("config.rs");
    let body =
        source.split("pub struct Config {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("the struct");
    let mut comment = Vec::new();
    let mut fields = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim().to_owned());
        } else if let Some(field) = line.strip_prefix("pub ") {
            let name = field.split(':').next().expect("a name").to_owned();
            fields.push((name, std::mem::take(&mut comment).join(" ")));
        }
    }
    fields
}

fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "–".to_owned(),
        serde_json::Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let defaults = serde_json::to_value(Config::default()).expect("serializes");
    let mut table = "| setting | default | meaning |\n|---|---|---|\n".to_owned();
    for (name, comment) in documented() {
        assert!(!comment.is_empty(), "{name} has no doc comment");
        table.push_str(&format!("| `{name}` | {} | {comment} |\n", shown(&defaults[&name])));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).expect("README.md");
    let (before, rest) = readme.split_once(START).expect("the marker");
    let (current, after) = rest.split_once(END).expect("the end marker");
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&path, format!("{before}{START}{table}{END}{after}")).expect("write");
        return;
    }
    assert_eq!(current, table, "run: UPDATE_README=1 cargo test --test readme");
}

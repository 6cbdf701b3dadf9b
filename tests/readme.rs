//! The README's tables of settings are what `src/config.rs` says. `UPDATE_README=1 cargo test --test readme` writes them.

use std::fs;
use std::path::Path;

use chatfn::config::Config;
use serde_json::Value;

/// Each table's name in the README, the struct that it is made of, and where that stands.
const TABLES: &[(&str, &str, &str)] = &[
    ("configuration", "Config", "src/config.rs"),
    ("tls", "Tls", "src/config/tls.rs"),
    ("oidc", "Oidc", "src/config/oidc.rs"),
    ("isolation", "Isolation", "src/config.rs"),
    ("egress", "Egress", "src/config.rs"),
    ("sdk", "Sdk", "src/model/sdk.rs"),
    ("traces", "Traces", "src/config/traces.rs"),
];

/// Each field with its doc comment, in the order of the source.
fn documented(name: &str, file: &str) -> Vec<(String, String)> {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the source");
    let body = source.split(&format!("pub struct {name} {{")).nth(1).and_then(|rest| rest.split("\n}").next());
    let mut comment = Vec::new();
    let mut fields = Vec::new();
    for line in body.expect("the struct").lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim().to_owned());
        } else if let Some(field) = line.strip_prefix("pub ") {
            let name = field.split(':').next().expect("a name").to_owned();
            fields.push((name, std::mem::take(&mut comment).join(" ")));
        }
    }
    fields
}

fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        // What stands in it is told there.
        _ if TABLES.iter().any(|(table, ..)| *table == name) => "–".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn table((name, file): (&str, &str), defaults: &Value) -> String {
    let mut table = "| setting | default | meaning |\n|---|---|---|\n".to_owned();
    for (field, comment) in documented(name, file) {
        assert!(!comment.is_empty(), "{field} has no doc comment");
        table.push_str(&format!("| `{field}` | {} | {comment} |\n", shown(&field, &defaults[&field])));
    }
    table
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let config = serde_json::to_value(Config::default()).expect("serializes");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let mut readme = fs::read_to_string(&path).expect("README.md");
    for &(name, of, file) in TABLES {
        let start = format!("<!-- {name}: made from {file} by `UPDATE_README=1 cargo test --test readme` -->\n");
        let end = format!("<!-- end of {name} -->");
        let (before, rest) = readme.split_once(&start).expect("the marker");
        let (current, after) = rest.split_once(&end).expect("the end marker");
        let table = table((of, file), if of == "Config" { &config } else { &config[name] });
        if std::env::var_os("UPDATE_README").is_none() {
            assert_eq!(current, table, "run: UPDATE_README=1 cargo test --test readme");
        }
        readme = format!("{before}{start}{table}{end}{after}");
    }
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&path, readme).expect("write");
    }
}

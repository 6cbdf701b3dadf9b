//! Imports point downwards, `unsafe` and processes stay in the sandbox, and proto types at the edge. Reads the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Bottom first: a module may import those that stand before it.
const LAYERS: [&[&str]; 16] = [
    &["model"],
    &["metrics"],
    &["sandbox", "declarations", "traces"],
    &["config"],
    &["host"],
    &["worker", "telemetry", "drain", "tls", "secrets"],
    &["pool", "store"],
    &["artifacts"],
    &["history", "backup"],
    &["serving"],
    &["trial", "replicas"],
    &["invoke", "publish"],
    &["dispatch"],
    &["api"],
    &["service"],
    &["cli"],
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("src").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Each source with the name of its top-level module.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let named = sources(&root).into_iter().map(|path| {
        let relative = path.strip_prefix(&root).expect("below src").to_str().expect("UTF-8").to_owned();
        let module = relative.split(['/', '.']).next().expect("a name").to_owned();
        let text = fs::read_to_string(&path).expect("readable");
        (module, PathBuf::from(relative), text)
    });
    named.filter(|(module, ..)| module != "main" && module != "lib").collect()
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("{module} has no layer: add it to LAYERS"))
}

/// What stands behind each `crate::` in the code, comments left out.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    for line in code {
        for part in line.split("crate::").skip(1) {
            if let Some(list) = part.strip_prefix('{') {
                let names = list.split(',').map(|name| name.trim().split("::").next().unwrap_or_default().to_owned());
                found.extend(
                    names.filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')),
                );
            } else {
                let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn imports_point_downwards() {
    for (module, path, text) in modules() {
        for import in imports(&text).into_iter().filter(|import| *import != module && import != "proto") {
            let import = import.trim_end_matches('}').to_owned();
            assert!(
                layer(&import) < layer(&module),
                "{} imports {import}, which stands above or beside it",
                path.display()
            );
        }
    }
}

#[test]
fn proto_types_stay_at_the_edge() {
    for (module, path, text) in modules() {
        if module != "api" && module != "cli" {
            assert!(!imports(&text).contains(&"proto".to_owned()), "{} uses proto types", path.display());
        }
    }
}

#[test]
fn unsafe_and_processes_stay_in_the_sandbox() {
    for (module, path, text) in modules().into_iter().filter(|(module, ..)| module != "sandbox") {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let production = code.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!production.contains("unsafe {"), "{module}: {} holds unsafe code", path.display());
        let test = path.ends_with("tests.rs") || path.iter().any(|part| part == "tests");
        let spawns = production.contains("process::Command") && !test;
        assert!(!spawns, "{} starts processes", path.display());
    }
}

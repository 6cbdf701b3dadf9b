//! The dashboard and the alerts ask for nothing that the service does not tell, and the dashboard leaves nothing out.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use chatfn::metrics::declared::{ALL, Kind, Metric};
use serde_json::Value;

const DASHBOARD: &str = "helm/chat-functions/dashboards/chatfn.json";
const ALERTS: &str = "helm/chat-functions/files/alerts.yaml";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Every text below a key of this name.
fn texts(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| match value {
            Value::String(text) if name == key => found.push(text.clone()),
            value => texts(value, key, found),
        }),
        Value::Array(values) => values.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

/// Words that can only be names of metrics.
fn names(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("chatfn_") || word.starts_with("process_")).map(str::to_owned).collect()
}

fn declared(name: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| match metric.kind {
        Kind::Histogram(_) => ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{}{end}", metric.name)),
        Kind::Counter | Kind::Gauge => metric.name == name,
    })
}

fn check(query: &str) -> BTreeSet<&'static str> {
    let names = names(query);
    assert!(!names.is_empty(), "asks for nothing: {query}");
    let of = |name: &String| declared(name).unwrap_or_else(|| panic!("{name} is not declared: {query}")).name;
    names.iter().map(of).collect()
}

fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let mut found = Vec::new();
    texts(&dashboard["panels"], "expr", &mut found);
    texts(&dashboard["templating"], "definition", &mut found);
    found
}

#[test]
fn the_dashboard_asks_for_what_is_declared_and_shows_nearly_all_of_it() {
    let queries = queries();
    assert!(queries.len() > 40, "{}", queries.len());
    let shown: BTreeSet<_> = queries.iter().flat_map(|query| check(query)).collect();
    // For single looks.
    let left_out = ["process_start_time_seconds", "process_cpu_seconds_total", "process_max_fds"];
    let missing: Vec<_> =
        ALL.iter().map(|metric| metric.name).filter(|name| !shown.contains(name) && !left_out.contains(name)).collect();
    assert!(missing.is_empty(), "not shown: {missing:?}");
}

#[test]
fn labels_that_queries_group_by_are_declared() {
    for query in queries() {
        let labels: BTreeSet<_> = check(&query)
            .iter()
            .flat_map(|name| ALL.iter().find(|metric| metric.name == *name).expect("declared").labels)
            .copied()
            .collect();
        for grouped in query.split("by (").skip(1) {
            let list = grouped.split(')').next().expect("a list");
            for label in list.split(',').map(str::trim).filter(|label| *label != "le") {
                assert!(labels.contains(label), "{label} in {query}");
            }
        }
    }
}

#[test]
fn panels_have_ids_of_their_own_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{}", panel["title"]);
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(taken.insert((x, y)), "{} lies on another", panel["title"]);
        }
    }
}

#[test]
fn alerts_ask_for_what_is_declared() {
    let alerts = read(ALERTS);
    let rules: Vec<_> = alerts.split("- alert: ").skip(1).collect();
    assert!(rules.len() >= 7);
    for rule in rules {
        let query = rule.split("expr:").nth(1).and_then(|rest| rest.split("labels: {").next()).expect("a query");
        check(query);
    }
}

use serde_json::json;

use super::*;
use crate::model::TriggerDeclaration;

fn catalogue() -> Catalogue {
    let order = TriggerDeclaration {
        name: "OrderPlaced".into(),
        blocking: true,
        schema: json!({ "type": "object", "properties": { "a\"; }\n*/ x": { "type": "string" } } }),
        sample: None,
    };
    Catalogue::new(&[order]).expect("fine")
}

#[test]
fn there_is_a_type_of_every_trigger_types_event() {
    let text = declarations(&catalogue(), Some(&Sdk::default()), ["API_KEY"]);
    for trigger in catalogue().iter() {
        let name = &trigger.trigger_type;
        assert!(
            text.contains(&format!("interface {name}Event {{")) || text.contains(&format!("type {name}Event = {{"))
        );
        assert!(text.contains(&format!("    {name}: {name}Event;\n")), "{name}");
    }
    assert!(text.contains("type UserTriggeredEvent = UserTriggeredEventEvent;"));
    assert!(text.contains("readonly \"ChatKitty\": ChatFunctions.Client;") && text.contains("getUserApi():"));
    assert!(text.contains("readonly trace: ChatFunctions.Trace;") && text.contains("interface Trace {"));
    assert_eq!(text.matches("\"API_KEY\": string;").count(), 2);
}

#[test]
fn built_in_events_have_the_fields_of_their_samples() {
    for trigger in Catalogue::new(&[]).expect("built in").iter() {
        let name = trigger.trigger_type.as_str();
        let (_, fields) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name).expect(name);
        let declared: BTreeSet<&str> = fields.iter().map(|(field, _)| field.trim_end_matches('?')).collect();
        let sample = trigger.sample.as_ref().and_then(Value::as_object).expect("a sample");
        assert_eq!(declared, sample.keys().map(String::as_str).collect(), "{name}");
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_in_any_order() {
    let of = |names: &[&str]| declarations(&catalogue(), Some(&Sdk::default()), names);
    assert_eq!(of(&["B", "A", "B"]), of(&["A", "B"]));
}

#[test]
fn no_name_ends_what_it_stands_in() {
    let evil = "X\": 1 }\n} declare const evil: 1; /* */ //\u{2028}";
    let sdk = Sdk { package: evil, export: "Client", property: evil };
    let text = declarations(&catalogue(), Some(&sdk), [evil]);
    assert!(!text.lines().any(|line| line.starts_with("} declare")), "{text}");
    assert!(text.contains(r#""X\": 1 }\n} declare"#));
    let text = declarations(&catalogue(), Some(&Sdk { export: evil, ..sdk }), [""; 0]);
    assert!(!text.contains("evil"), "an export that is no name is left out");
}

#[test]
fn another_sdk_has_no_getters_of_chatkittys_and_never_hides_the_contexts_own() {
    let other = Sdk { package: "@acme/chat", export: "Client", property: "Acme" };
    let text = declarations(&catalogue(), Some(&other), [""; 0]);
    assert!(text.contains(r#"typeof import("@acme/chat").Client"#) && text.contains("readonly \"Acme\":"));
    assert!(!text.contains("getUserApi"));
    let text = declarations(&catalogue(), Some(&Sdk { property: "log", ..other }), [""; 0]);
    assert!(!text.contains("\"log\"") && !text.contains("@acme"));
    assert!(!declarations(&catalogue(), None, [""; 0]).contains("chatkitty-platform-sdk"));
}

//! Trigger types: the built-in catalogue and those declared in configuration.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The canonical name of a trigger type, e.g. `UserSentMessage`. Only a [`Catalogue`] makes new ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TriggerType(String);

impl TriggerType {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For a name that a catalogue gave out before and the store kept.
    pub fn stored(name: String) -> Self {
        Self(name)
    }
}

impl Borrow<str> for TriggerType {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TriggerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A trigger type as configuration declares it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerDeclaration {
    pub name: String,
    /// Whether the caller waits for the verdict.
    pub blocking: bool,
    /// JSON Schema of the event. Default: any object.
    #[serde(default = "any_object")]
    pub schema: Value,
    /// An event that matches the schema, for tests and documentation.
    #[serde(default)]
    pub sample: Option<Value>,
}

fn any_object() -> Value {
    json!({ "type": "object" })
}

/// What makes a function run.
#[derive(Debug)]
pub struct Trigger {
    pub trigger_type: TriggerType,
    pub blocking: bool,
    pub schema: Value,
    pub sample: Option<Value>,
    validator: jsonschema::Validator,
}

impl Trigger {
    /// # Errors
    /// Says where and how the event differs from the schema.
    pub fn check_event(&self, event: &Value) -> Result<(), String> {
        self.validator.validate(event).map_err(|err| {
            let path = err.instance_path().to_string();
            let place = if path.is_empty() { "the event" } else { path.as_str() };
            format!("{place}: {err}")
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("trigger type {0:?}: use a CamelCase name of at most 64 letters and digits")]
    Name(String),
    #[error("trigger type {0:?} is declared twice")]
    Duplicate(String),
    #[error("trigger type {name}: its schema is not a JSON Schema: {problem}")]
    Schema { name: String, problem: String },
    #[error("trigger type {name}: its sample does not match its schema: {problem}")]
    Sample { name: String, problem: String },
}

/// All trigger types of a service.
#[derive(Debug)]
pub struct Catalogue {
    triggers: BTreeMap<TriggerType, Trigger>,
}

impl Catalogue {
    /// The built-in trigger types and `declared` ones.
    ///
    /// # Errors
    /// A declaration is wrong or takes a name that is taken.
    pub fn new(declared: &[TriggerDeclaration]) -> Result<Self, CatalogueError> {
        let mut catalogue = Self { triggers: BTreeMap::new() };
        for declaration in built_in().iter().chain(declared) {
            catalogue.add(declaration)?;
        }
        Ok(catalogue)
    }

    /// Looks a trigger type up in any spelling: `UserSentMessage`, `UserSentMessageEvent`, `User Sent Message`.
    pub fn find(&self, spelling: &str) -> Option<&Trigger> {
        if let Some(trigger) = self.triggers.get(spelling) {
            return Some(trigger);
        }
        // Before the suffix goes: `User Triggered Event` is a name that ends in Event.
        let joined: String = spelling.split_whitespace().collect();
        let exact = self.triggers.get(joined.as_str());
        exact.or_else(|| self.triggers.get(joined.strip_suffix("Event")?))
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Trigger> {
        self.triggers.values()
    }

    fn add(&mut self, declaration: &TriggerDeclaration) -> Result<(), CatalogueError> {
        let name = declaration.name.clone();
        let camel = name.starts_with(|c: char| c.is_ascii_uppercase());
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric()) && name.len() <= 64;
        if !camel || !plain {
            return Err(CatalogueError::Name(name));
        }
        if self.triggers.contains_key(name.as_str()) {
            return Err(CatalogueError::Duplicate(name));
        }
        let validator = jsonschema::validator_for(&declaration.schema)
            .map_err(|err| CatalogueError::Schema { name: name.clone(), problem: err.to_string() })?;
        let trigger = Trigger {
            trigger_type: TriggerType(name.clone()),
            blocking: declaration.blocking,
            schema: declaration.schema.clone(),
            sample: declaration.sample.clone(),
            validator,
        };
        if let Some(sample) = &trigger.sample {
            trigger.check_event(sample).map_err(|problem| CatalogueError::Sample { name, problem })?;
        }
        self.triggers.insert(trigger.trigger_type.clone(), trigger);
        Ok(())
    }
}

/// The table of design.md. Objects may carry more than is named here: platforms add fields.
fn built_in() -> Vec<TriggerDeclaration> {
    let user = json!({ "id": 1, "name": "jane" });
    let channel = json!({ "id": 7, "type": "PUBLIC", "name": "general" });
    let message = json!({ "id": 42, "type": "TEXT", "body": "hello" });
    let declare = |name: &str, blocking, properties: Value, required: &[&str], sample: Value| TriggerDeclaration {
        name: name.to_owned(),
        blocking,
        schema: json!({ "type": "object", "properties": properties, "required": required }),
        sample: Some(sample),
    };
    let object = json!({ "type": "object" });
    vec![
        declare(
            "UserAttemptedStartSession",
            true,
            json!({ "username": { "type": "string" } }),
            &["username"], // A client may start a session without any authParams.
            json!({ "username": "jane", "authParams": { "password": "secret" } }),
        ),
        declare(
            "UserReceivedNotification",
            false,
            json!({ "user": object, "notification": object, "userHasActiveSession": { "type": "boolean" } }),
            &["user", "notification", "userHasActiveSession"],
            json!({ "user": user, "notification": { "id": 3, "title": "New message", "body": "hello" }, "userHasActiveSession": false }),
        ),
        declare(
            "UserSentMessage",
            false,
            json!({ "user": object, "channel": object, "message": object }),
            &["user", "channel", "message"],
            json!({ "user": user, "channel": channel, "message": message }),
        ),
        declare(
            "UserStartedChatSession",
            false,
            json!({ "user": object, "channel": object }),
            &["user", "channel", "channelUnread", "channelMessagesCount"],
            json!({ "user": user, "channel": channel, "channelUnread": true, "channelMessagesCount": 12 }),
        ),
        declare(
            "UserReactedToMessage",
            false,
            json!({ "user": object, "channel": object, "message": object }),
            &["user", "channel", "message", "reaction"],
            json!({ "user": user, "channel": channel, "message": message, "reaction": { "emoji": "👍" } }),
        ),
        declare(
            "UserReadMessage",
            false,
            json!({ "user": object, "message": object }),
            &["user", "message", "receipt"],
            json!({ "user": user, "message": message, "receipt": { "readTime": "2026-01-01T00:00:00Z" } }),
        ),
        declare(
            "UserReceivedChannelInvite",
            false,
            json!({ "user": object, "channel": object }),
            &["user", "channel"],
            json!({ "user": user, "channel": channel, "invitingUser": { "id": 2, "name": "john" } }),
        ),
        declare(
            "UserTriggeredEvent",
            false,
            json!({ "user": object, "channel": object }),
            &["user", "channel", "event"],
            json!({ "user": user, "channel": channel, "event": { "type": "typing", "properties": {} } }),
        ),
        declare(
            "SystemTriggeredEvent",
            false,
            json!({ "channel": object }),
            &["channel", "event"],
            json!({ "channel": channel, "event": { "type": "archived", "properties": {} } }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_type_is_found_in_each_spelling() {
        let catalogue = Catalogue::new(&[]).expect("built-in catalogue");
        for spelling in ["UserSentMessage", "UserSentMessageEvent", "User Sent Message", "User Sent Message Event"] {
            let trigger = catalogue.find(spelling).expect(spelling);
            assert_eq!(trigger.trigger_type.as_str(), "UserSentMessage");
        }
        for name in ["UserTriggeredEvent", "UserTriggeredEventEvent", "User Triggered Event"] {
            assert_eq!(catalogue.find(name).expect(name).trigger_type.as_str(), "UserTriggeredEvent");
        }
        assert!(catalogue.find("usersentmessage").is_none());
    }

    #[test]
    fn an_event_is_checked_against_its_schema() {
        let catalogue = Catalogue::new(&[]).expect("built-in catalogue");
        let trigger = catalogue.find("UserAttemptedStartSession").expect("built in");
        assert!(trigger.check_event(&json!({ "username": "jane", "extra": 1 })).is_ok());
        let problem = trigger.check_event(&json!({ "username": 7 })).expect_err("a number");
        assert!(problem.contains("/username"), "{problem}");
        assert!(trigger.check_event(&json!([])).is_err());
    }

    #[test]
    fn a_wrong_declaration_is_refused() {
        let declare = |name: &str, schema: Value, sample: Option<Value>| {
            let declaration = TriggerDeclaration { name: name.into(), blocking: true, schema, sample };
            Catalogue::new(&[declaration]).map(|_| ()).map_err(|err| err.to_string())
        };
        assert!(declare("OrderPlaced", any_object(), Some(json!({}))).is_ok());
        assert!(declare("UserSentMessage", any_object(), None).unwrap_err().contains("twice"));
        assert!(declare("order placed", any_object(), None).unwrap_err().contains("CamelCase"));
        assert!(declare("OrderPlaced", json!({ "type": 7 }), None).unwrap_err().contains("JSON Schema"));
        assert!(declare("OrderPlaced", any_object(), Some(json!(1))).unwrap_err().contains("sample"));
    }
}

//! The platform's SDK, as functions find it in their context.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

const CHATKITTY: &str = "chatkitty-platform-sdk";

/// Which package, what of it, how it is built, and under which name functions get it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Sdk {
    /// The npm package. Empty: functions get no SDK.
    pub package: String,
    /// The package's export that is a class, or a function, and takes the options.
    pub export: String,
    /// What functions find the instance under: `context.ChatKitty`.
    pub property: String,
    /// What it is built with. In a text `${NAME}` is the app's environment variable, which must be set, and `${NAME?}` one without which
    /// the option is left out.
    pub options: Map<String, Value>,
}

/// As somebody configures it. For ChatKitty's package, what is not said is as it comes, option by option.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    package: Option<String>,
    export: Option<String>,
    property: Option<String>,
    #[serde(default, deserialize_with = "as_table")]
    options: Map<String, Value>,
}

impl Default for Sdk {
    fn default() -> Self {
        let options = json!({
            "clientId": "${CHATKITTY_CLIENT_ID}",
            "clientSecret": "${CHATKITTY_CLIENT_SECRET}",
            "authorizationBasePath": "${CHATKITTY_AUTHORIZATION_BASE_PATH?}",
            "basePath": "${CHATKITTY_BASE_PATH?}",
        });
        Self {
            package: CHATKITTY.to_owned(),
            export: "ChatKitty".to_owned(),
            property: "ChatKitty".to_owned(),
            options: options.as_object().cloned().unwrap_or_default(),
        }
    }
}

impl From<Written> for Sdk {
    fn from(written: Written) -> Self {
        let default = match &written.package {
            Some(package) if package != CHATKITTY => Self {
                package: package.clone(),
                export: "default".to_owned(),
                property: "sdk".to_owned(),
                options: Map::new(),
            },
            _ => Self::default(),
        };
        let mut options = default.options;
        options.extend(written.options);
        Self {
            package: default.package,
            export: written.export.unwrap_or(default.export),
            property: written.property.unwrap_or(default.property),
            options,
        }
    }
}

impl Sdk {
    /// What `context` has of its own, or will not have: nobody's SDK takes these names.
    const TAKEN: [&str; 14] = [
        "app",
        "constructor",
        "deny",
        "env",
        "function",
        "initialization",
        "invocation",
        "log",
        "remainingMs",
        "signal",
        "then",
        "trace",
        "trigger",
        "__proto__",
    ];
    const OPTIONS_BYTES_MAX: usize = 16 << 10;

    /// Whether functions get one.
    pub fn is_some(&self) -> bool {
        !self.package.is_empty()
    }

    /// Whether it is the one that comes with the older guides' `getUserApi()`.
    pub fn is_chatkitty(&self) -> bool {
        self.package == CHATKITTY
    }

    /// # Errors
    /// Names the field and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String, String)> {
        if !self.is_some() {
            return Ok(());
        }
        let refuse = |name, value: &str, problem: &str| Err((name, value.to_owned(), problem.to_owned()));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@/".contains(c);
        if !self.package.chars().all(plain) || self.package.starts_with(['.', '/']) || self.package.len() > 214 {
            return refuse("sdk.package", &self.package, "use the name of an npm package");
        }
        if !is_identifier(&self.export) {
            return refuse("sdk.export", &self.export, "use the name of an export, or `default`");
        }
        if !is_identifier(&self.property) || Self::TAKEN.contains(&self.property.as_str()) {
            return refuse("sdk.property", &self.property, "use a JavaScript name that context does not have already");
        }
        let size = serde_json::to_string(&self.options).map_or(usize::MAX, |text| text.len());
        if size > Self::OPTIONS_BYTES_MAX {
            let problem = format!("use at most {} bytes", Self::OPTIONS_BYTES_MAX);
            return refuse("sdk.options", &format!("{size} bytes of JSON"), &problem);
        }
        for value in self.options.values() {
            check_option(value)?;
        }
        Ok(())
    }
}

/// A table; from a flag or a variable as JSON text.
fn as_table<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    use serde::de::Error;
    let table = match Value::deserialize(deserializer)? {
        Value::Object(table) => Some(table),
        Value::String(text) => serde_json::from_str(&text).ok(),
        _ => None,
    };
    table.ok_or_else(|| D::Error::custom("sdk.options must be a table, or a JSON object as text"))
}

fn check_option(value: &Value) -> Result<(), (&'static str, String, String)> {
    match value {
        Value::String(text) => check_template(text),
        Value::Array(list) => list.iter().try_for_each(check_option),
        Value::Object(table) => table.values().try_for_each(check_option),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// What the shim replaces is written as it expects it; a `${` that is none would get to the SDK as it stands.
fn check_template(text: &str) -> Result<(), (&'static str, String, String)> {
    for rest in text.split("${").skip(1) {
        let name = rest.split_once('}').map(|(name, _)| name.strip_suffix('?').unwrap_or(name));
        if !name.is_some_and(is_identifier) || name.is_some_and(|name| name.contains('$')) {
            let problem = "write a variable as ${NAME}, or as ${NAME?} if the option may be left out".to_owned();
            return Err(("sdk.options", text.to_owned(), problem));
        }
    }
    Ok(())
}

fn is_identifier(text: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    !text.is_empty() && text.len() <= 128 && text.chars().all(part) && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: Value) -> Sdk {
        serde_json::from_value(value).expect("an SDK")
    }

    #[test]
    fn of_chatkittys_only_what_is_said_changes() {
        assert_eq!(written(json!({})), Sdk::default());
        let sdk = written(json!({ "options": { "basePath": "http://api.test" } }));
        assert_eq!(sdk.options["basePath"], "http://api.test");
        assert_eq!(sdk.options["clientId"], "${CHATKITTY_CLIENT_ID}");
        assert_eq!(written(serde_json::to_value(&sdk).expect("JSON")), sdk);
        assert_eq!(written(json!({ "options": r#"{"basePath":"x"}"# })).options["basePath"], "x");
    }

    #[test]
    fn another_has_nothing_of_chatkittys() {
        let sdk = written(json!({ "package": "@acme/sdk", "options": { "key": "${ACME_KEY}" } }));
        assert_eq!((sdk.export.as_str(), sdk.property.as_str(), sdk.options.len()), ("default", "sdk", 1));
        assert!(sdk.is_some() && !sdk.is_chatkitty() && sdk.check().is_ok());
        assert!(!written(json!({ "package": "" })).is_some());
    }

    #[test]
    fn what_could_not_work_is_refused_by_name() {
        for (value, name) in [
            (json!({ "package": "./sdk.js" }), "sdk.package"),
            (json!({ "export": "a b" }), "sdk.export"),
            (json!({ "property": "log" }), "sdk.property"),
            (json!({ "property": "1x" }), "sdk.property"),
            (json!({ "options": { "a": { "b": ["${UNENDED"] } } }), "sdk.options"),
            (json!({ "options": { "a": "${}" } }), "sdk.options"),
            (json!({ "options": { "a": "x".repeat(20_000) } }), "sdk.options"),
        ] {
            assert_eq!(written(value.clone()).check().expect_err("refused").0, name, "{value}");
        }
        assert_eq!(written(json!({ "options": { "a": "${A}-${B?}", "n": 3 } })).check(), Ok(()));
    }
}

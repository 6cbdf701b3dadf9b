//! Settings from `CHATFN_*` variables.
//!
//! Only known names are taken. The prefix is not ours alone: Kubernetes gives every pod beside a Service named `chatfn` variables such
//! as `CHATFN_PORT=tcp://…`, and none of those may keep the service from starting. What is not known is named in the log, so that a
//! slip of the pen is seen.

use std::collections::BTreeMap;
use std::ffi::OsString;

use config::{ConfigError, Map, Source, Value, ValueKind};

const PREFIX: &str = "CHATFN_";
/// Of other commands.
const NOT_SETTINGS: [&str; 7] = [
    "CHATFN_ADDRESS",
    "CHATFN_APP",
    "CHATFN_PROFILE",
    "CHATFN_TLS_CA",
    "CHATFN_TLS_CERT",
    "CHATFN_TLS_KEY",
    "CHATFN_TOKEN",
];

/// The variables with our prefix, sorted.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    /// Setting → variable and value.
    settings: BTreeMap<String, (String, String)>,
    unknown: Vec<String>,
}

impl Environment {
    pub fn read(known: &[String]) -> Result<Self, ConfigError> {
        Self::from(std::env::vars_os(), known)
    }

    fn from(variables: impl Iterator<Item = (OsString, OsString)>, known: &[String]) -> Result<Self, ConfigError> {
        let mut found = Self::default();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let setting = name[PREFIX.len()..].to_lowercase();
            if known.contains(&setting) {
                let value = value.into_string();
                let value = value.map_err(|_| ConfigError::Message(format!("{name} is not UTF-8")))?;
                found.settings.insert(setting, (name.to_owned(), value));
            } else if !NOT_SETTINGS.contains(&name) {
                found.unknown.push(name.to_owned());
            }
        }
        found.unknown.sort();
        Ok(found)
    }

    pub fn into_unknown(self) -> Vec<String> {
        self.unknown
    }
}

impl Source for Environment {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    /// All as text: a setting's type reads it, and an error names the variable.
    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let value = |(variable, text): &(String, String)| Value::new(Some(variable), ValueKind::String(text.clone()));
        Ok(self.settings.iter().map(|(setting, from)| (setting.clone(), value(from))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_taken_and_the_others_remembered() {
        let variables = [
            ("CHATFN_WAITING_MAX", "7"),
            ("CHATFN_PORT", "tcp://10.0.0.1:7400"),
            ("CHATFN_IDLE_TLL", "5s"),
            ("CHATFN_TOKEN", "secret"),
            ("CHATFN_ADDRESS", "http://10.0.0.1:7400"),
            ("CHATFN_PROFILE", "work"),
            ("CHATFN_APP", "demo"),
            ("PATH", "/bin"),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        let found = Environment::from(variables, &["waiting_max".to_owned()]).expect("readable");
        assert_eq!(found.collect().expect("settings").keys().collect::<Vec<_>>(), ["waiting_max"]);
        assert_eq!(found.into_unknown(), ["CHATFN_IDLE_TLL", "CHATFN_PORT"]);
    }
}

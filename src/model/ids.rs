//! Identifiers. Each is validated where it enters and trusted afterwards.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("app_id {0:?} is not valid: use 1 to 63 of a-z, A-Z, 0-9, '-', '_', beginning with a letter or digit")]
    App(String),
    #[error("{0:?} is not an id")]
    Uuid(String),
}

/// A tenant. It names directories, so it cannot hold a separator or a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppId(String);

impl AppId {
    /// Longest app id, in bytes.
    pub const LEN_MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if starts_well && text.len() <= Self::LEN_MAX && text.chars().all(is_word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::App(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for AppId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<AppId> for String {
    fn from(id: AppId) -> Self {
        id.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Counts an app's versions: 1, 2, 3…
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionNumber(pub u64);

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! time_ordered_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        /// A UUIDv7, so that ids sort by creation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            #[allow(clippy::new_without_default, reason = "two calls give two ids")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let short = || text.chars().take(80).collect();
                Uuid::parse_str(text).map(Self).map_err(|_| IdError::Uuid(short()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

time_ordered_id! {
    /// One attempt to run a function.
    InvocationId
}
time_ordered_id! {
    /// A durable entry in the queue.
    EventId
}
time_ordered_id! {
    /// An entry of the audit log.
    AuditId
}

impl AuditId {
    /// To the millisecond.
    pub fn at(&self) -> SystemTime {
        let (seconds, nanos) = self.0.get_timestamp().map(|at| at.to_unix()).unwrap_or_default();
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    /// Below every id of this millisecond and later, above all before it. For bounds of a search, not for entries.
    pub fn first_of(at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self(Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_id_cannot_escape_its_directory() {
        for good in ["a", "my-app_2", "0x", &"a".repeat(63)] {
            assert!(good.parse::<AppId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "_a", "a.b", "ä", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<AppId>().is_err(), "{bad}");
        }
    }
}

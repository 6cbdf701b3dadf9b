//! A URL with a password in it, which no log and no printed configuration shows.

use std::fmt::{self, Debug, Formatter};

use serde::{Deserialize, Serialize, Serializer};

#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// With the password.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Shows that there is one.
impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

impl Debug for DatabaseUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

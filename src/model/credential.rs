//! Credentials: who calls, for which app, and what for.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use uuid::Uuid;

use super::AppId;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// Report the app's events.
    Invoke = 1,
    /// Publish the app's versions, test them and let them serve.
    Publish = 2,
    /// Settle everything else of the app, its deletion and its credentials included.
    Manage = 4,
    /// Everything, of all apps.
    Operator = 8,
}

/// A text that names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scope: use invoke, publish or manage, or operator for all apps")]
pub struct UnknownScope(String);

impl Scope {
    pub const ALL: [Self; 4] = [Self::Invoke, Self::Publish, Self::Manage, Self::Operator];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Publish => "publish",
            Self::Manage => "manage",
            Self::Operator => "operator",
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| UnknownScope(text.chars().take(80).collect()))
    }
}

/// A set of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    pub fn contains_all(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    /// As one byte; [`Scopes::from_bits`] reads it.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// `None` where it is not one of ours.
    pub fn from_bits(bits: u8) -> Option<Self> {
        let all: Self = Scope::ALL.into_iter().collect();
        all.contains_all(Self(bits)).then_some(Self(bits))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope as u8))
    }
}

/// With spaces between them, as OAuth has it.
impl FromStr for Scopes {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        text.split_ascii_whitespace().map(str::parse).collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Scope::as_str).collect();
        f.write_str(&names.join(" "))
    }
}

/// The public half of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientId(Uuid);

/// A text that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no client_id: they look like cfc_0123456789abcdef0123456789abcdef")]
pub struct NoClientId(String);

impl ClientId {
    const PREFIX: &str = "cfc_";

    /// Random, and never given out again: what was signed for one holds for no other.
    #[allow(clippy::new_without_default, reason = "two calls give two ids")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl FromStr for ClientId {
    type Err = NoClientId;

    fn from_str(text: &str) -> Result<Self, NoClientId> {
        let digits = text.strip_prefix(Self::PREFIX).filter(|digits| digits.len() == 32);
        let id = digits.and_then(|digits| Uuid::try_parse(digits).ok());
        id.map(Self).ok_or_else(|| NoClientId(text.chars().take(80).collect()))
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.0.simple())
    }
}

/// What the service knows of a credential, its secret apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub client_id: ClientId,
    /// `None`: an operator's.
    pub app: Option<AppId>,
    pub scopes: Scopes,
    pub description: String,
    pub created_at: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        let scopes: Scopes = [Scope::Manage, Scope::Invoke].into_iter().collect();
        assert_eq!(scopes.to_string(), "invoke manage");
        assert_eq!("manage  invoke invoke".parse(), Ok(scopes));
        assert_eq!("".parse(), Ok(Scopes::default()));
        assert_eq!(Scopes::from_bits(scopes.bits()), Some(scopes));
        assert_eq!(Scopes::from_bits(16), None);
        for unknown in ["Invoke", "all", "invoke,publish"] {
            assert!(unknown.parse::<Scopes>().is_err(), "{unknown}");
        }
        assert!(scopes.contains_all("invoke".parse().expect("scopes")));
        assert!(!scopes.contains_all("invoke publish".parse().expect("scopes")));
    }

    #[test]
    fn a_client_id_survives_its_text() {
        let id = ClientId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(ClientId::from_bytes(*id.as_bytes()), id);
        let digits = "0".repeat(32);
        for bad in ["", "cfc_", &digits, &format!("cfs_{digits}"), &format!("cfc_{digits}0"), "cfc_{}"] {
            assert!(bad.parse::<ClientId>().is_err(), "{bad}");
        }
    }
}

//! Who changed what: the words of the audit log.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ids::AuditId;
use super::{AppId, RawJson};

/// How we know who somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// An app's credential; the id is its client id.
    Credential,
    /// An operators' credential; the id is its client id.
    OperatorCredential,
    /// Whoever has the content of `operator_token_file`. No id: it is one for all.
    OperatorToken,
    /// A token of the OpenID Connect issuer; the id is its subject.
    Oidc,
    /// No authentication is configured, so anybody on this machine. No id.
    Local,
    /// A command that works on the database itself; the id is the user of the operating system.
    Command,
    /// The service, with nobody asking for it. No id.
    Service,
}

/// Who does something, and by which call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub kind: ActorKind,
    /// As its kind says; may be empty.
    pub id: String,
    /// Of [`ActorKind::Oidc`]: who vouches for the subject. Else empty.
    pub issuer: String,
    /// Of the call, as the log has it; empty where there was none.
    pub request_id: String,
}

/// What is recorded. Everything that changes an app, or who may do what, is here; what runs and what is only read is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditAction {
    AppCreate,
    AppUpdate,
    AppDelete,
    VersionPublish,
    VersionActivate,
    VersionDelete,
    EnvSet,
    EnvUnset,
    FunctionCreate,
    CredentialCreate,
    CredentialRevoke,
    DeadLettersRedrive,
    DeadLettersPurge,
    KeysRotate,
}

/// A text that names no action, or no kind of actor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownAuditWord {
    #[error("{0:?} is no action: use one of {known}", known = names(AuditAction::ALL.map(AuditAction::as_str)))]
    Action(String),
    #[error("{0:?} is no kind of actor: use one of {known}", known = names(ActorKind::ALL.map(ActorKind::as_str)))]
    ActorKind(String),
}

/// One line of the log. Kinds and actions are texts, for a newer service beside this one may have written others.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    pub id: AuditId,
    /// `None`: it concerns the whole service.
    pub app: Option<AppId>,
    pub actor_kind: String,
    pub actor_id: String,
    pub actor_issuer: String,
    pub request_id: String,
    pub action: String,
    /// A version's number, a credential's client id, a variable's name… Empty where the app itself is meant.
    pub target: String,
    /// An object; never a value of a variable, a token or a text that somebody wrote.
    pub details: RawJson,
    /// `None`: it was done. Else the stable reason of its failure.
    pub failure: Option<String>,
}

impl Actor {
    /// Nobody asked for it.
    pub fn service() -> Self {
        Self { kind: ActorKind::Service, id: String::new(), issuer: String::new(), request_id: String::new() }
    }

    /// A command of this user's, on the database itself.
    pub fn command(user: String) -> Self {
        Self { kind: ActorKind::Command, id: user, ..Self::service() }
    }
}

impl ActorKind {
    pub const ALL: [Self; 7] = [
        Self::Credential,
        Self::OperatorCredential,
        Self::OperatorToken,
        Self::Oidc,
        Self::Local,
        Self::Command,
        Self::Service,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::OperatorCredential => "operator_credential",
            Self::OperatorToken => "operator_token",
            Self::Oidc => "oidc",
            Self::Local => "local",
            Self::Command => "command",
            Self::Service => "service",
        }
    }
}

impl AuditAction {
    pub const ALL: [Self; 14] = [
        Self::AppCreate,
        Self::AppUpdate,
        Self::AppDelete,
        Self::VersionPublish,
        Self::VersionActivate,
        Self::VersionDelete,
        Self::EnvSet,
        Self::EnvUnset,
        Self::FunctionCreate,
        Self::CredentialCreate,
        Self::CredentialRevoke,
        Self::DeadLettersRedrive,
        Self::DeadLettersPurge,
        Self::KeysRotate,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AppCreate => "app.create",
            Self::AppUpdate => "app.update",
            Self::AppDelete => "app.delete",
            Self::VersionPublish => "version.publish",
            Self::VersionActivate => "version.activate",
            Self::VersionDelete => "version.delete",
            Self::EnvSet => "env.set",
            Self::EnvUnset => "env.unset",
            Self::FunctionCreate => "function.create",
            Self::CredentialCreate => "credential.create",
            Self::CredentialRevoke => "credential.revoke",
            Self::DeadLettersRedrive => "dead_letters.redrive",
            Self::DeadLettersPurge => "dead_letters.purge",
            Self::KeysRotate => "keys.rotate",
        }
    }
}

impl AuditEntry {
    pub fn at(&self) -> SystemTime {
        self.id.at()
    }
}

impl FromStr for ActorKind {
    type Err = UnknownAuditWord;

    fn from_str(text: &str) -> Result<Self, UnknownAuditWord> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownAuditWord::ActorKind(text.chars().take(80).collect()))
    }
}

impl FromStr for AuditAction {
    type Err = UnknownAuditWord;

    fn from_str(text: &str) -> Result<Self, UnknownAuditWord> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == text);
        found.ok_or_else(|| UnknownAuditWord::Action(text.chars().take(80).collect()))
    }
}

impl fmt::Display for ActorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for AuditAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn names<const N: usize>(names: [&str; N]) -> String {
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_is_written() {
        for action in AuditAction::ALL {
            assert_eq!(action.as_str().parse(), Ok(action));
        }
        for kind in ActorKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).expect("a text");
            assert_eq!(json, format!("\"{kind}\""), "versions.published_by has the same words");
        }
        let refused = "version.publsh".parse::<AuditAction>().expect_err("no action").to_string();
        assert!(refused.contains("\"version.publsh\" is no action") && refused.contains("keys.rotate"), "{refused}");
        assert!("root".parse::<ActorKind>().is_err());
    }
}

//! Who calls, what they may do, and as whom the audit log knows them.

use std::time::SystemTime;

use crate::model::{Actor, ActorKind, AppId, ClientId, Scope, Scopes};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// May do everything with every app.
    Operator(Operator),
    /// Acts for one app.
    Client { app: AppId, client_id: ClientId, scopes: Scopes },
    /// Acts for these apps until its issuer's token expires.
    Federated { apps: Vec<AppId>, scopes: Scopes, expires_at: SystemTime, subject: Subject },
}

/// How an operator is known. All of them may do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// No authentication is configured.
    Local,
    /// By the content of `operator_token_file`.
    Token,
    Credential(ClientId),
    /// Until its issuer's token expires.
    Federated {
        subject: Subject,
        expires_at: SystemTime,
    },
}

/// Whom an issuer's token is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub issuer: String,
    /// Empty where the token does not say.
    pub id: String,
}

/// The caller is known, and may not do this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this takes the scope {}, and the token has {has}", either(.needs))]
    Scope { needs: Vec<Scope>, has: Scopes },
    #[error("the token is for app {own}, not for app {other}")]
    OtherApp { own: AppId, other: AppId },
    #[error("a client can give only the scopes that it has: {has}")]
    Escalation { has: Scopes },
}

impl Caller {
    pub fn is_operator(&self) -> bool {
        matches!(self, Self::Operator(_))
    }

    /// As the audit log knows it.
    pub fn actor(&self, request_id: &str) -> Actor {
        let credential = |client_id: &ClientId| (client_id.to_string(), String::new());
        let federated = |subject: &Subject| (subject.id.clone(), subject.issuer.clone());
        let nobody = || (String::new(), String::new());
        let (kind, (id, issuer)) = match self {
            Self::Client { client_id, .. } => (ActorKind::Credential, credential(client_id)),
            Self::Operator(Operator::Credential(client_id)) => (ActorKind::OperatorCredential, credential(client_id)),
            Self::Operator(Operator::Token) => (ActorKind::OperatorToken, nobody()),
            Self::Operator(Operator::Local) => (ActorKind::Local, nobody()),
            Self::Federated { subject, .. } | Self::Operator(Operator::Federated { subject, .. }) => {
                (ActorKind::Oidc, federated(subject))
            }
        };
        Actor { kind, id, issuer, request_id: request_id.to_owned() }
    }

    /// Whether it has one of these scopes, and for this app.
    ///
    /// # Errors
    /// It has not.
    pub fn may(&self, app: &AppId, needs: &[Scope]) -> Result<(), Denied> {
        match self {
            Self::Operator(_) => Ok(()),
            Self::Client { app: own, .. } if own != app => {
                Err(Denied::OtherApp { own: own.clone(), other: app.clone() })
            }
            Self::Federated { apps, .. } if !apps.contains(app) => {
                let own = apps.first().unwrap_or(app).clone();
                Err(Denied::OtherApp { own, other: app.clone() })
            }
            Self::Client { scopes, .. } | Self::Federated { scopes, .. }
                if needs.iter().any(|scope| scopes.contains(*scope)) =>
            {
                Ok(())
            }
            Self::Client { scopes, .. } | Self::Federated { scopes, .. } => {
                Err(Denied::Scope { needs: needs.to_vec(), has: *scopes })
            }
        }
    }

    /// # Errors
    /// It is no operator.
    pub fn may_everything(&self) -> Result<(), Denied> {
        match self {
            Self::Operator(_) => Ok(()),
            Self::Client { scopes, .. } | Self::Federated { scopes, .. } => {
                Err(Denied::Scope { needs: vec![Scope::Operator], has: *scopes })
            }
        }
    }

    /// Whether it may give these scopes to another.
    ///
    /// # Errors
    /// It has less itself.
    pub fn may_give(&self, given: Scopes) -> Result<(), Denied> {
        match self {
            Self::Operator(_) => Ok(()),
            Self::Client { scopes, .. } | Self::Federated { scopes, .. } if scopes.contains_all(given) => Ok(()),
            Self::Client { scopes, .. } | Self::Federated { scopes, .. } => Err(Denied::Escalation { has: *scopes }),
        }
    }
}

fn either(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" or ")
}

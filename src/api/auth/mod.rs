//! One auth layer for gRPC and HTTP: who calls, and what may they do?
//!
//! [`Auth::caller`] reads `authorization: Bearer …`, which holds the operator's token, a credential's secret, or an access token that
//! [`mod@oauth`] gave out for one. [`identify`] puts the [`Caller`] it found among a request's extensions; every handler then asks it
//! ([`Caller::may`]) before it does anything. What callers learn of a refusal never depends on whether an app exists.

mod caller;
mod failures;
mod known;
mod oauth;
mod oidc;
mod tokens;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Extensions, HeaderMap};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;

use crate::model::{AppId, ClientId, Credential, Scope, Scopes};
use crate::store::{self, Secret256, Store};

use known::Known;
use tokens::{AccessKey, Claims, TokenError};

pub use caller::{Caller, Denied, Operator, Subject};
pub use failures::Failures;
pub(super) use oauth::router as oauth;
pub use oidc::Oidc;

/// Why nobody is known to call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    #[error(
        "send a token as `authorization: Bearer …`: the operator's, a client's secret, or one from POST /oauth/token"
    )]
    NoToken,
    #[error("the token is not valid, or its credential was revoked")]
    Invalid,
    #[error("the access token has expired: get another from POST /oauth/token")]
    Expired,
    #[error("the token has expired: get another from its issuer")]
    TokenExpired,
    #[error("the keys of the token's issuer cannot be fetched right now")]
    IssuerAway,
    #[error("too many wrong tokens came from this address: send the right one in {}", seconds(*.0))]
    TooMany(Duration),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Knows tokens; clones share it.
#[derive(Clone)]
pub struct Auth {
    shared: Arc<Shared>,
}

struct Shared {
    /// Kept as a hash, whose comparison takes the same time wherever two differ. `None`: who sends no token is the operator, which the
    /// configuration allows on loopback alone.
    operator: Option<blake3::Hash>,
    key: AccessKey,
    known: Known,
    failures: Failures,
    oidc: Option<Oidc>,
}

impl Auth {
    /// # Errors
    /// The store cannot be used, or the system has no random numbers.
    pub async fn open(
        store: Store,
        operator_token: Option<&str>,
        failures: Failures,
        oidc: Option<Oidc>,
    ) -> anyhow::Result<Self> {
        let key = store.service_key("access-tokens", tokens::random()?).await?;
        let operator = operator_token.map(|token| blake3::hash(token.as_bytes()));
        let (key, known) = (AccessKey::new(&key), Known::new(store));
        Ok(Self { shared: Arc::new(Shared { operator, key, known, failures, oidc }) })
    }

    /// Who sent these headers, on the connection that the extensions tell of.
    ///
    /// # Errors
    /// Nobody who is known.
    pub(super) async fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, Refused> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (None, _) if self.shared.operator.is_none() && self.shared.oidc.is_none() => {
                Ok(Caller::Operator(Operator::Local))
            }
            (None, _) => Err(Refused::NoToken),
            (Some(value), None) => {
                let value = value.to_str().map_err(|_| Refused::NoToken)?;
                let token = after_scheme(value, "Bearer").ok_or(Refused::NoToken)?;
                self.bearer(token, self.shared.failures.source(headers, extensions), SystemTime::now()).await
            }
            (Some(_), Some(_)) => Err(Refused::Invalid),
        }
    }

    async fn bearer(&self, token: &str, source: Option<IpAddr>, now: SystemTime) -> Result<Caller, Refused> {
        let held_off = self.shared.failures.held_off(source);
        if self.shared.operator.is_some_and(|operator| blake3::hash(token.as_bytes()) == operator) {
            // The right one, too: else there would be no end of guesses.
            let operator = Caller::Operator(Operator::Token);
            return held_off.map_or(Ok(operator), |wait| Err(Refused::TooMany(wait)));
        }
        let found = match (tokens::secret_hash(token), &self.shared.oidc) {
            (Some(sha256), _) => self.by_secret(&sha256, held_off).await,
            (None, Some(oidc)) if Oidc::is_jwt(token) => oidc.caller(token).await,
            (None, _) => self.by_claims(token, now).await,
        };
        match found {
            Err(Refused::Invalid) => Err(self.failed(source)),
            found => found,
        }
    }

    /// One that was seen lately is known at once; to look for another takes the store, which is not for those who are held off.
    async fn by_secret(&self, sha256: &Secret256, held_off: Option<Duration>) -> Result<Caller, Refused> {
        let entry = match (self.shared.known.seen_by_secret(sha256), held_off) {
            (None, Some(wait)) => return Err(Refused::TooMany(wait)),
            (None, None) => self.shared.known.by_secret(sha256).await?,
            (seen, _) => seen,
        };
        let entry = entry.filter(|entry| tokens::same(&entry.secret_sha256, sha256)).ok_or(Refused::Invalid)?;
        caller_of(&entry.credential, entry.credential.scopes)
    }

    async fn by_claims(&self, token: &str, now: SystemTime) -> Result<Caller, Refused> {
        let Claims { client_id, scopes } = self.shared.key.read(token, now)?;
        let entry = self.shared.known.by_id(client_id).await?.ok_or(Refused::Invalid)?;
        caller_of(&entry.credential, scopes)
    }

    /// What to answer to a wrong token, which counts.
    fn failed(&self, source: Option<IpAddr>) -> Refused {
        if let Some(wait) = self.shared.failures.held_off(source) {
            return Refused::TooMany(wait);
        }
        self.shared.failures.count(source);
        Refused::Invalid
    }

    /// The credential with this id, if this is its secret.
    ///
    /// # Errors
    /// [`Refused::Invalid`]: it is not. Or too many were wrong before.
    async fn client(&self, client_id: &str, secret: &str, source: Option<IpAddr>) -> Result<Credential, Refused> {
        let held_off = self.shared.failures.held_off(source);
        let (Ok(id), Some(sha256)) = (client_id.parse(), tokens::secret_hash(secret)) else {
            return Err(self.failed(source));
        };
        let entry = match (self.shared.known.seen_by_id(id), held_off) {
            (None, Some(wait)) => return Err(Refused::TooMany(wait)),
            (None, None) => self.shared.known.by_id(id).await?,
            (seen, _) => seen,
        };
        let entry = entry.filter(|entry| tokens::same(&entry.secret_sha256, &sha256));
        entry.map(|entry| entry.credential.clone()).ok_or_else(|| self.failed(source))
    }

    /// Forgets addresses that sent wrong tokens and behave now. Call it now and then.
    pub fn sweep(&self) {
        self.shared.failures.sweep();
    }

    /// A credential's secret, and what to keep of it.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new_secret() -> Result<(String, Secret256), tokens::NoRandom> {
        tokens::new_secret()
    }

    /// To be called once a credential's row is gone, and by something that nobody can cancel in between.
    pub(super) fn forget(&self, client_id: ClientId) {
        self.shared.known.forget(|entry| entry.credential.client_id == client_id);
    }

    /// As [`Auth::forget`], for all: another replica may have revoked any.
    pub fn forget_all(&self) {
        self.shared.known.forget(|_| true);
    }

    /// As [`Auth::forget`], for all credentials of an app.
    pub(super) fn forget_app(&self, app: &AppId) {
        self.shared.known.forget(|entry| entry.credential.app.as_ref() == Some(app));
    }

    /// Resolves when the caller's credential is revoked: for streams, which outlive the check at their beginning.
    pub(super) fn revoked(&self, caller: &Caller) -> impl Future<Output = ()> + Send + use<> {
        let (shared, caller) = (Arc::clone(&self.shared), caller.clone());
        async move {
            match caller {
                Caller::Client { client_id, .. } | Caller::Operator(Operator::Credential(client_id)) => {
                    shared.known.gone(client_id).await;
                }
                Caller::Federated { expires_at, .. } | Caller::Operator(Operator::Federated { expires_at, .. }) => {
                    tokio::time::sleep(expires_at.duration_since(SystemTime::now()).unwrap_or_default()).await;
                }
                Caller::Operator(Operator::Local | Operator::Token) => std::future::pending().await,
            }
        }
    }
}

impl From<TokenError> for Refused {
    fn from(err: TokenError) -> Self {
        match err {
            TokenError::Invalid => Self::Invalid,
            TokenError::Expired => Self::Expired,
        }
    }
}

/// With the scopes of a token, which may be fewer than the credential's.
fn caller_of(credential: &Credential, scopes: Scopes) -> Result<Caller, Refused> {
    match &credential.app {
        Some(app) => Ok(Caller::Client { app: app.clone(), client_id: credential.client_id, scopes }),
        None if scopes.contains(Scope::Operator) => Ok(Caller::Operator(Operator::Credential(credential.client_id))),
        None => Err(Refused::Invalid),
    }
}

/// What follows the scheme, whose case does not matter.
fn after_scheme<'a>(header: &'a str, scheme: &str) -> Option<&'a str> {
    let (name, rest) = header.split_once(' ')?;
    name.eq_ignore_ascii_case(scheme).then_some(rest.trim())
}

/// Rounded up, as people are told.
fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs() + 1)
}

/// Refuses who is not known, and tells the routes who calls.
pub(super) fn guard(router: Router, auth: Auth) -> Router {
    router.layer(from_fn_with_state(auth, identify))
}

async fn identify(State(auth): State<Auth>, mut request: Request, next: Next) -> Response {
    match auth.caller(request.headers(), request.extensions()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => Status::from(refused).into_http(),
    }
}

#[cfg(test)]
mod tests;

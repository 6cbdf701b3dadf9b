//! Tokens of an OpenID Connect issuer: JWTs that its keys have signed, for us, and that have not expired.
//!
//! A key says which algorithms it is for; a token chooses among those and no others, so `none` and HMAC with a public key are nothing.
//! Keys are fetched when they are needed, and again when they are old or a token names one that is not known – but not more often than
//! [`RETRY`], whatever tokens come. While the issuer is away those that there are go on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::redirect::Policy;
use serde_json::{Map, Value};

use super::{Caller, Operator, Refused, Subject};
use crate::config::{self, is_safe};
use crate::model::{AppId, Scope, Scopes};

const TOKEN_BYTES_MAX: usize = 16 << 10;
const ANSWER_BYTES_MAX: usize = 1 << 20;
const KEYS_MAX: usize = 100;
const APPS_MAX: usize = 100;
const SUBJECT_CHARS_MAX: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Keys that are older are fetched again.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Between two attempts, however they end.
const RETRY: Duration = Duration::from_secs(10);
/// Clocks differ.
const LEEWAY_SECONDS: u64 = 30;

pub struct Oidc {
    issuer: String,
    audience: String,
    jwks_url: Option<String>,
    scopes_claim: String,
    app_claim: String,
    client: reqwest::Client,
    keys: Mutex<Keys>,
    /// One fetches, the others wait for what it finds.
    fetching: tokio::sync::Mutex<()>,
    retry: Duration,
}

#[derive(Default)]
struct Keys {
    by_id: HashMap<String, Arc<Key>>,
    fetched_at: Option<Instant>,
    tried_at: Option<Instant>,
}

struct Key {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl Oidc {
    /// `None`: no issuer is configured.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn of(config: &config::Oidc) -> anyhow::Result<Option<Self>> {
        let (Some(issuer), Some(audience)) = (config.issuer.clone(), config.audience.clone()) else { return Ok(None) };
        let client = reqwest::Client::builder().redirect(Policy::none()).timeout(TIMEOUT).build()?;
        Ok(Some(Self {
            issuer,
            audience,
            jwks_url: config.jwks_url.clone(),
            scopes_claim: config.scopes_claim.clone(),
            app_claim: config.app_claim.clone(),
            client,
            keys: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            retry: RETRY,
        }))
    }

    /// Whether it looks like one at all.
    pub fn is_jwt(token: &str) -> bool {
        token.len() <= TOKEN_BYTES_MAX && token.split('.').count() == 3
    }

    /// Whom the token is for.
    pub async fn caller(&self, token: &str) -> Result<Caller, Refused> {
        let header = decode_header(token).map_err(|_| Refused::Invalid)?;
        let kid = header.kid.as_deref().filter(|_| header.crit.is_none()).ok_or(Refused::Invalid)?;
        let key = self.key(kid).await?;
        if !key.algorithms.contains(&header.alg) {
            return Err(Refused::Invalid);
        }
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let decoded = decode::<Map<String, Value>>(token, &key.key, &validation);
        self.meant(&decoded.map_err(|err| refused(&err))?.claims)
    }

    fn meant(&self, claims: &Map<String, Value>) -> Result<Caller, Refused> {
        let named = texts(claims.get(&self.scopes_claim));
        let named = named.iter().flat_map(|text| text.split_ascii_whitespace());
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let subject = Subject { issuer: self.issuer.clone(), id: subject.chars().take(SUBJECT_CHARS_MAX).collect() };
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default().clamp(0.0, 1e11);
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(expires);
        let scopes: Scopes =
            named.filter_map(|name| name.strip_prefix("chatfn:").unwrap_or(name).parse::<Scope>().ok()).collect();
        if scopes.contains(Scope::Operator) {
            return Ok(Caller::Operator(Operator::Federated { subject, expires_at }));
        }
        let apps = texts(claims.get(&self.app_claim));
        let apps: Vec<AppId> = apps.into_iter().take(APPS_MAX).filter_map(|app| app.parse().ok()).collect();
        if apps.is_empty() {
            return Err(Refused::Invalid);
        }
        Ok(Caller::Federated { apps, scopes, expires_at, subject })
    }

    async fn key(&self, kid: &str) -> Result<Arc<Key>, Refused> {
        if let Some(key) = self.keys().get(kid) {
            return Ok(key);
        }
        let _turn = self.fetching.lock().await;
        let due = {
            let keys = self.keys();
            // Another may have fetched while we waited.
            if let Some(key) = keys.get(kid) {
                return Ok(key);
            }
            keys.tried_at.is_none_or(|at| at.elapsed() >= self.retry)
        };
        if due {
            let fetched = self.fetch().await;
            let mut keys = self.keys();
            keys.tried_at = Some(Instant::now());
            match fetched {
                Ok(by_id) => (keys.by_id, keys.fetched_at) = (by_id, Some(Instant::now())),
                Err(err) => tracing::warn!(%err, issuer = self.issuer, "failed to fetch the issuer's keys"),
            }
        }
        let keys = self.keys();
        match keys.by_id.get(kid) {
            Some(key) => Ok(Arc::clone(key)),
            None if keys.fetched_at.is_none() => Err(Refused::IssuerAway),
            None => Err(Refused::Invalid),
        }
    }

    async fn fetch(&self) -> anyhow::Result<HashMap<String, Arc<Key>>> {
        let url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        let set: JwkSet = serde_json::from_slice(&self.get(&url).await?)?;
        let usable = set.keys.iter().take(KEYS_MAX).filter_map(|jwk| Some((jwk.common.key_id.clone()?, usable(jwk)?)));
        Ok(usable.map(|(kid, key)| (kid, Arc::new(key))).collect())
    }

    async fn discover(&self) -> anyhow::Result<String> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let found: Value = serde_json::from_slice(&self.get(&url).await?)?;
        anyhow::ensure!(found["issuer"] == self.issuer.as_str(), "{url} is about another issuer");
        let jwks_url = found["jwks_uri"].as_str().unwrap_or_default();
        anyhow::ensure!(is_safe(jwks_url), "{url} names no jwks_uri that is https");
        Ok(jwks_url.to_owned())
    }

    async fn get(&self, url: &str) -> anyhow::Result<Vec<u8>> {
        let mut answer = self.client.get(url).send().await?;
        anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            anyhow::ensure!(
                body.len() + chunk.len() <= ANSWER_BYTES_MAX,
                "{url} answers more than {ANSWER_BYTES_MAX} bytes"
            );
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    /// While it is fresh.
    fn get(&self, kid: &str) -> Option<Arc<Key>> {
        self.fetched_at.filter(|at| at.elapsed() < AGE_MAX)?;
        self.by_id.get(kid).cloned()
    }
}

/// A key for signatures that are not made with it, and what it is for.
fn usable(jwk: &Jwk) -> Option<Key> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
        return None;
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => vec![ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => vec![ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![EdDSA],
        _ => return None,
    };
    if let Some(own) = jwk.common.key_algorithm {
        algorithms.retain(|algorithm| own.to_string().parse() == Ok(*algorithm));
    }
    Some(Key { key: DecodingKey::from_jwk(jwk).ok()?, algorithms })
}

fn refused(err: &jsonwebtoken::errors::Error) -> Refused {
    match err.kind() {
        jsonwebtoken::errors::ErrorKind::ExpiredSignature => Refused::TokenExpired,
        _ => Refused::Invalid,
    }
}

/// A text, or a list of them.
fn texts(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
mod tests;

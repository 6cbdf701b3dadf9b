//! `POST /oauth/token`: OAuth 2.0 client credentials (RFC 6749, section 4.4). The app is the client.
//!
//! The form may come as `multipart/form-data`, too, as `chatkitty-platform-sdk` sends it.

use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, PRAGMA, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::time::timeout;
use url::form_urlencoded;

use super::tokens::{Claims, LIFETIME};
use super::{Auth, Refused, after_scheme};
use crate::model::{Credential, Scopes};
use crate::store;

const BODY_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 16;
/// For the body to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Needs no token: it is where they come from.
pub fn router(auth: Auth) -> Router {
    Router::new().route("/oauth/token", post(token)).with_state(auth)
}

/// Section 5.2.
#[derive(Debug)]
enum Error {
    InvalidRequest(String),
    InvalidClient,
    UnsupportedGrantType,
    InvalidScope(String),
    TooMany(Duration),
    Store(store::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Client {
    id: String,
    secret: String,
}

#[derive(Default)]
struct Form {
    grant_type: Option<String>,
    scope: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

async fn token(State(auth): State<Auth>, request: Request) -> Response {
    match grant(&auth, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn grant(auth: &Auth, request: Request) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let source = auth.shared.failures.source(&parts.headers, &parts.extensions);
    let body = timeout(PATIENCE, to_bytes(body, BODY_BYTES_MAX)).await;
    let body = body.map_err(|_| invalid("the body did not arrive in time"))?;
    let body = body.map_err(|_| invalid(format!("the body has more than {BODY_BYTES_MAX} bytes, or broke off")))?;
    let basic = basic(&parts.headers)?;
    let form = Form::read(parts, body).await?;
    let client = form.client(basic)?;
    let credential = auth.client(&client.id, &client.secret, source).await?;
    match form.grant_type.as_deref() {
        Some("client_credentials") => {}
        Some(_) => return Err(Error::UnsupportedGrantType),
        None => return Err(invalid("grant_type is missing: it must be client_credentials")),
    }
    let scopes = wanted(form.scope.as_deref(), &credential)?;
    let claims = Claims { client_id: credential.client_id, scopes };
    let answer = json!({
        "access_token": auth.shared.key.issue(claims, SystemTime::now()),
        "token_type": "bearer",
        "expires_in": LIFETIME.as_secs(),
        "scope": scopes.to_string(),
    });
    Ok((uncached(), Json(answer)).into_response())
}

/// All that the credential has, unless fewer are asked for.
fn wanted(asked: Option<&str>, credential: &Credential) -> Result<Scopes, Error> {
    let Some(asked) = asked else { return Ok(credential.scopes) };
    let scopes: Scopes = asked.parse().map_err(|err| Error::InvalidScope(format!("{err}")))?;
    if scopes.is_empty() || !credential.scopes.contains_all(scopes) {
        return Err(Error::InvalidScope(format!("the client has these scopes: {}", credential.scopes)));
    }
    Ok(scopes)
}

/// Ids and secrets of ours hold nothing that would have to be percent-encoded, so nothing is decoded.
fn basic(headers: &HeaderMap) -> Result<Option<Client>, Error> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let decoded = header.to_str().ok().and_then(|text| BASE64_STANDARD.decode(after_scheme(text, "Basic")?).ok());
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    let (id, secret) = pair.ok_or(Error::InvalidClient)?;
    Ok(Some(Client { id: id.to_owned(), secret: secret.to_owned() }))
}

impl Form {
    async fn read(parts: Parts, body: Bytes) -> Result<Self, Error> {
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let mut form = Self::default();
        match media_type.as_str() {
            "application/x-www-form-urlencoded" => {
                for (n, (name, value)) in form_urlencoded::parse(&body).enumerate() {
                    form.take(n, &name, value.into_owned())?;
                }
            }
            "multipart/form-data" => {
                let unreadable = || invalid("the multipart body cannot be read");
                let request = Request::from_parts(parts, Body::from(body));
                let mut fields = Multipart::from_request(request, &()).await.map_err(|_| unreadable())?;
                let mut n = 0;
                while let Some(field) = fields.next_field().await.map_err(|_| unreadable())? {
                    let name = field.name().unwrap_or_default().to_owned();
                    form.take(n, &name, field.text().await.map_err(|_| unreadable())?)?;
                    n += 1;
                }
            }
            _ => return Err(invalid("send a form: application/x-www-form-urlencoded or multipart/form-data")),
        }
        Ok(form)
    }

    /// Unknown fields are ignored, empty ones count as absent, and none may come twice (section 3.2).
    fn take(&mut self, n: usize, name: &str, value: String) -> Result<(), Error> {
        if n >= FIELDS_MAX {
            return Err(invalid(format!("the form has more than {FIELDS_MAX} fields")));
        }
        let field = match name {
            "grant_type" => &mut self.grant_type,
            "scope" => &mut self.scope,
            "client_id" => &mut self.client_id,
            "client_secret" => &mut self.client_secret,
            _ => return Ok(()),
        };
        if !value.is_empty() && field.replace(value).is_some() {
            return Err(invalid(format!("{name} comes twice")));
        }
        Ok(())
    }

    /// Who asks, said in one way only.
    fn client(&self, basic: Option<Client>) -> Result<Client, Error> {
        match (basic, &self.client_id, &self.client_secret) {
            (Some(_), _, Some(_)) => Err(invalid("send the secret in one way: as HTTP Basic, or in the form")),
            (Some(client), Some(id), None) if client.id != *id => Err(invalid("the form names another client_id")),
            (Some(client), _, None) => Ok(client),
            (None, Some(id), Some(secret)) => Ok(Client { id: id.clone(), secret: secret.clone() }),
            (None, ..) => Err(Error::InvalidClient),
        }
    }
}

impl From<Refused> for Error {
    fn from(err: Refused) -> Self {
        match err {
            Refused::NoToken | Refused::Invalid | Refused::Expired | Refused::TokenExpired | Refused::IssuerAway => {
                Self::InvalidClient
            }
            Refused::TooMany(wait) => Self::TooMany(wait),
            Refused::Store(err) => Self::Store(err),
        }
    }
}

fn invalid(description: impl Into<String>) -> Error {
    Error::InvalidRequest(description.into())
}

fn uncached() -> [(axum::http::HeaderName, &'static str); 2] {
    [(CACHE_CONTROL, "no-store"), (PRAGMA, "no-cache")]
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let retry_after = if let Self::TooMany(wait) = &self { Some(wait.as_secs() + 1) } else { None };
        let (status, error, description) = match self {
            Self::InvalidRequest(text) => (StatusCode::BAD_REQUEST, "invalid_request", text),
            Self::InvalidClient => {
                let text = "send client_id and client_secret of a credential that was not revoked".to_owned();
                (StatusCode::UNAUTHORIZED, "invalid_client", text)
            }
            Self::UnsupportedGrantType => {
                let text = "grant_type must be client_credentials".to_owned();
                (StatusCode::BAD_REQUEST, "unsupported_grant_type", text)
            }
            Self::InvalidScope(text) => (StatusCode::BAD_REQUEST, "invalid_scope", text),
            Self::TooMany(wait) => {
                let text = Refused::TooMany(wait).to_string();
                (StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable", text)
            }
            Self::Store(err) => {
                tracing::error!(%err, "failed to read a credential");
                let text = "the store cannot be used right now: try again".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", text)
            }
        };
        let body = Json(json!({ "error": error, "error_description": description }));
        let mut response = (status, uncached(), body).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = axum::http::HeaderValue::from_static("Basic realm=\"chatfn\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

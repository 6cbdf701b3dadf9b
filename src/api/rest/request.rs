//! What every request brings: who calls and for which app, an id in the path, a JSON body.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::{ApiError, no_such_route};
use crate::api::Services;
use crate::api::auth::Caller;
use crate::api::requests::RequestId;
use crate::model::{Actor, AppId, Scope};

/// An operator's token, which is for all apps, says here which one it means.
const APP: &str = "x-chatfn-app";
/// For the body to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who may look at an app.
pub struct Reader {
    pub app: AppId,
    pub caller: Caller,
}

/// Who may change what an app runs.
pub struct Publisher {
    pub app: AppId,
    pub actor: Actor,
}

/// Who looks after an app's events.
pub struct Manager {
    pub app: AppId,
    pub caller: Caller,
    pub actor: Actor,
}

impl FromRequestParts<Arc<Services>> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiError> {
        let (app, caller) = allowed(parts, services, &[Scope::Publish, Scope::Manage]).await?;
        Ok(Self { app, caller })
    }
}

impl FromRequestParts<Arc<Services>> for Publisher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiError> {
        let (app, caller) = allowed(parts, services, &[Scope::Publish]).await?;
        Ok(Self { app, actor: actor(parts, &caller) })
    }
}

impl FromRequestParts<Arc<Services>> for Manager {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiError> {
        let (app, caller) = allowed(parts, services, &[Scope::Manage]).await?;
        Ok(Self { app, actor: actor(parts, &caller), caller })
    }
}

/// The caller's app – a client has one – if it has one of these scopes for it.
async fn allowed(parts: &Parts, services: &Services, scopes: &[Scope]) -> Result<(AppId, Caller), ApiError> {
    let caller = services.auth.caller(&parts.headers, &parts.extensions).await?;
    if !parts.headers.contains_key(AUTHORIZATION) && !is_local(parts) {
        let message = "without a token, call the service as localhost or by its address";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "FOREIGN_HOST", message));
    }
    let named = match parts.headers.get(APP) {
        Some(value) => Some(String::from_utf8_lossy(value.as_bytes()).parse::<AppId>()?),
        None => None,
    };
    let app = match (&caller, named) {
        (_, Some(app)) => app,
        (Caller::Client { app, .. }, None) => app.clone(),
        (Caller::Federated { apps, .. }, None) if apps.len() == 1 => apps[0].clone(),
        (Caller::Operator(_) | Caller::Federated { .. }, None) => {
            let message =
                "an operator may see all apps: name one in the header X-Chatfn-App, or use an app's credential";
            return Err(ApiError::bad_request("APP_MISSING", message));
        }
    };
    caller.may(&app, scopes)?;
    Ok((app, caller))
}

/// Who is to be recorded for what the request changes.
fn actor(parts: &Parts, caller: &Caller) -> Actor {
    caller.actor(parts.extensions.get::<RequestId>().map_or("", |RequestId(id)| id))
}

/// Whether an open service is called by an address, or as localhost. A browser that a hostile page has led here by a DNS name of its own
/// (DNS rebinding) calls us by that name; nothing else tells its requests from those of this machine's users.
pub(in crate::api) fn is_local(parts: &Parts) -> bool {
    let header = parts.headers.get(HOST).and_then(|value| value.to_str().ok()).and_then(|host| host.parse().ok());
    let authority: Option<Authority> = parts.uri.authority().cloned().or(header);
    let Some(authority) = authority else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

/// The number in the path. What is none names nothing.
pub struct Id(pub u64);

impl FromRequestParts<Arc<Services>> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, services).await.ok();
        match id.and_then(|Path(id)| id.parse().ok()) {
            Some(id) => Ok(Self(id)),
            None => Err(no_such_route().await),
        }
    }
}

/// A body that is JSON and says so.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Services>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, services: &Arc<Services>) -> Result<Self, ApiError> {
        let content_type =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            let message = "send the body as Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message));
        }
        let limit = services.limits.publish_bytes_max;
        let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "TIMED_OUT", "the body did not arrive in time");
        let body = timeout(PATIENCE, to_bytes(request.into_body(), limit)).await.map_err(late)?;
        let too_large = |_| {
            let message = format!("the body has more than {limit} bytes, or broke off");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "REQUEST_TOO_LARGE", message)
        };
        let body = body.map_err(too_large)?;
        let invalid = |err: serde_json::Error| ApiError::bad_request("INVALID_JSON", format!("the body: {err}"));
        serde_json::from_slice(&body).map(Self).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        let local =
            |host: &str| is_local(&Request::builder().header(HOST, host).body(()).expect("fine").into_parts().0);
        for host in ["localhost", "LOCALHOST:7400", "127.0.0.1:7400", "[::1]:7400", "10.0.0.1"] {
            assert!(local(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7400", "127.0.0.1.evil.example", "a@b@c", ""] {
            assert!(!local(host), "{host}");
        }
        assert!(!is_local(&Request::new(()).into_parts().0));
    }
}

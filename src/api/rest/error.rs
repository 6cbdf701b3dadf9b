//! What callers of the REST API are told of a failure: always `ApiError` of ChatKitty's schema, whoever noticed it.
//!
//! Which error is which is decided in [`crate::api::status`] alone; here a gRPC code becomes an HTTP one.

use std::time::SystemTime;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A failed request.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    /// Clients branch on it: UPPER_SNAKE, as gRPC's reasons are.
    error: String,
    message: String,
    /// In seconds.
    retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, error: &str, message: impl Into<String>) -> Self {
        Self { status, error: error.to_owned(), message: message.into(), retry_after: None }
    }

    pub fn bad_request(error: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, message)
    }

    pub fn not_found(error: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, message)
    }
}

/// Of everything that has a status.
impl<E> From<E> for ApiError
where
    Status: From<E>,
{
    fn from(err: E) -> Self {
        let status = Status::from(err);
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone());
        let wait = details.retry_info().and_then(|info| info.retry_delay);
        let retry_after = wait.map(|wait| wait.as_millis().div_ceil(1000).max(1) as u64);
        let error = reason.unwrap_or_else(|| "INTERNAL".to_owned());
        Self { status: http_status(status.code(), &error), message: status.message().to_owned(), error, retry_after }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let timestamp = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut body = json!({ "error": self.error, "message": self.message, "timestamp": timestamp });
        if self.status == StatusCode::UNAUTHORIZED {
            // So that it is an `AuthenticationError` of that schema, too.
            body["error_description"] = self.message.into();
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => drop(headers.insert(WWW_AUTHENTICATE, BEARER)),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(RETRY_AFTER, self.retry_after.unwrap_or(1).into());
            }
            _ => {}
        }
        response
    }
}

const BEARER: axum::http::HeaderValue = axum::http::HeaderValue::from_static("Bearer realm=\"chatfn\"");

/// What nothing answers to.
pub async fn no_such_route() -> ApiError {
    ApiError::not_found("NOT_FOUND", "there is nothing here: GET /v1/openapi.json says what there is")
}

fn http_status(code: Code, reason: &str) -> StatusCode {
    match (code, reason) {
        // The sources are at fault, not what the app is like at the moment.
        (
            Code::FailedPrecondition,
            "VERIFICATION_FAILED" | "INSTALL_FAILED" | "INSTALL_TOO_LARGE" | "INSTALL_TIMED_OUT",
        ) => StatusCode::UNPROCESSABLE_ENTITY,
        (Code::InvalidArgument | Code::OutOfRange, _) => StatusCode::BAD_REQUEST,
        (Code::NotFound, _) => StatusCode::NOT_FOUND,
        (Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists, _) => StatusCode::CONFLICT,
        (Code::ResourceExhausted, _) => StatusCode::TOO_MANY_REQUESTS,
        (Code::Unavailable, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Code::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        (Code::PermissionDenied, _) => StatusCode::FORBIDDEN,
        (Code::DeadlineExceeded, _) => StatusCode::GATEWAY_TIMEOUT,
        (Code::Unimplemented, _) => StatusCode::NOT_IMPLEMENTED,
        (Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss, _) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

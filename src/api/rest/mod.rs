//! The REST API: as much of ChatKitty's platform API (`chatkitty-platform-sdk` 2.4.0) as concerns functions, and what gRPC offers
//! beyond it. See `docs/rest.md`.
//!
//! A client's credential says which app it is for. Every change is a publish, and is answered when it serves.

mod audit_entries;
mod dead_letters;
mod error;
mod function_versions;
mod functions;
mod hal;
mod invocations;
mod logs;
mod request;
mod runtime;
mod trial;
mod versions;

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, any, get, post, put};

use super::Services;

pub(super) use error::ApiError;
pub(super) use request::is_local;

/// Says what is here, in machines' words.
const OPENAPI: &str = include_str!("openapi.json");

type Route = (&'static str, &'static str, MethodRouter<Arc<Services>>);

/// Every method of every path, once. `openapi.json` has the same ones.
fn table() -> Vec<Route> {
    vec![
        ("get", "/v1/openapi.json", get(openapi)),
        ("get", "/v1/runtimes/nodejs", get(runtime::retrieve)),
        ("put", "/v1/runtimes/nodejs/dependencies", put(runtime::put_dependencies)),
        ("put", "/v1/runtimes/nodejs/environment-variables", put(runtime::put_environment)),
        ("put", "/v1/runtimes/nodejs/initialization-script", put(runtime::put_initialization_script)),
        ("get", "/v1/runtimes/nodejs/functions", get(functions::list)),
        ("post", "/v1/runtimes/nodejs/functions", post(functions::create)),
        ("get", "/v1/runtimes/nodejs/logs", get(logs::stream)),
        ("get", "/v1/runtimes/nodejs/versions", get(versions::list)),
        ("post", "/v1/runtimes/nodejs/versions/{id}/activate", post(versions::activate)),
        ("post", "/v1/runtimes/nodejs/rollback", post(versions::rollback)),
        ("get", "/v1/functions/{id}", get(functions::retrieve)),
        ("get", "/v1/functions/{id}/current-version", get(function_versions::current)),
        ("get", "/v1/functions/{id}/versions", get(function_versions::list)),
        ("post", "/v1/functions/{id}/versions", post(function_versions::create)),
        ("get", "/v1/functions/{id}/invocations", get(invocations::list)),
        ("post", "/v1/functions/{id}/test", post(trial::test)),
        ("get", "/v1/audit-entries", get(audit_entries::list)),
        ("get", "/v1/dead-letters", get(dead_letters::list)),
        ("post", "/v1/dead-letters/redrive", post(dead_letters::redrive)),
        ("get", "/v1/function-versions/{id}", get(function_versions::retrieve)),
    ]
}

pub fn router(services: Arc<Services>) -> Router {
    let mut router = Router::new();
    for (_, path, handler) in table() {
        router = router.route(path, handler);
    }
    router
        .method_not_allowed_fallback(error::no_such_route)
        // The rest of ChatKitty's API, too.
        .route("/v1", any(error::no_such_route))
        .route("/v1/{*rest}", any(error::no_such_route))
        .with_state(services)
}

async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn openapi_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
        assert_eq!(document["openapi"], "3.1.0");
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| methods.as_object().expect("methods").keys().map(move |method| (method, path)))
            .filter(|(method, _)| *method != "parameters")
            .map(|(method, path)| (method.clone(), path.clone()))
            .collect();
        let routed = table().into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(documented, routed);
    }
}

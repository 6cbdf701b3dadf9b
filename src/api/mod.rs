//! What callers see: gRPC on one port with a little HTTP. Proto types appear here and in `cli` only.

pub mod admin;
mod auth;
mod convert;
mod grpc;
mod http;
mod logs;
mod measures;
mod rates;
mod requests;
mod rest;
mod status;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::service::Routes;

use crate::dispatch;
use crate::drain::Drain;
use crate::history::History;
use crate::invoke::Invoker;
use crate::model::{Catalogue, Report, Sdk};
use crate::proto;
use crate::publish::Publisher;
use crate::serving::Serving;
use crate::store::Store;

pub use auth::{Auth, Failures, Oidc};
pub use measures::Measures;
pub use rates::{RateDefaults, Rates};

/// Room for the envelope around an event or a result.
const ENVELOPE_BYTES: usize = 1 << 20;
/// How much too large an event may be and still be refused with a reason of ours, not by tonic.
const TOO_LARGE_BYTES: usize = 16 << 20;
/// An event with its result and a full log.
const HISTORY_BYTES_MAX: usize = 256 << 20;

/// Clients that may read logs by HTTP at a time.
pub const LOG_STREAMS_MAX: usize = 256;

/// All that the API serves from.
#[derive(Clone)]
pub struct Services {
    pub auth: Auth,
    pub invoker: Invoker,
    pub publisher: Publisher,
    pub serving: Serving,
    pub store: Store,
    pub history: History,
    pub delivery: dispatch::Figures,
    pub catalogue: Arc<Catalogue>,
    pub drain: Drain,
    pub measures: Measures,
    pub isolation: Report,
    pub sdk: Sdk,
    pub limits: MessageLimits,
    pub rates: Rates,
    /// A permit for each client that reads logs by HTTP.
    pub log_streams: Arc<Semaphore>,
    /// New work is refused, as the service drains: for connections that were made since.
    pub refuses: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct MessageLimits {
    pub event_bytes_max: usize,
    pub result_bytes_max: usize,
    pub publish_bytes_max: usize,
}

/// gRPC services, reflection, health, HTTP and REST as one router. Health goes first: a probe needs no token, nor does who asks for one.
pub fn routes(services: Services) -> Routes {
    use proto::app_service_server::AppServiceServer;
    use proto::event_service_server::EventServiceServer;
    use proto::invocation_service_server::InvocationServiceServer;
    use proto::version_service_server::VersionServiceServer;

    let services = Arc::new(services);
    let limits = services.limits;
    let (auth, drain) = (services.auth.clone(), services.drain.clone());
    let invocations = InvocationServiceServer::new(grpc::Invocations(Arc::clone(&services)))
        // More than allowed gets in, so that the answer can say what the limit is.
        .max_decoding_message_size(limits.event_bytes_max + TOO_LARGE_BYTES)
        .max_encoding_message_size(HISTORY_BYTES_MAX.max(limits.result_bytes_max + ENVELOPE_BYTES));
    let versions = VersionServiceServer::new(grpc::Versions(Arc::clone(&services)))
        .max_decoding_message_size(limits.publish_bytes_max);
    let events =
        EventServiceServer::new(grpc::Events(Arc::clone(&services))).max_encoding_message_size(HISTORY_BYTES_MAX);
    let apps = AppServiceServer::new(grpc::Apps(Arc::clone(&services)));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Many clients (Python's, older grpcurl) still ask for v1alpha.
    let reflection_v1 = reflection().build_v1().expect("the descriptors were compiled with this program");
    let reflection_v1alpha = reflection().build_v1alpha().expect("the descriptors were compiled with this program");
    let guarded = Routes::new(invocations)
        .add_service(versions)
        .add_service(events)
        .add_service(apps)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha);
    let guarded = guarded.prepare().into_axum_router().layer(axum::middleware::map_response(status::explain_too_large));
    let guarded = auth::guard(guarded, auth.clone());
    let following = requests::Following { drain: drain.clone(), awaited: !services.refuses };
    let open = Routes::new(drain.health_service()).prepare().into_axum_router();
    let http =
        http::router(drain, services.store.clone()).merge(measures::router(auth.clone(), services.measures.clone()));
    let http = http.merge(auth::oauth(auth)).merge(rest::router(services));
    Routes::from(requests::follow(following, http.merge(open.reset_fallback()).merge(guarded)))
}

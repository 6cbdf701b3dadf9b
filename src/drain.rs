//! The way down: refuse new work, finish what runs, and tell everybody who asks.

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

/// The names that probes ask for; the empty one is the whole service.
const SERVICES: [&str; 5] = [
    "",
    "chatfunctions.v1.InvocationService",
    "chatfunctions.v1.VersionService",
    "chatfunctions.v1.EventService",
    "chatfunctions.v1.AppService",
];

/// For a liveness probe: a service that drains is alive, and must not be killed for it.
const LIVENESS: &str = "liveness";

/// Whether the service still takes new work. Cheap to clone.
#[derive(Clone)]
pub struct Drain {
    started: CancellationToken,
    health: HealthReporter,
}

impl Drain {
    /// Says SERVING from the start.
    pub async fn new() -> Self {
        let drain = Self { started: CancellationToken::new(), health: HealthReporter::new() };
        drain.report(ServingStatus::Serving).await;
        drain.health.set_service_status(LIVENESS, ServingStatus::Serving).await;
        drain
    }

    /// Health says NOT_SERVING first, so that balancers look elsewhere while what still comes is refused.
    pub async fn start(&self) {
        self.report(ServingStatus::NotServing).await;
        self.started.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Resolves when the drain starts.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    pub fn health_service(&self) -> HealthServer<impl Health> {
        HealthServer::new(tonic_health::server::HealthService::from_health_reporter(self.health.clone()))
    }

    async fn report(&self, status: ServingStatus) {
        for service in SERVICES {
            self.health.set_service_status(service, status).await;
        }
    }
}

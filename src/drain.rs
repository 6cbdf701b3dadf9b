//! The way down: tell everybody who asks, go on for a moment, then refuse new work and finish what runs.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
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
    leaving: CancellationToken,
    started: CancellationToken,
    calls: TaskTracker,
    health: HealthReporter,
}

impl Drain {
    /// Says SERVING from the start.
    pub async fn new() -> Self {
        let drain = Self {
            leaving: CancellationToken::new(),
            started: CancellationToken::new(),
            calls: TaskTracker::new(),
            health: HealthReporter::new(),
        };
        drain.report(ServingStatus::Serving).await;
        drain.health.set_service_status(LIVENESS, ServingStatus::Serving).await;
        drain
    }

    /// Health says NOT_SERVING, so that balancers look elsewhere. What comes meanwhile, from those who have not heard it, is served.
    pub async fn leave(&self) {
        self.report(ServingStatus::NotServing).await;
        self.leaving.cancel();
    }

    /// From now on new connections are for being refused.
    pub async fn start(&self) {
        self.leave().await;
        self.started.cancel();
    }

    /// Whether balancers should look elsewhere.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Whether new work is refused.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Resolves when the drain starts.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Held by a call until it is answered.
    pub fn call(&self) -> TaskTrackerToken {
        self.calls.token()
    }

    /// Resolves when no call waits for its answer.
    pub async fn calls_answered(&self) {
        self.calls.close();
        self.calls.wait().await;
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

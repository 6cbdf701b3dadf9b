//! `/metrics`: what was counted, and what is looked up for it when it is asked for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::auth::Auth;
use super::rest::{ApiError, is_local};
use crate::drain::Drain;
use crate::metrics::{Exposition, series};
use crate::serving::Serving;
use crate::store::Store;

/// What is looked up is so old at most; who asks more often costs the store nothing.
const FRESH: Duration = Duration::from_secs(1);
/// A store that is away must not keep the other figures from whoever looks into that.
const PATIENCE: Duration = Duration::from_secs(2);

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Measures {
    shared: Arc<Shared>,
}

struct Shared {
    exposition: Exposition,
    store: Store,
    serving: Serving,
    drain: Drain,
    /// When the store was last asked.
    looked: Mutex<Option<Instant>>,
}

impl Measures {
    pub fn new(exposition: Exposition, store: Store, serving: Serving, drain: Drain) -> Self {
        Self { shared: Arc::new(Shared { exposition, store, serving, drain, looked: Mutex::default() }) }
    }

    async fn text(&self) -> String {
        let Shared { exposition, store, serving, drain, looked } = &*self.shared;
        let mut looked = looked.lock().await;
        if looked.is_none_or(|at| at.elapsed() >= FRESH) {
            look_at_queue(store).await;
            *looked = Some(Instant::now());
        }
        drop(looked);
        for connections in store.connections() {
            series().store_connections(connections.pool, connections.idle, connections.busy);
        }
        serving.measure();
        exposition.tell_draining(drain.is_draining());
        exposition.render()
    }
}

async fn look_at_queue(store: &Store) {
    let totals = timeout(PATIENCE, store.queue_totals()).await;
    series().store_up.set(f64::from(u8::from(matches!(totals, Ok(Ok(_))))));
    // The last known ones stay where there are no others.
    let Ok(Ok(totals)) = totals else { return };
    series().events_queued.set(totals.queued as f64);
    series().events_dead.set(totals.dead as f64);
    let due_for = totals.oldest_due.and_then(|due| SystemTime::now().duration_since(due).ok());
    series().events_oldest_due.set(due_for.unwrap_or_default().as_secs_f64());
}

/// For operators only: it names apps, and tells what they do.
pub(super) fn router(auth: Auth, measures: Measures) -> Router {
    Router::new().route("/metrics", get(guarded)).with_state((auth, measures))
}

async fn guarded(State((auth, measures)): State<(Auth, Measures)>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    auth.caller(&parts.headers, &parts.extensions).await?.may_everything()?;
    if !parts.headers.contains_key(AUTHORIZATION) && !is_local(&parts) {
        let message = "without a token, call the service as localhost or by its address";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "FOREIGN_HOST", message));
    }
    Ok(open(State(measures)).await)
}

/// Without credentials: for the admin listener alone.
pub(super) async fn open(State(measures): State<Measures>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (headers, measures.text().await).into_response()
}

//! The tonic services, one file each.

mod apps;
mod audit;
mod credentials;
mod events;
mod invocations;
mod trials;
mod versions;

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tonic::{Request, Status};

use crate::model::{Actor, AppId, Scope};
use crate::store::App;

use super::Services;
use super::auth::{Caller, Refused};
use super::requests::RequestId;
use super::status::{draining, with_reason};

pub(super) struct Invocations(pub Arc<Services>);
pub(super) struct Versions(pub Arc<Services>);
pub(super) struct Events(pub Arc<Services>);
pub(super) struct Apps(pub Arc<Services>);

/// Of JSON on one page. gRPC clients take messages of 4 MiB unless told otherwise; the rest is for the other fields of up to 1000 rows.
const PAGE_BYTES_MAX: u64 = 3 << 20;

/// Of an app's and a credential's.
const DESCRIPTION_BYTES_MAX: usize = 4096;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Versions, and drafts that are tested.
const PUBLISH: &[Scope] = &[Scope::Publish];
const MANAGE: &[Scope] = &[Scope::Manage];
/// What those who publish and those who manage want to see.
const READ: &[Scope] = &[Scope::Publish, Scope::Manage];

/// The app that a request names, if its caller has one of these scopes for it. Every call begins with this, or [`operator`].
fn allowed<T>(request: &Request<T>, app_id: &str, scopes: &[Scope]) -> Result<AppId, Status> {
    let app = app_id.parse()?;
    caller(request)?.may(&app, scopes)?;
    Ok(app)
}

/// For what is nobody's own.
fn operator<T>(request: &Request<T>) -> Result<(), Status> {
    Ok(caller(request)?.may_everything()?)
}

/// Nobody calls where the auth layer did not look.
fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    Ok(request.extensions().get().ok_or(Refused::NoToken)?)
}

/// Who is to be recorded for what the request changes.
fn actor<T>(request: &Request<T>) -> Result<Actor, Status> {
    let id = request.extensions().get::<RequestId>();
    Ok(caller(request)?.actor(id.map_or("", |RequestId(id)| id)))
}

impl Services {
    /// New work is refused once the service drains, but for what came by a connection of before.
    fn accept(&self) -> Result<(), Status> {
        if self.refuses { Err(draining()) } else { Ok(()) }
    }

    /// For work in steps that can end after each of them.
    fn go_on(&self) -> Result<(), Status> {
        if self.drain.is_draining() { Err(draining()) } else { Ok(()) }
    }

    async fn app(&self, app: &AppId) -> Result<App, Status> {
        let unknown = || with_reason(tonic::Code::NotFound, "APP_NOT_FOUND", format!("there is no app {app}"));
        self.store.app(app).await?.ok_or_else(unknown)
    }
}

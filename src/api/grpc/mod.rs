//! The tonic services, one file each.

mod apps;
mod invocations;
mod versions;

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tonic::Status;

use crate::model::AppId;
use crate::store::App;

use super::Services;
use super::status::{draining, with_reason};

pub(super) struct Invocations(pub Arc<Services>);
pub(super) struct Versions(pub Arc<Services>);
pub(super) struct Apps(pub Arc<Services>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Services {
    /// New work is refused once the service drains.
    fn accept(&self) -> Result<(), Status> {
        if self.drain.is_draining() { Err(draining()) } else { Ok(()) }
    }

    async fn app(&self, app: &AppId) -> Result<App, Status> {
        let unknown = || with_reason(tonic::Code::NotFound, "APP_NOT_FOUND", format!("there is no app {app}"));
        self.store.app(app).await?.ok_or_else(unknown)
    }
}

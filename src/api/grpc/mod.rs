//! The tonic services, one file each.

mod apps;
mod events;
mod invocations;
mod trials;
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
pub(super) struct Events(pub Arc<Services>);
pub(super) struct Apps(pub Arc<Services>);

/// Of JSON on one page. gRPC clients take messages of 4 MiB unless told otherwise; the rest is for the other fields of up to 1000 rows.
const PAGE_BYTES_MAX: u64 = 3 << 20;

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

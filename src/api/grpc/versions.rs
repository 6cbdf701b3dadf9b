//! VersionService.

use prost::Message;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::api::convert::{self, non_empty, page, page_size, page_token, version_number};
use crate::api::status::{invalid, with_reason};
use crate::model::VersionNumber;
use crate::proto::publish_version_response::Event;
use crate::proto::{self, version_service_server::VersionService};
use crate::publish;
use crate::store::PublishKey;

use super::{PUBLISH, READ, Streamed, Versions, allowed};

const KEY_BYTES_MAX: usize = 256;

#[tonic::async_trait]
impl VersionService for Versions {
    type PublishVersionStream = Streamed<proto::PublishVersionResponse>;

    async fn publish_version(
        &self,
        request: Request<proto::PublishVersionRequest>,
    ) -> Result<Response<Self::PublishVersionStream>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        self.0.accept()?;
        let request = request.into_inner();
        if request.idempotency_key.len() > KEY_BYTES_MAX {
            return Err(invalid("KEY_TOO_LONG", format!("idempotency_key has more than {KEY_BYTES_MAX} bytes")));
        }
        let spec = request.spec.ok_or_else(|| invalid("NO_SPEC", "spec is missing: it says what to publish"))?;
        let activate = request.activate.unwrap_or(true);
        let key = non_empty(request.idempotency_key).map(|key| {
            // The content as it is encoded: the order of a map's entries on the wire does not count, nor do fields to come.
            let digest = blake3::hash(&spec.encode_to_vec()).to_hex().to_string();
            PublishKey { key, digest }
        });
        let (steps, task) = self.0.publisher.publish(publish::Request {
            app: app.clone(),
            spec: convert::project_spec(spec)?,
            activate,
            base: request.base_version.map(VersionNumber),
            key,
        });
        let store = self.0.store.clone();
        let last = async move {
            let version = task.await.map_err(|_| Status::from(publish::Error::Internal))??;
            let active = store.app(&app).await?.and_then(|app| app.active);
            let event = Some(Event::Version(convert::version(version, active)));
            Ok(proto::PublishVersionResponse { event })
        };
        let steps = ReceiverStream::new(steps).map(|step| Ok(convert::progress(step)));
        let last = futures_util::stream::once(last);
        Ok(Response::new(Box::pin(steps.chain(last))))
    }

    async fn list_versions(
        &self,
        request: Request<proto::ListVersionsRequest>,
    ) -> Result<Response<proto::ListVersionsResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let size = page_size(request.page_size)?;
        let before = page_token(&request.page_token)?.map(VersionNumber);
        let rows = self.0.store.list_versions(&app.id, before, size + 1).await?;
        let (rows, next_page_token) = page(rows, size, |version| version.number.to_string());
        let versions = rows.into_iter().map(|row| convert::version(row, app.active)).collect();
        Ok(Response::new(proto::ListVersionsResponse { versions, next_page_token }))
    }

    async fn get_version(
        &self,
        request: Request<proto::GetVersionRequest>,
    ) -> Result<Response<proto::GetVersionResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let number = version_number(request.version)?;
        let unknown = || {
            let message = format!("app {} has no version {number}", app.id);
            with_reason(tonic::Code::NotFound, "VERSION_NOT_FOUND", message)
        };
        let version = self.0.store.version(&app.id, number).await?.ok_or_else(unknown)?;
        Ok(Response::new(proto::GetVersionResponse { version: Some(convert::version(version, app.active)) }))
    }

    async fn activate_version(
        &self,
        request: Request<proto::ActivateVersionRequest>,
    ) -> Result<Response<proto::ActivateVersionResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        self.0.accept()?;
        let request = request.into_inner();
        let number = version_number(request.version)?;
        let version = self.0.publisher.activate(&app, number).await?;
        let active = self.0.store.app(&app).await?.and_then(|app| app.active);
        let version = convert::version(version, active);
        Ok(Response::new(proto::ActivateVersionResponse { version: Some(version) }))
    }

    async fn delete_version(
        &self,
        request: Request<proto::DeleteVersionRequest>,
    ) -> Result<Response<proto::DeleteVersionResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        self.0.accept()?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        self.0.publisher.delete_version(&app.id, version_number(request.version)?).await?;
        Ok(Response::new(proto::DeleteVersionResponse {}))
    }
}

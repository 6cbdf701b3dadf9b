//! VersionService.

use prost::Message;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::api::convert::{self, non_empty, page, page_size, page_token, version_number};
use crate::api::status::{invalid, with_reason};
use crate::declarations::{FILE_NAME, Sdk, declarations};
use crate::model::{AppId, Version, VersionNumber};
use crate::proto::publish_version_response::Event;
use crate::proto::{self, version_service_server::VersionService};
use crate::publish::{self, Content, Verification};
use crate::store::PublishKey;

use super::trials::replay_last;
use super::{PUBLISH, READ, Streamed, Versions, actor, allowed};

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
        let actor = actor(&request)?;
        let request = request.into_inner();
        if request.idempotency_key.len() > KEY_BYTES_MAX {
            return Err(invalid("KEY_TOO_LONG", format!("idempotency_key has more than {KEY_BYTES_MAX} bytes")));
        }
        let activate = request.activate.unwrap_or(true);
        // The content as it is encoded: the order of a map's entries on the wire does not count, nor do fields to come.
        let digest = |encoded: Vec<u8>| blake3::hash(&encoded).to_hex().to_string();
        let (content, digest) = match (request.spec, request.changes) {
            (Some(spec), None) => {
                let digest = digest(spec.encode_to_vec());
                let spec = convert::project_spec(spec)?;
                let keep = request.keep_environment;
                (if keep { Content::SpecKeepingEnvironment(spec) } else { Content::Spec(spec) }, digest)
            }
            (None, Some(changes)) => {
                let digest = digest(changes.encode_to_vec());
                (Content::Changes(convert::changes(changes)?), digest)
            }
            (None, None) => return Err(invalid("NO_SPEC", "spec is missing: it says what to publish")),
            (Some(_), Some(_)) => return Err(invalid("SPEC_AND_CHANGES", "give either spec or changes, not both")),
        };
        let (steps, task) = self.0.publisher.publish(publish::Request {
            app: app.clone(),
            content,
            activate,
            base: request.base_version.map(VersionNumber),
            key: non_empty(request.idempotency_key).map(|key| PublishKey { key, digest }),
            typecheck: convert::type_check(request.typecheck)?,
            verification: request.verification.map(verification).transpose()?.flatten(),
            actor,
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
        let version = self.version_of(&app.id, number).await?;
        Ok(Response::new(proto::GetVersionResponse { version: Some(convert::version(version, app.active)) }))
    }

    async fn get_declarations(
        &self,
        request: Request<proto::GetDeclarationsRequest>,
    ) -> Result<Response<proto::GetDeclarationsResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let number = if request.version == 0 { app.active } else { Some(version_number(request.version)?) };
        let environment = match number {
            Some(number) => self.version_of(&app.id, number).await?.environment_names,
            None => Vec::new(),
        };
        let content = declarations(&self.0.catalogue, Sdk::of(&self.0.sdk).as_ref(), &environment);
        Ok(Response::new(proto::GetDeclarationsResponse { content, file_name: FILE_NAME.to_owned() }))
    }

    async fn check_types(
        &self,
        request: Request<proto::CheckTypesRequest>,
    ) -> Result<Response<proto::CheckTypesResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        self.0.accept()?;
        let spec = request.into_inner().spec;
        let spec = spec.ok_or_else(|| invalid("NO_SPEC", "spec is missing: it says what to check"))?;
        let report = self.0.publisher.check_sources(app, convert::project_spec(spec)?).await?;
        Ok(Response::new(proto::CheckTypesResponse {
            diagnostics: report.diagnostics.into_iter().map(convert::diagnostic).collect(),
            more: u32::try_from(report.more).unwrap_or(u32::MAX),
        }))
    }

    async fn activate_version(
        &self,
        request: Request<proto::ActivateVersionRequest>,
    ) -> Result<Response<proto::ActivateVersionResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        self.0.accept()?;
        let actor = actor(&request)?;
        let number = version_number(request.into_inner().version)?;
        let version = self.0.publisher.activate(&app, number, actor).await?;
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
        let actor = actor(&request)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        self.0.publisher.delete_version(&app.id, version_number(request.version)?, actor).await?;
        Ok(Response::new(proto::DeleteVersionResponse {}))
    }

    async fn get_version_spec(
        &self,
        request: Request<proto::GetVersionSpecRequest>,
    ) -> Result<Response<proto::GetVersionSpecResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let spec = self.0.publisher.spec(&app.id, version_number(request.version)?).await?;
        Ok(Response::new(proto::GetVersionSpecResponse { spec: Some(convert::project_spec_to(spec)) }))
    }
}

impl Versions {
    async fn version_of(&self, app: &AppId, number: VersionNumber) -> Result<Version, Status> {
        let unknown = || {
            let message = format!("app {app} has no version {number}");
            with_reason(tonic::Code::NotFound, "VERSION_NOT_FOUND", message)
        };
        self.0.store.version(app, number).await?.ok_or_else(unknown)
    }
}

/// `None`: no gate is asked for.
fn verification(asked: proto::Verification) -> Result<Option<Verification>, Status> {
    let last = replay_last(asked.replay_last)?;
    let verification = Verification { last, changed_max: asked.max_changed, allow_egress: asked.allow_egress };
    Ok((last > 0).then_some(verification))
}

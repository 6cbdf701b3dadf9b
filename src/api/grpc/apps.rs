//! AppService.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};

use crate::api::convert::{self, page, page_size, page_token};
use crate::api::status::{internal, invalid};
use crate::model::AppId;
use crate::proto::{self, app_service_server::AppService};
use crate::store::{App, AppChange};

use super::{Apps, DESCRIPTION_BYTES_MAX, MANAGE, READ, actor, allowed, operator};

/// Of an app's rate and burst.
const RATE_MAX: u64 = 1_000_000;
const QUOTA_MAX: u64 = 1_000_000_000_000;
const RETENTION_MIN: Duration = Duration::from_secs(60);

impl Apps {
    async fn shown(&self, app: App) -> Result<proto::App, Status> {
        let figures = self.0.serving.figures(&app.id).await;
        let queue = self.0.store.queue_figures(&app.id, SystemTime::now()).await?;
        let delivery = self.0.delivery.of(&app.id);
        let usage = self.0.rates.usage_of(&app.id, app.rate).await?;
        Ok(convert::app(app, figures, queue, delivery, usage))
    }
}

#[tonic::async_trait]
impl AppService for Apps {
    async fn get_app(&self, request: Request<proto::GetAppRequest>) -> Result<Response<proto::GetAppResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let app = self.shown(self.0.app(&app).await?).await?;
        Ok(Response::new(proto::GetAppResponse { app: Some(app) }))
    }

    async fn list_apps(
        &self,
        request: Request<proto::ListAppsRequest>,
    ) -> Result<Response<proto::ListAppsResponse>, Status> {
        operator(&request)?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after: Option<AppId> = page_token(&request.page_token)?;
        let rows = self.0.store.list_apps(after.as_ref(), size + 1).await?;
        let (rows, next_page_token) = page(rows, size, |app| app.id.to_string());
        let mut apps = Vec::with_capacity(rows.len());
        for row in rows {
            apps.push(self.shown(row).await?);
        }
        Ok(Response::new(proto::ListAppsResponse { apps, next_page_token }))
    }

    async fn update_app(
        &self,
        request: Request<proto::UpdateAppRequest>,
    ) -> Result<Response<proto::UpdateAppResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, MANAGE)?;
        let proto::UpdateAppRequest { rate_per_second, rate_burst, quota_per_day, .. } = request.get_ref();
        if rate_per_second.is_some() || rate_burst.is_some() || quota_per_day.is_some() {
            // An app does not lift its own limits.
            operator(&request)?;
        }
        let actor = actor(&request)?;
        let request = request.into_inner();
        if request.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
            return Err(invalid("TOO_LARGE", format!("description has more than {DESCRIPTION_BYTES_MAX} bytes")));
        }
        let history_retention = match convert::duration("history_retention", request.history_retention)? {
            None => None,
            Some(Duration::ZERO) => Some(None),
            Some(span) if span < RETENTION_MIN => {
                return Err(invalid("INVALID_RETENTION", "history_retention is shorter than a minute"));
            }
            Some(span) => Some(Some(span)),
        };
        let change = AppChange {
            description: request.description,
            history_retention,
            rate_per_second: limit("rate_per_second", request.rate_per_second, RATE_MAX)?,
            rate_burst: limit("rate_burst", request.rate_burst, RATE_MAX)?,
            quota_per_day: limit("quota_per_day", request.quota_per_day, QUOTA_MAX)?,
        };
        let changed = self.0.store.update_app(&app, change, &actor).await?;
        self.0.rates.changed(&app);
        let app = match changed {
            Some(app) => app,
            None => self.0.app(&app).await?,
        };
        Ok(Response::new(proto::UpdateAppResponse { app: Some(self.shown(app).await?) }))
    }

    async fn delete_app(
        &self,
        request: Request<proto::DeleteAppRequest>,
    ) -> Result<Response<proto::DeleteAppResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, MANAGE)?;
        let actor = actor(&request)?;
        self.0.accept()?;
        let services = Arc::clone(&self.0);
        // A task of its own: a caller who hangs up must not leave the app's credentials known.
        let deleted = tokio::spawn(async move {
            let (auth, gone) = (services.auth.clone(), app.clone());
            let deleted = services.publisher.delete_app(&app, actor, move || auth.forget_app(&gone)).await;
            services.auth.forget_app(&app);
            services.delivery.forget(&app);
            services.rates.forget(&app);
            deleted
        });
        deleted.await.map_err(|err| internal(&err))??;
        Ok(Response::new(proto::DeleteAppResponse {}))
    }

    async fn get_isolation(
        &self,
        request: Request<proto::GetIsolationRequest>,
    ) -> Result<Response<proto::GetIsolationResponse>, Status> {
        operator(&request)?;
        Ok(Response::new(convert::isolation(&self.0.isolation)))
    }

    async fn create_credential(
        &self,
        request: Request<proto::CreateCredentialRequest>,
    ) -> Result<Response<proto::CreateCredentialResponse>, Status> {
        self.0.create_credential(request).await.map(Response::new)
    }

    async fn list_credentials(
        &self,
        request: Request<proto::ListCredentialsRequest>,
    ) -> Result<Response<proto::ListCredentialsResponse>, Status> {
        self.0.list_credentials(request).await.map(Response::new)
    }

    async fn revoke_credential(
        &self,
        request: Request<proto::RevokeCredentialRequest>,
    ) -> Result<Response<proto::RevokeCredentialResponse>, Status> {
        self.0.revoke_credential(request).await.map(Response::new)
    }

    async fn list_audit_entries(
        &self,
        request: Request<proto::ListAuditEntriesRequest>,
    ) -> Result<Response<proto::ListAuditEntriesResponse>, Status> {
        self.0.list_audit_entries(request).await.map(Response::new)
    }
}

/// What an app may have; 0 stands for the service's default.
fn limit<N: Into<u64> + Copy + PartialEq + From<u8>>(
    name: &str,
    value: Option<N>,
    max: u64,
) -> Result<Option<Option<N>>, Status> {
    let Some(value) = value else { return Ok(None) };
    if value.into() > max {
        let text = format!("{name} is {}: at most {max}, or 0 for the service's default", value.into());
        return Err(invalid("INVALID_RATE", text));
    }
    Ok(Some((value != N::from(0)).then_some(value)))
}

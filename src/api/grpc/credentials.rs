//! AppService's credentials.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Code, Request, Status};

use crate::api::auth::{Auth, Caller};
use crate::api::convert::{self, page, page_size, page_token};
use crate::api::status::{internal, invalid, with_reason};
use crate::model::{AppId, ClientId, Credential, Scope, Scopes};
use crate::proto;
use crate::store::CreateCredential;

use super::{DESCRIPTION_BYTES_MAX, MANAGE, Services, actor, allowed, caller, operator};

/// Of one app, and of the operators.
const CREDENTIALS_MAX: u32 = 100;

impl Services {
    pub(super) async fn create_credential(
        &self,
        request: Request<proto::CreateCredentialRequest>,
    ) -> Result<proto::CreateCredentialResponse, Status> {
        let app = app_or_all(&request, &request.get_ref().app_id)?;
        let (caller, actor) = (caller(&request)?.clone(), actor(&request)?);
        self.accept()?;
        let request = request.into_inner();
        let scopes = request.scopes.iter().map(|scope| scope.parse()).collect::<Result<Scopes, _>>()?;
        caller.may_give(scopes)?;
        check_scopes(app.as_ref(), scopes)?;
        if request.description.len() > DESCRIPTION_BYTES_MAX {
            return Err(invalid("TOO_LARGE", format!("description has more than {DESCRIPTION_BYTES_MAX} bytes")));
        }
        let make_app = caller.is_operator();
        if let Some(app) = app.as_ref().filter(|_| make_app)
            && self.store.app(app).await?.is_none()
        {
            self.publisher.check_only_app(app).await?;
        }
        let (client_secret, hash) = Auth::new_secret().map_err(|err| internal(&err))?;
        let description = request.description;
        let credential =
            Credential { client_id: ClientId::new(), app, scopes, description, created_at: SystemTime::now() };
        let created = self.store.create_credential(&credential, &hash, CREDENTIALS_MAX, make_app, &actor).await?;
        refused(created, &credential)?;
        let credential = convert::credential(credential);
        Ok(proto::CreateCredentialResponse {
            client_id: credential.client_id.clone(),
            client_secret,
            credential: Some(credential),
        })
    }

    pub(super) async fn list_credentials(
        &self,
        request: Request<proto::ListCredentialsRequest>,
    ) -> Result<proto::ListCredentialsResponse, Status> {
        let app = app_or_all(&request, &request.get_ref().app_id)?;
        let request = request.into_inner();
        if let Some(app) = &app {
            self.app(app).await?;
        }
        let size = page_size(request.page_size)?;
        let after: Option<i64> = page_token(&request.page_token)?;
        let rows = self.store.list_credentials(app.as_ref(), after, size + 1).await?;
        let (rows, next_page_token) = page(rows, size, |(seq, _)| seq.to_string());
        let credentials = rows.into_iter().map(|(_, row)| convert::credential(row)).collect();
        Ok(proto::ListCredentialsResponse { credentials, next_page_token })
    }

    pub(super) async fn revoke_credential(
        self: &Arc<Self>,
        request: Request<proto::RevokeCredentialRequest>,
    ) -> Result<proto::RevokeCredentialResponse, Status> {
        let app = match caller(&request)? {
            Caller::Operator(_) if request.get_ref().app_id.is_empty() => None,
            Caller::Client { app, .. } if request.get_ref().app_id.is_empty() => {
                Some(allowed(&request, app.as_str(), MANAGE)?)
            }
            _ => Some(allowed(&request, &request.get_ref().app_id, MANAGE)?),
        };
        let id: ClientId = request.get_ref().client_id.parse()?;
        let (services, actor) = (Arc::clone(self), actor(&request)?);
        // A task of its own: a caller who hangs up must not leave a credential known that is gone.
        let revoked = tokio::spawn(async move {
            let revoked = services.store.revoke_credential(id, app.as_ref(), &actor).await;
            services.auth.forget(id);
            revoked
        });
        if revoked.await.map_err(|err| internal(&err))?? {
            return Ok(proto::RevokeCredentialResponse {});
        }
        // The same for another app's: whether there is one is its own business.
        Err(with_reason(Code::NotFound, "CREDENTIAL_NOT_FOUND", format!("there is no credential {id}")))
    }
}

/// `None`: of all apps, which is for operators.
pub(super) fn app_or_all<T>(request: &Request<T>, app_id: &str) -> Result<Option<AppId>, Status> {
    if app_id.is_empty() { operator(request).map(|()| None) } else { allowed(request, app_id, MANAGE).map(Some) }
}

fn check_scopes(app: Option<&AppId>, scopes: Scopes) -> Result<(), Status> {
    let all: Scopes = [Scope::Operator].into_iter().collect();
    match app {
        _ if scopes.is_empty() => {
            Err(invalid("NO_SCOPES", "scopes is empty: name at least one of invoke, publish, manage"))
        }
        None if scopes != all => {
            let message = "app_id is empty, which goes with the scope operator alone: name the app, or that scope";
            Err(invalid("INVALID_SCOPE", message))
        }
        Some(_) if scopes.contains(Scope::Operator) => {
            Err(invalid("INVALID_SCOPE", "operator is for all apps: leave app_id empty, and name no other scope"))
        }
        _ => Ok(()),
    }
}

fn refused(created: CreateCredential, credential: &Credential) -> Result<(), Status> {
    match (created, &credential.app) {
        (CreateCredential::Created, _) => Ok(()),
        (CreateCredential::UnknownApp, app) => {
            let app = app.as_ref().map(ToString::to_string).unwrap_or_default();
            Err(with_reason(Code::NotFound, "APP_NOT_FOUND", format!("there is no app {app}")))
        }
        (CreateCredential::TooMany, app) => {
            let of = app.as_ref().map_or_else(|| "there are".to_owned(), |app| format!("app {app} has"));
            let message = format!("{of} {CREDENTIALS_MAX} credentials already: revoke one that is no longer used");
            Err(with_reason(Code::FailedPrecondition, "TOO_MANY_CREDENTIALS", message))
        }
    }
}

//! AppService's audit log.

use tonic::{Request, Status};

use crate::api::convert::{self, non_empty, page, page_size, page_token};
use crate::model::AuditId;
use crate::proto;
use crate::store::AuditFilter;

use super::credentials::app_or_all;
use super::{Services, caller};

impl Services {
    pub(super) async fn list_audit_entries(
        &self,
        request: Request<proto::ListAuditEntriesRequest>,
    ) -> Result<proto::ListAuditEntriesResponse, Status> {
        let app = app_or_all(&request, &request.get_ref().app_id)?;
        let own = !caller(&request)?.is_operator();
        if let Some(app) = app.as_ref().filter(|_| own) {
            self.app(app).await?; // Of an app that is gone operators alone see what was.
        }
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let before: Option<AuditId> = page_token(&request.page_token)?;
        let filter = AuditFilter {
            app,
            own,
            action: non_empty(request.action).map(|action| action.parse()).transpose()?,
            actor_kind: non_empty(request.actor_kind).map(|kind| kind.parse()).transpose()?,
            actor_id: non_empty(request.actor_id),
            from: request.from.map(|at| convert::time("from", at)).transpose()?,
            until: request.until.map(|at| convert::time("until", at)).transpose()?,
        };
        let rows = self.store.audit_entries(&filter, before, size + 1).await?;
        let (rows, next_page_token) = page(rows, size, |entry| entry.id.to_string());
        let entries = rows.into_iter().map(convert::audit_entry).collect();
        Ok(proto::ListAuditEntriesResponse { entries, next_page_token })
    }
}

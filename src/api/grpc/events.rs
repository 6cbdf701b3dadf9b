//! EventService.

use std::future::Future;
use std::time::SystemTime;

use tonic::{Request, Response, Status};

use crate::api::convert::{self, page_size, page_token};
use crate::api::status::{internal, invalid, with_reason};
use crate::model::{Actor, AppId, EventId};
use crate::proto::{self, event_service_server::EventService};
use crate::store::{self, Letters, Moved, Store};

use super::{Events, MANAGE, PAGE_BYTES_MAX, Services, actor, allowed};

/// Dead letters of one transaction, so that writers in between wait little.
const BATCH: u32 = 500;

/// Dead letters that were sent off or thrown away.
pub struct Total {
    /// Those that were named.
    pub event_ids: Vec<String>,
    pub count: u64,
}

#[tonic::async_trait]
impl EventService for Events {
    async fn get_event(
        &self,
        request: Request<proto::GetEventRequest>,
    ) -> Result<Response<proto::GetEventResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, MANAGE)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let id: EventId = request.event_id.parse()?;
        let unknown = || {
            let message = format!("app {} has no event {id} (or it ended longer ago than the history is kept)", app.id);
            with_reason(tonic::Code::NotFound, "EVENT_NOT_FOUND", message)
        };
        let event = self.0.store.event(&app.id, id).await?.ok_or_else(unknown)?;
        Ok(Response::new(proto::GetEventResponse { event: Some(convert::event(event)) }))
    }

    async fn list_dead_letters(
        &self,
        request: Request<proto::ListDeadLettersRequest>,
    ) -> Result<Response<proto::ListDeadLettersResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, MANAGE)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let size = page_size(request.page_size)?;
        let after: Option<i64> = page_token(&request.page_token)?;
        let (letters, next) = self.0.store.dead_letters(&app.id, after, size, PAGE_BYTES_MAX).await?;
        let next_page_token = next.map(|seq| seq.to_string()).unwrap_or_default();
        let events = letters.into_iter().map(convert::event).collect();
        Ok(Response::new(proto::ListDeadLettersResponse { events, next_page_token }))
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<proto::RedriveDeadLettersRequest>,
    ) -> Result<Response<proto::RedriveDeadLettersResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, MANAGE)?;
        let actor = actor(&request)?;
        let proto::RedriveDeadLettersRequest { event_ids, all, .. } = request.into_inner();
        let Total { event_ids, count } = self.0.redrive(&app, &event_ids, all, actor).await?;
        Ok(Response::new(proto::RedriveDeadLettersResponse { event_ids, count }))
    }

    async fn purge_dead_letters(
        &self,
        request: Request<proto::PurgeDeadLettersRequest>,
    ) -> Result<Response<proto::PurgeDeadLettersResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, MANAGE)?;
        let actor = actor(&request)?;
        let proto::PurgeDeadLettersRequest { event_ids, all, .. } = request.into_inner();
        let purge = |store: Store, app: AppId, letters: Letters| {
            let actor = actor.clone();
            async move { store.purge_dead_letters(&app, &letters, BATCH, &actor).await }
        };
        let Total { event_ids, count } = self.0.dead_letters(&app, &event_ids, all, purge).await?;
        Ok(Response::new(proto::PurgeDeadLettersResponse { event_ids, count }))
    }
}

impl Services {
    /// Sends dead letters off again.
    pub(in crate::api) async fn redrive(
        &self,
        app: &AppId,
        event_ids: &[String],
        all: bool,
        actor: Actor,
    ) -> Result<Total, Status> {
        let invoker = self.invoker.clone();
        let redrive = move |store: Store, app: AppId, letters: Letters| {
            let (invoker, actor) = (invoker.clone(), actor.clone());
            async move {
                let moved = store.redrive(&app, &letters, BATCH, SystemTime::now(), &actor).await?;
                invoker.wake_dispatcher();
                Ok(moved)
            }
        };
        self.dead_letters(app, event_ids, all, redrive).await
    }

    /// Does something with the dead letters that a request selects, batch by batch.
    async fn dead_letters<F>(
        &self,
        app: &AppId,
        event_ids: &[String],
        all: bool,
        step: impl Fn(Store, AppId, Letters) -> F,
    ) -> Result<Total, Status>
    where
        F: Future<Output = Result<Moved, store::Error>> + Send + 'static,
    {
        if all != event_ids.is_empty() {
            // Empty ids alone do not mean all: that is too easily sent by mistake.
            return Err(invalid("INVALID_SELECTION", "name event_ids, or set all, and not both"));
        }
        self.accept()?;
        let app = self.app(app).await?.id;
        let ids: Vec<EventId> = event_ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let mut total = Total { event_ids: Vec::new(), count: 0 };
        let mut named = ids.chunks(BATCH as usize);
        let mut next = if all { Some(Letters::ALL) } else { named.next().map(|ids| Letters::Named(ids.to_vec())) };
        while let Some(letters) = next.take() {
            self.go_on()?;
            // A task of its own: a caller who hangs up must not leave a batch half counted.
            let batch = tokio::spawn(step(self.store.clone(), app.clone(), letters)).await;
            let Moved { ids, last } = batch.map_err(|err| internal(&err))??;
            total.count += ids.len() as u64;
            if all {
                next = last.map(Letters::After);
            } else {
                total.event_ids.extend(ids.iter().map(ToString::to_string));
                next = named.next().map(|ids| Letters::Named(ids.to_vec()));
            }
        }
        Ok(total)
    }
}

//! InvocationService: drafts and replays.

use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::api::Services;
use crate::api::convert;
use crate::api::status::{invalid, with_reason};
use crate::model::{AppId, TriggerType, VersionNumber};
use crate::proto;
use crate::publish::{self, Draft, ReplayRequest};

use super::Streamed;

const REPLAY_LAST: u32 = 20;
const REPLAY_LAST_MAX: u32 = 1000;

/// # Errors
/// It is more than there may be.
pub(super) fn replay_last(asked: u32) -> Result<usize, Status> {
    if asked > REPLAY_LAST_MAX {
        return Err(invalid(
            "INVALID_REPLAY_LAST",
            format!("{asked} invocations to replay: at most {REPLAY_LAST_MAX}"),
        ));
    }
    Ok(asked as usize)
}

impl Services {
    pub(super) async fn test_function(
        &self,
        app: AppId,
        request: proto::TestFunctionRequest,
    ) -> Result<proto::TestFunctionResponse, Status> {
        self.accept()?;
        self.rates.count(&app).await?;
        let (trigger, event) = self.invoker.check(&request.trigger_type, &request.event_json)?;
        let draft = Draft {
            app,
            trigger_type: trigger.trigger_type.clone(),
            source: request.source,
            language: request.language,
            event,
        };
        let mut response = convert::rehearsed(self.publisher.rehearse(draft).await?);
        if !trigger.blocking {
            // Nobody waits for a verdict.
            (response.verdict, response.decided_by) = (0, 0);
        }
        Ok(response)
    }

    pub(super) async fn replay_invocations(
        &self,
        app: &AppId,
        request: proto::ReplayInvocationsRequest,
        trigger_type: Option<TriggerType>,
    ) -> Result<Streamed<proto::ReplayInvocationsResponse>, Status> {
        self.accept()?;
        let app = self.app(app).await?;
        let last = match replay_last(request.last)? {
            0 => REPLAY_LAST as usize,
            last => last,
        };
        let none_active = || {
            let message = format!("app {} has no active version: say which one is to run", app.id);
            with_reason(tonic::Code::FailedPrecondition, "NO_ACTIVE_VERSION", message)
        };
        let version = match request.version {
            0 => app.active.ok_or_else(none_active)?,
            number => VersionNumber(number),
        };
        self.history.flush().await;
        let allow_egress = request.allow_egress;
        let request = ReplayRequest { app: app.id, version, last, trigger_type, allow_egress };
        let (replayed, task) = self.publisher.replay(request);
        let end = async move {
            let summary = task.await.map_err(|_| Status::from(publish::Error::Internal))??;
            Ok(convert::replay_summary(version, summary))
        };
        let replayed = ReceiverStream::new(replayed).map(|one| Ok(convert::replayed(one)));
        Ok(Box::pin(replayed.chain(futures_util::stream::once(end))))
    }
}

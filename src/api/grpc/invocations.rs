//! InvocationService.

use std::time::Duration;

use tokio::time::Instant;
use tokio_stream::StreamExt;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::api::convert::{self, non_empty, page_size, page_token, version_number};
use crate::api::status::{invalid, with_reason};
use crate::invoke::Call;
use crate::model::{InvocationId, Scope, TriggerType, VersionNumber};
use crate::proto::{self, invocation_service_server::InvocationService};
use crate::store::{InvocationFilter, LogFilter};
use crate::traces;

use super::{Invocations, PAGE_BYTES_MAX, PUBLISH, READ, Streamed, allowed, caller};

const TAIL_LINES: u32 = 100;
const TAIL_LINES_MAX: u32 = 1000;

impl Invocations {
    /// A filter's trigger type, in any spelling; empty means all.
    fn trigger_filter(&self, spelling: &str) -> Result<Option<TriggerType>, Status> {
        if spelling.is_empty() {
            return Ok(None);
        }
        let unknown = || invalid("UNKNOWN_TRIGGER_TYPE", format!("unknown trigger type {spelling:?}"));
        let trigger = self.0.catalogue.find(spelling).ok_or_else(unknown)?;
        Ok(Some(trigger.trigger_type.clone()))
    }
}

#[tonic::async_trait]
impl InvocationService for Invocations {
    async fn invoke(&self, request: Request<proto::InvokeRequest>) -> Result<Response<proto::InvokeResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, &[Scope::Invoke])?;
        let (deadline, hops) = (caller_deadline(request.metadata()), caller_hops(request.metadata())?);
        self.0.accept()?;
        self.0.rates.count(&app).await?;
        let request = request.into_inner();
        let answer = self.0.invoker.call(Call {
            app,
            trigger_type: request.trigger_type,
            event: request.event_json,
            idempotency_key: non_empty(request.idempotency_key),
            ordering_key: non_empty(request.ordering_key),
            version: request.version.map(version_number).transpose()?,
            deliver_at: request.deliver_at.map(|at| convert::time("deliver_at", at)).transpose()?,
            hops,
            deadline,
            trace: traces::current(),
        });
        Ok(Response::new(convert::answer(answer.await?)))
    }

    async fn list_invocations(
        &self,
        request: Request<proto::ListInvocationsRequest>,
    ) -> Result<Response<proto::ListInvocationsResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let size = page_size(request.page_size)?;
        let before: Option<InvocationId> = page_token(&request.page_token)?;
        let filter = InvocationFilter {
            trigger_type: self.trigger_filter(&request.trigger_type)?,
            status: convert::status_filter(request.status)?,
            version: (request.version != 0).then_some(VersionNumber(request.version)),
            event_id: non_empty(request.event_id).map(|id| id.parse()).transpose()?,
        };
        self.0.history.flush().await;
        let (rows, more) = self.0.store.list_invocations(&app.id, filter, before, size, PAGE_BYTES_MAX).await?;
        let last = rows.last().filter(|_| more);
        let next_page_token = last.map(|row| row.id.to_string()).unwrap_or_default();
        let invocations = rows.into_iter().map(|row| convert::invocation(row, Vec::new())).collect();
        Ok(Response::new(proto::ListInvocationsResponse { invocations, next_page_token }))
    }

    async fn get_invocation(
        &self,
        request: Request<proto::GetInvocationRequest>,
    ) -> Result<Response<proto::GetInvocationResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let id: InvocationId = request.invocation_id.parse()?;
        self.0.history.flush().await;
        let unknown = || {
            let message = format!("app {} has no invocation {id} (or it is older than the history is kept)", app.id);
            with_reason(tonic::Code::NotFound, "INVOCATION_NOT_FOUND", message)
        };
        let row = self.0.store.invocation(&app.id, id).await?.ok_or_else(unknown)?;
        let logs = self.0.store.invocation_logs(id).await?;
        Ok(Response::new(proto::GetInvocationResponse { invocation: Some(convert::invocation(row, logs)) }))
    }

    type TailLogsStream = Streamed<proto::TailLogsResponse>;

    async fn tail_logs(
        &self,
        request: Request<proto::TailLogsRequest>,
    ) -> Result<Response<Self::TailLogsStream>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, READ)?;
        let revoked = self.0.auth.revoked(caller(&request)?);
        let request = request.into_inner();
        let app = self.0.app(&app).await?;
        let last = match request.tail_lines {
            0 => TAIL_LINES,
            1..=TAIL_LINES_MAX => request.tail_lines,
            more => {
                return Err(invalid("INVALID_TAIL_LINES", format!("tail_lines is {more}: at most {TAIL_LINES_MAX}")));
            }
        };
        let filter = LogFilter {
            trigger_type: self.trigger_filter(&request.trigger_type)?,
            invocation: non_empty(request.invocation_id).map(|id| id.parse()).transpose()?,
            min_level: convert::level_filter(request.level)?,
            version: (request.version != 0).then_some(VersionNumber(request.version)),
            until: None,
        };
        let lines = self.0.lines(&app.id, filter, last, request.follow).await?;
        let shown = lines.map(|line| Ok(proto::TailLogsResponse { entry: Some(convert::log_entry(line)) }));
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(shown, revoked))))
    }

    async fn test_function(
        &self,
        request: Request<proto::TestFunctionRequest>,
    ) -> Result<Response<proto::TestFunctionResponse>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        self.0.test_function(app, request.into_inner()).await.map(Response::new)
    }

    type ReplayInvocationsStream = Streamed<proto::ReplayInvocationsResponse>;

    async fn replay_invocations(
        &self,
        request: Request<proto::ReplayInvocationsRequest>,
    ) -> Result<Response<Self::ReplayInvocationsStream>, Status> {
        let app = allowed(&request, &request.get_ref().app_id, PUBLISH)?;
        let revoked = self.0.auth.revoked(caller(&request)?);
        let request = request.into_inner();
        let trigger_type = self.trigger_filter(&request.trigger_type)?;
        let replayed = self.0.replay_invocations(&app, request, trigger_type).await?;
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(replayed, revoked))))
    }
}

/// The `x-chatfn-hops` header: functions that led to the event, one by another's doing.
fn caller_hops(metadata: &MetadataMap) -> Result<u32, Status> {
    let Some(value) = metadata.get("x-chatfn-hops") else { return Ok(0) };
    let hops = value.to_str().ok().and_then(|text| text.parse().ok());
    hops.ok_or_else(|| invalid("INVALID_HOPS", "x-chatfn-hops must be a whole number".to_owned()))
}

/// The `grpc-timeout` header (gRPC over HTTP/2, "Timeout"): at most eight digits and a unit.
fn caller_deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(value.checked_mul(3600)?),
        "M" => Duration::from_secs(value.checked_mul(60)?),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    };
    Instant::now().checked_add(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_timeout_is_read_in_every_unit() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ascii"));
            caller_deadline(&metadata).map(|deadline| deadline.duration_since(Instant::now()))
        };
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("400m", 400), ("500000u", 500)] {
            let left = read(text).expect(text);
            let whole = Duration::from_millis(millis);
            assert!(left <= whole && left > whole - Duration::from_millis(100), "{text}: {left:?}");
        }
        for bad in ["", "5", "m", "5x", "-5m"] {
            assert!(read(bad).is_none(), "{bad:?}");
        }
    }
}

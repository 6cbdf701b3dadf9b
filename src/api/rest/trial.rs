//! `/v1/functions/{id}/test`: runs a draft once. Nothing is published or recorded.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::invocations::outcome;
use super::logs::shown;
use super::request::{Body, Id, Publisher};
use crate::api::Services;
use crate::model::{DecidedBy, Verdict};
use crate::publish::{Draft, Rehearsed};

#[derive(Deserialize)]
pub struct Test {
    event: Value,
    /// Empty: the function as it is.
    #[serde(default)]
    source: String,
    #[serde(default)]
    language: String,
}

pub async fn test(
    State(services): State<Arc<Services>>,
    Publisher { app, .. }: Publisher,
    Id(id): Id,
    Body(test): Body<Test>,
) -> Result<Json<Value>, ApiError> {
    services.open()?;
    services.rates.count(&app).await?;
    let function = services.function(&app, id).await?;
    let event = test.event.to_string();
    let (trigger, event) = services.invoker.check(function.trigger_type.as_str(), event.as_bytes())?;
    let trigger_type = trigger.trigger_type.clone();
    let draft = Draft { app, trigger_type, source: test.source, language: test.language, event };
    let rehearsed = services.publisher.rehearse(draft).await?;
    Ok(Json(resource(&rehearsed, trigger.blocking)))
}

fn resource(rehearsed: &Rehearsed, blocking: bool) -> Value {
    let decision = &rehearsed.decision;
    let verdict = match decision.verdict {
        Verdict::Allow => "ALLOW",
        Verdict::Deny => "DENY",
    };
    let decided_by = match decision.decided_by {
        DecidedBy::Function => "FUNCTION",
        DecidedBy::Policy => "POLICY",
    };
    let timings = &rehearsed.timings;
    json!({
        "runtimeVersionNumber": rehearsed.version.map_or(0, |version| version.0),
        "outcome": outcome(&decision.outcome),
        // Nobody waits for the verdict of one that does not block.
        "verdict": blocking.then_some(verdict),
        "decidedBy": blocking.then_some(decided_by),
        "timings": { "queueMs": millis(timings.queue), "initMs": millis(timings.init), "runMs": millis(timings.run) },
        "cpuMs": millis(rehearsed.cpu_time),
        "peakMemoryBytes": rehearsed.peak_memory_bytes,
        "logs": rehearsed.lines.iter().map(shown).collect::<Vec<_>>(),
        "warnings": rehearsed.warnings,
    })
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

//! Drafts and replays, on their way out.

use super::{decided_by, denied, function_error, log_entry, raw, span, timings, verdict};
use crate::model::{Outcome, VersionNumber};
use crate::proto;
use crate::publish::{Rehearsed, ReplaySummary};
use crate::trial::{Ended, Replayed};

pub(in crate::api) fn rehearsed(rehearsed: Rehearsed) -> proto::TestFunctionResponse {
    use proto::test_function_response::Outcome as Wire;
    let decision = rehearsed.decision;
    proto::TestFunctionResponse {
        version: rehearsed.version.map_or(0, |number| number.0),
        outcome: Some(match decision.outcome {
            Outcome::Result(json) => Wire::Result(proto::Result { json: raw(&json) }),
            Outcome::Denied(denial) => Wire::Denied(denied(denial)),
            Outcome::Failed(failure) => Wire::Error(function_error(failure)),
        }),
        verdict: verdict(decision.verdict).into(),
        decided_by: decided_by(decision.decided_by).into(),
        timings: Some(timings(rehearsed.timings)),
        cpu_time: Some(span(rehearsed.cpu_time)),
        peak_memory_bytes: rehearsed.peak_memory_bytes,
        logs: rehearsed.lines.into_iter().map(log_entry).collect(),
        warnings: rehearsed.warnings,
    }
}

pub(in crate::api) fn replayed(replayed: Replayed) -> proto::ReplayInvocationsResponse {
    let replayed = proto::Replayed {
        invocation_id: replayed.invocation.to_string(),
        trigger_type: replayed.trigger_type.to_string(),
        recorded_version: replayed.recorded_version.0,
        before: Some(ended(replayed.before)),
        after: Some(ended(replayed.after)),
        differences: replayed.differences.into_iter().map(str::to_owned).collect(),
    };
    event(proto::replay_invocations_response::Event::Replayed(replayed))
}

pub(in crate::api) fn replay_summary(
    version: VersionNumber,
    summary: ReplaySummary,
) -> proto::ReplayInvocationsResponse {
    let ReplaySummary { replayed, changed } = summary;
    let summary = proto::ReplaySummary { version: version.0, replayed, changed };
    event(proto::replay_invocations_response::Event::Summary(summary))
}

fn event(event: proto::replay_invocations_response::Event) -> proto::ReplayInvocationsResponse {
    proto::ReplayInvocationsResponse { event: Some(event) }
}

fn ended(ended: Ended) -> proto::ReplayOutcome {
    use proto::replay_outcome::Outcome as Wire;
    proto::ReplayOutcome {
        outcome: Some(match ended.outcome {
            Some(Outcome::Result(json)) => Wire::Result(proto::Result { json: raw(&json) }),
            Some(Outcome::Denied(denial)) => Wire::Denied(denied(denial)),
            Some(Outcome::Failed(failure)) => Wire::Error(function_error(failure)),
            None => Wire::Skipped(proto::Skipped { reason: "NO_FUNCTION".to_owned() }),
        }),
        verdict: ended.verdict.map_or(0, |of| verdict(of).into()),
        run: Some(span(ended.run)),
    }
}

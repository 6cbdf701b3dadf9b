//! What a blocking trigger's caller is told. The table of design.md, "Verdicts".

use super::{DecidedBy, FailureAction, FailureKind, FailurePolicy, Outcome, RawJson, Verdict};

/// An outcome, and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The policy's default in place of a failure, where it has one.
    pub outcome: Outcome,
    pub verdict: Verdict,
    pub decided_by: DecidedBy,
}

/// Returning allows, `deny` denies; a failure follows the policy for its cause.
pub fn decide(policy: &FailurePolicy, outcome: Outcome) -> Decision {
    let (verdict, decided_by) = match &outcome {
        Outcome::Result(_) => (Verdict::Allow, DecidedBy::Function),
        Outcome::Denied(_) => (Verdict::Deny, DecidedBy::Function),
        Outcome::Failed(failure) => match action(policy, failure.kind) {
            FailureAction::Deny => (Verdict::Deny, DecidedBy::Policy),
            FailureAction::Allow => (Verdict::Allow, DecidedBy::Policy),
        },
    };
    let outcome = match (&policy.default_json, outcome) {
        (Some(default), Outcome::Failed(_)) if verdict == Verdict::Allow => Outcome::Result(RawJson::trusted(default)),
        (_, outcome) => outcome,
    };
    Decision { outcome, verdict, decided_by }
}

fn action(policy: &FailurePolicy, kind: FailureKind) -> FailureAction {
    match kind {
        FailureKind::TimedOut => policy.on_timeout,
        FailureKind::Overloaded => policy.on_overload.unwrap_or_default(),
        FailureKind::Thrown
        | FailureKind::OutOfMemory
        | FailureKind::Crashed
        | FailureKind::InitFailed
        | FailureKind::BadResult
        | FailureKind::Collateral => policy.on_error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Denial, FunctionFailure};

    #[test]
    fn each_cause_follows_its_own_policy() {
        let (allow, deny) = (FailureAction::Allow, FailureAction::Deny);
        let failed = |kind| Outcome::Failed(FunctionFailure::new(kind, "n", "m"));
        let policy =
            |on_error, on_timeout, on_overload| FailurePolicy { on_error, on_timeout, on_overload, default_json: None };
        let table = [
            (policy(allow, deny, None), FailureKind::Thrown, Verdict::Allow),
            (policy(deny, allow, Some(allow)), FailureKind::Crashed, Verdict::Deny),
            (policy(deny, allow, None), FailureKind::TimedOut, Verdict::Allow),
            (policy(allow, deny, Some(allow)), FailureKind::TimedOut, Verdict::Deny),
            (policy(deny, deny, Some(allow)), FailureKind::Overloaded, Verdict::Allow),
            (policy(allow, allow, Some(deny)), FailureKind::Overloaded, Verdict::Deny),
            (FailurePolicy::default(), FailureKind::InitFailed, Verdict::Deny),
        ];
        for (policy, kind, verdict) in table {
            let decision = decide(&policy, failed(kind));
            assert_eq!((decision.verdict, decision.decided_by), (verdict, DecidedBy::Policy), "{policy:?} {kind:?}");
            assert_eq!(decision.outcome, failed(kind));
        }
    }

    #[test]
    fn the_default_stands_in_only_where_the_policy_allows() {
        let policy = FailurePolicy {
            on_timeout: FailureAction::Allow,
            default_json: Some("{\"ok\":1}".into()),
            ..FailurePolicy::default()
        };
        let failed = |kind| Outcome::Failed(FunctionFailure::new(kind, "n", "m"));
        let stood_in = decide(&policy, failed(FailureKind::TimedOut)).outcome;
        assert_eq!(stood_in, Outcome::Result(RawJson::trusted("{\"ok\":1}")));
        assert_eq!(decide(&policy, failed(FailureKind::Thrown)).outcome, failed(FailureKind::Thrown));
    }

    #[test]
    fn a_function_decides_for_itself() {
        let result = decide(&FailurePolicy::default(), Outcome::Result(RawJson::trusted("null")));
        assert_eq!((result.verdict, result.decided_by), (Verdict::Allow, DecidedBy::Function));
        let denial = Denial { reason: "no".into(), code: String::new(), data: None };
        let denied = decide(&FailurePolicy::default(), Outcome::Denied(denial));
        assert_eq!((denied.verdict, denied.decided_by), (Verdict::Deny, DecidedBy::Function));
    }
}

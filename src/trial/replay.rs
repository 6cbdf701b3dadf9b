//! Recorded invocations, run again by another version: what would come out otherwise?

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};

use crate::model::{
    AppId, Catalogue, EventId, FailureKind, FailurePolicy, Function, Invocation, InvocationId, Outcome, RawJson,
    TriggerType, Verdict, VersionNumber, decide,
};
use crate::store::{self, InvocationFilter, Store};

use super::{Error, Event, Trial};

/// Rows read at a time, and their JSON.
const PAGE: u32 = 50;
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// Rows looked through for one that counts: of many attempts at one event, one does.
const ROWS_PER_REPLAY: usize = 20;
/// At a time.
const CONCURRENCY_MAX: usize = 4;

/// One recorded invocation, then and now.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub invocation: InvocationId,
    pub trigger_type: TriggerType,
    pub recorded_version: VersionNumber,
    pub before: Ended,
    pub after: Ended,
    /// What differs, in the API's words.
    pub differences: Vec<&'static str>,
}

/// How an invocation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// `None`: the version has no enabled function for it.
    pub outcome: Option<Outcome>,
    /// Of blocking triggers.
    pub verdict: Option<Verdict>,
    pub run: Duration,
}

/// The newest recorded invocations of an app that say something about their functions, newest first, in pages.
pub struct Recorded {
    store: Store,
    app: AppId,
    filter: InvocationFilter,
    /// Still to come.
    left: usize,
    rows_left: usize,
    before: Option<InvocationId>,
    /// Of several attempts at an event the newest counts.
    seen: HashSet<EventId>,
    policies: BTreeMap<(VersionNumber, TriggerType), FailurePolicy>,
}

impl Recorded {
    pub fn new(store: Store, app: AppId, trigger_type: Option<TriggerType>, last: usize) -> Self {
        let filter = InvocationFilter { trigger_type, ..InvocationFilter::default() };
        let rows_left = last.saturating_mul(ROWS_PER_REPLAY);
        Self {
            store,
            app,
            filter,
            left: last,
            rows_left,
            before: None,
            seen: HashSet::new(),
            policies: BTreeMap::new(),
        }
    }

    /// With the failure policy of each, as it was. `None` at the end.
    async fn page(&mut self) -> Result<Option<Vec<(Invocation, FailurePolicy)>>, store::Error> {
        if self.left == 0 || self.rows_left == 0 {
            return Ok(None);
        }
        let (rows, more) =
            self.store.list_invocations(&self.app, self.filter.clone(), self.before, PAGE, PAGE_BYTES_MAX).await?;
        self.before = rows.last().map(|row| row.id);
        self.rows_left = if more { self.rows_left.saturating_sub(rows.len()) } else { 0 };
        let mut page = Vec::new();
        for row in rows {
            let newest = row.event_id.is_none_or(|event| self.seen.insert(event));
            if self.left > 0 && newest && row.outcome.as_ref().is_some_and(says_something) {
                self.left -= 1;
                let policy = self.policy(&row).await?;
                page.push((row, policy));
            }
        }
        Ok(Some(page))
    }

    /// Of a version that is gone: the default.
    async fn policy(&mut self, row: &Invocation) -> Result<FailurePolicy, store::Error> {
        let key = (row.version, row.trigger_type.clone());
        if let Some(policy) = self.policies.get(&key) {
            return Ok(policy.clone());
        }
        let version = self.store.version(&self.app, row.version).await?;
        let function = version.as_ref().and_then(|version| version.function(&row.trigger_type));
        let policy = function.map(|function| function.failure_policy.clone()).unwrap_or_default();
        self.policies.insert(key, policy.clone());
        Ok(policy)
    }
}

/// About the function, not about the worker it happened to get.
fn says_something(outcome: &Outcome) -> bool {
    let by_chance = |kind| matches!(kind, FailureKind::Collateral | FailureKind::Overloaded);
    !matches!(outcome, Outcome::Failed(failure) if by_chance(failure.kind))
}

/// Recorded invocations on their way through a trial.
pub struct Replay<'a> {
    runner: Runner<'a>,
    recorded: Recorded,
    page: VecDeque<(Invocation, FailurePolicy)>,
    running: FuturesOrdered<BoxFuture<'a, Result<Replayed, Error>>>,
    at_a_time: usize,
}

impl<'a> Replay<'a> {
    pub fn new(trial: &'a Trial, catalogue: &'a Catalogue, recorded: Recorded) -> Self {
        let limits = &trial.version().limits;
        let at_a_time = (limits.workers_max.saturating_mul(limits.concurrency) as usize).clamp(1, CONCURRENCY_MAX);
        let runner = Runner { trial, catalogue };
        Self { runner, recorded, page: VecDeque::new(), running: FuturesOrdered::new(), at_a_time }
    }

    /// The next one that is done, in the order of the record; some run at a time. `None` at the end.
    ///
    /// # Errors
    /// There was no worker, or the store cannot be read: it goes no further.
    pub async fn next(&mut self) -> Result<Option<Replayed>, Error> {
        while self.running.len() < self.at_a_time {
            if let Some((row, policy)) = self.page.pop_front() {
                let runner = self.runner;
                self.running.push_back(async move { runner.again(row, &policy).await }.boxed());
            } else if let Some(page) = self.recorded.page().await? {
                self.page = page.into();
            } else {
                break;
            }
        }
        self.running.next().await.transpose()
    }
}

#[derive(Clone, Copy)]
struct Runner<'a> {
    trial: &'a Trial,
    catalogue: &'a Catalogue,
}

impl Runner<'_> {
    async fn again(&self, row: Invocation, policy: &FailurePolicy) -> Result<Replayed, Error> {
        let blocking = self.catalogue.find(row.trigger_type.as_str()).is_some_and(|trigger| trigger.blocking);
        let ended = |outcome: Option<Outcome>, policy: &FailurePolicy, run| {
            let verdict = outcome.clone().map_or(Verdict::Allow, |outcome| decide(policy, outcome).verdict);
            Ended { outcome, verdict: blocking.then_some(verdict), run }
        };
        let function = self.trial.version().function(&row.trigger_type).filter(|function| !function.disabled);
        let after = match function {
            Some(function) if !fits(function, &row.event) => ended(None, policy, Duration::ZERO),
            Some(function) => {
                // With the recorded id: a function that puts it into its result is not a different one.
                let event = Event { invocation: row.id, attempt: row.attempt, json: row.event.clone() };
                let tried = self.trial.run(function, event).await?;
                ended(Some(tried.outcome), &function.failure_policy, tried.timings.run)
            }
            None => ended(None, policy, Duration::ZERO),
        };
        let before = ended(row.outcome, policy, row.timings.run);
        Ok(Replayed {
            invocation: row.id,
            trigger_type: row.trigger_type,
            recorded_version: row.version,
            differences: differences(&before, &after),
            before,
            after,
        })
    }
}

/// A function that takes batches is given arrays, another one is not.
fn fits(function: &Function, event: &RawJson) -> bool {
    event.as_str().trim_start().starts_with('[') == function.batch.is_some()
}

/// Time never counts, nor does where in the code an error arose.
fn differences(before: &Ended, after: &Ended) -> Vec<&'static str> {
    let mut found = Vec::new();
    if before.verdict != after.verdict {
        found.push("verdict");
    }
    match (&before.outcome, &after.outcome) {
        (Some(Outcome::Result(before)), Some(Outcome::Result(after))) if !same(before, after) => found.push("result"),
        (Some(Outcome::Denied(before)), Some(Outcome::Denied(after))) => {
            let same_data = match (&before.data, &after.data) {
                (Some(before), Some(after)) => same(before, after),
                (before, after) => before.is_none() && after.is_none(),
            };
            if (&before.reason, &before.code) != (&after.reason, &after.code) || !same_data {
                found.push("denial");
            }
        }
        (Some(Outcome::Failed(before)), Some(Outcome::Failed(after))) => {
            let facts = |failure: &crate::model::FunctionFailure| {
                (failure.kind, failure.name.clone(), failure.message.clone(), failure.code.clone())
            };
            if facts(before) != facts(after) {
                found.push("error");
            }
        }
        (Some(Outcome::Result(_)), Some(Outcome::Result(_))) | (None, None) => {}
        _ => found.push("outcome"),
    }
    found
}

/// Whether two texts are the same JSON: the order of keys, and white space, do not count.
fn same(before: &RawJson, after: &RawJson) -> bool {
    let tree = |json: &RawJson| serde_json::from_str::<serde_json::Value>(json.as_str()).ok();
    before.as_str() == after.as_str() || (tree(before).is_some() && tree(before) == tree(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Denial, FunctionFailure};

    fn ended(outcome: Option<Outcome>, verdict: Option<Verdict>) -> Ended {
        Ended { outcome, verdict, run: Duration::ZERO }
    }

    fn result(json: &str) -> Option<Outcome> {
        Some(Outcome::Result(RawJson::trusted(json)))
    }

    fn failed(kind: FailureKind, message: &str) -> Option<Outcome> {
        Some(Outcome::Failed(FunctionFailure::new(kind, "Error", message)))
    }

    fn denied(reason: &str, data: Option<&str>) -> Option<Outcome> {
        Some(Outcome::Denied(Denial { reason: reason.into(), code: String::new(), data: data.map(RawJson::trusted) }))
    }

    #[test]
    fn what_differs_is_named() {
        let (thrown, timed_out) = (FailureKind::Thrown, FailureKind::TimedOut);
        let table: [(Option<Outcome>, Option<Outcome>, &[&str]); 10] = [
            (result(r#"{"a":1,"b":2}"#), result(r#"{ "b": 2, "a": 1 }"#), &[]),
            (result("1"), result("2"), &["result"]),
            (result("1"), None, &["outcome"]),
            (result("1"), failed(thrown, "m"), &["outcome"]),
            (failed(thrown, "m"), failed(thrown, "m"), &[]),
            (failed(thrown, "m"), failed(thrown, "n"), &["error"]),
            (failed(thrown, "m"), failed(timed_out, "m"), &["error"]),
            (denied("no", None), denied("no", None), &[]),
            (denied("no", Some("1")), denied("no", Some("2")), &["denial"]),
            (denied("no", None), denied("never", None), &["denial"]),
        ];
        for (before, after, expected) in table {
            let found = differences(&ended(before.clone(), None), &ended(after.clone(), None));
            assert_eq!(found, expected, "{before:?} {after:?}");
        }
        let (allow, deny) = (Some(Verdict::Allow), Some(Verdict::Deny));
        let found = differences(&ended(failed(thrown, "m"), allow), &ended(failed(thrown, "m"), deny));
        assert_eq!(found, ["verdict"]);
    }
}

use super::super::testing::{Place, actor, app, at, ready_version, sqlite_store, store, trigger};
use super::super::{AppChange, Store};
use super::*;
use crate::model::{Denial, FailureKind, FunctionFailure, LogSource, Outcome, RawJson, Timings};

pub fn started(app_id: &str) -> Invocation {
    Invocation {
        id: InvocationId::new(),
        app: app(app_id),
        trigger_type: trigger(),
        version: VersionNumber(1),
        attempt: 1,
        event_id: None,
        event: RawJson::trusted(r#"{"a":  1}"#),
        created_at: at(1),
        finished_at: None,
        outcome: None,
        cold_start: false,
        timings: Timings::default(),
        cpu_time: Duration::ZERO,
        peak_memory_bytes: 0,
        trace_id: None,
    }
}

fn ended(start: &Invocation, outcome: Outcome) -> Invocation {
    let (queue, init, run) = (Duration::from_micros(1), Duration::from_micros(22), Duration::from_micros(333));
    Invocation {
        finished_at: Some(at(2)),
        outcome: Some(outcome),
        cold_start: true,
        timings: Timings { queue, init, run },
        cpu_time: Duration::from_micros(4444),
        peak_memory_bytes: 55_555,
        ..start.clone()
    }
}

fn result() -> Outcome {
    Outcome::Result(RawJson::trusted("null"))
}

pub fn line(app_id: &str, invocation: Option<InvocationId>, time: SystemTime) -> LogLine {
    LogLine {
        app: app(app_id),
        version: VersionNumber(1),
        trigger_type: invocation.map(|_| trigger()),
        invocation,
        at: time,
        level: LogLevel::Info,
        source: LogSource::Console,
        text: "hello wörld".to_owned(),
    }
}

async fn store_with_app() -> (Place, Store) {
    let (dir, store) = store().await;
    ready_version(&store, "shop").await;
    (dir, store)
}

async fn record(store: &Store, items: impl IntoIterator<Item = HistoryItem>) {
    store.record(&items.into_iter().collect::<Vec<_>>()).await.expect("record");
}

async fn stored(store: &Store, id: InvocationId) -> Option<Invocation> {
    store.invocation(&app("shop"), id).await.expect("invocation")
}

#[tokio::test]
async fn each_outcome_survives() {
    let (dir, store) = store_with_app().await;
    let data = Some(RawJson::trusted("null"));
    let failure = FunctionFailure { stack: "at x".into(), ..FunctionFailure::new(FailureKind::TimedOut, "E", "m") };
    let outcomes = [
        result(),
        Outcome::Denied(Denial { reason: String::new(), code: "C".to_owned(), data }),
        Outcome::Denied(Denial { reason: "no".to_owned(), code: String::new(), data: None }),
        Outcome::Failed(failure),
    ];
    let trace_id = Some(crate::model::TraceId::random());
    let mut expected = vec![Invocation { event_id: Some(EventId::new()), attempt: 3, trace_id, ..started("shop") }];
    expected.extend(outcomes.map(|outcome| ended(&started("shop"), outcome)));
    record(&store, expected.iter().cloned().map(HistoryItem::Started)).await;
    record(&store, expected[1..].iter().cloned().map(HistoryItem::Finished)).await;
    record(&store, []).await;
    store.close().await;

    let store = dir.open().await;
    for invocation in expected {
        assert_eq!(stored(&store, invocation.id).await.as_ref(), Some(&invocation));
        assert_eq!(store.invocation(&app("other"), invocation.id).await.expect("invocation"), None);
    }
}

#[tokio::test]
async fn an_end_may_come_alone_or_first() {
    let (_dir, store) = store_with_app().await;
    let start = started("shop");
    let end = ended(&start, result());
    record(&store, [HistoryItem::Finished(end.clone()), HistoryItem::Started(start.clone())]).await;
    assert_eq!(stored(&store, start.id).await, Some(end));
    let usual = started("shop");
    record(&store, [HistoryItem::Started(usual.clone())]).await;
    assert_eq!(stored(&store, usual.id).await, Some(usual.clone()));
    record(&store, [HistoryItem::Finished(ended(&usual, result()))]).await;
    assert_eq!(stored(&store, usual.id).await, Some(ended(&usual, result())));
}

#[tokio::test]
async fn invocations_are_listed_newest_first_page_by_page_and_filtered() {
    let (_dir, store) = store_with_app().await;
    ready_version(&store, "other").await;
    let other_trigger = TriggerType::stored("UserReadMessage".to_owned());
    let event_id = Some(EventId::new());
    let mut all: Vec<Invocation> = (0..5).map(|_| started("shop")).collect();
    all[1] = Invocation { trigger_type: other_trigger.clone(), version: VersionNumber(2), ..all[1].clone() };
    all[3] = ended(&Invocation { event_id, ..all[3].clone() }, result());
    all.sort_by_key(|i| i.id);
    record(&store, all.iter().cloned().chain([started("other")]).map(HistoryItem::Finished)).await;

    let ids = |invocations: &[Invocation]| invocations.iter().map(|i| i.id).collect::<Vec<_>>();
    let list = async |filter, before, limit| {
        let listed = store.list_invocations(&app("shop"), filter, before, limit, u64::MAX).await;
        ids(&listed.expect("list").0)
    };
    let everything = InvocationFilter::default;
    assert_eq!(list(everything(), None, 2).await, [all[4].id, all[3].id]);
    assert_eq!(list(everything(), Some(all[3].id), 2).await, [all[2].id, all[1].id]);
    assert_eq!(list(everything(), Some(all[1].id), 2).await, [all[0].id]);
    let by_trigger = InvocationFilter { trigger_type: Some(other_trigger), ..everything() };
    assert_eq!(list(by_trigger, None, 9).await, [all[1].id]);
    let by_version = InvocationFilter { version: Some(VersionNumber(2)), ..everything() };
    assert_eq!(list(by_version, None, 9).await, [all[1].id]);
    let by_status = InvocationFilter { status: Some(InvocationStatus::Succeeded), ..everything() };
    assert_eq!(list(by_status, None, 9).await, [all[3].id]);
    assert_eq!(list(InvocationFilter { event_id, ..everything() }, None, 9).await, [all[3].id]);
    let both = InvocationFilter { event_id, version: Some(VersionNumber(2)), ..everything() };
    assert!(list(both, None, 9).await.is_empty());
}

#[tokio::test]
async fn the_newest_log_lines_come_oldest_first_and_filtered() {
    let (_dir, store) = store_with_app().await;
    let invocation = InvocationId::new();
    let levels = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];
    let sources = [LogSource::Console, LogSource::Stdout, LogSource::Stderr, LogSource::System];
    let mut lines: Vec<LogLine> = (0..4)
        .map(|n| LogLine { level: levels[n], source: sources[n], ..line("shop", Some(invocation), at(1)) })
        .collect();
    lines.push(LogLine { version: VersionNumber(2), ..line("shop", None, at(1)) });
    record(&store, lines.iter().cloned().map(HistoryItem::Log)).await;

    let logs = async |filter, last| store.logs(&app("shop"), filter, last).await.expect("logs");
    let everything = LogFilter::default;
    assert_eq!(logs(everything(), 9).await, lines);
    assert_eq!(logs(everything(), 2).await, lines[3..]);
    assert_eq!(logs(LogFilter { min_level: Some(LogLevel::Warn), ..everything() }, 9).await, lines[2..4]);
    assert_eq!(logs(LogFilter { invocation: Some(invocation), ..everything() }, 9).await, lines[..4]);
    assert_eq!(logs(LogFilter { trigger_type: Some(trigger()), ..everything() }, 9).await, lines[..4]);
    assert_eq!(logs(LogFilter { version: Some(VersionNumber(2)), ..everything() }, 9).await, lines[4..]);
    assert!(store.logs(&app("other"), everything(), 9).await.expect("logs").is_empty());
    assert_eq!(store.invocation_logs(invocation).await.expect("logs"), lines[..4]);
}

#[tokio::test]
async fn history_is_purged_when_its_app_no_longer_keeps_it() {
    let (_dir, store) = store_with_app().await;
    ready_version(&store, "keeper").await;
    let change = AppChange { history_retention: Some(Some(Duration::from_secs(50))), ..AppChange::default() };
    store.update_app(&app("keeper"), change, actor()).await.expect("update");
    let mut items = Vec::new();
    for app_id in ["shop", "keeper"] {
        for second in [10, 40, 90] {
            let start = Invocation { created_at: at(second), ..started(app_id) };
            items.push(HistoryItem::Finished(ended(&start, result())));
            items.push(HistoryItem::Log(line(app_id, Some(start.id), at(second))));
        }
    }
    let running = started("shop");
    items.push(HistoryItem::Started(running.clone()));
    record(&store, items).await;
    let kept = async |app_id: &str| {
        let invocations = store.list_invocations(&app(app_id), InvocationFilter::default(), None, 99, u64::MAX).await;
        let logs = store.logs(&app(app_id), LogFilter::default(), 99).await.expect("logs");
        (invocations.expect("list").0.len(), logs.len())
    };
    // The keeper keeps its 50 seconds, whatever the default for the shop is.
    let purge = async |now, default, limit| {
        store.purge_history(at(now), Duration::from_secs(default), limit).await.expect("purge")
    };
    assert_eq!(purge(60, 50, 99).await, 0, "nothing is older than its retention, only as old");
    assert_eq!(purge(90, 20, 1).await, 2, "a batch");
    assert_eq!(purge(90, 20, 99).await, 4);
    assert_eq!(purge(90, 20, 99).await, 0);
    assert_eq!((kept("shop").await, kept("keeper").await), ((2, 1), (2, 2)), "the running one stays");
    assert_eq!(purge(1000, u64::MAX, 99).await, 4, "for ever, but for the keeper");
    assert_eq!((kept("shop").await, kept("keeper").await), ((2, 1), (0, 0)));
    assert!(stored(&store, running.id).await.is_some());
}

#[tokio::test]
async fn an_invocation_whose_end_was_lost_does_not_stay_for_ever() {
    let (_dir, store) = store_with_app().await;
    let running = started("shop"); // At second 1.
    record(&store, [HistoryItem::Started(running.clone())]).await;
    let purge = async |now| store.purge_history(at(1 + now), Duration::from_secs(50), 99).await.expect("purge");
    let margin = RUNNING_MARGIN.as_secs();
    assert_eq!(purge(50 + margin).await, 0, "it is only as old");
    assert_eq!(purge(51 + margin).await, 1);
    assert_eq!(stored(&store, running.id).await, None);
}

#[tokio::test]
async fn a_purge_walks_the_index_of_ages() {
    let (_dir, store) = sqlite_store().await;
    let sql = "EXPLAIN QUERY PLAN SELECT i.id FROM apps a CROSS JOIN invocations i WHERE i.app_id = a.id
               AND i.created_at < 5 - COALESCE(a.history_retention_ms, 1)
               AND (i.status <> 0 OR i.created_at < 5 - COALESCE(a.history_retention_ms, 1) - 2) LIMIT 9";
    let rows = db::query(sql).fetch_all(store.read()).await.expect("plan");
    let plan: Vec<String> = rows.iter().map(|r| super::super::codec::get(r, "detail").expect("detail")).collect();
    assert!(plan.iter().any(|step| step.contains("SEARCH i USING INDEX invocations_by_age")), "{plan:?}");
}

#[tokio::test]
async fn invocations_of_a_stopped_service_are_given_up() {
    let (_dir, store) = store_with_app().await;
    let (running, done) = (started("shop"), ended(&started("shop"), result()));
    record(&store, [HistoryItem::Started(running.clone()), HistoryItem::Finished(done.clone())]).await;
    assert_eq!(store.take_over(Duration::ZERO, at(9)).await.expect("take over").invocations, 1);
    assert_eq!(store.take_over(Duration::ZERO, at(9)).await.expect("take over").invocations, 0);
    let abandoned = stored(&store, running.id).await.expect("exists");
    assert_eq!((abandoned.status(), abandoned.finished_at), (InvocationStatus::Failed, Some(at(9))));
    let message = "the service stopped while this invocation ran";
    let failure = FunctionFailure::new(FailureKind::Crashed, "ServiceStopped", message);
    assert_eq!(abandoned.outcome, Some(Outcome::Failed(failure)));
    assert_eq!(stored(&store, done.id).await, Some(done));
}

use std::time::SystemTime;

use super::*;
use crate::model::{InvocationId, LogLevel, LogSource, Outcome, RawJson, Timings, VersionNumber};
use crate::store::LogFilter;
use crate::store::testing::{app, at, ready_version, store, trigger};

fn invocation(event_bytes: usize) -> Invocation {
    Invocation {
        id: InvocationId::new(),
        app: app("shop"),
        trigger_type: trigger(),
        version: VersionNumber(1),
        attempt: 1,
        event_id: None,
        event: RawJson::trusted(&format!("\"{}\"", "x".repeat(event_bytes))),
        created_at: at(1),
        finished_at: Some(at(2)),
        outcome: Some(Outcome::Result(RawJson::trusted("1"))),
        cold_start: false,
        timings: Timings::default(),
        cpu_time: Duration::ZERO,
        peak_memory_bytes: 0,
        trace_id: None,
    }
}

fn line(text: &str) -> LogLine {
    LogLine {
        app: app("shop"),
        version: VersionNumber(1),
        trigger_type: None,
        invocation: None,
        at: SystemTime::now(),
        level: LogLevel::Info,
        source: LogSource::Console,
        text: text.to_owned(),
    }
}

async fn stored_lines(store: &Store, until: Option<LogPosition>) -> Vec<String> {
    let lines = store.logs(&app("shop"), LogFilter { until, ..LogFilter::default() }, 99).await.expect("logs");
    lines.into_iter().map(|line| line.text).collect()
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let (history, _task) = History::start(store.clone(), 8192, CancellationToken::new());
    // Nothing is awaited in between, so the writer cannot take any.
    let event_bytes = 1 << 20;
    let fit = BYTES_QUEUED_MAX / bytes(&HistoryItem::Finished(invocation(event_bytes)));
    for _ in 0..fit {
        history.finished(invocation(event_bytes));
    }
    assert_eq!(history.refused.total(), 0);
    history.finished(invocation(event_bytes));
    history.finished(invocation(event_bytes));
    assert_eq!(history.refused.total(), 2);
    // What is written makes room, also for one that is larger than all of it.
    history.flush().await;
    let (listed, _) =
        store.list_invocations(&app("shop"), Default::default(), None, 999, u64::MAX).await.expect("list");
    assert_eq!(listed.len(), fit);
    history.finished(invocation(BYTES_QUEUED_MAX));
    assert_eq!(history.refused.total(), 2);
    history.flush().await;
    assert_eq!(history.room.available_permits(), BYTES_QUEUED_MAX);
}

#[tokio::test]
async fn longer_lines_are_fewer() {
    let (_dir, store) = store().await;
    let (history, _task) = History::start(store.clone(), 1 << 20, CancellationToken::new());
    assert_eq!(history.lines().max_capacity(), 64);
    let (history, _task) = History::start(store, 256, CancellationToken::new());
    assert_eq!(history.lines().max_capacity(), LINES_QUEUED_MAX);
}

#[test]
fn a_batch_is_cut_by_number_and_by_weight() {
    let items: Vec<_> = [100, 100, 100, 5000, 100].map(|bytes| HistoryItem::Finished(invocation(bytes))).into();
    let sizes = |items_max, bytes_max| -> Vec<usize> {
        chunks(&items, items_max, bytes_max).into_iter().map(<[HistoryItem]>::len).collect()
    };
    assert_eq!(sizes(9, usize::MAX), [5]);
    assert_eq!(sizes(2, usize::MAX), [2, 2, 1]);
    let two = 2 * bytes(&items[0]);
    assert_eq!(sizes(9, two), [2, 1, 1, 1]);
    assert_eq!(sizes(9, two - 1), [1, 1, 1, 1, 1]);
    assert!(chunks(&[], 9, 9).is_empty());
}

#[tokio::test]
async fn what_the_store_refuses_is_counted_and_said_once() {
    let (_dir, store) = store().await;
    store.close().await;
    let (_items, items) = mpsc::channel(1);
    let (_lines, lines) = mpsc::channel(1);
    let (live, _) = broadcast::channel(1);
    let (batch, unwritten) = (Batch::default(), Missing::default());
    let stop = CancellationToken::new();
    let mut writer = Writer { store, items, lines, live, stop, batch, unwritten };
    for _ in 0..3 {
        writer.take_line(line("lost"));
    }
    writer.write().await;
    assert_eq!(writer.unwritten.total(), 3);
    assert_eq!(writer.unwritten.add(1), None, "it was said a moment ago");
    assert!(writer.batch.items.is_empty(), "they are not tried again");
}

#[tokio::test]
async fn a_follower_sees_each_line_in_one_place() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let (history, _task) = History::start(store.clone(), 8192, CancellationToken::new());
    let following = history.follow().await.expect("readable").expect("it runs");
    assert!(stored_lines(&store, Some(following.stored_until)).await.is_empty());
    history.lines().send(line("before")).await.expect("sent");
    let mut following = history.follow().await.expect("readable").expect("it runs");
    // Comes, and is written, before the follower reads what is stored.
    history.lines().send(line("between")).await.expect("sent");
    history.flush().await;
    assert_eq!(stored_lines(&store, None).await, ["before", "between"]);
    assert_eq!(stored_lines(&store, Some(following.stored_until)).await, ["before"]);
    assert_eq!(following.lines.recv().await.expect("a line").text, "between");
    assert!(following.lines.try_recv().is_err());
}

#[tokio::test]
async fn it_ends_with_everything_written_although_somebody_holds_a_handle() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let stop = CancellationToken::new();
    let (history, task) = History::start(store.clone(), 8192, stop.clone());
    let sent = invocation(1);
    history.finished(sent.clone());
    history.lines().send(line("last")).await.expect("sent");
    stop.cancel();
    task.await.expect("ends");
    assert_eq!(store.invocation(&app("shop"), sent.id).await.expect("readable"), Some(sent));
    assert_eq!(stored_lines(&store, None).await, ["last"]);
    history.flush().await;
    assert!(history.follow().await.expect("no error").is_none());
}

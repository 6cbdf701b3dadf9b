//! Writes invocations and log lines behind the callers' backs, and shows lines as they come.
//!
//! Nothing here may hold up an answer: what finds the queue full is dropped and counted. A reader that must see its own writes calls
//! [`History::flush`] first. The rows themselves belong to the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::model::{Invocation, LogLine};
use crate::store::{HistoryItem, Store};

const ITEMS_QUEUED_MAX: usize = 16 << 10;
const LINES_QUEUED_MAX: usize = 16 << 10;
/// Written in one transaction.
const BATCH_MAX: usize = 1024;
/// How long a batch waits for more: a commit costs a sync, and nobody waits for this one.
const LINGER: Duration = Duration::from_millis(20);
/// Lines that a follower may fall behind.
const LIVE_LINES_MAX: usize = 4096;

/// A handle to the history's writer. Cheap to clone.
#[derive(Clone)]
pub struct History {
    items: mpsc::Sender<Message>,
    lines: mpsc::Sender<LogLine>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Item(Box<HistoryItem>),
    Flush(Waiting),
}

/// Who waits for a batch to be written.
enum Waiting {
    Reader(oneshot::Sender<()>),
    Follower(oneshot::Sender<broadcast::Receiver<Arc<LogLine>>>),
}

impl History {
    /// The task ends, with everything written, when all handles are gone.
    pub fn start(store: Store) -> (Self, tokio::task::JoinHandle<()>) {
        let (items, item_queue) = mpsc::channel(ITEMS_QUEUED_MAX);
        let (lines, line_queue) = mpsc::channel(LINES_QUEUED_MAX);
        let (live, _) = broadcast::channel(LIVE_LINES_MAX);
        let writer = Writer { store, items: item_queue, lines: line_queue, live, batch: Vec::new() };
        let task = tokio::spawn(writer.run());
        (Self { items, lines, dropped: Arc::default() }, task)
    }

    pub fn started(&self, invocation: Invocation) {
        self.put(HistoryItem::Started(invocation));
    }

    pub fn finished(&self, invocation: Invocation) {
        self.put(HistoryItem::Finished(invocation));
    }

    fn put(&self, item: HistoryItem) {
        if self.items.try_send(Message::Item(Box::new(item))).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "the history is behind: invocations are missing from it");
            }
        }
    }

    /// Where workers send their lines.
    pub fn lines(&self) -> mpsc::Sender<LogLine> {
        self.lines.clone()
    }

    /// Lines from now on: everything before is readable in the store when this resolves, nothing is in both. A receiver that falls
    /// behind is told how many it missed. `None` once the writer has ended.
    pub async fn follow(&self) -> Option<broadcast::Receiver<Arc<LogLine>>> {
        let (reply, answer) = oneshot::channel();
        self.items.send(Message::Flush(Waiting::Follower(reply))).await.ok()?;
        answer.await.ok()
    }

    /// Resolves when everything that came before is readable in the store.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.items.send(Message::Flush(Waiting::Reader(done))).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

struct Writer {
    store: Store,
    items: mpsc::Receiver<Message>,
    lines: mpsc::Receiver<LogLine>,
    live: broadcast::Sender<Arc<LogLine>>,
    batch: Vec<HistoryItem>,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let mut flush = Vec::new();
            let open = self.collect(&mut flush).await;
            self.write().await;
            for waiting in flush {
                match waiting {
                    Waiting::Reader(done) => drop(done.send(())),
                    Waiting::Follower(reply) => drop(reply.send(self.live.subscribe())),
                }
            }
            if !open {
                return;
            }
        }
    }

    /// Fills a batch; returns early when somebody waits for it. False: all handles are gone.
    async fn collect(&mut self, flush: &mut Vec<Waiting>) -> bool {
        let mut open = true;
        let mut deadline = None;
        while open && flush.is_empty() && self.batch.len() < BATCH_MAX {
            let next = async {
                tokio::select! {
                    biased;
                    Some(line) = self.lines.recv() => { self.take_line(line); true }
                    message = self.items.recv() => self.take_item(message, flush),
                }
            };
            open = match deadline {
                None => next.await,
                Some(deadline) => match timeout_at(deadline, next).await {
                    Ok(open) => open,
                    Err(_) => break,
                },
            };
            deadline.get_or_insert_with(|| Instant::now() + LINGER);
        }
        // A flush covers lines too: those that were sent before it are in the queue now.
        while let Ok(line) = self.lines.try_recv() {
            self.take_line(line);
        }
        open
    }

    fn take_line(&mut self, line: LogLine) {
        if self.live.receiver_count() > 0 {
            let _ = self.live.send(Arc::new(line.clone()));
        }
        self.batch.push(HistoryItem::Log(line));
    }

    fn take_item(&mut self, message: Option<Message>, flush: &mut Vec<Waiting>) -> bool {
        match message {
            Some(Message::Item(item)) => self.batch.push(*item),
            Some(Message::Flush(waiting)) => flush.push(waiting),
            None => return false,
        }
        true
    }

    async fn write(&mut self) {
        let finished: HashSet<_> = self.batch.iter().filter_map(finished_id).collect();
        self.batch.retain(|item| match item {
            HistoryItem::Started(invocation) => !finished.contains(&invocation.id),
            HistoryItem::Finished(_) | HistoryItem::Log(_) => true,
        });
        if self.batch.is_empty() {
            return;
        }
        if let Err(err) = self.store.record(&self.batch).await {
            tracing::error!(%err, items = self.batch.len(), "failed to write the history");
        }
        self.batch.clear();
    }
}

fn finished_id(item: &HistoryItem) -> Option<crate::model::InvocationId> {
    match item {
        HistoryItem::Finished(invocation) => Some(invocation.id),
        HistoryItem::Started(_) | HistoryItem::Log(_) => None,
    }
}

//! Writes invocations and log lines behind the callers' backs, and shows lines as they come.
//!
//! Nothing here may hold up an answer: what finds the queue full is dropped and counted. A reader that must see its own writes calls
//! [`History::flush`] first. The rows themselves belong to the store.

mod bounds;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::metrics::series;
use crate::model::{Invocation, LogLine};
use crate::store::{self, HistoryItem, LogPosition, Store};

use bounds::{Missing, bytes, chunks};

const ITEMS_QUEUED_MAX: usize = 16 << 10;
/// Of invocations that wait to be written: events and results are large, and a disk may stall.
const BYTES_QUEUED_MAX: usize = 128 << 20;
const LINES_QUEUED_MAX: usize = 16 << 10;
/// Of lines that wait, if each were as long as it may be.
const LINE_BYTES_QUEUED_MAX: usize = 64 << 20;
/// Written in one transaction: there is one writer, and callers' events wait for it too.
const BATCH_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long a batch waits for more: a commit costs a sync, and nobody waits for this one.
const LINGER: Duration = Duration::from_millis(20);
/// Lines that a follower may fall behind.
const LIVE_LINES_MAX: usize = 4096;

/// A handle to the history's writer. Cheap to clone.
#[derive(Clone)]
pub struct History {
    items: mpsc::Sender<Message>,
    lines: mpsc::Sender<LogLine>,
    /// One permit for each byte that waits.
    room: Arc<Semaphore>,
    refused: Arc<Missing>,
}

enum Message {
    Item(Box<HistoryItem>, OwnedSemaphorePermit),
    Flush(Waiting),
}

/// Who waits for a batch to be written.
enum Waiting {
    Reader(oneshot::Sender<()>),
    Follower(oneshot::Sender<Result<Following, store::Error>>),
}

/// The log from now on.
pub struct Following {
    /// The store holds every line up to here, …
    pub stored_until: LogPosition,
    /// … and here come all that follow. A receiver that falls behind is told how many it missed.
    pub lines: broadcast::Receiver<Arc<LogLine>>,
}

impl History {
    /// The task ends, with everything written that came before, on `stop` or when all handles are gone. A client that reads nothing
    /// may hold a handle for as long as it likes.
    pub fn start(
        store: Store,
        log_line_bytes_max: usize,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let lines_max = (LINE_BYTES_QUEUED_MAX / log_line_bytes_max.max(1)).clamp(1, LINES_QUEUED_MAX);
        let (items, item_queue) = mpsc::channel(ITEMS_QUEUED_MAX);
        let (lines, line_queue) = mpsc::channel(lines_max);
        let (live, _) = broadcast::channel(LIVE_LINES_MAX);
        let unwritten = Missing::default();
        let batch = Batch::default();
        let writer = Writer { store, items: item_queue, lines: line_queue, live, stop, batch, unwritten };
        let task = tokio::spawn(writer.run());
        (Self { items, lines, room: Arc::new(Semaphore::new(BYTES_QUEUED_MAX)), refused: Arc::default() }, task)
    }

    pub fn started(&self, invocation: Invocation) {
        self.put(HistoryItem::Started(invocation));
    }

    pub fn finished(&self, invocation: Invocation) {
        self.put(HistoryItem::Finished(invocation));
    }

    fn put(&self, item: HistoryItem) {
        // One that is larger than all the room goes when it is alone.
        let permits = bytes(&item).min(BYTES_QUEUED_MAX) as u32;
        let queued = match Arc::clone(&self.room).try_acquire_many_owned(permits) {
            Ok(room) => self.items.try_send(Message::Item(Box::new(item), room)).is_ok(),
            Err(_) => false,
        };
        if queued {
            return;
        }
        series().history_missing.increment(1);
        if let Some(missing) = self.refused.add(1) {
            tracing::warn!(missing, "the history is behind: invocations are missing from it");
        }
    }

    /// Where workers send their lines.
    pub fn lines(&self) -> mpsc::Sender<LogLine> {
        self.lines.clone()
    }

    /// Lines from now on; what came before is readable in the store when this resolves. `None` once the writer has ended.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn follow(&self) -> Result<Option<Following>, store::Error> {
        let (reply, answer) = oneshot::channel();
        if self.items.send(Message::Flush(Waiting::Follower(reply))).await.is_err() {
            return Ok(None);
        }
        answer.await.ok().transpose()
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
    stop: CancellationToken,
    batch: Batch,
    unwritten: Missing,
}

/// What is written next, with the room it takes.
#[derive(Default)]
struct Batch {
    items: Vec<HistoryItem>,
    bytes: usize,
    room: Option<OwnedSemaphorePermit>,
}

impl Batch {
    fn push(&mut self, item: HistoryItem, room: Option<OwnedSemaphorePermit>) {
        self.bytes += bytes(&item);
        self.items.push(item);
        match (&mut self.room, room) {
            (Some(all), Some(room)) => all.merge(room),
            (all @ None, room) => *all = room,
            (Some(_), None) => {}
        }
    }

    fn is_full(&self) -> bool {
        self.items.len() >= BATCH_MAX || self.bytes >= BATCH_BYTES_MAX
    }
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
                    Waiting::Follower(reply) => drop(reply.send(self.follow().await)),
                }
            }
            if !open {
                return;
            }
        }
    }

    /// Nobody else writes lines, and this task writes none meanwhile: between the two there is no line.
    async fn follow(&self) -> Result<Following, store::Error> {
        let stored_until = self.store.log_position().await?;
        Ok(Following { stored_until, lines: self.live.subscribe() })
    }

    /// Fills a batch; returns early when somebody waits for it. False: nothing more can come.
    async fn collect(&mut self, flush: &mut Vec<Waiting>) -> bool {
        let mut open = true;
        let mut deadline = None;
        while open && flush.is_empty() && !self.batch.is_full() {
            let next = async {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled(), if !self.items.is_closed() => {
                        self.lines.close();
                        self.items.close();
                        true
                    }
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
        if !flush.is_empty() || !open {
            // A flush covers lines too: those that were sent before it are in the queue now. Those that come meanwhile can wait.
            for _ in 0..self.lines.len() {
                let Ok(line) = self.lines.try_recv() else { break };
                self.take_line(line);
            }
        }
        open
    }

    fn take_line(&mut self, line: LogLine) {
        if self.live.receiver_count() > 0 {
            let _ = self.live.send(Arc::new(line.clone()));
        }
        self.batch.push(HistoryItem::Log(line), None);
    }

    fn take_item(&mut self, message: Option<Message>, flush: &mut Vec<Waiting>) -> bool {
        match message {
            Some(Message::Item(item, room)) => self.batch.push(*item, Some(room)),
            Some(Message::Flush(waiting)) => flush.push(waiting),
            None => return false,
        }
        true
    }

    async fn write(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        let finished: HashSet<_> = batch.items.iter().filter_map(finished_id).collect();
        batch.items.retain(|item| match item {
            HistoryItem::Started(invocation) => !finished.contains(&invocation.id),
            HistoryItem::Finished(_) | HistoryItem::Log(_) => true,
        });
        for chunk in chunks(&batch.items, BATCH_MAX, BATCH_BYTES_MAX) {
            let began = Instant::now();
            let written = self.store.record(chunk).await;
            series().history_written(chunk.len(), began.elapsed(), written.is_ok());
            let Err(err) = written else { continue };
            series().history_missing.increment(chunk.len() as u64);
            if let Some(missing) = self.unwritten.add(chunk.len()) {
                tracing::error!(%err, missing, "failed to write the history: invocations or lines are missing from it");
            }
        }
    }
}

fn finished_id(item: &HistoryItem) -> Option<crate::model::InvocationId> {
    match item {
        HistoryItem::Finished(invocation) => Some(invocation.id),
        HistoryItem::Started(_) | HistoryItem::Log(_) => None,
    }
}

#[cfg(test)]
mod tests;

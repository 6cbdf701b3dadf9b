//! An app's log lines: what the store has, and then what comes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_stream::{Stream, StreamExt};

use super::Services;
use crate::drain::Drain;
use crate::model::{AppId, LogLevel, LogLine, LogSource, VersionNumber};
use crate::store::{self, LogFilter};

pub(super) type Lines = Pin<Box<dyn Stream<Item = LogLine> + Send>>;

impl Services {
    /// The newest `last` lines, the oldest first, and with `follow` those that come until the service drains.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn lines(
        &self,
        app: &AppId,
        filter: LogFilter,
        last: u32,
        follow: bool,
    ) -> Result<Lines, store::Error> {
        let following = if follow { self.history.follow().await? } else { None };
        let until = following.as_ref().map(|following| following.stored_until);
        if following.is_none() {
            self.history.flush().await;
        }
        let stored = stream::iter(self.store.logs(app, LogFilter { until, ..filter.clone() }, last).await?);
        let Some(following) = following else { return Ok(Box::pin(stored)) };
        let live = following.lines;
        let follower = Follower { live, app: app.clone(), filter, drain: self.drain.clone(), missed: VecDeque::new() };
        Ok(Box::pin(stored.chain(follower.stream())))
    }
}

/// One caller's view of the live lines.
struct Follower {
    live: broadcast::Receiver<Arc<LogLine>>,
    app: AppId,
    filter: LogFilter,
    drain: Drain,
    missed: VecDeque<LogLine>,
}

impl Follower {
    fn stream(self) -> impl Stream<Item = LogLine> {
        stream::unfold(self, |mut follower| async move {
            let line = follower.next().await?;
            Some((line, follower))
        })
    }

    /// `None` once the service drains.
    async fn next(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.missed.pop_front() {
                return Some(line);
            }
            let received = tokio::select! {
                received = self.live.recv() => received,
                () = self.drain.started() => return None,
            };
            match received {
                Ok(line) if self.wants(&line) => return Some((*line).clone()),
                Ok(_) => {}
                Err(RecvError::Lagged(lines)) => self.missed.push_back(self.gap(lines)),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn wants(&self, line: &LogLine) -> bool {
        let filter = &self.filter;
        line.app == self.app
            && filter.trigger_type.as_ref().is_none_or(|trigger| line.trigger_type.as_ref() == Some(trigger))
            && filter.invocation.is_none_or(|id| line.invocation == Some(id))
            && filter.min_level.is_none_or(|level| line.level >= level)
            && filter.version.is_none_or(|version| line.version == version)
    }

    /// Silence would look like nothing happened.
    fn gap(&self, lines: u64) -> LogLine {
        LogLine {
            app: self.app.clone(),
            version: VersionNumber(0),
            trigger_type: None,
            invocation: None,
            at: std::time::SystemTime::now(),
            level: LogLevel::Warn,
            source: LogSource::System,
            text: format!("[{lines} lines of this service were skipped: the reader is too slow]"),
        }
    }
}

//! Whose Node starts when: a start is all CPU, so many at once would all be late.
//!
//! Each pool stands in line with as many starts as may be under way, and behind that with its own; so one with many takes turns with
//! the others. Starts that nobody waits for stand there with half as many, all pools together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The longest turn. An app's quota of CPU holds for its start, too, and one that takes seconds for that must not hold up the others'.
const TURN_MAX: Duration = Duration::from_millis(500);

/// The turns of all pools. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Starts {
    max: usize,
    turn_max: Duration,
    turns: Arc<Semaphore>,
    unasked: Arc<Semaphore>,
}

/// One pool's place among them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Line {
    starts: Starts,
    own: Arc<Semaphore>,
    /// Whether callers wait for the pool's workers.
    called: watch::Receiver<bool>,
}

/// The right to have Node start. Drop it when Node is ready, before anything of a tenant's runs; after half a second it is over anyway.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "its drop tells")] oneshot::Sender<()>);

impl Starts {
    /// So many at a time.
    pub fn new(max: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { max, turn_max: TURN_MAX, turns: semaphore(max), unasked: semaphore(max.div_ceil(2)) }
    }

    /// `called`: whether callers wait for the pool's workers, as long as it lives.
    pub fn line(&self, called: watch::Receiver<bool>) -> Line {
        Line { starts: self.clone(), own: Arc::new(Semaphore::new(self.max)), called }
    }
}

impl Line {
    /// Waits for a turn. `None`: the pool is closing.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in line.
    pub async fn turn(mut self, closing: &CancellationToken) -> Option<Turn> {
        tokio::select! {
            biased;
            () = closing.cancelled() => None,
            turn = self.stand() => turn.ok(),
        }
    }

    async fn stand(&mut self) -> Result<Turn, AcquireError> {
        let Self { starts: Starts { turns, unasked, turn_max, .. }, own, called } = self;
        let place = tokio::select! {
            biased;
            true = async { called.wait_for(|called| *called).await.is_ok() } => Arc::clone(own).acquire_owned().await?,
            place = Arc::clone(unasked).acquire_owned() => place?,
        };
        let permit = Arc::clone(turns).acquire_owned().await?;
        let ((turn, over), turn_max) = (oneshot::channel(), *turn_max);
        tokio::spawn(async move {
            let _ = timeout(turn_max, over).await;
            drop((place, permit));
        });
        Ok(Turn(turn))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};

    use super::*;
    use futures_util::FutureExt;
    use tokio::task::yield_now;

    /// Turns that last.
    fn starts(max: usize) -> Starts {
        Starts { turn_max: Duration::from_secs(3600), ..Starts::new(max) }
    }

    fn line(starts: &Starts, called: bool) -> (Line, watch::Sender<bool>) {
        let (sender, receiver) = watch::channel(called);
        (starts.line(receiver), sender)
    }

    /// What it waits for is there, or is not.
    async fn now<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        for _ in 0..10 {
            yield_now().await; // For turns that are over.
        }
        future.as_mut().now_or_never()
    }

    #[tokio::test]
    async fn so_many_have_their_turn_and_the_next_one_comes_with_the_first_that_is_over() {
        let starts = starts(2);
        let (closing, (line, _called)) = (CancellationToken::new(), line(&starts, true));
        let first = line.clone().turn(&closing).await.expect("a turn");
        let _second = line.clone().turn(&closing).await.expect("a turn");
        let mut third = pin!(line.clone().turn(&closing));
        assert!(now(third.as_mut()).await.is_none());
        drop(first);
        assert!(now(third.as_mut()).await.is_some());
    }

    #[tokio::test]
    async fn a_turn_is_over_although_node_hangs() {
        let starts = Starts { turn_max: Duration::from_millis(1), ..starts(1) };
        let (closing, (line, _called)) = (CancellationToken::new(), line(&starts, true));
        let _hangs = line.clone().turn(&closing).await.expect("a turn");
        line.turn(&closing).await.expect("a turn");
    }

    #[tokio::test]
    async fn one_with_many_starts_is_not_before_all_others() {
        let starts = starts(1);
        let (closing, (greedy, _called), (modest, _too)) =
            (CancellationToken::new(), line(&starts, true), line(&starts, true));
        let turn = greedy.clone().turn(&closing).await.expect("a turn");
        let mut second = pin!(greedy.clone().turn(&closing));
        let mut third = pin!(greedy.turn(&closing));
        let mut other = pin!(modest.turn(&closing));
        assert!(now(second.as_mut()).await.is_none() && now(third.as_mut()).await.is_none());
        assert!(now(other.as_mut()).await.is_none());
        drop(turn);
        let other = now(other.as_mut()).await.expect("its turn: it is the first of its pool");
        assert!(now(second.as_mut()).await.is_none());
        drop(other);
        let _second = now(second.as_mut()).await.expect("its turn");
        assert!(now(third.as_mut()).await.is_none());
    }

    #[tokio::test]
    async fn starts_that_nobody_waits_for_leave_turns_to_callers_and_become_theirs() {
        let starts = starts(2);
        let (closing, (kept, _none), (late, called), (other, _some)) =
            (CancellationToken::new(), line(&starts, false), line(&starts, false), line(&starts, true));
        let turn = kept.clone().turn(&closing).await.expect("a turn");
        let (mut next, mut late) = (pin!(kept.turn(&closing)), pin!(late.turn(&closing)));
        assert!(now(next.as_mut()).await.is_none() && now(late.as_mut()).await.is_none());
        let asked = other.turn(&closing).await.expect("callers' turn");
        called.send_replace(true);
        assert!(now(late.as_mut()).await.is_none());
        drop(asked);
        assert!(now(late.as_mut()).await.is_some() && now(next.as_mut()).await.is_none());
        drop(turn);
        assert!(now(next.as_mut()).await.is_some());
    }

    #[tokio::test]
    async fn a_pool_that_closes_waits_for_no_turn() {
        let starts = starts(1);
        let (closing, (line, _called)) = (CancellationToken::new(), line(&starts, true));
        let _turn = line.clone().turn(&CancellationToken::new()).await;
        let mut waits = pin!(line.clone().turn(&closing));
        assert!(now(waits.as_mut()).await.is_none());
        closing.cancel();
        assert!(waits.await.is_none());
        assert!(line.turn(&closing).await.is_none());
    }
}

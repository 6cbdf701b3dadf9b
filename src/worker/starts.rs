//! Whose Node starts when: a start is all CPU, so many at once would all be late.
//!
//! Each pool stands in line with as many starts as may be under way, and behind that with its own; so one with many takes turns with
//! the others. Starts that nobody waits for stand there with half as many, all pools together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The longest that a start keeps others waiting. An app's quota of CPU holds for its start, too, and one that takes seconds for that must not hold up the others'.
const PERMIT_MAX: Duration = Duration::from_millis(500);

/// Those of all pools. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Starts {
    max: usize,
    permit_max: Duration,
    turns: Arc<Semaphore>,
    unasked: Arc<Semaphore>,
}

/// Those of one pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PoolStarts {
    starts: Starts,
    own: Arc<Semaphore>,
    /// Whether callers wait for the pool's workers.
    called: watch::Receiver<bool>,
}

/// The right to have Node start. Drop it when Node is ready, before anything of a tenant's runs; after half a second it is over anyway.
#[derive(Debug)]
pub struct StartPermit(#[expect(dead_code, reason = "its drop tells")] oneshot::Sender<()>);

impl Starts {
    /// So many at a time.
    pub fn new(max: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { max, permit_max: PERMIT_MAX, turns: semaphore(max), unasked: semaphore(max.div_ceil(2)) }
    }

    /// `called`: whether callers wait for the pool's workers, as long as it lives.
    pub fn of_pool(&self, called: watch::Receiver<bool>) -> PoolStarts {
        PoolStarts { starts: self.clone(), own: Arc::new(Semaphore::new(self.max)), called }
    }
}

impl PoolStarts {
    /// Waits for the pool's turn. `None`: the pool is closing.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in line.
    pub async fn permit(mut self, closing: &CancellationToken) -> Option<StartPermit> {
        tokio::select! {
            biased;
            () = closing.cancelled() => None,
            turn = self.stand() => turn.ok(),
        }
    }

    async fn stand(&mut self) -> Result<StartPermit, AcquireError> {
        let Self { starts: Starts { turns, unasked, permit_max, .. }, own, called } = self;
        let place = tokio::select! {
            biased;
            true = async { called.wait_for(|called| *called).await.is_ok() } => Arc::clone(own).acquire_owned().await?,
            place = Arc::clone(unasked).acquire_owned() => place?,
        };
        let held = Arc::clone(turns).acquire_owned().await?;
        let ((permit, over), permit_max) = (oneshot::channel(), *permit_max);
        tokio::spawn(async move {
            let _ = timeout(permit_max, over).await;
            drop((place, held));
        });
        Ok(StartPermit(permit))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};

    use super::*;
    use futures_util::FutureExt;
    use tokio::task::yield_now;

    /// Permits that last.
    fn starts(max: usize) -> Starts {
        Starts { permit_max: Duration::from_secs(3600), ..Starts::new(max) }
    }

    fn pool(starts: &Starts, called: bool) -> (PoolStarts, watch::Sender<bool>) {
        let (sender, receiver) = watch::channel(called);
        (starts.of_pool(receiver), sender)
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
        let (closing, (pool, _called)) = (CancellationToken::new(), pool(&starts, true));
        let first = pool.clone().permit(&closing).await.expect("a turn");
        let _second = pool.clone().permit(&closing).await.expect("a turn");
        let mut third = pin!(pool.clone().permit(&closing));
        assert!(now(third.as_mut()).await.is_none());
        drop(first);
        assert!(now(third.as_mut()).await.is_some());
    }

    #[tokio::test]
    async fn a_turn_is_over_although_node_hangs() {
        let starts = Starts { permit_max: Duration::from_millis(1), ..starts(1) };
        let (closing, (pool, _called)) = (CancellationToken::new(), pool(&starts, true));
        let _hangs = pool.clone().permit(&closing).await.expect("a turn");
        pool.permit(&closing).await.expect("a turn");
    }

    #[tokio::test]
    async fn one_with_many_starts_is_not_before_all_others() {
        let starts = starts(1);
        let (closing, (greedy, _called), (modest, _too)) =
            (CancellationToken::new(), pool(&starts, true), pool(&starts, true));
        let turn = greedy.clone().permit(&closing).await.expect("a turn");
        let mut second = pin!(greedy.clone().permit(&closing));
        let mut third = pin!(greedy.permit(&closing));
        let mut other = pin!(modest.permit(&closing));
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
            (CancellationToken::new(), pool(&starts, false), pool(&starts, false), pool(&starts, true));
        let turn = kept.clone().permit(&closing).await.expect("a turn");
        let (mut next, mut late) = (pin!(kept.permit(&closing)), pin!(late.permit(&closing)));
        assert!(now(next.as_mut()).await.is_none() && now(late.as_mut()).await.is_none());
        let asked = other.permit(&closing).await.expect("callers' turn");
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
        let (closing, (pool, _called)) = (CancellationToken::new(), pool(&starts, true));
        let _turn = pool.clone().permit(&CancellationToken::new()).await;
        let mut waits = pin!(pool.clone().permit(&closing));
        assert!(now(waits.as_mut()).await.is_none());
        closing.cancel();
        assert!(waits.await.is_none());
        assert!(pool.permit(&closing).await.is_none());
    }
}

use super::*;

fn policy() -> Policy {
    Policy {
        workers_max: 2,
        workers_min: 0,
        concurrency: 1,
        waiting_max: 3,
        idle_ttl: Duration::from_secs(60),
        age_max: Duration::from_secs(3600),
        jobs_max: 100,
        memory_bytes_max: 1000,
    }
}

/// A pool and a clock.
struct Pool {
    state: State,
    now: Instant,
}

impl Pool {
    fn new(policy: Policy) -> Self {
        Self { state: State::new(policy), now: Instant::now() }
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.state.handle(event, self.now)
    }

    fn later(&mut self, seconds: u64) -> Vec<Action> {
        self.now += Duration::from_secs(seconds);
        self.on(Event::Tick)
    }

    fn acquire(&mut self, waiter: u64) -> Vec<Action> {
        self.on(Event::Acquire { waiter: WaiterId(waiter) })
    }

    fn ready(&mut self, worker: u64) -> Vec<Action> {
        self.on(Event::Ready { worker: WorkerId(worker) })
    }

    fn release(&mut self, worker: u64, lease: u64) -> Vec<Action> {
        let event = Event::Released { worker: WorkerId(worker), lease: LeaseId(lease), memory_bytes: Some(10) };
        self.on(event)
    }

    fn lose(&mut self, worker: u64, lease: u64) -> Vec<Action> {
        let event = Event::Released { worker: WorkerId(worker), lease: LeaseId(lease), memory_bytes: None };
        assert_eq!(self.on(event), []);
        self.on(Event::Ended { worker: WorkerId(worker) })
    }
}

fn start(worker: u64) -> Action {
    Action::Start { worker: WorkerId(worker), replaces: None }
}

fn replace(worker: u64, wear: Wear) -> Action {
    Action::Start { worker: WorkerId(worker), replaces: Some(wear) }
}

fn stop(worker: u64) -> Action {
    Action::Stop { worker: WorkerId(worker) }
}

fn grant(waiter: u64, worker: u64, lease: u64, cold: bool) -> Action {
    Action::Grant { waiter: WaiterId(waiter), worker: WorkerId(worker), lease: LeaseId(lease), cold }
}

fn refuse(waiter: u64, refusal: Refusal) -> Action {
    Action::Refuse { waiter: WaiterId(waiter), refusal }
}

fn failure() -> StartError {
    StartError::Broken("no".to_owned())
}

#[test]
fn a_burst_on_a_cold_app_starts_at_most_workers_max_and_waits_in_bounds() {
    let mut pool = Pool::new(policy());
    assert_eq!(pool.acquire(1), [start(1)]);
    assert_eq!(pool.acquire(2), [start(2)]);
    assert_eq!(pool.acquire(3), []);
    assert_eq!(pool.acquire(4), [refuse(4, Refusal::QueueFull)]);
    assert_eq!(pool.ready(1), [grant(1, 1, 1, true)]);
    assert_eq!(pool.release(1, 1), [grant(2, 1, 2, false)]);
    assert_eq!(pool.ready(2), [grant(3, 2, 3, true)]);
}

#[test]
fn the_worker_used_last_goes_first_and_the_others_age_out() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.acquire(2);
    pool.ready(1);
    pool.ready(2);
    pool.release(1, 1);
    pool.later(1);
    pool.release(2, 2);
    for round in 0..3 {
        let lease = 3 + round;
        assert_eq!(pool.acquire(lease), [grant(lease, 2, lease, false)]);
        pool.now += Duration::from_secs(20);
        pool.release(2, lease);
    }
    assert_eq!(pool.later(0), [stop(1)]);
    assert_eq!(pool.later(59), []);
}

#[test]
fn a_busy_worker_is_never_idle_however_long_it_takes() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.ready(1);
    assert_eq!(pool.later(1000), []);
    assert_eq!(pool.release(1, 1), []);
    assert_eq!(pool.later(60), []);
    assert_eq!(pool.later(1), [stop(1)]);
}

#[test]
fn workers_min_stay() {
    let mut pool = Pool::new(Policy { workers_min: 1, ..policy() });
    assert_eq!(pool.later(0), [start(1)]);
    pool.ready(1);
    assert_eq!(pool.later(1000), []);
}

#[test]
fn a_worker_that_an_invocation_broke_is_replaced_once() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.ready(1);
    assert_eq!(pool.lose(1, 1), [start(2)]);
    pool.ready(2);
    assert_eq!(pool.on(Event::Ended { worker: WorkerId(2) }), [], "it died idle");
}

#[test]
fn idle_crashes_do_not_turn_workers_min_into_a_spinning_wheel() {
    let mut pool = Pool::new(Policy { workers_min: 1, ..policy() });
    pool.later(0);
    pool.ready(1);
    assert_eq!(pool.on(Event::Ended { worker: WorkerId(1) }), []);
    assert_eq!(pool.later(1), [start(2)]);
    pool.ready(2);
    assert_eq!(pool.on(Event::Ended { worker: WorkerId(2) }), []);
    assert_eq!(pool.acquire(1), [start(3)], "a caller does not wait for it");
}

#[test]
fn a_failed_start_is_told_to_all_who_wait_and_then_backs_off() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.acquire(2);
    assert_eq!(pool.on(Event::StartFailed { worker: WorkerId(1), failure: failure() }), []);
    let told = pool.on(Event::StartFailed { worker: WorkerId(2), failure: failure() });
    let refusal = || Refusal::NotStarted(failure());
    assert_eq!(told, [refuse(1, refusal()), refuse(2, refusal())]);
    assert_eq!(pool.acquire(3), [refuse(3, refusal())]);
    assert_eq!(pool.later(1), []);
    assert_eq!(pool.acquire(4), [start(3)]);
    assert_eq!(pool.ready(3), [grant(4, 3, 1, true)]);
}

#[test]
fn a_worn_worker_serves_on_until_its_replacement_is_ready() {
    let mut pool = Pool::new(Policy { jobs_max: 1, ..policy() });
    pool.acquire(1);
    pool.ready(1);
    assert_eq!(pool.release(1, 1), [replace(2, Wear::Jobs)]);
    assert_eq!(pool.acquire(2), [grant(2, 1, 2, false)]);
    assert_eq!(pool.release(1, 2), []);
    assert_eq!(pool.ready(2), [stop(1)]);
    assert_eq!(pool.acquire(3), [grant(3, 2, 3, false)]);
}

#[test]
fn replaced_workers_that_still_run_bound_the_replacing() {
    let mut pool = Pool::new(Policy { workers_max: 1, concurrency: 2, jobs_max: 1, ..policy() });
    pool.acquire(1);
    pool.acquire(2);
    pool.ready(1);
    assert_eq!(pool.release(1, 1), [replace(2, Wear::Jobs)]);
    assert_eq!(pool.ready(2), [], "the first one still runs");
    pool.acquire(3);
    assert_eq!(pool.release(2, 3), [], "two are enough");
    assert_eq!(pool.release(1, 2), [stop(1)]);
    pool.on(Event::Ended { worker: WorkerId(1) });
    assert_eq!(pool.later(1), [replace(3, Wear::Jobs)]);
}

#[test]
fn age_is_recycled_on_both_sides_of_its_limit() {
    let mut pool = Pool::new(Policy { idle_ttl: Duration::from_secs(9999), ..policy() });
    pool.acquire(1);
    pool.ready(1);
    pool.release(1, 1);
    assert_eq!(pool.later(3600), []);
    assert_eq!(pool.later(1), [replace(2, Wear::Age)]);
}

#[test]
fn a_worker_is_too_large_if_it_grew_and_is_beyond_the_limit() {
    // Sizes after each job, the last of which is too large.
    for sizes in [&[10, 1000, 1001][..], &[900, 1001, 1080, 1081], &[2000, 1900, 2400, 2401], &[0, 2000, 2401]] {
        let mut pool = Pool::new(policy());
        pool.acquire(1);
        pool.ready(1);
        for (n, size) in sizes.iter().enumerate() {
            let lease = LeaseId(n as u64 + 1);
            let freed = pool.on(Event::Released { worker: WorkerId(1), lease, memory_bytes: Some(*size) });
            let last = n + 1 == sizes.len();
            assert_eq!(freed, if last { vec![replace(2, Wear::Memory)] } else { vec![] }, "{sizes:?} {size}");
            pool.acquire(n as u64 + 2);
        }
    }
}

#[test]
fn a_retired_pool_finishes_what_runs_and_refuses_the_rest() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.acquire(2);
    pool.ready(1);
    pool.ready(2);
    pool.acquire(3);
    pool.release(2, 2);
    pool.release(2, 3);
    pool.acquire(4);
    pool.acquire(5);
    let actions = pool.on(Event::Retire);
    assert_eq!(actions, [refuse(5, Refusal::Retired)]);
    assert_eq!(pool.release(1, 1), [stop(1)]);
    assert_eq!(pool.acquire(6), [refuse(6, Refusal::Retired)]);
    assert_eq!(pool.on(Event::Ended { worker: WorkerId(1) }), []);
}

#[test]
fn without_memory_the_waiters_wait_and_others_are_asked_to_give_way() {
    let mut pool = Pool::new(policy());
    assert_eq!(pool.acquire(1), [start(1)]);
    assert_eq!(pool.on(Event::NoMemory { worker: WorkerId(1) }), []);
    assert!(pool.state.wants_memory());
    assert_eq!(pool.on(Event::MemoryFreed), [start(2)]);
    pool.ready(2);
    assert_eq!(pool.state.spare(), None, "it is busy");
    assert_eq!(pool.on(Event::MemoryPressure), []);
    pool.release(2, 1);
    assert!(matches!(pool.state.spare(), Some((WorkerId(2), Offer::Idle(_)))));
    assert_eq!(pool.on(Event::MemoryPressure), [stop(2)]);
}

#[test]
fn pressure_starts_nothing_and_takes_nothing_from_those_who_wait() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.on(Event::NoMemory { worker: WorkerId(1) });
    assert_eq!(pool.state.lacking(), 1);
    assert_eq!(pool.on(Event::MemoryPressure), []);
    assert_eq!(pool.state.counts(), Counts { waiting: 1, ..Counts::default() });
    let mut pool = Pool::new(Policy { workers_min: 2, ..policy() });
    pool.later(0);
    pool.ready(1);
    pool.ready(2);
    assert!(matches!(pool.state.spare(), Some((WorkerId(1), Offer::Kept(_)))), "the last resort");
    assert_eq!(pool.on(Event::MemoryPressure), [stop(1)], "and none in its place");
}

#[test]
fn workers_min_beyond_the_memory_are_asked_for_once_a_tick() {
    let mut pool = Pool::new(Policy { workers_min: 2, ..policy() });
    assert_eq!(pool.later(0), [start(1), start(2)]);
    pool.on(Event::NoMemory { worker: WorkerId(2) });
    pool.ready(1);
    assert_eq!((pool.state.wants_memory(), pool.state.lacking()), (false, 0));
    assert_eq!(pool.acquire(1), [grant(1, 1, 1, false)]);
    assert_eq!(pool.release(1, 1), []);
    assert_eq!(pool.later(1), [start(3)]);
}

#[test]
fn a_waiter_that_left_gets_nothing() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.acquire(2);
    pool.on(Event::Abandoned { waiter: WaiterId(1) });
    assert_eq!(pool.ready(1), [grant(2, 1, 1, true)]);
    assert_eq!(pool.ready(2), []);
}

#[test]
fn a_lease_that_comes_back_twice_counts_once() {
    let mut pool = Pool::new(policy());
    pool.acquire(1);
    pool.ready(1);
    pool.release(1, 1);
    pool.acquire(2);
    assert_eq!(pool.release(1, 1), []);
    assert_eq!(pool.state.counts().busy, 1);
}

#[test]
fn concurrency_fills_a_worker_before_another_is_started() {
    let mut pool = Pool::new(Policy { concurrency: 2, ..policy() });
    assert_eq!(pool.acquire(1), [start(1)]);
    assert_eq!(pool.acquire(2), []);
    assert_eq!(pool.acquire(3), [start(2)]);
    assert_eq!(pool.ready(1), [grant(1, 1, 1, true), grant(2, 1, 2, true)]);
    assert_eq!(pool.ready(2), [grant(3, 2, 3, true)]);
    assert_eq!(pool.acquire(4), [grant(4, 2, 4, false)]);
}

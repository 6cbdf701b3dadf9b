use super::*;

/// A pool with one idle worker.
struct Idle {
    account: Account,
    reservation: Reservation,
}

impl Idle {
    fn new(budget: &MemoryBudget, bytes: u64, offer: Offer) -> Self {
        let mut account = budget.account();
        let reservation = account.reserve(bytes, Purpose::Call).expect("fits");
        account.offer(Some(offer), Instant::now());
        Self { account, reservation }
    }

    fn gives_way(&mut self, now: Instant) -> bool {
        let gives_way = self.account.give_way(&mut self.reservation, now);
        if gives_way {
            self.account.offer(None, now);
        }
        gives_way
    }

    /// Whether it was woken since it was asked last.
    fn was_woken(&self) -> bool {
        let woken = std::pin::pin!(self.account.asked());
        woken.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }
}

#[test]
fn the_budget_holds_on_both_sides_and_says_when_it_changes() {
    let budget = MemoryBudget::new(100);
    let mut freed = budget.freed();
    let all = budget.account().reserve(100, Purpose::Call).expect("fits exactly");
    assert!(budget.account().reserve(1, Purpose::Call).is_none());
    assert!(!freed.has_changed().expect("open"));
    drop(all);
    assert!(freed.has_changed().expect("open"));
    freed.mark_unchanged();
    assert_eq!(budget.used(), 0);
    assert!(budget.account().reserve(101, Purpose::Call).is_none());
}

#[test]
fn no_more_give_way_than_callers_lack() {
    let (budget, now) = (MemoryBudget::new(100), Instant::now());
    let mut idle: Vec<_> = (0..4).map(|_| Idle::new(&budget, 25, Offer::Idle(now))).collect();
    let give = |idle: &mut Vec<Idle>| idle.iter_mut().filter_map(|idle| idle.gives_way(now).then_some(())).count();
    assert_eq!(give(&mut idle), 0, "nobody lacks anything");
    let (mut one, mut other) = (budget.account(), budget.account());
    assert!(!idle[0].was_woken());
    one.lack(1, 25, now);
    assert!(idle[0].was_woken() && !idle[1].was_woken());
    assert_eq!((give(&mut idle), give(&mut idle)), (1, 0));
    one.lack(1, 25, now);
    assert!(!idle[1].was_woken(), "nothing new, and enough is leaving");
    other.lack(2, 10, now);
    assert!(idle[1].was_woken());
    assert_eq!(give(&mut idle), 1);
    drop(idle.drain(..2));
    let _taken = one.reserve(25, Purpose::Call).expect("it came back");
    assert_eq!(give(&mut idle), 0, "the other one's is there, too");
    drop((one, other));
    assert_eq!(give(&mut idle), 0);
}

#[test]
fn the_least_recently_used_goes_first_and_the_reserve_before_it() {
    let (budget, now) = (MemoryBudget::new(100), Instant::now());
    let later = now + Duration::from_secs(1);
    let mut recent = Idle::new(&budget, 25, Offer::Idle(later));
    let mut kept = Idle::new(&budget, 25, Offer::Kept(now));
    let mut old = Idle::new(&budget, 25, Offer::Idle(now));
    let mut reserve = Idle::new(&budget, 25, Offer::Reserve);
    let mut caller = budget.account();
    caller.lack(1, 25, later);
    assert!(![&mut recent, &mut kept, &mut old].map(|idle| idle.gives_way(later)).contains(&true));
    assert!(reserve.was_woken() && reserve.gives_way(later));
    caller.lack(2, 25, later);
    assert!(!recent.gives_way(later) && !kept.gives_way(later + KEPT_FOR));
    // It is called just before it is to go: then the next one is asked.
    assert!(old.was_woken());
    old.account.offer(None, later);
    assert!(recent.was_woken() && !old.gives_way(later) && recent.gives_way(later));
    caller.lack(3, 25, later);
    assert!(!kept.gives_way(later));
    old.account.offer(Some(Offer::Idle(later)), later);
    assert!(old.was_woken() && !kept.gives_way(later + KEPT_FOR), "there is one that is not kept");
    assert!(old.gives_way(later + KEPT_FOR));
}

#[test]
fn whoever_is_gone_holds_up_nobody() {
    let (budget, now) = (MemoryBudget::new(100), Instant::now());
    let first = Idle::new(&budget, 50, Offer::Reserve);
    let mut second = Idle::new(&budget, 50, Offer::Idle(now));
    let mut caller = budget.account();
    caller.lack(1, 100, now);
    assert!(!second.gives_way(now));
    let Idle { account, reservation } = first;
    drop(account);
    assert!(second.was_woken() && second.gives_way(now));
    drop(reservation);
}

#[test]
fn what_ends_anyway_counts() {
    let (budget, now) = (MemoryBudget::new(100), Instant::now());
    let mut going = budget.account().reserve(50, Purpose::Call).expect("fits");
    let mut idle = Idle::new(&budget, 50, Offer::Idle(now));
    going.leave();
    let mut caller = budget.account();
    caller.lack(1, 50, now);
    assert!(!idle.gives_way(now));
    drop(going);
    assert!(!idle.gives_way(now));
    let _taken = budget.account().reserve(50, Purpose::Call).expect("fits");
    assert!(idle.gives_way(now), "somebody else had it");
}

#[test]
fn kept_workers_give_way_to_callers_who_still_lack_it_later() {
    let (budget, now) = (MemoryBudget::new(100), Instant::now());
    let mut kept = Idle::new(&budget, 100, Offer::Kept(now));
    let mut caller = budget.account();
    caller.lack(1, 100, now);
    assert!(!kept.gives_way(now));
    assert!(kept.gives_way(now + KEPT_FOR));
}

#[test]
fn nothing_spare_takes_what_callers_wait_for() {
    let budget = MemoryBudget::new(100);
    let mut caller = budget.account();
    caller.lack(1, 60, Instant::now());
    assert!(budget.account().reserve(41, Purpose::Spare).is_none());
    let spare = budget.account().reserve(40, Purpose::Spare).expect("fits beside it");
    assert!(budget.account().reserve(60, Purpose::Call).is_some());
    drop(spare);
}

#[test]
fn what_the_budget_could_never_hold_moves_nobody() {
    let (budget, now) = (MemoryBudget::new(100), Instant::now());
    let mut idle = Idle::new(&budget, 60, Offer::Idle(now));
    let mut caller = budget.account();
    caller.lack(1, 101, now);
    assert!(!idle.gives_way(now));
    caller.lack(9, 50, now);
    assert!(idle.gives_way(now), "two of nine would fit");
}

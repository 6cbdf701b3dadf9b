use super::*;
use crate::model::Limits;

fn class(memory_mib: u64) -> Class {
    Class::of(&Limits { memory_bytes: memory_mib << 20, ..Limits::default() }).expect("no subprocesses")
}

/// A reserve of two that has nothing to wait for, and now.
fn state() -> (State, Instant) {
    let began = Instant::now();
    let policy = Policy {
        workers: 2,
        default: class(256),
        idle_ttl: Duration::from_secs(60),
        age_max: Duration::from_secs(600),
    };
    (State::new(policy, began), began + QUIET)
}

fn held(classes: &[u64], since: Instant) -> Vec<Held> {
    classes.iter().map(|memory| Held { class: class(*memory), since }).collect()
}

/// The classes it starts, one after the other, from what is there.
fn filled(state: &mut State, mut there: Vec<u64>, now: Instant) -> Vec<u64> {
    let mut started = Vec::new();
    while let Next::Start(class) = state.next(&held(&there, now), false, now) {
        started.push(class.memory_bytes >> 20);
        there.push(class.memory_bytes >> 20);
    }
    started
}

#[test]
fn it_starts_what_is_missing_and_one_at_a_time() {
    let (mut state, now) = state();
    assert_eq!(filled(&mut state, vec![], now), [256, 256]);
    assert_eq!(filled(&mut state, vec![256], now), [256]);
    assert!(matches!(state.next(&[], true, now), Next::Wait(_)));
}

#[test]
fn a_class_that_was_asked_for_gets_one_before_any_gets_more() {
    let (mut state, mut now) = state();
    for memory in [256, 512, 300, 512] {
        state.start_begins(Some(class(memory)), now);
        state.start_ends(now);
    }
    state.start_begins(None, now);
    state.start_ends(now);
    now += QUIET;
    assert_eq!(filled(&mut state, vec![], now), [256, 512, 300, 256]);
}

#[test]
fn only_the_classes_asked_for_last_are_kept_and_not_for_ever() {
    let (mut state, mut now) = state();
    for memory in [501, 502, 503, 504, 505] {
        state.start_begins(Some(class(memory)), now);
        state.start_ends(now);
    }
    now += QUIET;
    assert_eq!(filled(&mut state, vec![256, 256], now), [505, 504, 503, 502]);
    let there = held(&[256, 502, 256, 505], now);
    assert!(state.surplus(&there, now).is_empty());
    let Next::Wait(Some(change)) = state.next(&held(&[256, 256, 502, 503, 504, 505], now), false, now) else {
        panic!("it has all it wants, for now");
    };
    assert_eq!(state.surplus(&there, change), [1, 3]);
    assert!(filled(&mut state, vec![256, 256], change).is_empty());
}

#[test]
fn it_waits_until_no_start_is_under_way_and_a_little_longer_but_not_for_ever() {
    let (mut state, now) = state();
    state.start_begins(Some(class(256)), now);
    assert_eq!(state.next(&[], false, now), Next::Wait(Some(now + PATIENCE)));
    let later = now + Duration::from_millis(500);
    state.start_ends(later);
    assert_eq!(state.next(&[], false, later), Next::Wait(Some(later + QUIET)));
    state.start_begins(Some(class(256)), later);
    assert_eq!(state.next(&[], false, now + PATIENCE), Next::Start(class(256)), "somebody starts without an end");
    assert!(matches!(state.next(&[], false, now + PATIENCE), Next::Wait(_)), "one, and patience begins anew");
}

#[test]
fn after_a_failure_it_waits_longer_each_time_until_one_was_of_use() {
    let (mut state, mut now) = state();
    let mut waits = |state: &mut State| {
        state.failed(now);
        let Next::Wait(Some(until)) = state.next(&[], false, now) else { panic!("it does not wait") };
        until - std::mem::replace(&mut now, until)
    };
    assert_eq!([waits(&mut state), waits(&mut state), waits(&mut state)], [1, 2, 4].map(|times| BACKOFF_MIN * times));
    for _ in 0..20 {
        waits(&mut state);
    }
    assert_eq!(waits(&mut state), BACKOFF_MAX);
    state.proved();
    assert_eq!(waits(&mut state), BACKOFF_MIN);
}

#[test]
fn those_that_die_together_are_one_failure() {
    let (mut state, now) = state();
    for _ in 0..20 {
        state.failed(now);
    }
    assert_eq!(state.next(&[], false, now), Next::Wait(Some(now + BACKOFF_MIN)));
}

#[test]
fn a_class_for_which_there_is_no_memory_holds_up_no_other() {
    let (mut state, mut now) = state();
    state.start_begins(Some(class(4096)), now);
    state.start_ends(now);
    now += QUIET;
    assert_eq!(state.next(&held(&[256], now), false, now), Next::Start(class(4096)));
    state.no_memory(class(4096));
    assert_eq!(filled(&mut state, vec![256], now), [256]);
    assert!(state.is_short());
    state.memory_freed();
    assert_eq!(state.next(&held(&[256], now), false, now), Next::Start(class(4096)));
}

#[test]
fn without_memory_it_asks_again_only_when_there_may_be_some() {
    let (mut state, now) = state();
    state.no_memory(class(256));
    assert_eq!(state.next(&[], false, now), Next::Wait(None));
    state.memory_freed();
    assert_eq!(state.next(&[], false, now), Next::Start(class(256)));
    state.gave_up(now);
    assert_eq!(state.next(&[], false, now), Next::Wait(Some(now + GIVEN_UP)));
}

#[test]
fn old_ones_go_one_after_the_other() {
    let (mut state, now) = state();
    let spares = held(&[256, 256], now);
    let Next::Wait(Some(old)) = state.next(&spares, false, now) else { panic!("nothing is missing") };
    assert!(state.surplus(&spares, old - Duration::from_millis(2)).is_empty());
    assert_eq!(state.surplus(&spares, old), [0]);
    assert!(state.surplus(&spares[1..], old).is_empty(), "its replacement first");
    assert_eq!(state.surplus(&[spares[1], Held { since: old, ..spares[0] }], old), [0]);
}

#[test]
fn without_a_number_of_its_own_the_default_class_has_none() {
    let (mut state, now) = state();
    state.policy.workers = 0;
    assert!(filled(&mut state, vec![], now).is_empty());
}

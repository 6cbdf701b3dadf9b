//! Fair shares: how many events of each app are claimed next, so that no app's backlog keeps another's events waiting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::model::AppId;

/// What runs, by app. Sees no clock and no store.
#[derive(Debug)]
pub struct Shares {
    of_app_max: usize,
    running: HashMap<AppId, usize>,
    /// Where the next round begins: each app comes first in its turn.
    turn: usize,
}

impl Shares {
    pub fn new(of_app_max: usize) -> Self {
        Self { of_app_max, running: HashMap::new(), turn: 0 }
    }

    /// Whether the app may have more running.
    pub fn has_room(&self, app: &AppId) -> bool {
        self.running(app) < self.of_app_max
    }

    /// How many events to claim of each of these apps, which have some that are due: one by one, always of the app that then has the
    /// fewest, no more than `places` in all and than an app may have running.
    pub fn plan(&mut self, due: &[AppId], places: usize) -> Vec<(AppId, u32)> {
        let count = due.len();
        if count == 0 {
            return Vec::new();
        }
        self.turn = self.turn.wrapping_add(1);
        let turn_of = |index: usize| (index + count - self.turn % count) % count;
        let mut fewest: BinaryHeap<_> =
            (0..count).map(|index| Reverse((self.running(&due[index]), turn_of(index), index))).collect();
        let mut shares = vec![0u32; count];
        for _ in 0..places {
            let Some(Reverse((running, turn, index))) = fewest.pop() else { break };
            if running >= self.of_app_max {
                break; // All the others have as many.
            }
            shares[index] += 1;
            fewest.push(Reverse((running + 1, turn, index)));
        }
        due.iter().cloned().zip(shares).filter(|(_, share)| *share > 0).collect()
    }

    pub fn begun(&mut self, app: &AppId) {
        *self.running.entry(app.clone()).or_default() += 1;
    }

    pub fn ended(&mut self, app: &AppId) {
        if let Some(running) = self.running.get_mut(app) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(app);
            }
        }
    }

    fn running(&self, app: &AppId) -> usize {
        self.running.get(app).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apps(names: &[&str]) -> Vec<AppId> {
        names.iter().map(|name| name.parse().expect("an id")).collect()
    }

    fn plan(shares: &mut Shares, due: &[AppId], places: usize) -> Vec<(String, u32)> {
        shares.plan(due, places).into_iter().map(|(app, share)| (app.to_string(), share)).collect()
    }

    #[test]
    fn places_are_dealt_out_evenly_and_to_those_with_little_first() {
        let due = apps(&["noisy", "quiet", "third"]);
        let mut shares = Shares::new(16);
        (0..6).for_each(|_| shares.begun(&due[0]));
        shares.begun(&due[1]);
        let dealt = plan(&mut shares, &due, 7);
        assert_eq!(dealt, [("quiet".to_owned(), 3), ("third".to_owned(), 4)]);
        assert_eq!(plan(&mut Shares::new(16), &due, 6), due.iter().map(|app| (app.to_string(), 2)).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_gets_more_than_an_app_may_have() {
        let due = apps(&["noisy", "quiet"]);
        let mut shares = Shares::new(4);
        (0..3).for_each(|_| shares.begun(&due[0]));
        assert_eq!(plan(&mut shares, &due[..1], 32), [("noisy".to_owned(), 1)]);
        shares.begun(&due[0]);
        assert!(!shares.has_room(&due[0]) && shares.has_room(&due[1]));
        assert_eq!(plan(&mut shares, &due[..1], 32), []);
        shares.ended(&due[0]);
        assert!(shares.has_room(&due[0]));
        assert_eq!(plan(&mut shares, &[], 32), []);
    }

    #[test]
    fn with_one_place_every_app_has_its_turn() {
        let due = apps(&["a", "b", "c"]);
        let mut shares = Shares::new(4);
        let mut first: Vec<_> = (0..3).map(|_| plan(&mut shares, &due, 1)[0].0.clone()).collect();
        first.sort();
        assert_eq!(first, ["a", "b", "c"]);
    }
}

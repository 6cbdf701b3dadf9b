//! Which replica gets a call: as the chart's Envoy does it, or as a Service of Kubernetes does.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::workload::Workload;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Routing {
    /// To an app's own replica on a ring, or, while that one has more than so many times the average under way, to the next.
    Hashed { balance: f64 },
    /// To any.
    Any,
}

/// Places of each replica on the ring.
const PLACES: usize = 256;

pub struct Router {
    routing: Routing,
    /// By place.
    ring: Vec<(u64, usize)>,
    /// Calls under way, and whether it is there.
    load: Vec<(u32, bool)>,
}

impl Router {
    pub fn new(routing: Routing, replicas: usize) -> Self {
        let places = |replica| (0..PLACES).map(move |place| (hash(&(replica, place)), replica));
        let mut ring: Vec<_> = (0..replicas).flat_map(places).collect();
        ring.sort_unstable();
        Self { routing, ring, load: vec![(0, true); replicas] }
    }

    /// Counts the call as under way there until [`Router::done`].
    pub fn route(&mut self, app: usize, workload: &mut Workload) -> usize {
        let replica = match self.routing {
            Routing::Hashed { balance } => self.on_the_ring(app, balance),
            Routing::Any => loop {
                let replica = workload.any(self.load.len());
                if self.load[replica].1 {
                    break replica;
                }
            },
        };
        self.load[replica].0 += 1;
        replica
    }

    pub fn done(&mut self, replica: usize) {
        self.load[replica].0 -= 1;
    }

    /// It gets no call any more. How many it had.
    pub fn remove(&mut self, replica: usize) -> u32 {
        self.load[replica].1 = false;
        self.load[replica].0
    }

    fn on_the_ring(&self, app: usize, balance: f64) -> usize {
        let there = self.load.iter().filter(|(_, there)| *there);
        let (calls, replicas) = there.fold((0, 0), |(calls, replicas), (load, _)| (calls + load, replicas + 1));
        let most = (f64::from(calls + 1) / f64::from(replicas) * balance).ceil();
        let first = self.ring.partition_point(|(place, _)| *place < hash(&app));
        let mut candidates = self.ring[first..].iter().chain(&self.ring[..first]).map(|(_, replica)| *replica);
        let fits = |replica: &usize| self.load[*replica].1 && f64::from(self.load[*replica].0) < most;
        candidates.find(fits).expect("not all replicas are above the average")
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

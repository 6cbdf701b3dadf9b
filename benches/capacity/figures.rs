//! What `benches/costs` measured.

use std::path::Path;

use serde::Deserialize;

use crate::Result;

#[derive(Debug, Deserialize)]
pub struct Figures {
    postgres: Engine,
}

#[derive(Debug, Deserialize)]
struct Engine {
    blocking: Vec<Call>,
    queued: Vec<Call>,
    apps: Apps,
}

/// Of one call at this rate.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Call {
    pub rate: f64,
    pub service_micros: f64,
    pub worker_micros: f64,
    pub database_micros: f64,
    pub transactions: f64,
    pub wal_bytes: f64,
    pub stored_bytes: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Apps {
    pub service_bytes: f64,
    pub service_bytes_per_app: f64,
    pub worker_private_bytes: f64,
    pub start_cpu_micros: f64,
}

impl Figures {
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|err| format!("{}: {err}", file.display()))?;
        Ok(serde_json::from_str(&text).map_err(|err| format!("{}: {err}", file.display()))?)
    }

    /// A blocking call's, at the measured rate that is next to this one.
    pub fn blocking(&self, rate: f64) -> Call {
        next_to(&self.postgres.blocking, rate)
    }

    /// A queued event's, from its acknowledgement to its end.
    pub fn queued(&self, rate: f64) -> Call {
        next_to(&self.postgres.queued, rate)
    }

    pub fn apps(&self) -> Apps {
        self.postgres.apps
    }
}

fn next_to(measured: &[Call], rate: f64) -> Call {
    let distance = |call: &&Call| (call.rate - rate).abs();
    *measured.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("some rate was measured")
}

//! What Prometheus is told. [`declared`] lists every metric with its labels and its help; `docs/metrics.md` is made from it.
//!
//! Whoever measures holds handles, which are looked up once: a [`Series`] of what has no app, an [`App`] for what has one. An
//! invocation then costs a few atomic additions and no label is written anew. Labels come from closed sets only: an app's id is one of
//! the first `metrics_apps_max` that did something here, or [`OTHER`]; a trigger type is of the catalogue, or [`OTHER`].
//!
//! Until [`install`] is called, as in unit tests, everything here does nothing.

mod app;
pub mod declared;
mod exposition;
mod process;
mod series;

pub use app::{App, WorkerCounts, Workers, app};
pub use exposition::{Exposition, install};
pub use series::{Running, Series, series};

/// The label of all that have none of their own.
pub const OTHER: &str = "other";

//! The recorder, and the text that Prometheus reads.

use std::sync::OnceLock;
use std::time::SystemTime;

use metrics::{SharedString, with_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::declared::{ALL, BUILD_INFO, DRAINING, Kind, Metric};
use super::{app, process};

/// One for each process.
static INSTALLED: OnceLock<Exposition> = OnceLock::new();

/// What was counted, as text. Cheap to clone.
#[derive(Clone)]
pub struct Exposition {
    handle: PrometheusHandle,
    started: SystemTime,
}

/// Begins to count, for as long as the process lives; a second call changes nothing. `apps_max`: how many apps are told apart.
///
/// # Errors
/// Something else counts in this process already.
pub fn install(apps_max: usize, trigger_types: Vec<String>) -> Result<Exposition, BuildError> {
    if let Some(installed) = INSTALLED.get() {
        return Ok(installed.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for Metric { name, kind, .. } in ALL {
        if let Kind::Histogram(buckets) = kind {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    with_recorder(|recorder| {
        for Metric { name, kind, help, .. } in ALL {
            let (name, help) = ((*name).into(), SharedString::const_str(help));
            match kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
            }
        }
    });
    app::configure(apps_max, trigger_types);
    Ok(INSTALLED.get_or_init(|| Exposition { handle, started: SystemTime::now() }).clone())
}

impl Exposition {
    /// In Prometheus' text format.
    pub fn render(&self) -> String {
        process::sample(self.started);
        self.handle.render()
    }

    /// To be called every few seconds: what histograms gather between two scrapes would grow without an end.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// What runs here.
    pub fn tell_build(&self, node_version: &str) {
        let node = SharedString::from_owned(node_version.to_owned());
        BUILD_INFO.gauge(&[SharedString::const_str(env!("CARGO_PKG_VERSION")), node]).set(1.0);
    }

    pub fn tell_draining(&self, draining: bool) {
        DRAINING.gauge(&[]).set(f64::from(u8::from(draining)));
    }
}

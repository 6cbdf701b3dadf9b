//! Where traces go.

use serde::{Deserialize, Serialize};
use url::Url;

use super::Error;

/// Traces, to an OpenTelemetry collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// The collector, which speaks OTLP over gRPC: `http://otel-collector:4317`, or `https://…`. Headers that it wants come from the variable
    /// `OTEL_EXPORTER_OTLP_HEADERS`. Default: no span is recorded; `traceparent` goes on all the same.
    pub otlp_endpoint: Option<String>,
    /// Of the traces that begin here, the share that is recorded, 0 to 1. A caller's own says itself whether it is.
    pub sample_ratio: f64,
    /// What this service is called in traces.
    pub service_name: String,
}

impl Default for Traces {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 1.0, service_name: "chatfn".to_owned() }
    }
}

impl Traces {
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |name, value: &str, problem: &str| {
            Err(Error::Value { name, value: value.to_owned(), problem: problem.to_owned() })
        };
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return wrong("traces.sample_ratio", &self.sample_ratio.to_string(), "use 0 to 1");
        }
        if self.service_name.trim().is_empty() || self.service_name.len() > 255 {
            return wrong("traces.service_name", &self.service_name, "use 1 to 255 bytes");
        }
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(()) };
        if !is_endpoint(endpoint) {
            // Not shown: it may hold a password.
            let problem = "use http:// or https://, a host and a port, and nothing else: http://otel-collector:4317";
            return wrong("traces.otlp_endpoint", "no address of a collector", problem);
        }
        if !cfg!(feature = "otlp") {
            let problem = "this chatfn was built without the feature `otlp`, and cannot send traces";
            return wrong("traces.otlp_endpoint", endpoint, problem);
        }
        Ok(())
    }
}

fn is_endpoint(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let bare = url.username().is_empty() && url.password().is_none() && matches!(url.path(), "" | "/");
    matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && bare
        && url.query().is_none()
        && url.fragment().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut Traces)) -> Result<(), String> {
        let mut traces = Traces::default();
        change(&mut traces);
        traces.check().map_err(|err| err.to_string())
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn an_endpoint_is_a_scheme_a_host_and_a_port() {
        let with = |endpoint: &str| checked(|traces| traces.otlp_endpoint = Some(endpoint.to_owned()));
        for good in ["http://localhost:4317", "https://collector.example", "http://[::1]:4317/", "http://10.0.0.1:4317"]
        {
            assert_eq!(with(good), Ok(()));
        }
        let bad = [
            "",
            "localhost:4317",
            "grpc://localhost:4317",
            "http://",
            "http://user:secret@localhost:4317",
            "http://localhost:4317/v1/traces",
            "http://localhost:4317?a=b",
        ];
        for endpoint in bad {
            let refused = with(endpoint).expect_err(endpoint);
            assert!(refused.contains("traces.otlp_endpoint") && !refused.contains("secret"), "{refused}");
        }
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn without_the_feature_an_endpoint_is_refused() {
        let refused = checked(|traces| traces.otlp_endpoint = Some("http://localhost:4317".to_owned()));
        assert!(refused.is_err_and(|refused| refused.contains("feature `otlp`")));
    }

    #[test]
    fn a_ratio_is_a_share() {
        for good in [0.0, 0.001, 1.0] {
            assert_eq!(checked(|traces| traces.sample_ratio = good), Ok(()));
        }
        for bad in [-0.001, 1.001, f64::NAN, f64::INFINITY] {
            let refused = checked(|traces| traces.sample_ratio = bad).expect_err("out of range");
            assert!(refused.contains("traces.sample_ratio"), "{refused}");
        }
    }

    #[test]
    fn the_service_has_a_name() {
        assert_eq!(checked(|traces| traces.service_name = "n".repeat(255)), Ok(()));
        for bad in ["", " ", &"n".repeat(256)] {
            assert!(checked(|traces| traces.service_name = bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}

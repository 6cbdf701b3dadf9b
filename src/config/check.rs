//! What a configuration must hold to be able to work: each setting on both sides, so that none stops the service later, when a
//! sum overflows or everything is refused.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Config, Error};
use crate::model::{Limits, Mode};

const MIB: u64 = 1 << 20;
/// Spans are added to points in time, and every clock has an end.
const SPAN_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const MOMENT: Duration = Duration::from_millis(1);

impl Config {
    pub(super) fn check(&self) -> Result<(), Error> {
        for (name, value, range) in self.numbers() {
            within(name, value, range, value)?;
        }
        for (name, value, min) in self.spans() {
            within(name, value, min..=SPAN_MAX, humantime::format_duration(value))?;
        }
        if self.isolation.mode == Some(Mode::None) {
            let problem = "use the flag --insecure-no-sandbox if you mean it".to_owned();
            return Err(Error::Value { name: "isolation.mode", value: "none".to_owned(), problem });
        }
        self.sdk.check().map_err(|(name, value, problem)| Error::Value { name, value, problem })?;
        self.tls.check()?;
        self.oidc.check()?;
        self.traces.check()?;
        if !self.listen.ip().is_loopback() && self.operator_token_file.is_none() && self.oidc.issuer.is_none() {
            return Err(Error::Open(self.listen));
        }
        Ok(())
    }

    fn numbers(&self) -> Vec<(&'static str, u64, RangeInclusive<u64>)> {
        vec![
            // The three together, with a full log, are one answer of GetInvocation.
            ("event_bytes_max", self.event_bytes_max as u64, 1..=32 * MIB),
            ("result_bytes_max", self.result_bytes_max as u64, 1..=64 * MIB),
            ("log_bytes_max", self.log_bytes_max as u64, 256..=128 * MIB),
            ("publish_bytes_max", self.publish_bytes_max as u64, 1024..=256 * MIB),
            ("database_connections_max", self.database_connections_max.into(), 2..=1000),
            ("auth_failures_per_minute", self.auth_failures_per_minute.into(), 0..=1_000_000),
            ("rate_per_app", self.rate_per_app.unwrap_or(1).into(), 1..=1_000_000),
            ("rate_burst_per_app", self.rate_burst_per_app.unwrap_or(1).into(), 1..=1_000_000),
            ("quota_per_app", self.quota_per_app.unwrap_or(1), 1..=1_000_000_000_000),
            ("waiting_max", self.waiting_max as u64, 1..=1_000_000),
            ("memory_budget_bytes", self.memory_budget(), Limits::MEMORY_BYTES_MIN..=1 << 50),
            ("reserve_workers", self.reserve_workers as u64, 0..=64),
            ("worker_starts_max", self.worker_starts() as u64, 1..=10_000),
            ("worker_jobs_max", self.worker_jobs_max, 1..=u64::MAX),
            ("worker_memory_percent_max", self.worker_memory_percent_max, 10..=100),
            ("log_lines_max", self.log_lines_max as u64, 1..=1_000_000),
            ("log_line_bytes_max", self.log_line_bytes_max as u64, 256..=MIB),
            ("dispatch_concurrency", self.dispatch_concurrency as u64, 1..=10_000),
            ("dispatch_concurrency_per_app", self.dispatch_concurrency_per_app as u64, 1..=10_000),
            ("events_queued_max", self.events_queued_max, 1..=1_000_000_000),
            ("events_queued_per_app_max", self.events_queued_per_app_max, 1..=1_000_000_000),
            ("hops_max", self.hops_max.into(), 1..=1000),
            ("builds_max", self.builds_max as u64, 1..=1000),
            ("builds_waiting_max", self.builds_waiting_max as u64, 1..=100_000),
            ("install_bytes_max", self.install_bytes_max, 1..=1 << 40),
            ("install_files_max", self.install_files_max, 1..=10_000_000),
            ("artifacts_cache_bytes_max", self.artifacts_cache_bytes_max, 1..=1 << 50),
            ("metrics_apps_max", self.metrics_apps_max as u64, 0..=10_000),
        ]
    }

    /// With the least each may be.
    fn spans(&self) -> [(&'static str, Duration, Duration); 16] {
        [
            ("idempotency_window", self.idempotency_window, Duration::ZERO),
            ("database_timeout", self.database_timeout, MOMENT),
            ("replica_timeout", self.replica_timeout, Duration::from_secs(1)),
            ("wait_max", self.wait_max, MOMENT),
            ("ready_timeout", self.ready_timeout, MOMENT),
            ("init_timeout", self.init_timeout, MOMENT),
            ("idle_ttl", self.idle_ttl, MOMENT),
            ("worker_age_max", self.worker_age_max, MOMENT),
            ("history_retention", self.history_retention, MOMENT),
            ("audit_retention", self.audit_retention, MOMENT),
            ("install_timeout", self.install_timeout, MOMENT),
            ("typecheck_timeout", self.typecheck_timeout, MOMENT),
            ("drain_delay", self.drain_delay, Duration::ZERO),
            ("drain_timeout", self.drain_timeout, MOMENT),
            ("artifacts_grace", self.artifacts_grace, MOMENT),
            ("tls.handshake_timeout", self.tls.handshake_timeout, MOMENT),
        ]
    }
}

fn within<T: PartialOrd + Bound>(
    name: &'static str,
    value: T,
    range: RangeInclusive<T>,
    shown: impl Display,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    let problem = format!("use {} to {}", range.start().shown(), range.end().shown());
    Err(Error::Value { name, value: shown.to_string(), problem })
}

/// How an end of a range is written.
trait Bound {
    fn shown(&self) -> String;
}

impl Bound for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Bound for Duration {
    fn shown(&self) -> String {
        if *self == SPAN_MAX { "10 years".to_owned() } else { humantime::format_duration(*self).to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_override;
    use super::*;

    fn checked(setting: &str) -> Result<(), String> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temp file");
        let setting = parse_override(setting).expect("a setting");
        Config::load(Some(file.path()), &[setting]).map(|_| ()).map_err(|err| err.to_string())
    }

    #[test]
    fn each_setting_is_checked_on_both_sides() {
        // The least and the most that works, and what is beyond.
        let table = [
            ("event_bytes_max", ["1", "33554432"], ["0", "33554433"]),
            ("result_bytes_max", ["1", "67108864"], ["0", "67108865"]),
            ("log_bytes_max", ["256", "134217728"], ["255", "134217729"]),
            ("publish_bytes_max", ["1024", "268435456"], ["1023", "268435457"]),
            ("auth_failures_per_minute", ["0", "1000000"], ["-1", "1000001"]),
            ("rate_per_app", ["1", "1000000"], ["0", "1000001"]),
            ("rate_burst_per_app", ["1", "1000000"], ["0", "1000001"]),
            ("quota_per_app", ["1", "1000000000000"], ["0", "1000000000001"]),
            ("database_connections_max", ["2", "1000"], ["1", "1001"]),
            ("waiting_max", ["1", "1000000"], ["0", "18446744073709551615"]),
            ("memory_budget_bytes", ["201326592", "1125899906842624"], ["201326591", "18446744073709551615"]),
            ("reserve_workers", ["0", "64"], ["-1", "65"]),
            ("worker_starts_max", ["1", "10000"], ["0", "10001"]),
            ("worker_jobs_max", ["1", "18446744073709551615"], ["0", "-1"]),
            ("worker_memory_percent_max", ["10", "100"], ["9", "101"]),
            ("log_lines_max", ["1", "1000000"], ["0", "1000001"]),
            ("log_line_bytes_max", ["256", "1048576"], ["255", "1048577"]),
            ("dispatch_concurrency", ["1", "10000"], ["0", "18446744073709551615"]),
            ("dispatch_concurrency_per_app", ["1", "10000"], ["0", "10001"]),
            ("events_queued_max", ["1", "1000000000"], ["0", "1000000001"]),
            ("events_queued_per_app_max", ["1", "1000000000"], ["0", "1000000001"]),
            ("hops_max", ["1", "1000"], ["0", "1001"]),
            ("builds_max", ["1", "1000"], ["0", "18446744073709551615"]),
            ("builds_waiting_max", ["1", "100000"], ["0", "18446744073709551615"]),
            ("install_bytes_max", ["1", "1099511627776"], ["0", "18446744073709551615"]),
            ("install_files_max", ["1", "10000000"], ["0", "18446744073709551615"]),
            ("artifacts_cache_bytes_max", ["1", "1125899906842624"], ["0", "18446744073709551615"]),
            ("artifacts_grace", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("metrics_apps_max", ["0", "10000"], ["-1", "10001"]),
            ("idempotency_window", ["0s", "3650days"], ["-1s", "3651days"]),
            ("database_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("replica_timeout", ["1s", "3650days"], ["999ms", "18446744073709551615s"]),
            ("wait_max", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("ready_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("init_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("idle_ttl", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("worker_age_max", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("history_retention", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("audit_retention", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("install_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("typecheck_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("drain_delay", ["0s", "3650days"], ["-1s", "18446744073709551615s"]),
            ("drain_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
            ("tls.handshake_timeout", ["1ms", "3650days"], ["0s", "18446744073709551615s"]),
        ];
        for (name, good, bad) in table {
            for value in good {
                assert_eq!(checked(&format!("{name}={value}")), Ok(()));
            }
            for value in bad {
                let refused = checked(&format!("{name}={value}")).expect_err(name);
                assert!(refused.contains(name), "{name}={value}: {refused}");
            }
        }
    }
}

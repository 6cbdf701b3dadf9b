//! What a version's workers may use.

use serde::{Deserialize, Serialize};

/// Resolved limits: every default is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of one worker.
    pub memory_bytes: u64,
    /// Thousandths of a CPU; 0: no limit.
    pub cpu_millis: u32,
    pub pids_max: u32,
    pub tmp_bytes: u64,
    /// Invocations at a time in one worker.
    pub concurrency: u32,
    pub workers_max: u32,
    /// Workers kept warm while idle.
    pub workers_min: u32,
    pub subprocesses: bool,
    /// `none`, `public` or `dedicated`.
    pub egress: String,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            cpu_millis: 0,
            pids_max: 64,
            tmp_bytes: 64 << 20,
            concurrency: 1,
            workers_max: 4,
            workers_min: 0,
            subprocesses: false,
            egress: "public".to_owned(),
        }
    }
}

/// A limit outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limits.{name} is {value}: {range}")]
pub struct LimitsError {
    pub name: &'static str,
    pub value: String,
    pub range: &'static str,
}

impl Limits {
    /// Below it V8 dies instead of throwing (measured: isolation.md 1.4).
    pub const MEMORY_BYTES_MIN: u64 = 192 << 20;
    pub const MEMORY_BYTES_MAX: u64 = 4 << 30;
    /// Node has 11 threads, and hangs where it cannot start one (isolation.md 0).
    pub const PIDS_MIN: u32 = 32;
    pub const PIDS_MAX: u32 = 4096;
    /// The kernel's smallest share.
    pub const CPU_MILLIS_MIN: u32 = 10;
    pub const TMP_BYTES_MIN: u64 = 64 << 10;
    pub const CONCURRENCY_MAX: u32 = 100;
    pub const WORKERS_MAX: u32 = 64;

    /// # Errors
    /// Names the first limit that is out of range.
    pub fn check(&self) -> Result<(), LimitsError> {
        let fail = |name, value: String, range| Err(LimitsError { name, value, range });
        if !(Self::MEMORY_BYTES_MIN..=Self::MEMORY_BYTES_MAX).contains(&self.memory_bytes) {
            return fail("memory_bytes", self.memory_bytes.to_string(), "use 192 MiB to 4 GiB");
        }
        if !(Self::PIDS_MIN..=Self::PIDS_MAX).contains(&self.pids_max) {
            return fail("pids_max", self.pids_max.to_string(), "use 32 to 4096");
        }
        if self.cpu_millis != 0 && self.cpu_millis < Self::CPU_MILLIS_MIN {
            return fail("cpu_millis", self.cpu_millis.to_string(), "use 0 (no limit) or at least 10");
        }
        if !(Self::TMP_BYTES_MIN..=self.memory_bytes).contains(&self.tmp_bytes) {
            return fail("tmp_bytes", self.tmp_bytes.to_string(), "use 64 KiB to memory_bytes: it is memory");
        }
        if !(1..=Self::CONCURRENCY_MAX).contains(&self.concurrency) {
            return fail("concurrency", self.concurrency.to_string(), "use 1 to 100");
        }
        if !(1..=Self::WORKERS_MAX).contains(&self.workers_max) {
            return fail("workers_max", self.workers_max.to_string(), "use 1 to 64");
        }
        if self.workers_min > self.workers_max {
            return fail("workers_min", self.workers_min.to_string(), "at most workers_max");
        }
        if !["none", "public", "dedicated"].contains(&self.egress.as_str()) {
            return fail("egress", format!("{:?}", self.egress), "use none, public or dedicated");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_checked_on_both_sides() {
        let with = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            limits.check().map_err(|err| err.name)
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|l| l.memory_bytes = 192 << 20), Ok(()));
        assert_eq!(with(|l| l.memory_bytes = (192 << 20) - 1), Err("memory_bytes"));
        assert_eq!(with(|l| l.memory_bytes = 4 << 30), Ok(()));
        assert_eq!(with(|l| l.memory_bytes = (4 << 30) + 1), Err("memory_bytes"));
        assert_eq!(with(|l| l.pids_max = 32), Ok(()));
        assert_eq!(with(|l| l.pids_max = 31), Err("pids_max"));
        assert_eq!(with(|l| l.pids_max = 4097), Err("pids_max"));
        assert_eq!(with(|l| l.cpu_millis = 10), Ok(()));
        assert_eq!(with(|l| l.cpu_millis = 9), Err("cpu_millis"));
        assert_eq!(with(|l| l.tmp_bytes = l.memory_bytes), Ok(()));
        assert_eq!(with(|l| l.tmp_bytes = l.memory_bytes + 1), Err("tmp_bytes"));
        assert_eq!(with(|l| l.tmp_bytes = (64 << 10) - 1), Err("tmp_bytes"));
        assert_eq!(with(|l| l.concurrency = 100), Ok(()));
        assert_eq!(with(|l| l.concurrency = 101), Err("concurrency"));
        assert_eq!(with(|l| l.concurrency = 0), Err("concurrency"));
        assert_eq!(with(|l| l.workers_max = 64), Ok(()));
        assert_eq!(with(|l| l.workers_max = 65), Err("workers_max"));
        assert_eq!(with(|l| l.workers_min = 4), Ok(()));
        assert_eq!(with(|l| l.workers_min = 5), Err("workers_min"));
        assert_eq!(with(|l| l.egress = "all".into()), Err("egress"));
    }
}

//! What the kernel says about this process.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;

use super::declared::{PROCESS_CPU, PROCESS_FDS, PROCESS_FDS_MAX, PROCESS_RESIDENT, PROCESS_START};

/// What cannot be read is left as it was.
pub(super) fn sample(started: SystemTime) {
    PROCESS_START.gauge(&[]).set(started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        PROCESS_CPU.counter(&[]).absolute((span(usage.user_time()) + span(usage.system_time())).as_secs());
    }
    if let Some(bytes) = resident_bytes() {
        PROCESS_RESIDENT.gauge(&[]).set(bytes as f64);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory that is being read has one, too.
        PROCESS_FDS.gauge(&[]).set(open.count().saturating_sub(1) as f64);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        PROCESS_FDS_MAX.gauge(&[]).set(soft as f64);
    }
}

fn span(time: TimeVal) -> Duration {
    Duration::new(time.tv_sec().unsigned_abs(), 0) + Duration::from_micros(time.tv_usec().unsigned_abs())
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

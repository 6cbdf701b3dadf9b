//! Why a worker ended, from what its parent can see. Pure, so that the table below is the specification.

use crate::model::{FailureKind, FunctionFailure};
use crate::sandbox::{Exit, ExitStatus};

/// What V8 prints before it aborts (isolation.md 1.4 and 1.5).
const OUT_OF_MEMORY_MARKS: [&str; 8] = [
    "JavaScript heap out of memory",
    "Committing semi space failed",
    "Allocation failed",
    "Fatal process out of memory",
    "process out of memory",
    // Where threads start, at RLIMIT_DATA.
    "Fatal javascript OOM",
    "Fatal process OOM",
    "std::bad_alloc",
];
/// The shim's own exit codes.
const EXIT_UNCAUGHT: i32 = 70;
const EXIT_PROTOCOL: i32 = 71;

/// The failure of the invocation that ran alone when the worker ended by itself.
pub fn failure(exit: &Exit, stderr_tail: &str, memory_bytes: u64) -> FunctionFailure {
    let (kind, name, message) = match exit.status {
        _ if exit.memory_limit_hit => (
            FailureKind::OutOfMemory,
            "OutOfMemory",
            format!(
                "the kernel ended the worker at its memory limit: {}",
                memory(memory_bytes, exit.peak_memory_bytes)
            ),
        ),
        ExitStatus::Signal(_) | ExitStatus::Code(_) if is_out_of_memory(exit, stderr_tail) => (
            FailureKind::OutOfMemory,
            "OutOfMemory",
            format!("the worker ran out of memory: {}", memory(memory_bytes, exit.peak_memory_bytes)),
        ),
        ExitStatus::Signal(signal) => {
            let name = signal_name(signal);
            (FailureKind::Crashed, "WorkerCrashed", format!("the worker was ended by signal {signal} ({name})"))
        }
        ExitStatus::Code(EXIT_UNCAUGHT) => {
            (FailureKind::Crashed, "WorkerCrashed", "the worker ended after an uncaught error".to_owned())
        }
        ExitStatus::Code(EXIT_PROTOCOL) => {
            (FailureKind::Crashed, "WorkerCrashed", "the worker could not read the service's request".to_owned())
        }
        ExitStatus::Code(code) => {
            (FailureKind::Crashed, "WorkerCrashed", format!("the worker exited with code {code} before it answered"))
        }
        ExitStatus::Withdrawn => (
            FailureKind::Collateral,
            "WorkerStopped",
            "the service had to end the worker, which had lost its network".to_owned(),
        ),
        ExitStatus::Unknown => {
            (FailureKind::Collateral, "WorkerStopped", "the worker ended; nobody saw how".to_owned())
        }
    };
    FunctionFailure::new(kind, name, message)
}

/// What somebody who ran out of memory wants to know.
pub fn memory(limit_bytes: u64, peak_bytes: u64) -> String {
    let (limit, peak) = (limit_bytes >> 20, peak_bytes >> 20);
    format!("its limit is {limit} MiB (limits.memory_bytes), its peak was {peak} MiB")
}

/// V8 aborts with SIGABRT, or dies of SIGTRAP or SIGSEGV on the way, and says why first.
fn is_out_of_memory(exit: &Exit, stderr_tail: &str) -> bool {
    let aborted = match exit.status {
        ExitStatus::Signal(signal) => [libc::SIGABRT, libc::SIGTRAP, libc::SIGSEGV, libc::SIGILL].contains(&signal),
        ExitStatus::Code(code) => code == 128 + libc::SIGABRT || code == 133 || code == 134,
        ExitStatus::Withdrawn | ExitStatus::Unknown => false,
    };
    aborted && OUT_OF_MEMORY_MARKS.iter().any(|mark| stderr_tail.contains(mark))
}

fn signal_name(signal: i32) -> &'static str {
    nix::sys::signal::Signal::try_from(signal).map_or("unknown", nix::sys::signal::Signal::as_str)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_end_has_its_name() {
        let heap = "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory";
        let table = [
            (ExitStatus::Signal(libc::SIGABRT), heap, FailureKind::OutOfMemory, "limit is 256 MiB"),
            (ExitStatus::Signal(libc::SIGTRAP), heap, FailureKind::OutOfMemory, "peak was 200 MiB"),
            (
                ExitStatus::Signal(libc::SIGTRAP),
                "# Fatal javascript OOM in MemoryChunk allocation failed during deserialization.",
                FailureKind::OutOfMemory,
                "limit is 256 MiB",
            ),
            (
                ExitStatus::Signal(libc::SIGABRT),
                "terminate called after throwing an instance of 'std::bad_alloc'",
                FailureKind::OutOfMemory,
                "limit is 256 MiB",
            ),
            (ExitStatus::Signal(libc::SIGABRT), "", FailureKind::Crashed, "SIGABRT"),
            (ExitStatus::Signal(libc::SIGKILL), heap, FailureKind::Crashed, "SIGKILL"),
            (ExitStatus::Code(3), "", FailureKind::Crashed, "code 3"),
            (ExitStatus::Code(70), "", FailureKind::Crashed, "uncaught"),
            (ExitStatus::Withdrawn, heap, FailureKind::Collateral, "lost its network"),
            (ExitStatus::Unknown, "", FailureKind::Collateral, "nobody saw"),
        ];
        for (status, stderr, kind, message) in table {
            let exit = Exit { status, cpu_time: Duration::ZERO, peak_memory_bytes: 200 << 20, memory_limit_hit: false };
            let failure = failure(&exit, stderr, 256 << 20);
            assert_eq!(failure.kind, kind, "{status:?}");
            assert!(failure.message.contains(message), "{}", failure.message);
        }
    }
}

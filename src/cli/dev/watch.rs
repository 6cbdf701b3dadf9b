//! Tells when something in a project may have changed. What did, the caller finds out by looking: a wake-up too many costs little.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Editors write a file in several steps, and tools many files at once.
const QUIET: Duration = Duration::from_millis(20);
/// Whoever writes without a pause gets a look nevertheless.
const QUIET_MAX: Duration = Duration::from_millis(500);
/// Network file systems and mounts of virtual machines tell nothing of what others write.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const DIRECTORIES_MAX: usize = 2000;

pub struct Watch {
    directory: PathBuf,
    /// `None`: this machine has no watch left for us, and looking every now and then has to do.
    inotify: Option<Queue>,
}

struct Queue {
    inotify: Inotify,
    /// Another descriptor of the same: what stands in the events is of no interest, so any bytes will do.
    events: Receiver,
}

impl Queue {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inotify, events })
    }
}

impl Watch {
    pub fn new(directory: &Path) -> Self {
        let watch = Self { directory: directory.to_owned(), inotify: Queue::new().ok() };
        watch.cover();
        watch
    }

    /// Resolves when something may have changed and nothing changes any more. Whether it is known to have been written.
    ///
    /// # Cancel safety
    /// Dropping the future may lose the wake-up.
    pub async fn changed(&self) -> bool {
        let Some(inotify) = &self.inotify else {
            sleep(LOOK_INTERVAL).await;
            return false;
        };
        if timeout(LOOK_INTERVAL, drained(inotify)).await.is_err() {
            return false;
        }
        let latest = Instant::now() + QUIET_MAX;
        while timeout_at(latest.min(Instant::now() + QUIET), drained(inotify)).await.is_ok() && Instant::now() < latest
        {
        }
        self.cover(); // There may be directories that were not there before.
        true
    }

    /// Watching a directory again changes nothing.
    fn cover(&self) {
        let Some(inotify) = &self.inotify else { return };
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        let mut pending = vec![self.directory.clone()];
        let mut left = DIRECTORIES_MAX;
        while let Some(directory) = pending.pop() {
            if left == 0 || inotify.inotify.add_watch(&directory, flags).is_err() {
                continue; // Gone since, or no watch left: the look every now and then finds what changes there.
            }
            left -= 1;
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let inside = entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_ignored(&entry.file_name()));
            pending.extend(inside.map(|entry| entry.path()));
        }
    }
}

fn is_ignored(name: &std::ffi::OsStr) -> bool {
    name == "node_modules" || name.as_encoded_bytes().starts_with(b".")
}

/// Waits for events and takes them all. An error means that there will be none: then only the intervals are left.
async fn drained(queue: &Queue) {
    let mut bytes = [0; 4096];
    loop {
        if queue.events.readable().await.is_err() {
            return std::future::pending().await;
        }
        let mut some = false;
        while queue.events.try_read(&mut bytes).is_ok_and(|size| size > 0) {
            some = true;
        }
        if some {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_wakes_also_in_a_directory_made_since() {
        let directory = tempfile::tempdir().expect("temp dir");
        let watch = Watch::new(directory.path());
        for name in ["a.ts", "lib/b.ts"] {
            let path = directory.path().join(name);
            if name.starts_with("lib") {
                fs::create_dir(directory.path().join("lib")).expect("directory");
                assert!(watch.changed().await, "lib");
            }
            fs::write(&path, "1").expect("write");
            assert!(watch.changed().await, "{name}");
        }
        // Nothing of what npm and we ourselves write: only the look every now and then.
        for name in ["node_modules", ".chatfn"] {
            fs::create_dir(directory.path().join(name)).expect("directory");
            assert!(watch.changed().await, "the directory itself");
            fs::write(directory.path().join(name).join("x"), "1").expect("write");
            assert!(!watch.changed().await, "{name}");
        }
    }
}

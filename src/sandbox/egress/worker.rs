//! One worker's thread in the supervisor: takes its calls one after the other, and runs its name server.
//!
//! A thread each, because some of what we do for a worker waits for that worker: ADDFD returns once the caller's kernel side has run,
//! which a CPU quota delays for a tenth of a second at a time; a lock or a linger on its own socket can take as long as it likes. In
//! one common loop, each of these would be a way to stop everybody's network. Here a worker can only stop its own, the scheduler
//! shares the CPU out, and all such waits end with the worker.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::call::{BlockingConnect, Context, Outcome};
use super::control::Descriptors;
use super::host::Host;
use super::limit::Bucket;
use super::notify::Listener;
use super::policy::{Egress, Policy};
use super::resolver::{self, Resolver, Rules};

pub(super) struct Worker {
    policy: Policy,
    host: Arc<Host>,
    listener: Listener,
    /// Closed from the other side when the worker is removed.
    removed: OwnedFd,
    resolver: Option<Resolver>,
    waiting: Vec<BlockingConnect>,
    connects: Bucket,
    requests: Bucket,
}

#[derive(Clone, Copy)]
enum Source {
    Removed,
    Call,
    Settled(usize),
    Resolver(resolver::Source),
}

impl Worker {
    pub(super) fn new(policy: Policy, host: Arc<Host>, fds: Descriptors, removed: OwnedFd) -> io::Result<Self> {
        let now = Instant::now();
        let limits = policy.limits;
        let rules = Rules {
            names_refused: policy.names_refused.clone(),
            questions_max: limits.questions_max,
            host: Arc::clone(&host),
        };
        // Without a network no names either: closed, its port refuses.
        let sockets = fds.resolver.filter(|_| policy.egress != Egress::None);
        Ok(Self {
            listener: Listener::new(fds.listener),
            resolver: sockets.map(|sockets| Resolver::new(sockets, rules)).transpose()?,
            waiting: Vec::new(),
            connects: Bucket::new(limits.connects_per_second, limits.connects_per_second.saturating_mul(2), now),
            requests: Bucket::new(limits.requests_per_second, limits.requests_per_second, now),
            policy,
            host,
            removed,
        })
    }

    /// Until the worker is removed, or the last of its processes has ended. The listener closes then; should anybody still call, the
    /// kernel says ENOSYS.
    pub(super) fn run(mut self) {
        while let Ok(Some(ready)) = self.wait() {
            for source in ready {
                match source {
                    Source::Removed => return,
                    Source::Call => self.take_call(),
                    Source::Resolver(source) => {
                        self.charge(matches!(source, resolver::Source::Udp | resolver::Source::Accept));
                        self.resolver.iter_mut().for_each(|resolver| resolver.handle(source));
                    }
                    Source::Settled(_) => {}
                }
            }
            self.end_overdue(Instant::now());
        }
    }

    /// What is ready, each source once: a flood on one does not hold up the others. `None`: the worker has ended.
    fn wait(&mut self) -> Result<Option<Vec<Source>>, Errno> {
        let now = Instant::now();
        let pause = self.requests.wait(now);
        let take_new = pause.is_zero();
        let calls = if take_new { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut sources = vec![Source::Removed, Source::Call];
        let mut polled = vec![
            PollFd::new(self.removed.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), calls), // Also without POLLIN it tells of its end: POLLHUP.
        ];
        for (at, connect) in self.waiting.iter().enumerate() {
            sources.push(Source::Settled(at));
            polled.push(PollFd::new(connect.as_fd(), PollFlags::POLLOUT));
        }
        for (source, fd, events) in self.resolver.iter().flat_map(|resolver| resolver.sources(take_new)) {
            sources.push(Source::Resolver(source));
            polled.push(PollFd::new(fd, events));
        }
        let resume = (!take_new).then(|| now + pause);
        let deadlines = self.waiting.iter().map(|connect| connect.deadline);
        let next = deadlines.chain(resume).chain(self.resolver.as_ref().and_then(Resolver::next_deadline)).min();
        match poll(&mut polled, timeout(next, now)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err),
        }
        let events: Vec<_> = polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        if events[1].intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Ok(None);
        }
        let ready = sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty());
        let ready: Vec<_> = ready.map(|(source, _)| source).collect();
        self.settle(&ready);
        Ok(Some(ready))
    }

    /// From the back, as each takes one out.
    fn settle(&mut self, ready: &[Source]) {
        for source in ready.iter().rev() {
            if let Source::Settled(at) = *source {
                self.waiting.remove(at).settled(&self.listener);
            }
        }
    }

    fn take_call(&mut self) {
        // Gone between poll and now: its thread was killed.
        let Ok(notification) = self.listener.receive() else { return };
        self.charge(true);
        let mut context = Context {
            host: &self.host,
            policy: &self.policy,
            listener: &self.listener,
            connects: &mut self.connects,
            may_wait: self.waiting.len() < self.policy.limits.blocking_connects_max,
        };
        match context.answer(&notification) {
            Outcome::Answer(result) => self.listener.answer(notification.id, result),
            Outcome::Wait(connect) => self.waiting.push(connect),
            Outcome::Gone => {}
        }
    }

    fn charge(&mut self, new: bool) {
        if new {
            self.requests.take(Instant::now()); // `wait` said yes before it polled; the odd one over is only a wait later.
        }
    }

    fn end_overdue(&mut self, now: Instant) {
        if let Some(resolver) = &mut self.resolver {
            resolver.sweep(now);
        }
        for connect in self.waiting.extract_if(.., |connect| connect.deadline <= now) {
            connect.timed_out(&self.listener);
        }
    }
}

/// Rounded up: waking a little early would be waking twice.
fn timeout(until: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(until) = until else { return PollTimeout::NONE };
    let wait = until.saturating_duration_since(now) + Duration::from_micros(999);
    PollTimeout::try_from(wait.as_millis()).unwrap_or(PollTimeout::MAX)
}

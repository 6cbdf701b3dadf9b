//! What a child that is still ours says to the broker before it becomes Node: descriptors it made, or what failed.
//!
//! One message per packet. The socket closes by itself when Node starts; until then its silence means that the child works on.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;

use super::costs::Costs;
use super::{egress, rights};

const MESSAGE_BYTES_MAX: usize = 2048;
/// The whole set-up takes about 2 ms. One that hangs (a file system that does not answer) must not hold up the broker for ever.
const SILENCE_MAX: Duration = Duration::from_secs(5);

const FAILED: u8 = b'F';
const LISTENER: u8 = b'L';
const CONNECTS: u8 = b'C';
const MOUNTS: u8 = b'M';
const COSTS: u8 = b'T';

/// The child's end.
pub(super) struct Speaker(OwnedFd);

/// The broker's end.
pub(super) struct Hearer(OwnedFd);

pub(super) enum Said {
    Failed(String),
    /// It listens on this socket, in its own network namespace.
    Listener(OwnedFd),
    /// Who holds these decides about its connections.
    Connects(egress::Descriptors),
    /// Its mount namespace, to be shown more in.
    Mounts(OwnedFd),
    /// It is about to become Node; what it did before took this long.
    Costs(Costs),
    /// Node has started, or nothing is left of the child.
    Nothing,
}

pub(super) fn pair() -> io::Result<(Hearer, Speaker)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let silence = TimeVal::new(SILENCE_MAX.as_secs().cast_signed(), 0);
    setsockopt(&ours, sockopt::ReceiveTimeout, &silence)?;
    Ok((Hearer(ours), Speaker(theirs)))
}

impl Speaker {
    pub(super) fn failed(&self, problem: &str) {
        let end = problem.floor_char_boundary(MESSAGE_BYTES_MAX - 1);
        let _ = self.say(FAILED, &problem.as_bytes()[..end], &[]); // The broker is gone: nobody to tell.
    }

    pub(super) fn listener(&self, listener: &OwnedFd) -> io::Result<()> {
        self.say(LISTENER, &[], &[listener])
    }

    pub(super) fn connects(&self, listener: &OwnedFd, resolver: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<_> = [listener].into_iter().chain(resolver).collect();
        self.say(CONNECTS, &[], &descriptors)
    }

    pub(super) fn mounts(&self, namespace: &OwnedFd) -> io::Result<()> {
        self.say(MOUNTS, &[], &[namespace])
    }

    pub(super) fn costs(&self, costs: &Costs) -> io::Result<()> {
        self.say(COSTS, &serde_json::to_vec(costs)?, &[])
    }

    fn say(&self, kind: u8, text: &[u8], descriptors: &[&OwnedFd]) -> io::Result<()> {
        let kind = [kind];
        let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        rights::send(&self.0, &[IoSlice::new(&kind), IoSlice::new(text)], &descriptors)?;
        Ok(())
    }

    /// Whether the broker is there. Asked after PDEATHSIG was set, so that its death in between is not missed.
    pub(super) fn is_heard(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(ready) if ready > 0)
    }
}

impl Hearer {
    /// The next message.
    ///
    /// # Errors
    /// Nothing came for [`SILENCE_MAX`].
    pub(super) fn next(&self) -> io::Result<Said> {
        let mut text = [0u8; MESSAGE_BYTES_MAX];
        let (length, mut descriptors) = rights::receive(&self.0, &mut text)?;
        let failed = || Said::Failed(String::from_utf8_lossy(text.get(1..length).unwrap_or_default()).into_owned());
        Ok(match text[..length].first() {
            None => Said::Nothing,
            Some(&LISTENER) => descriptors.pop().map_or_else(failed, Said::Listener),
            Some(&CONNECTS) => egress::Descriptors::from_received(descriptors).map_or_else(failed, Said::Connects),
            Some(&COSTS) => Said::Costs(serde_json::from_slice(&text[1..length])?),
            Some(&MOUNTS) => descriptors.pop().map_or_else(failed, Said::Mounts),
            Some(_) => failed(),
        })
    }
}

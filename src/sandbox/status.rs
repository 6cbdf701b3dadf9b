//! What a child that is still ours says to the broker before it becomes Node: descriptors it made, or what failed.
//!
//! One message per packet. The socket closes by itself when Node starts; until then its silence means that the child works on.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt,
    socketpair, sockopt,
};
use nix::sys::time::TimeVal;

use super::egress;

const MESSAGE_BYTES_MAX: usize = 1024;
/// What decides about connections, and where names are asked.
const DESCRIPTORS_MAX: usize = 3;
/// The whole set-up takes about 2 ms. One that hangs (a file system that does not answer) must not hold up the broker for ever.
const SILENCE_MAX: Duration = Duration::from_secs(5);

const FAILED: u8 = b'F';
const LISTENER: u8 = b'L';
const CONNECTS: u8 = b'C';

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

    fn say(&self, kind: u8, text: &[u8], descriptors: &[&OwnedFd]) -> io::Result<()> {
        let raw: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let kind = [kind];
        let parts = [IoSlice::new(&kind), IoSlice::new(text)];
        sendmsg::<()>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Whether the broker is there. Asked after PDEATHSIG was set, so that its death in between is not missed.
    pub(super) fn is_heard(&self) -> bool {
        let mut polled = [PollFd::new(std::os::fd::AsFd::as_fd(&self.0), PollFlags::empty())];
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
        let mut space = nix::cmsg_space!([i32; DESCRIPTORS_MAX]);
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let length = message.bytes;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
                descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        let failed = || Said::Failed(String::from_utf8_lossy(text.get(1..length).unwrap_or_default()).into_owned());
        Ok(match text[..length].first() {
            None => Said::Nothing,
            Some(&LISTENER) => descriptors.pop().map_or_else(failed, Said::Listener),
            Some(&CONNECTS) => egress::Descriptors::from_received(descriptors).map_or_else(failed, Said::Connects),
            Some(_) => failed(),
        })
    }
}

//! A worker's pipes, as its driver holds them.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::model::LogSource;
use crate::sandbox::Pipes;
use crate::worker::FrameCodec;
use crate::worker::logs::LineBuffer;

/// Of stderr, to find out why it died.
const STDERR_TAIL_BYTES: usize = 16 << 10;
/// What one turn of the loop takes from stdout or stderr, so that a flood cannot starve the protocol.
const READ_BYTES: usize = 32 << 10;

pub(super) struct Io {
    pub(super) write: pipe::Sender,
    /// Encoded requests that the pipe had no room for yet. At most one per invocation in flight.
    pub(super) outbox: BytesMut,
    pub(super) read: pipe::Receiver,
    pub(super) inbox: BytesMut,
    pub(super) codec: FrameCodec,
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
    pub(super) stderr_tail: BytesMut,
}

pub(super) struct Stream {
    pub(super) pipe: pipe::Receiver,
    pub(super) lines: LineBuffer,
    pub(super) source: LogSource,
    pub(super) open: bool,
}

impl Io {
    pub(super) fn new(pipes: Pipes, frame_bytes_max: usize) -> Option<Self> {
        let (write, read) = pipes.protocol?;
        let stream = |pipe, source| Stream { pipe, lines: LineBuffer::default(), source, open: true };
        Some(Self {
            write,
            outbox: BytesMut::new(),
            read,
            inbox: BytesMut::with_capacity(8 << 10),
            codec: FrameCodec::new(frame_bytes_max),
            stdout: stream(pipes.stdout, LogSource::Stdout),
            stderr: stream(pipes.stderr, LogSource::Stderr),
            stderr_tail: BytesMut::new(),
        })
    }
}

impl Stream {
    /// # Cancel safety
    /// As `read_buf`: nothing is lost.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        self.lines.buffer().reserve(READ_BYTES);
        self.pipe.read_buf(self.lines.buffer()).await
    }

    pub(super) fn note(&mut self, result: &io::Result<usize>) {
        if !matches!(result, Ok(1..)) {
            self.open = false;
        }
    }

    /// Whether there was something to read without waiting.
    pub(super) fn read_now(&mut self) -> bool {
        self.lines.buffer().reserve(READ_BYTES);
        self.open && matches!(self.pipe.try_read_buf(self.lines.buffer()), Ok(1..))
    }

    pub(super) fn next_line(&mut self, tail: &mut BytesMut) -> Option<String> {
        let line = self.lines.next_line()?;
        self.remember(&line, tail);
        Some(line)
    }

    pub(super) fn rest(&mut self, tail: &mut BytesMut) -> Option<String> {
        let line = self.lines.rest()?;
        self.remember(&line, tail);
        Some(line)
    }

    fn remember(&self, line: &str, tail: &mut BytesMut) {
        if self.source == LogSource::Stderr {
            tail.extend_from_slice(line.as_bytes());
            tail.extend_from_slice(b"\n");
            if tail.len() > STDERR_TAIL_BYTES {
                tail.advance(tail.len() - STDERR_TAIL_BYTES);
            }
        }
    }
}

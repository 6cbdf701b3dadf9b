//! Frames: `Content-Length: N\r\n\r\n`, then N bytes. A payload cannot fake the start of a frame, because frames are never searched for.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

const NAME: &[u8] = b"Content-Length: ";
const HEADER_END: &[u8] = b"\r\n\r\n";
/// `Content-Length: ` with ten digits and the end.
const HEADER_BYTES_MAX: usize = NAME.len() + 10 + HEADER_END.len();

/// Splits a worker's bytes into frames. An error is final: the peer does not speak the protocol.
#[derive(Debug, Clone)]
pub struct FrameCodec {
    frame_bytes_max: usize,
    /// Of the frame whose header was read.
    expected: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("not a frame header: {0:?}")]
    Header(String),
    #[error("a frame of {length} bytes; the limit is {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FrameCodec {
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max, expected: None }
    }

    fn read_header(&self, buffer: &mut BytesMut) -> Result<Option<usize>, FrameError> {
        let seen = &buffer[..buffer.len().min(HEADER_BYTES_MAX)];
        let wrong = || FrameError::Header(String::from_utf8_lossy(seen).into_owned());
        let compared = seen.len().min(NAME.len());
        if seen[..compared] != NAME[..compared] {
            return Err(wrong());
        }
        let Some(end) = seen.windows(HEADER_END.len()).position(|window| window == HEADER_END) else {
            return if seen.len() == HEADER_BYTES_MAX { Err(wrong()) } else { Ok(None) };
        };
        let digits = seen.get(NAME.len()..end).unwrap_or_default();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(wrong());
        }
        let text = std::str::from_utf8(digits).map_err(|_| wrong())?;
        let length: usize = text.parse().map_err(|_| wrong())?;
        if length > self.frame_bytes_max {
            return Err(FrameError::TooLarge { length, limit: self.frame_bytes_max });
        }
        buffer.advance(end + HEADER_END.len());
        Ok(Some(length))
    }
}

impl Decoder for FrameCodec {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let length = match self.expected {
            Some(length) => length,
            None => match self.read_header(buffer)? {
                Some(length) => length,
                None => return Ok(None),
            },
        };
        if buffer.len() < length {
            self.expected = Some(length);
            buffer.reserve(length - buffer.len());
            return Ok(None);
        }
        self.expected = None;
        Ok(Some(buffer.split_to(length).freeze()))
    }
}

impl Encoder<&[u8]> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, body: &[u8], buffer: &mut BytesMut) -> Result<(), FrameError> {
        if body.len() > self.frame_bytes_max {
            return Err(FrameError::TooLarge { length: body.len(), limit: self.frame_bytes_max });
        }
        buffer.reserve(HEADER_BYTES_MAX + body.len());
        buffer.put_slice(NAME);
        buffer.put_slice(body.len().to_string().as_bytes());
        buffer.put_slice(HEADER_END);
        buffer.put_slice(body);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(codec: &mut FrameCodec, chunks: &[&[u8]]) -> Result<Vec<Bytes>, FrameError> {
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some(frame) = codec.decode(&mut buffer)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn the_size_limit_holds_on_both_sides() {
        let mut codec = FrameCodec::new(4);
        let at = decode_all(&mut codec, &[b"Content-Length: 4\r\n\r\nabcd"]).expect("at the limit");
        assert_eq!(at, [&b"abcd"[..]]);
        let over = decode_all(&mut codec, &[b"Content-Length: 5\r\n\r\n"]);
        assert!(matches!(over, Err(FrameError::TooLarge { length: 5, limit: 4 })));
        assert!(codec.encode(b"abcde", &mut BytesMut::new()).is_err());
    }

    #[test]
    fn what_is_not_a_header_is_refused_at_once() {
        for bad in [
            &b"hello"[..],
            b"Content-Length: \r\n\r\n",
            b"Content-Length: -1\r\n\r\n",
            b"Content-Length: 1x\r\n\r\n",
            b"Content-Length: 99999999999999\r\n\r\n",
            b"content-length: 1\r\n\r\n",
        ] {
            let result = decode_all(&mut FrameCodec::new(100), &[bad]);
            assert!(result.is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut codec = FrameCodec::new(1000);
            let mut wire = BytesMut::new();
            for body in &bodies {
                codec.encode(body, &mut wire).expect("small enough");
            }
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            places.extend([0, wire.len()]);
            places.sort_unstable();
            let chunks: Vec<&[u8]> = places.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
            let frames = decode_all(&mut codec, &chunks).expect("well-formed");
            prop_assert_eq!(frames, bodies);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(&mut FrameCodec::new(50), &[&bytes]);
        }
    }
}

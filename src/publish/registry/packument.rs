//! A packument on its way to npm: unpacked, with its tarballs' URLs leading back to the proxy, never held as a whole.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures_util::stream::try_unfold;
use http::Response;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::respond::{Body, Flow, Trouble, full, respond};
use super::rewrite::{Field, Rewriter};
use super::route::localize;

/// What is collected before npm hears anything: most are complete by then, so that a failure can still be an error with a reason, and
/// the length is known (npm keeps only packuments of known length in memory, and asks for others again).
const COLLECTED_BYTES_MAX: usize = 2 << 20;
/// Given to the decoder at a time: they may grow a thousandfold.
const PACKED_BYTES: usize = 1 << 10;
/// Unpacked without a pause.
const UNPACKED_BYTES: usize = 256 << 10;

type Change = Box<dyn FnMut(&str) -> Option<String> + Send>;

struct Packument {
    flow: Flow,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    rewriter: Rewriter<Change>,
    /// Arrived, and not yet unpacked.
    packed: Bytes,
    size: u64,
    /// For npm.
    out: Vec<u8>,
    ended: bool,
}

impl Flow {
    /// The answer, changed as it flows by.
    pub(super) async fn packument(self) -> Response<Body> {
        let most = self.limits.packument_bytes_max;
        if self.response.content_length().is_some_and(|length| length > most) {
            return self.refuse(Trouble::TooLarge(most));
        }
        let encoding = self.response.headers().get(CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
        let packed = match encoding.as_deref() {
            None | Some(b"" | b"identity") => false,
            Some(b"gzip" | b"x-gzip") => true,
            Some(_) => return self.refuse(Trouble::Broken("its encoding is not gzip".to_owned())),
        };
        let mut packument = Packument::new(self, packed);
        if let Err(trouble) = packument.collect().await {
            return packument.flow.refuse(trouble);
        }
        let (status, mut headers) = packument.flow.header();
        if packument.ended {
            headers.insert(CONTENT_LENGTH, packument.out.len().into());
            return respond(status, headers, full(packument.out));
        }
        let pieces = try_unfold(packument, |mut packument| async move {
            let piece = packument.piece().await.map_err(|trouble| packument.flow.noted(trouble))?;
            Ok(piece.map(|bytes| (Frame::data(bytes), packument)))
        });
        respond(status, headers, StreamBody::new(pieces).boxed_unsync())
    }
}

impl Packument {
    fn new(flow: Flow, packed: bool) -> Self {
        let port = flow.usage.port;
        let change: Change = Box::new(move |url| localize(url, port));
        Self {
            flow,
            decoder: packed.then(|| MultiGzDecoder::new(Vec::new())),
            rewriter: Rewriter::new(Field::Tarball, change),
            packed: Bytes::new(),
            size: 0,
            out: Vec::new(),
            ended: false,
        }
    }

    async fn collect(&mut self) -> Result<(), Trouble> {
        while !self.ended && self.out.len() < COLLECTED_BYTES_MAX {
            self.more().await?;
        }
        let first = self.out.iter().find(|byte| !byte.is_ascii_whitespace());
        if first == Some(&b'{') { Ok(()) } else { Err(Trouble::NotJson) }
    }

    /// Some bytes, or none at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Trouble> {
        while !self.ended && self.out.is_empty() {
            self.more().await?;
        }
        let piece = std::mem::take(&mut self.out);
        Ok((!piece.is_empty()).then(|| piece.into()))
    }

    async fn more(&mut self) -> Result<(), Trouble> {
        if self.packed.is_empty() {
            match self.flow.chunk().await? {
                Some(chunk) => self.packed = chunk,
                None => return self.end(),
            }
        }
        let Some(mut decoder) = self.decoder.take() else {
            let plain = std::mem::take(&mut self.packed);
            return self.take(&plain);
        };
        let enough = self.out.len() + UNPACKED_BYTES;
        while !self.packed.is_empty() && self.out.len() < enough {
            let piece = self.packed.split_to(PACKED_BYTES.min(self.packed.len()));
            decoder.write_all(&piece).and_then(|()| decoder.flush()).map_err(|err| broken(&err))?;
            let plain = std::mem::take(decoder.get_mut());
            self.take(&plain)?;
        }
        self.decoder = Some(decoder);
        tokio::task::yield_now().await; // A few bytes may have become many: others have their turn.
        Ok(())
    }

    fn end(&mut self) -> Result<(), Trouble> {
        self.ended = true;
        if let Some(decoder) = self.decoder.take() {
            let rest = decoder.finish().map_err(|err| broken(&err))?;
            self.take(&rest)?;
        }
        self.rewriter.finish(&mut self.out);
        Ok(())
    }

    fn take(&mut self, plain: &[u8]) -> Result<(), Trouble> {
        self.size += plain.len() as u64;
        let most = self.flow.limits.packument_bytes_max;
        if self.size > most {
            return Err(Trouble::TooLarge(most));
        }
        self.flow.count(plain.len())?;
        self.rewriter.feed(plain, &mut self.out);
        Ok(())
    }
}

fn broken(err: &io::Error) -> Trouble {
    Trouble::Broken(err.to_string())
}

//! Connections whose handshake is done. Handshakes run beside each other and beside the accepting: one that is slow, or fails, holds
//! up nobody.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes under way. One more ends the oldest: they take milliseconds, so the oldest is one that stalls.
const HANDSHAKES_MAX: usize = 512;
/// After an error of the listener's own, as when no file descriptor is left.
const PAUSE: Duration = Duration::from_millis(200);

/// Accepts until it is dropped, which ends the handshakes under way.
pub fn incoming(
    listener: Arc<TcpListener>,
    configs: watch::Receiver<Arc<ServerConfig>>,
    handshake_timeout: Duration,
) -> impl Stream<Item = Result<TlsStream<TcpStream>, Infallible>> {
    let acceptor = Acceptor {
        listener,
        configs,
        handshake_timeout,
        handshakes: JoinSet::new(),
        by_age: VecDeque::new(),
        paused_until: None,
    };
    futures_util::stream::unfold(acceptor, |mut acceptor| async {
        let stream = acceptor.next().await;
        Some((Ok(stream), acceptor))
    })
}

struct Acceptor {
    listener: Arc<TcpListener>,
    configs: watch::Receiver<Arc<ServerConfig>>,
    handshake_timeout: Duration,
    handshakes: JoinSet<Option<TlsStream<TcpStream>>>,
    /// Some of these have ended.
    by_age: VecDeque<AbortHandle>,
    paused_until: Option<Instant>,
}

impl Acceptor {
    async fn next(&mut self) -> TlsStream<TcpStream> {
        loop {
            tokio::select! {
                accepted = accept(&self.listener, self.paused_until) => {
                    self.paused_until = None;
                    match accepted {
                        Ok(stream) => self.begin(stream),
                        Err(err) if is_of_one_connection(&err) => {}
                        Err(err) => {
                            tracing::warn!(%err, "failed to accept a connection");
                            self.paused_until = Some(Instant::now() + PAUSE);
                        }
                    }
                }
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(stream)) = ended {
                        return stream;
                    }
                }
            }
        }
    }

    fn begin(&mut self, stream: TcpStream) {
        self.by_age.retain(|handshake| !handshake.is_finished());
        if self.by_age.len() >= HANDSHAKES_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            oldest.abort();
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.configs.borrow()));
        let handshake = self.handshakes.spawn(shake_hands(acceptor, stream, self.handshake_timeout));
        self.by_age.push_back(handshake);
    }
}

/// # Cancel safety
/// A connection is either returned or still to be accepted.
async fn accept(listener: &TcpListener, not_before: Option<Instant>) -> io::Result<TcpStream> {
    if let Some(moment) = not_before {
        sleep_until(moment).await;
    }
    listener.accept().await.map(|(stream, _)| stream)
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream, limit: Duration) -> Option<TlsStream<TcpStream>> {
    let peer = stream.peer_addr().ok();
    let _ = stream.set_nodelay(true);
    // Anybody can cause these lines, so they are for those who look for them.
    match timeout(limit, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(err)) => tracing::debug!(?peer, %err, "a TLS handshake failed"),
        Err(_) => tracing::debug!(?peer, "a TLS handshake took too long"),
    }
    None
}

fn is_of_one_connection(err: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(err.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

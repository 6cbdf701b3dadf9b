//! The listener, and two generations of its connections.
//!
//! Connections of the first are served to their end: when the drain starts they are told to go (GOAWAY, `Connection: close`), and what was
//! under way on them is answered all the same, for nobody who sent it could know. The listener stays open. Whoever connects later belongs
//! to the second generation, which answers that the service drains: a clear word, where a closed port would be none.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::tls::{self, Reloader};

/// HTTP/2 keepalive: a client that is half gone is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// When connections end. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Turns {
    /// The first generation is told to go, and the second begins.
    pub hand_over: CancellationToken,
    /// The last connection of the first generation is closed.
    pub handed_over: CancellationToken,
    /// The second is told to go, too, and the listener closes.
    pub stop: CancellationToken,
}

/// Serves until both generations are gone. `refusing`: what the second is told.
pub(super) async fn serve(
    listener: TcpListener,
    (serving, refusing): (Routes, Routes),
    tls: Option<(Reloader, Duration)>,
    turns: Turns,
) -> Result<(), tonic::transport::Error> {
    let listener = Arc::new(listener);
    let handshakes = tls.as_ref().map(|(reloader, timeout)| (reloader.configs(), *timeout));
    let first = async {
        let served = generation(&listener, serving, handshakes.clone(), turns.hand_over.clone()).await;
        turns.handed_over.cancel();
        served
    };
    let second = async {
        turns.hand_over.cancelled().await;
        generation(&listener, refusing, handshakes.clone(), turns.stop.clone()).await
    };
    let both = Box::pin(async { tokio::try_join!(first, second).map(|_| ()) });
    match tls {
        None => both.await,
        Some((reloader, _)) => tokio::select! {
            served = both => served,
            () = reloader.run() => unreachable!("it runs until it is dropped"),
        },
    }
}

/// Accepts until `stop`, and ends with the last connection.
pub(super) async fn generation(
    listener: &Arc<TcpListener>,
    routes: Routes,
    handshakes: Option<(Receiver<Arc<ServerConfig>>, Duration)>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let router = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_pending_accept_reset_streams(Some(64))
        .add_routes(routes);
    let listener = Arc::clone(listener);
    match handshakes {
        None => {
            let incoming = futures_util::stream::unfold(listener, |listener| async {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                if let Ok(stream) = &accepted {
                    let _ = stream.set_nodelay(true);
                }
                Some((accepted, listener))
            });
            router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
        }
        Some((configs, timeout)) => {
            let incoming = tls::incoming(listener, configs, timeout);
            router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
        }
    }
}

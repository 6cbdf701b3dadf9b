//! The proxy through its front door: real npm, real sockets, registries made up for the occasion.

mod hostile;
mod npm;
mod stand_in;
mod ways_out;

use std::collections::BTreeMap;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Limits, Proxy, Registries, Report};

/// A proxy that serves one install.
pub(super) struct Served {
    pub(super) port: u16,
    pub(super) registries: Registries,
    stop: CancellationToken,
    task: JoinHandle<Report>,
}

impl Served {
    pub(super) async fn start(configuration: &[(&str, &str)], limits: Limits) -> Self {
        let variables = configuration.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self::with(Registries::load(None, variables).unwrap(), limits).await
    }

    pub(super) async fn with(registries: Registries, limits: Limits) -> Self {
        Self::of(&Proxy::new(registries, limits).unwrap()).await
    }

    pub(super) async fn of(proxy: &Proxy) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (proxy, stop) = (proxy.clone(), CancellationToken::new());
        let registries = proxy.registries().clone();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { proxy.serve(listener, stop).await }
        });
        Self { port, registries, stop, task }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Status and body of what npm would get.
    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        self.get_with(path, &[]).await
    }

    pub(super) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = reqwest::Client::builder().no_proxy().build().unwrap().get(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.text().await.unwrap_or_else(|_| "broken off".to_owned()))
    }

    pub(super) async fn stop(self) -> Report {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

/// Of the machine that the tests run on.
pub(super) fn own_environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

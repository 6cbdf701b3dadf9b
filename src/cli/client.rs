//! What the commands that talk to a running service have in common.

use anyhow::{Context, anyhow};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt;

#[derive(Debug, clap::Args)]
pub struct Connection {
    /// The service
    #[arg(
        long,
        visible_alias = "server",
        env = "CHATFN_ADDRESS",
        default_value = "http://127.0.0.1:7400",
        value_name = "URL"
    )]
    address: String,
    /// A token, if the service wants one: the operator's, or a credential's secret
    #[arg(long, env = "CHATFN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl Connection {
    /// # Errors
    /// The address is none, or nobody answers there.
    pub async fn open(&self) -> anyhow::Result<Channel> {
        let address = &self.address;
        let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        let endpoint = Channel::from_shared(url).with_context(|| format!("--address {address}"))?;
        endpoint.connect().await.with_context(|| format!("connect to {address}"))
    }

    /// With the token, if there is one.
    ///
    /// # Errors
    /// The token cannot be sent as it is.
    pub fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token.trim()).parse().context("--token")?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// For people: the service's words, and the reason that scripts may look for.
pub fn refused(status: &Status) -> anyhow::Error {
    match status.get_error_details().error_info() {
        Some(info) => anyhow!("{} ({})", plain(status.message()), info.reason),
        None => anyhow!("{:?}: {}", status.code(), plain(status.message())),
    }
}

/// Tenants' text as a terminal may have it: nothing that moves the cursor or hides what comes next.
pub fn plain(text: &str) -> String {
    let harmless = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

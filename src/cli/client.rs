//! What the commands that talk to a running service have in common.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::output::{Usage, note};
use super::profile::{self, Profile};
use super::tls::Tls;

const ADDRESS: &str = "http://127.0.0.1:7400";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A service that is gone without a word is noticed after both.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A letter with all of its attempts, or a page that is one large invocation, is one message: more than clients usually take.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

#[derive(Debug, clap::Args)]
pub struct Connection {
    /// The service; else the profile's, else http://127.0.0.1:7400
    #[arg(long, visible_alias = "server", env = "CHATFN_ADDRESS", value_name = "URL")]
    address: Option<String>,
    /// A token, if the service wants one: the operator's, or a credential's secret; else the profile's
    #[arg(long, env = "CHATFN_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// Of ~/.config/chatfn/profiles.toml: what is not given otherwise [default: the one called default]
    #[arg(long, env = "CHATFN_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    #[command(flatten)]
    tls: Tls,
    #[arg(skip)]
    settings: OnceLock<Settings>,
}

/// The app, for commands that have no other place for it.
#[derive(Debug, clap::Args)]
pub struct AppOption {
    /// The app; else the profile's
    #[arg(long, env = "CHATFN_APP")]
    app: Option<String>,
}

/// Not shown by mistake.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Flags, environment and profile, put together.
#[derive(Debug)]
struct Settings {
    address: String,
    /// Where the address is from.
    source: String,
    token: Option<Secret>,
    app: Option<String>,
    tls: Tls,
}

impl Connection {
    /// # Errors
    /// The address is none, or nobody answers there.
    pub async fn open(&self) -> anyhow::Result<Channel> {
        let Settings { address, source, tls, .. } = self.settings()?;
        let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        let endpoint = Channel::from_shared(url).with_context(|| format!("{address} ({source})"))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        let endpoint = if is_https(address) {
            endpoint.tls_config(tls.client()?).with_context(|| format!("set up TLS for {address}"))?
        } else {
            endpoint
        };
        let connected = match timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
            Ok(connected) => connected.map_err(anyhow::Error::from),
            Err(_) => Err(anyhow!("no answer within {CONNECT_TIMEOUT:?}")),
        };
        connected.with_context(|| {
            let tls = if is_https(address) { "; for TLS: --tls-ca, and where clients need a certificate --tls-cert and --tls-key" } else { "" };
            format!("cannot reach the service at {address} ({source}): check that it runs and listens there, and --address, CHATFN_ADDRESS or the profile{tls}")
        })
    }

    /// With the token, if there is one.
    ///
    /// # Errors
    /// The token cannot be sent as it is.
    pub fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(Secret(token)) = &self.settings()?.token {
            // The value itself is no part of the error.
            let value = format!("Bearer {}", token.trim()).parse();
            let value = value.map_err(|_| anyhow!("the token holds characters that cannot be sent: copy it again"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    fn settings(&self) -> anyhow::Result<&Settings> {
        if let Some(settings) = self.settings.get() {
            return Ok(settings);
        }
        let profile = profile::load(given(self.profile.as_deref()))?;
        let settings = self.put_together(profile.unwrap_or_default());
        if !is_https(&settings.address) && !self.tls.given().is_empty() {
            let text =
                format!("--tls-ca, --tls-cert and --tls-key are for https://, and the address is {}", settings.address);
            return Err(Usage(text).into());
        }
        Ok(self.settings.get_or_init(|| settings))
    }

    fn put_together(&self, profile: Profile) -> Settings {
        let own = given(self.address.as_deref());
        let (address, source) = match (own, &profile.address) {
            (Some(address), _) => (address.to_owned(), "from --address or CHATFN_ADDRESS".to_owned()),
            (None, Some(address)) => (address.clone(), format!("from the profile {:?}", profile.name)),
            (None, None) => (ADDRESS.to_owned(), "the default".to_owned()),
        };
        let mut token = self.token.clone().filter(|Secret(token)| !token.trim().is_empty());
        // A profile's token is for its own service: another one must not get to see it.
        let same = profile.address.as_ref().is_none_or(|own| same_service(own, &address));
        if token.is_none() && profile.token.is_some() {
            if same {
                token.clone_from(&profile.token);
            } else {
                note(&format!(
                    "the token of the profile {:?} is not sent to {address}: it is for another service",
                    profile.name
                ));
            }
        }
        let tls = if same { self.tls.given().or(profile.tls()) } else { self.tls.given() };
        Settings { address, source, token, app: profile.app, tls }
    }
}

impl AppOption {
    /// # Errors
    /// [`Usage`]: nobody says which.
    pub fn name(&self, connection: &Connection) -> anyhow::Result<String> {
        let app = given(self.app.as_deref()).map(str::to_owned);
        let app = match app {
            Some(app) => Some(app),
            None => connection.settings()?.app.clone(),
        };
        app.ok_or_else(|| Usage("which app? Give --app, or set CHATFN_APP, or `app` in the profile".to_owned()).into())
    }
}

/// An empty variable is as good as none.
fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn is_https(address: &str) -> bool {
    address.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn same_service(one: &str, other: &str) -> bool {
    let bare = |address: &str| address.trim_start_matches("http://").trim_end_matches('/').to_lowercase();
    bare(one) == bare(other)
}

/// Runs a command to its end. What blocks meanwhile – a name that is being looked up, a read from a terminal – is left behind.
///
/// # Errors
/// Those of the command.
pub fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// For people: the service's words, the reason that scripts may look for, and what to do next.
pub fn refused(status: &Status) -> anyhow::Error {
    let message = plain(status.message());
    let Some(info) = status.get_error_details().error_info().cloned() else {
        return match status.code() {
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => anyhow!(
                "the connection to the service broke ({:?}: {message}): check that it still runs, then try again",
                status.code()
            ),
            Code::Unimplemented => {
                anyhow!(
                    "what answers there does not know this call: is it the service, and no older than this chatfn? ({message})"
                )
            }
            code => anyhow!("{code:?}: {message}"),
        };
    };
    let reason = info.reason;
    // A code frame stays as it is.
    let gap = if message.contains('\n') { "\n" } else { " " };
    match hint(&reason) {
        Some(hint) => anyhow!("{message}{gap}({reason})\n{hint}"),
        None => anyhow!("{message}{gap}({reason})"),
    }
}

fn hint(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "APP_NOT_FOUND" => "`chatfn apps` lists those that there are; `chatfn publish` creates one.",
        "VERSION_NOT_FOUND" | "VERSION_NOT_READY" => "`chatfn versions APP` lists those that there are.",
        "BASE_VERSION_MOVED" => {
            "Look at what was published meanwhile (`chatfn versions APP`), then publish on top of it."
        }
        "PERMISSION_DENIED" => "`chatfn credentials create` makes one with the scopes that are needed.",
        "VERSION_HAS_NO_SOURCES" => "Publish the whole project once: `chatfn publish DIR --app APP`.",
        "CREDENTIAL_NOT_FOUND" => "`chatfn credentials list APP` lists those that there are.",
        "UNAUTHENTICATED" => "Give a token: --token, CHATFN_TOKEN, or `token` in a profile.",
        "QUOTA_EXCEEDED" => "Wait for tomorrow; `chatfn apps update --quota-per-day` changes what an app may.",
        "RATE_LIMITED" => "Call less often; `chatfn apps update` changes what an app may.",
        "TOO_MANY_FAILURES" => "Wait, then give the right token.",
        "AT_CAPACITY" | "TOO_MANY_PUBLISHES" | "QUEUE_FULL" | "DRAINING" | "STORE_UNAVAILABLE" => {
            "Try again in a moment."
        }
        "INVOCATION_NOT_FOUND" => "`chatfn invocations APP` lists those that are kept.",
        _ => return None,
    })
}

/// Tenants' text as a terminal may have it: nothing that moves the cursor, turns the direction of writing or hides what comes next.
pub fn plain(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let harmless = |c: char| if turns(c) || c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

//! Tokens of an identity provider.

use serde::{Deserialize, Serialize};
use url::Url;

use super::Error;

/// Tokens of an OpenID Connect issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oidc {
    /// Whose JWTs are taken as bearer tokens, as `iss` has it.
    pub issuer: Option<String>,
    /// What must stand in `aud`. Needed with `issuer`.
    pub audience: Option<String>,
    /// Where the issuer's keys are. Default: as `ISSUER/.well-known/openid-configuration` says.
    pub jwks_url: Option<String>,
    /// The claim with scopes (`invoke`, `publish`, `manage`, `operator`, each also as `chatfn:…`), as a text or a list. Others are ignored.
    pub scopes_claim: String,
    /// The claim with the app's id, or a list of them. Not needed with the scope `operator`.
    pub app_claim: String,
}

impl Default for Oidc {
    fn default() -> Self {
        let (scopes_claim, app_claim) = ("scope".to_owned(), "app".to_owned());
        Self { issuer: None, audience: None, jwks_url: None, scopes_claim, app_claim }
    }
}

impl Oidc {
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |name, value: &str, problem: &str| {
            Err(Error::Value { name, value: value.to_owned(), problem: problem.to_owned() })
        };
        match (&self.issuer, &self.audience) {
            (Some(_), None) => return wrong("oidc.audience", "not set", "without it tokens for others would be taken"),
            (None, Some(_)) => return wrong("oidc.issuer", "not set", "oidc.audience needs it"),
            _ => {}
        }
        for (name, url) in [("oidc.issuer", &self.issuer), ("oidc.jwks_url", &self.jwks_url)] {
            if let Some(url) = url
                && !is_safe(url)
            {
                return wrong(name, url, "use an https:// address (http:// only of this machine)");
            }
        }
        Ok(())
    }
}

/// Keys that came in the clear could be anybody's.
pub fn is_safe(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let local = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => return false,
    };
    url.scheme() == "https" || url.scheme() == "http" && local
}

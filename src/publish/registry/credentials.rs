//! Which credential belongs to which URL: npm's `//host/path/:_authToken` and its kin.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::HeaderValue;
use url::Url;

use super::Error;
use super::npmrc::Settings;

/// A place that credentials are configured for: `//host[:port]/path/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// As in a URL: without the scheme's default port.
    pub(super) authority: String,
    /// With a slash at its end.
    pub(super) path: String,
}

/// Shows nothing of itself.
#[derive(Clone, Default)]
pub(super) struct Credentials {
    headers: BTreeMap<Place, HeaderValue>,
    /// What must not appear in anything that is shown.
    secrets: Vec<String>,
}

#[derive(Default)]
struct Parts<'a> {
    token: Option<&'a str>,
    auth: Option<&'a str>,
    username: Option<&'a str>,
    password: Option<&'a str>,
}

impl Credentials {
    pub(super) fn of(settings: &Settings) -> Result<Self, Error> {
        let mut places: BTreeMap<Place, Parts<'_>> = BTreeMap::new();
        for (key, value) in settings.iter().filter(|(key, _)| key.starts_with("//")) {
            let Some((place, field)) = key.rsplit_once(':') else { continue };
            let slot: for<'a, 'b> fn(&'a mut Parts<'b>) -> &'a mut Option<&'b str> = match field {
                "_authToken" => |parts| &mut parts.token,
                "_auth" => |parts| &mut parts.auth,
                "username" => |parts| &mut parts.username,
                "_password" => |parts| &mut parts.password,
                "certfile" | "keyfile" => {
                    tracing::warn!("npm configuration: {key} is not used: client certificates are not supported");
                    continue;
                }
                _ => continue,
            };
            let place = parse_place(place).ok_or_else(|| wrong(place, field, "it does not name a host"))?;
            *slot(places.entry(place).or_default()) = Some(value);
        }
        let mut credentials = Self::default();
        for (place, parts) in places {
            credentials.add(place, &parts)?;
        }
        Ok(credentials)
    }

    fn add(&mut self, place: Place, parts: &Parts<'_>) -> Result<(), Error> {
        let at = format!("//{}{}", place.authority, place.path);
        let (text, field) = match *parts {
            Parts { token: Some(token), .. } => {
                self.secrets.push(token.to_owned());
                (format!("Bearer {token}"), "_authToken")
            }
            Parts { auth: Some(auth), .. } => (format!("Basic {auth}"), "_auth"),
            Parts { username: Some(username), password: Some(password), .. } => {
                let decoded = decode(password).ok_or_else(|| wrong(&at, "_password", "it is not base64"))?;
                let encoded = STANDARD.encode([username.as_bytes(), b":", &decoded].concat());
                self.secrets.extend([password.to_owned(), String::from_utf8_lossy(&decoded).into_owned()]);
                (format!("Basic {encoded}"), "username")
            }
            _ => return Ok(()), // Half of a pair is nothing, as with npm.
        };
        let mut header =
            HeaderValue::from_str(&text).map_err(|_| wrong(&at, field, "a header cannot hold such characters"))?;
        header.set_sensitive(true);
        if let Some((_, secret)) = text.split_once(' ') {
            self.secrets.push(secret.to_owned());
        }
        self.secrets.retain(|secret| !secret.is_empty());
        self.headers.insert(place, header);
        Ok(())
    }

    /// Of the longest configured path that the URL is below.
    pub(super) fn find(&self, url: &Url) -> Option<&HeaderValue> {
        let authority = authority(url)?;
        let below = |place: &&Place| place.authority == authority && url.path().starts_with(&place.path);
        let place = self.headers.keys().filter(below).max_by_key(|place| place.path.len())?;
        self.headers.get(place)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.headers.keys()
    }

    /// The same text without anything secret: registries and proxies may repeat what they were told.
    pub(super) fn scrub(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    pub(super) fn hide(&mut self, secret: &str) {
        if !secret.is_empty() {
            self.secrets.push(secret.to_owned());
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.headers.keys()).finish()
    }
}

/// `host[:port]`, as npm writes it.
pub(super) fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

fn parse_place(text: &str) -> Option<Place> {
    let url = Url::parse(&format!("https:{text}")).ok()?;
    let path = if url.path().ends_with('/') { url.path().to_owned() } else { format!("{}/", url.path()) };
    Some(Place { authority: authority(&url)?, path })
}

fn decode(password: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(password.trim_end_matches('=')).ok()
}

fn wrong(place: &str, field: &str, problem: &str) -> Error {
    Error::Setting { key: format!("{place}:{field}"), problem: problem.to_owned() }
}

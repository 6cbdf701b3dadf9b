//! The file that remembers services: address, token, app and TLS, by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::client::Secret;
use super::output::note;
use super::tls::Tls;

const DEFAULT: &str = "default";
const BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profiles {
    #[serde(default)]
    profiles: BTreeMap<String, Profile>,
}

/// What is absent comes from elsewhere.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(skip)]
    pub name: String,
    pub address: Option<String>,
    pub token: Option<Secret>,
    pub app: Option<String>,
    /// As the flags; relative to the file's directory.
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
}

impl Profile {
    pub fn tls(&self) -> Tls {
        let directory = path().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
        let found = |file: &Option<PathBuf>| file.as_ref().map(|file| directory.join(file));
        Tls { ca: found(&self.tls_ca), cert: found(&self.tls_cert), key: found(&self.tls_key) }.given()
    }
}

/// The profile of that name, or the one called `default`, if there is one.
///
/// # Errors
/// The file cannot be read or says something else, or has no profile of that name.
pub fn load(name: Option<&str>) -> anyhow::Result<Option<Profile>> {
    let path = path();
    let profiles = path.as_deref().map(read).transpose()?.flatten().map(|file| file.profiles);
    let wanted = name.unwrap_or(DEFAULT);
    let mut profiles = profiles.unwrap_or_default();
    match (profiles.remove(wanted), name) {
        (Some(profile), _) => Ok(Some(Profile { name: wanted.to_owned(), ..profile })),
        (None, None) => Ok(None),
        (None, Some(name)) => {
            let path = path.unwrap_or_else(|| "~/.config/chatfn/profiles.toml".into());
            let known = profiles.into_keys().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {known}") };
            bail!("there is no profile {name:?} in {}: {known}", path.display())
        }
    }
}

fn path() -> Option<PathBuf> {
    let directory = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = directory("XDG_CONFIG_HOME").or_else(|| directory("HOME").map(|home| home.join(".config")))?;
    Some(config.join("chatfn/profiles.toml"))
}

fn read(path: &Path) -> anyhow::Result<Option<Profiles>> {
    let mut file = match File::open(path) {
        Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        file => file.with_context(|| format!("read {}", path.display()))?,
    };
    let mut text = String::new();
    Read::by_ref(&mut file)
        .take(BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    let profiles: Profiles = toml::from_str(&text).map_err(|err| {
        // Its own words show the line, and there may be a token in it.
        let line = err.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        anyhow::anyhow!("{}:{line}: {}", path.display(), err.message())
    })?;
    if profiles.profiles.values().any(|profile| profile.token.is_some()) && file.metadata()?.mode() & 0o044 != 0 {
        note(&format!("others can read the tokens in {0}: chmod 600 {0}", path.display()));
    }
    Ok(Some(profiles))
}

//! Secrets at rest: what the store keeps of them, and what opens it again. No I/O but the operator's file of keys.
//!
//! Two steps. The operator's keys ([`Keyring`]) encrypt one random [`DataKey`] for each app, and that one the app's values. To replace
//! an operator's key is to encrypt the data keys anew, however many values there are. All is XChaCha20-Poly1305 with random nonces,
//! which are long enough (192 bits) never to meet. What a ciphertext *is* – which variable, of which version of which app – is
//! authenticated with it: a row that was moved to another place does not open there.

mod data_key;
mod keyring;

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

pub use data_key::{DataKey, Variable};
pub use keyring::{Keyring, generate};

/// In front of everything that is stored: how it was made.
const FORMAT: &str = "v1";
const NONCE_BYTES: usize = 24;
const KEY_BYTES: usize = 32;

type Key = Zeroizing<[u8; KEY_BYTES]>;

/// Never holds a value or a key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("encryption_keys_file: read {}: {problem}", path.display())]
    Read { path: PathBuf, problem: String },
    #[error("encryption_keys_file: {} {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error(
        "{what} is encrypted with the key {key_id:?}, which is not in encryption_keys_file: put it back there, below the current one"
    )]
    UnknownKey { what: What, key_id: String },
    #[error(
        "{what} is encrypted with the key {key_id:?}, and no encryption_keys_file is set: set it to the file with that key"
    )]
    NoKeys { what: What, key_id: String },
    #[error(
        "{what} does not open with the key {key_id:?}: it was changed or moved, or that key is not the one that once had this name"
    )]
    Tampered { what: What, key_id: String },
    #[error("{what} is not written as this version writes it: it was changed, or a newer chatfn wrote it")]
    Malformed { what: What },
    #[error("get random numbers from the system: {0}")]
    NoRandom(String),
}

/// What a ciphertext stands for; goes into it, and into errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Variable { app: String, version: u64, name: String },
    DataKey { app: String, id: String },
    ServiceKey { name: String },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { app, version, name } => {
                write!(f, "the environment variable {name:?} of version {version} of app {app}")
            }
            Self::DataKey { app, .. } => write!(f, "the data key of app {app}"),
            Self::ServiceKey { name } => write!(f, "the service's own key {name:?}"),
        }
    }
}

impl What {
    /// Authenticated with the ciphertext. Each part with its length, so that no two things look the same.
    fn associated(&self) -> Vec<u8> {
        let version;
        let parts: [&[u8]; 4] = match self {
            Self::Variable { app, version: number, name } => {
                version = number.to_be_bytes();
                [b"chatfn variable", app.as_bytes(), &version, name.as_bytes()]
            }
            Self::DataKey { app, id } => [b"chatfn data key", app.as_bytes(), id.as_bytes(), b""],
            Self::ServiceKey { name } => [b"chatfn service key", name.as_bytes(), b"", b""],
        };
        parts
            .iter()
            .flat_map(|part| (part.len() as u64).to_be_bytes().into_iter().chain(part.iter().copied()))
            .collect()
    }
}

/// `v1:<key id>:<nonce and ciphertext in base64>`.
fn seal(key: &Key, key_id: &str, what: &What, plain: &[u8]) -> Result<String, Error> {
    let nonce: [u8; NONCE_BYTES] = random()?;
    let payload = Payload { msg: plain, aad: &what.associated() };
    let sealed = XChaCha20Poly1305::new((&**key).into()).encrypt(&XNonce::from(nonce), payload);
    // It fails beyond 256 GiB alone.
    let sealed = sealed.map_err(|_| Error::Malformed { what: what.clone() })?;
    Ok(format!("{FORMAT}:{key_id}:{}", BASE64_URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())))
}

/// The id of the key that it takes.
fn key_id<'a>(text: &'a str, what: &What) -> Result<(&'a str, &'a str), Error> {
    let rest = text.strip_prefix(FORMAT).and_then(|rest| rest.strip_prefix(':'));
    rest.and_then(|rest| rest.split_once(':')).ok_or_else(|| Error::Malformed { what: what.clone() })
}

fn open(key: &Key, key_id: &str, what: &What, encoded: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let tampered = || Error::Tampered { what: what.clone(), key_id: key_id.to_owned() };
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| tampered())?;
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or_else(tampered)?;
    let payload = Payload { msg: sealed, aad: &what.associated() };
    let opened = XChaCha20Poly1305::new((&**key).into()).decrypt(&XNonce::from(*nonce), payload);
    opened.map(Zeroizing::new).map_err(|_| tampered())
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|err| Error::NoRandom(err.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(app: &str, version: u64, name: &str) -> What {
        What::Variable { app: app.to_owned(), version, name: name.to_owned() }
    }

    fn opened(key: &Key, what: &What, text: &str) -> Result<Vec<u8>, Error> {
        let (id, encoded) = key_id(text, what)?;
        open(key, id, what, encoded).map(|plain| plain.to_vec())
    }

    #[test]
    fn what_was_sealed_opens_where_it_was_meant_for_and_nowhere_else() {
        let key = Zeroizing::new([7; 32]);
        let own = variable("shop", 3, "TOKEN");
        for plain in ["", "x", "hunter2 ä\n", &"v".repeat(32 << 10)] {
            let text = seal(&key, "k", &own, plain.as_bytes()).expect("seals");
            assert!(text.starts_with("v1:k:"), "{text}");
            assert!(plain.len() < 4 || !text.contains(plain));
            assert_eq!(opened(&key, &own, &text).expect("opens"), plain.as_bytes());
        }
        let text = seal(&key, "k", &own, b"hunter2").expect("seals");
        for other in [
            variable("shop", 4, "TOKEN"),
            variable("shop", 3, "TOKE"),
            variable("sho", 3, "pTOKEN"),
            variable("other", 3, "TOKEN"),
            What::DataKey { app: "shop".to_owned(), id: "TOKEN".to_owned() },
            What::ServiceKey { name: "shop".to_owned() },
        ] {
            assert!(matches!(opened(&key, &other, &text), Err(Error::Tampered { .. })), "{other}");
        }
        let wrong = Zeroizing::new([8; 32]);
        assert!(matches!(opened(&wrong, &own, &text), Err(Error::Tampered { key_id, .. }) if key_id == "k"));
        assert_ne!(text, seal(&key, "k", &own, b"hunter2").expect("seals"), "a nonce of its own");
    }

    #[test]
    fn with_any_byte_changed_or_missing_it_does_not_open_and_no_error_shows_it() {
        let (key, own) = (Zeroizing::new([7; 32]), variable("shop", 3, "TOKEN"));
        let text = seal(&key, "k", &own, b"hunter2").expect("seals");
        let (id, encoded) = key_id(&text, &own).expect("ours");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).expect("base64");
        assert_eq!(bytes.len(), 24 + 7 + 16);
        let refused = |bytes: &[u8]| {
            let err = open(&key, id, &own, &BASE64_URL_SAFE_NO_PAD.encode(bytes)).expect_err("refused");
            assert!(matches!(err, Error::Tampered { .. }) && !err.to_string().contains("hunter2"), "{err}");
        };
        for n in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[n] ^= 1;
            refused(&changed);
            refused(&bytes[..n]);
        }
        refused(&[&bytes[..], &[0]].concat());
        for bad in ["", "v1", "v1:", "v1:k", "v2:k:AAAA", "hunter2"] {
            assert!(matches!(opened(&key, &own, bad), Err(Error::Malformed { .. })), "{bad}");
        }
        assert!(matches!(opened(&key, &own, "v1:k:not base64!"), Err(Error::Tampered { .. })));
    }
}

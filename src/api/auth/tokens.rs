//! The texts that callers show: secrets, which they keep, and access tokens, which expire.
//!
//! A secret is random. An access token says who it is for, and is signed: nothing of it is kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::model::{ClientId, Scopes};
use crate::store::Secret256;

/// So that scanners for leaked secrets, and people, know one when they see it.
const SECRET_PREFIX: &str = "cfs_";
const TOKEN_PREFIX: &str = "cfa_";
/// As clients are told.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// Clients count from when they got it, and use it to its last second.
const LEEWAY: Duration = Duration::from_secs(60);
/// Expiry in seconds (8), scopes (1), client (16).
const CLAIMS_BYTES: usize = 25;
const KEY_CONTEXT: &str = "chatfn 2026 access tokens v1";

/// The operating system has no random numbers to give.
#[derive(Debug, thiserror::Error)]
#[error("get random numbers from the system: {0}")]
pub struct NoRandom(rand::rngs::SysError);

/// 256 bits from the operating system.
pub fn random() -> Result<Secret256, NoRandom> {
    let mut bytes = [0; 32];
    SysRng.try_fill_bytes(&mut bytes).map_err(NoRandom)?;
    Ok(bytes)
}

/// A new secret and its hash.
pub fn new_secret() -> Result<(String, Secret256), NoRandom> {
    let secret = format!("{SECRET_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random()?));
    let hash = Sha256::digest(secret.as_bytes()).into();
    Ok((secret, hash))
}

/// `None` where it does not look like a secret: then there is nothing to search for.
pub fn secret_hash(text: &str) -> Option<Secret256> {
    let random = BASE64_URL_SAFE_NO_PAD.decode(text.strip_prefix(SECRET_PREFIX)?).ok()?;
    (random.len() == 32).then(|| Sha256::digest(text.as_bytes()).into())
}

/// In a time that does not depend on where they differ.
pub fn same(one: &Secret256, other: &Secret256) -> bool {
    one.ct_eq(other).into()
}

/// What an access token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    pub client_id: ClientId,
    pub scopes: Scopes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Not one of ours.
    Invalid,
    Expired,
}

/// Signs access tokens.
pub struct AccessKey([u8; 32]);

impl AccessKey {
    pub fn new(secret: &Secret256) -> Self {
        Self(blake3::derive_key(KEY_CONTEXT, secret))
    }

    /// Good for [`LIFETIME`].
    pub fn issue(&self, claims: Claims, now: SystemTime) -> String {
        let mut bytes = Vec::with_capacity(CLAIMS_BYTES + blake3::OUT_LEN);
        bytes.extend(seconds(now + LIFETIME + LEEWAY).to_be_bytes());
        bytes.push(claims.scopes.bits());
        bytes.extend(claims.client_id.as_bytes());
        let signature = blake3::keyed_hash(&self.0, &bytes);
        bytes.extend(signature.as_bytes());
        format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn read(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let (expiry, claims) = self.verified(token).ok_or(TokenError::Invalid)?;
        if seconds(now) >= expiry { Err(TokenError::Expired) } else { Ok(claims) }
    }

    fn verified(&self, token: &str) -> Option<(u64, Claims)> {
        let text = token.strip_prefix(TOKEN_PREFIX)?;
        let mut bytes = [0; CLAIMS_BYTES + blake3::OUT_LEN];
        let length = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (signed, signature) = bytes.split_at_checked(CLAIMS_BYTES).filter(|_| length == bytes.len())?;
        // This comparison, too, takes the same time wherever they differ.
        if blake3::keyed_hash(&self.0, signed) != *signature {
            return None;
        }
        let (expiry, rest) = signed.split_first_chunk::<8>()?;
        let (scopes, client_id) = rest.split_first()?;
        let client_id = ClientId::from_bytes(client_id.try_into().ok()?);
        Some((u64::from_be_bytes(*expiry), Claims { client_id, scopes: Scopes::from_bits(*scopes)? }))
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scope;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn claims() -> Claims {
        Claims { client_id: ClientId::new(), scopes: [Scope::Invoke, Scope::Manage].into_iter().collect() }
    }

    #[test]
    fn an_access_token_says_what_was_signed_until_it_expires() {
        let (key, claims) = (AccessKey::new(&[7; 32]), claims());
        let token = key.issue(claims, at(0));
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{token}");
        let end = (LIFETIME + LEEWAY).as_secs();
        assert_eq!(key.read(&token, at(0)), Ok(claims));
        assert_eq!(key.read(&token, at(end - 1)), Ok(claims));
        assert_eq!(key.read(&token, at(end)), Err(TokenError::Expired));
        assert_eq!(AccessKey::new(&[8; 32]).read(&token, at(0)), Err(TokenError::Invalid));
    }

    #[test]
    fn a_token_with_any_bit_changed_or_any_byte_missing_is_none() {
        let key = AccessKey::new(&[7; 32]);
        let token = key.issue(claims(), at(0));
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.trim_start_matches(TOKEN_PREFIX)).expect("base64");
        let read = |bytes: &[u8]| {
            key.read(&format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)), at(0)).map(|_| ())
        };
        assert_eq!(read(&bytes), Ok(()));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&changed), Err(TokenError::Invalid), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]), Err(TokenError::Invalid), "{length} bytes");
        }
        assert_eq!(read(&[&bytes[..], &[0]].concat()), Err(TokenError::Invalid));
        for text in ["", "cfa_", "cfa_ä", &token[1..], &format!("{token}=")] {
            assert_eq!(key.read(text, at(0)), Err(TokenError::Invalid), "{text}");
        }
    }

    #[test]
    fn a_secret_is_found_by_its_hash_and_nothing_else_looks_like_one() {
        let (secret, hash) = new_secret().expect("random");
        assert_ne!(secret, new_secret().expect("random").0);
        assert!(same(&secret_hash(&secret).expect("a secret"), &hash));
        for text in ["", "cfs_", &secret[1..], &secret[..secret.len() - 1], &format!("{secret}A")] {
            assert_eq!(secret_hash(text), None, "{text}");
        }
        assert!(!same(&hash, &secret_hash(&new_secret().expect("random").0).expect("a secret")));
    }
}

//! The key of one app's values.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::{Error, Key, Keyring, What, key_id, open, random, seal};

/// Encrypts an app's values. In the store it lies encrypted itself: [`DataKey::wrap`].
pub struct DataKey {
    app: String,
    id: String,
    key: Key,
}

/// Shown without the key.
impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").field("app", &self.app).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where a value belongs.
#[derive(Debug, Clone, Copy)]
pub struct Variable<'a> {
    pub version: u64,
    pub name: &'a str,
}

impl DataKey {
    /// # Errors
    /// The system has no random numbers.
    pub fn generate(app: &str) -> Result<Self, Error> {
        let id = BASE64_URL_SAFE_NO_PAD.encode(random::<12>()?);
        Ok(Self { app: app.to_owned(), id, key: Zeroizing::new(random()?) })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// As it may be stored, and the id of the operator's key that it takes.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn wrap(&self, keys: &Keyring) -> Result<(String, String), Error> {
        keys.wrap(&self.what(), &self.key)
    }

    /// # Errors
    /// The operator's key is missing, or it was changed.
    pub fn unwrap(app: &str, id: &str, wrapped: &str, keys: &Keyring) -> Result<Self, Error> {
        let what = What::DataKey { app: app.to_owned(), id: id.to_owned() };
        let key = keys.unwrap(&what, wrapped)?;
        Ok(Self { app: app.to_owned(), id: id.to_owned(), key })
    }

    /// # Errors
    /// The system has no random numbers.
    pub fn seal(&self, of: Variable<'_>, value: &str) -> Result<String, Error> {
        seal(&self.key, &self.id, &self.variable(of), value.as_bytes())
    }

    /// # Errors
    /// It was changed or moved, or is another key's.
    pub fn open(&self, of: Variable<'_>, text: &str) -> Result<String, Error> {
        let what = self.variable(of);
        let (id, encoded) = key_id(text, &what)?;
        if id != self.id {
            return Err(Error::UnknownKey { what, key_id: id.to_owned() });
        }
        let plain = open(&self.key, id, &what, encoded)?;
        String::from_utf8(plain.to_vec()).map_err(|_| Error::Malformed { what })
    }

    fn variable(&self, of: Variable<'_>) -> What {
        What::Variable { app: self.app.clone(), version: of.version, name: of.name.to_owned() }
    }

    fn what(&self) -> What {
        What::DataKey { app: self.app.clone(), id: self.id.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keyring::tests::keyring;
    use super::*;

    #[test]
    fn a_wrapped_key_opens_the_same_values_and_only_as_its_own_apps() {
        let (_dir, keys) = keyring("one");
        let key = DataKey::generate("shop").expect("a key");
        let at = Variable { version: 1, name: "TOKEN" };
        let value = key.seal(at, "hunter2").expect("seals");
        let (wrapped, master) = key.wrap(&keys).expect("wraps");
        assert_eq!(master, "one");
        let again = DataKey::unwrap("shop", key.id(), &wrapped, &keys).expect("unwraps");
        assert_eq!(again.open(at, &value).expect("opens"), "hunter2");
        for (app, id) in [("other", key.id()), ("shop", "another")] {
            let err = DataKey::unwrap(app, id, &wrapped, &keys).expect_err("refused");
            assert!(matches!(err, Error::Tampered { .. }), "{err}");
        }
        let other = DataKey::generate("shop").expect("a key");
        let err = other.open(at, &value).expect_err("another key");
        assert!(matches!(&err, Error::UnknownKey { key_id, .. } if key_id == key.id()), "{err}");
        assert!(!format!("{key:?}").contains(&format!("{:?}", &key.key[..4])));
    }
}

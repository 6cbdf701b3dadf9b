//! The operator's keys: a file with a line for each, `key-id:base64 of 32 bytes`. The first one encrypts; all of them open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::{Error, KEY_BYTES, Key, What, key_id, open, random, seal};

const FILE_BYTES_MAX: u64 = 1 << 20;
const ID_BYTES_MAX: usize = 64;

/// Clones share it.
///
/// The file is read again when it matters – before something is encrypted, which is rare, and when a key is missing – so a key that is
/// added is known without a restart.
#[derive(Clone)]
pub struct Keyring {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    keys: Mutex<Arc<Keys>>,
}

struct Keys {
    current: String,
    by_id: BTreeMap<String, Key>,
}

impl Keyring {
    /// # Errors
    /// The file cannot be read, others can read it, or a line is wrong. Names the line, shows nothing of it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let keys = Mutex::new(Arc::new(read(path)?));
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), keys }) })
    }

    /// What encrypts from now on.
    pub fn current_id(&self) -> String {
        self.refreshed().current.clone()
    }

    /// A key as it may be stored, and the id of the one that it takes.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn wrap(&self, what: &What, key: &[u8; KEY_BYTES]) -> Result<(String, String), Error> {
        let keys = self.refreshed();
        let Some(master) = keys.by_id.get(&keys.current) else {
            return Err(Error::UnknownKey { what: what.clone(), key_id: keys.current.clone() });
        };
        Ok((seal(master, &keys.current, what, key)?, keys.current.clone()))
    }

    /// # Errors
    /// The key that it takes is missing, or it was changed.
    pub fn unwrap(&self, what: &What, text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, Error> {
        let (id, encoded) = key_id(text, what)?;
        let mut keys = self.keys();
        if !keys.by_id.contains_key(id) {
            keys = self.refreshed();
        }
        let unknown = || Error::UnknownKey { what: what.clone(), key_id: id.to_owned() };
        let plain = open(keys.by_id.get(id).ok_or_else(unknown)?, id, what, encoded)?;
        plain.as_slice().try_into().map(Zeroizing::new).map_err(|_| Error::Malformed { what: what.clone() })
    }

    /// As the file says now; if it cannot be used, as it said before.
    fn refreshed(&self) -> Arc<Keys> {
        match read(&self.shared.path) {
            Ok(keys) => *self.lock() = Arc::new(keys),
            Err(err) => tracing::error!(%err, "failed to read the keys again: those read before are used"),
        }
        self.keys()
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Keys>> {
        self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line for the file, with a new key.
///
/// # Errors
/// The id is none, or the system has no random numbers.
pub fn generate(id: &str) -> Result<Zeroizing<String>, Error> {
    if !is_id(id) {
        let problem = format!("cannot have a key called {id:?}: use letters, digits, - and _, at most {ID_BYTES_MAX}");
        return Err(Error::File { path: PathBuf::from("the file"), problem });
    }
    let key = Zeroizing::new(random::<KEY_BYTES>()?);
    Ok(Zeroizing::new(format!("{id}:{}", BASE64_STANDARD.encode(*key))))
}

fn read(path: &Path) -> Result<Keys, Error> {
    let fail = |problem: String| Error::Read { path: path.to_owned(), problem };
    let file = File::open(path).map_err(|err| fail(err.to_string()))?;
    let mode = file.metadata().map_err(|err| fail(err.to_string()))?.mode();
    // A group may read: Kubernetes mounts secrets as root's, for the pod's group.
    if mode & 0o027 != 0 {
        let problem = format!("can be read or changed by others (mode {:o}): chmod 600 it (or 640)", mode & 0o777);
        return Err(Error::File { path: path.to_owned(), problem });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|err| fail(err.to_string()))?;
    parse(&text).map_err(|problem| Error::File { path: path.to_owned(), problem })
}

fn parse(text: &str) -> Result<Keys, String> {
    let mut keys = Keys { current: String::new(), by_id: BTreeMap::new() };
    for (n, line) in text.lines().enumerate() {
        let (n, line) = (n + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |problem: &str| format!("line {n}: {problem}: `chatfn keys generate` makes a line");
        let (id, encoded) = line.split_once(':').ok_or_else(|| wrong("it is not key-id:key"))?;
        if !is_id(id) {
            return Err(wrong("the key's id is not of letters, digits, - and _"));
        }
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong("the key is not base64"))?);
        let key: [u8; KEY_BYTES] =
            bytes.as_slice().try_into().map_err(|_| wrong("the key is not 32 bytes in base64"))?;
        if keys.by_id.insert(id.to_owned(), Zeroizing::new(key)).is_some() {
            return Err(wrong("the key's id stands above already"));
        }
        if keys.current.is_empty() {
            id.clone_into(&mut keys.current);
        }
    }
    if keys.by_id.is_empty() {
        return Err("holds no key: `chatfn keys generate` makes a line".to_owned());
    }
    Ok(keys)
}

fn is_id(id: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !id.is_empty() && id.len() <= ID_BYTES_MAX && id.chars().all(fine)
}

#[cfg(test)]
pub mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).expect("write");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// With one new key of this name.
    pub fn keyring(id: &str) -> (TempDir, Keyring) {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("keys");
        write(&path, &generate(id).expect("a line"), 0o600);
        let keys = Keyring::open(&path).expect("opens");
        (dir, keys)
    }

    fn what() -> What {
        What::ServiceKey { name: "tokens".to_owned() }
    }

    #[test]
    fn the_first_key_encrypts_and_all_of_them_open_also_those_that_are_added() {
        let (dir, keys) = keyring("one");
        let path = dir.path().join("keys");
        let (old, id) = keys.wrap(&what(), &[5; 32]).expect("wraps");
        assert_eq!(id, "one");
        let line = std::fs::read_to_string(&path).expect("read");
        write(&path, &format!("# keys\n\n{}\n{line}\n", *generate("two").expect("a line")), 0o600);
        let (new, id) = keys.wrap(&what(), &[5; 32]).expect("wraps");
        assert_eq!((id.as_str(), keys.current_id().as_str()), ("two", "two"));
        for text in [&old, &new] {
            assert_eq!(*keys.unwrap(&what(), text).expect("unwraps"), [5; 32]);
        }
        let elsewhere = Keyring::open(&path).expect("opens");
        write(&path, &line, 0o600);
        let err = Keyring::open(&path).expect("opens").unwrap(&what(), &new).expect_err("it is gone");
        assert!(err.to_string().contains("\"two\", which is not in encryption_keys_file"), "{err}");
        assert!(elsewhere.unwrap(&what(), &new).is_ok(), "known from before");
        write(&path, "nonsense", 0o600);
        assert!(keys.unwrap(&what(), &old).is_ok() && keys.wrap(&what(), &[5; 32]).is_ok(), "as it said before");
    }

    #[test]
    fn a_file_that_others_read_or_that_is_wrong_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("keys");
        let line = generate("one").expect("a line");
        let key = line.split_once(':').expect("a colon").1.to_owned();
        for (mode, fine) in
            [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false), (0o604, false)]
        {
            write(&path, &line, mode);
            assert_eq!(Keyring::open(&path).is_ok(), fine, "{mode:o}");
        }
        write(&path, "", 0o600);
        for (text, named) in [
            ("".to_owned(), "holds no key"),
            (format!("x\n{key}"), "line 1"),
            (format!("one:{key}\none:{key}"), "line 2"),
            (format!("o ne:{key}"), "id"),
            (format!("one:{}", &key[..40]), "32 bytes"),
            ("one:***".to_owned(), "base64"),
        ] {
            write(&path, &text, 0o600);
            let err = Keyring::open(&path).err().expect("refused").to_string();
            assert!(err.contains(named) && !err.contains(&key[..40]), "{text}: {err}");
        }
        assert!(generate("no:id").is_err() && generate("").is_err());
        assert!(Keyring::open(&dir.path().join("none")).is_err());
    }
}

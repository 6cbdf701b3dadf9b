//! TLS in front of the port: which certificate the service shows ([`load`]), whom it lets in, how both change while it runs
//! ([`Reloader`]), and handshakes that hold nobody up ([`incoming`]).
//!
//! Who a client *is* stays the business of its token: a certificate only opens the door (mTLS).

mod accept;
mod certificate;
mod reload;
#[cfg(test)]
mod testing;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use zeroize::Zeroizing;

use crate::config::{ClientAuth, Tls};

pub use accept::incoming;
pub use reload::Reloader;

/// Of each file: chains are a few KiB, bundles of CAs some hundred.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A certificate that ends sooner is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why the files cannot be used. Says which setting is meant, and nothing of a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{setting}: read {}: {problem}", path.display())]
    Read { setting: &'static str, path: PathBuf, problem: String },
    #[error("{setting}: {} {problem}", path.display())]
    File { setting: &'static str, path: PathBuf, problem: String },
    #[error(
        "tls.key_file: {} is not the key of the certificate in {}: replace both together", key.display(), cert.display()
    )]
    Mismatch { key: PathBuf, cert: PathBuf },
}

/// What new connections are accepted with.
#[derive(Clone)]
pub struct Loaded {
    pub config: Arc<ServerConfig>,
    /// When the service's certificate ends; `None`: it does not say so in a way that we read.
    pub expires_at: Option<SystemTime>,
}

/// The files' settings.
#[derive(Debug, Clone)]
pub struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_auth: ClientAuth,
}

/// The files' bytes, as they were at one time.
struct Contents {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    /// `None`: the port speaks no TLS.
    pub fn of(config: &Tls) -> Option<Self> {
        Some(Self {
            cert: config.cert_file.clone()?,
            key: config.key_file.clone()?,
            client_ca: config.client_ca_file.clone(),
            client_auth: config.client_auth,
        })
    }

    fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            cert: read("tls.cert_file", &self.cert)?,
            key: Zeroizing::new(read("tls.key_file", &self.key)?),
            client_ca: self.client_ca.as_deref().map(|path| read("tls.client_ca_file", path)).transpose()?,
        })
    }

    fn parse(&self, contents: &Contents) -> Result<Loaded, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = certificates("tls.cert_file", &self.cert, &contents.cert)?;
        let expires_at = chain.first().and_then(|first| certificate::not_after(first));
        let key = self.certified(chain, &contents.key, &provider)?;
        let of_key = |err: rustls::Error| self.bad_key(err.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(of_key)?;
        let builder = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(pem)) => builder.with_client_cert_verifier(self.verifier(path, pem, provider)?),
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Loaded { config: Arc::new(config), expires_at })
    }

    fn certified(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, Error> {
        // The parser's own words could show a part of the key.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| self.bad_key("holds no private key as PEM (PKCS #8, SEC1 or PKCS #1, not encrypted)"))?;
        CertifiedKey::from_der(chain, key, provider).map_err(|err| match err {
            rustls::Error::InconsistentKeys(_) => Error::Mismatch { key: self.key.clone(), cert: self.cert.clone() },
            rustls::Error::InvalidCertificate(err) => Error::File {
                setting: "tls.cert_file",
                path: self.cert.clone(),
                problem: format!("holds a certificate that cannot be used: {err:?}"),
            },
            err => self.bad_key(format!("holds a key that cannot be used: {err}")),
        })
    }

    fn verifier(
        &self,
        path: &Path,
        pem: &[u8],
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let bad = |problem: String| Error::File { setting: "tls.client_ca_file", path: path.to_owned(), problem };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("tls.client_ca_file", path, pem)? {
            roots.add(certificate).map_err(|err| bad(format!("holds a certificate that cannot be used: {err}")))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match self.client_auth {
            ClientAuth::Required => builder,
            ClientAuth::Optional => builder.allow_unauthenticated(),
        };
        builder.build().map_err(|err| bad(format!("cannot be used: {err}")))
    }

    fn bad_key(&self, problem: impl Into<String>) -> Error {
        Error::File { setting: "tls.key_file", path: self.key.clone(), problem: problem.into() }
    }
}

/// What all TLS of this process is done with. Call it before anything else: two libraries here would rather panic than choose.
pub fn install_provider() {
    // An error says that there is one already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}

/// Reads the files. `None`: the port speaks no TLS.
///
/// # Errors
/// Names the setting, the file and what is wrong with it.
pub fn load(config: &Tls) -> Result<Option<Loaded>, Error> {
    Files::of(config).map(|files| files.parse(&files.read()?)).transpose()
}

impl Loaded {
    /// What an operator should know about the certificate's end, if it is near.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let expires_at = self.expires_at?;
        let when = humantime::format_rfc3339_seconds(expires_at);
        match expires_at.duration_since(now) {
            Err(_) => Some(format!("tls: the certificate expired at {when}: clients refuse it until it is replaced")),
            Ok(left) if left < EXPIRES_SOON => {
                Some(format!("tls: the certificate expires at {when}, within a week: replace it"))
            }
            Ok(_) => None,
        }
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |problem: String| Error::Read { setting, path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|err| fail(err.to_string()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|err| fail(err.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(fail(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn certificates(setting: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |problem: String| Error::File { setting, path: path.to_owned(), problem };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|err| bad(format!("is not the PEM that is needed: {err}")))?;
    if found.is_empty() { Err(bad("holds no certificate as PEM".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::testing::{Ca, Pair};
    use super::*;

    fn loaded(directory: &Path, ca: bool) -> Result<Option<Loaded>, String> {
        let file = |name: &str| Some(directory.join(name));
        let config = Tls {
            cert_file: file("cert.pem"),
            key_file: file("key.pem"),
            client_ca_file: file("ca.pem").filter(|_| ca),
            ..Tls::default()
        };
        load(&config).map_err(|err| err.to_string())
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused_and_so_is_what_is_no_pem() {
        let directory = tempfile::tempdir().expect("temp dir");
        let (ca, at) = (Ca::new(), directory.path());
        let write = |name: &str, text: &str| std::fs::write(at.join(name), text).expect("write");
        let said = |named: &str, ca: bool| {
            let err = loaded(at, ca).err().unwrap_or_else(|| panic!("accepted: {named}"));
            assert!(err.contains(named), "{named}: {err}");
            assert!(!err.contains("PRIVATE"), "{err}");
        };
        let (one, other) = (ca.issue("localhost", 30), ca.issue("localhost", 30));
        said("tls.cert_file: read", false);
        one.write(at);
        assert!(loaded(at, false).expect("fine").is_some());
        write("key.pem", &other.key);
        said("is not the key of the certificate", false);
        write("key.pem", "no key");
        said("tls.key_file", false);
        Pair { cert: one.key.clone(), ..one.clone() }.write(at);
        said("tls.cert_file", false);
        one.write(at);
        said("tls.client_ca_file: read", true);
        write("ca.pem", "");
        said("tls.client_ca_file", true);
        write("ca.pem", &ca.pem());
        assert!(loaded(at, true).expect("fine").is_some());
        assert!(load(&Tls::default()).expect("no TLS").is_none());
    }

    #[test]
    fn a_certificate_that_ends_soon_is_warned_of() {
        let directory = tempfile::tempdir().expect("temp dir");
        let ca = Ca::new();
        for (days, warned) in [(30, None), (3, Some("within a week")), (-1, Some("expired at"))] {
            ca.issue("localhost", days).write(directory.path());
            let loaded = loaded(directory.path(), false).expect("fine").expect("TLS");
            let warning = loaded.warning(SystemTime::now());
            assert_eq!(warning.is_some(), warned.is_some(), "{days} {warning:?}");
            assert!(warning.unwrap_or_default().contains(warned.unwrap_or_default()));
        }
    }
}

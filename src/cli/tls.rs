//! How commands speak TLS: whom they trust, and what they show for themselves.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::{ClientTlsConfig, Identity};
use zeroize::Zeroizing;

use super::output::Usage;

/// For `https://` alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Tls {
    /// With https: the CAs to trust, as PEM; else the profile's, else this machine's
    #[arg(long = "tls-ca", env = "CHATFN_TLS_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// With https: a client certificate to show (mTLS), as PEM, with --tls-key; else the profile's
    #[arg(long = "tls-cert", env = "CHATFN_TLS_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// The private key of --tls-cert, as PEM
    #[arg(long = "tls-key", env = "CHATFN_TLS_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
}

impl Tls {
    /// An empty variable is as good as none.
    pub fn given(&self) -> Self {
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        Self { ca: given(&self.ca), cert: given(&self.cert), key: given(&self.key) }
    }

    /// What is missing here as it is there. A certificate goes with its own key.
    pub fn or(self, other: Self) -> Self {
        let (cert, key) =
            if self.cert.is_some() || self.key.is_some() { (self.cert, self.key) } else { (other.cert, other.key) };
        Self { ca: self.ca.or(other.ca), cert, key }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// # Errors
    /// A file cannot be read or is not what it should be; there is nobody to trust.
    pub fn client(&self) -> anyhow::Result<ClientTlsConfig> {
        let mut config = ClientTlsConfig::new().trust_anchors(self.roots()?.roots);
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let (cert, key) = (read(cert)?, Zeroizing::new(read(key)?));
                config = config.identity(Identity::from_pem(cert, &*key));
            }
            (None, None) => {}
            (Some(_), None) => return Err(Usage("--tls-cert needs its private key: give --tls-key".to_owned()).into()),
            (None, Some(_)) => return Err(Usage("--tls-key needs its certificate: give --tls-cert".to_owned()).into()),
        }
        Ok(config)
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                bail!(
                    "this machine has no CA certificates to trust: install them (Debian: apt-get install ca-certificates), or give --tls-ca"
                );
            }
            return Ok(roots);
        };
        for certificate in CertificateDer::pem_slice_iter(&read(path)?) {
            let added = certificate.map_err(anyhow::Error::from).and_then(|found| Ok(roots.add(found)?));
            added.with_context(|| format!("read the CA certificates in {}", path.display()))?;
        }
        if roots.is_empty() {
            bail!("{} holds no certificate as PEM", path.display());
        }
        Ok(roots)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(ca: &str, cert: &str, key: &str) -> Tls {
        Tls { ca: Some(ca.into()), cert: Some(cert.into()), key: Some(key.into()) }.given()
    }

    #[test]
    fn what_is_not_given_comes_from_elsewhere_but_no_certificate_gets_anothers_key() {
        assert!(tls("", "", "").is_empty());
        assert_eq!(tls("", "", "").or(tls("a", "b", "c")), tls("a", "b", "c"));
        assert_eq!(tls("x", "", "").or(tls("a", "b", "c")), tls("x", "b", "c"));
        assert_eq!(tls("", "x", "").or(tls("a", "b", "c")), tls("a", "x", ""));
        assert_eq!(tls("", "x", "y").or(tls("a", "b", "c")), tls("a", "x", "y"));
    }
}

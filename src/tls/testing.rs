//! Certificates for tests, the end-to-end ones too.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Pair {
    /// As `cert.pem` and `key.pem`.
    pub fn write(&self, directory: &Path) {
        std::fs::write(directory.join("cert.pem"), &self.cert).expect("write");
        std::fs::write(directory.join("key.pem"), &self.key).expect("write");
    }
}

pub struct Ca {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.distinguished_name.push(DnType::CommonName, "a test's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signs");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// For this name, ending in so many days.
    pub fn issue(&self, name: &str, days: i64) -> Pair {
        let key = KeyPair::generate().expect("a key");
        Pair { cert: self.signed(name, days, &key).pem(), key: key.serialize_pem() }
    }

    #[allow(dead_code, reason = "the end-to-end tests have no use for it")]
    pub fn issue_der(&self, name: &str, days: i64) -> Vec<u8> {
        self.signed(name, days, &KeyPair::generate().expect("a key")).der().to_vec()
    }

    fn signed(&self, name: &str, days: i64, key: &KeyPair) -> rcgen::Certificate {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        let now = rcgen::date_time_ymd(1970, 1, 1)
            + std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let day = std::time::Duration::from_secs(24 * 3600);
        params.not_before = now - day * 400;
        params.not_after = if days < 0 { now - day } else { now + day * u32::try_from(days).expect("few") };
        params.signed_by(key, &self.issuer).expect("signs")
    }
}

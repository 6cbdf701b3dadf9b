//! TLS on the port.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;

/// TLS on the port. The files are read again when they change; connections that there are go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The service's certificate, then those between it and its CA, as PEM. With it the port speaks TLS and nothing else.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key, as PEM.
    pub key_file: Option<PathBuf>,
    /// The CAs whose certificates clients may show (mTLS), as PEM. Clients need a token all the same.
    pub client_ca_file: Option<PathBuf>,
    /// With `client_ca_file`: `required`, or `optional` (a client may have none, but not a wrong one).
    pub client_auth: ClientAuth,
    /// For a client's handshake.
    #[serde(with = "super::duration")]
    pub handshake_timeout: Duration,
}

/// Whether a client needs a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    Required,
    Optional,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            client_auth: ClientAuth::Required,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

impl Tls {
    /// Whether the settings belong together; the files are read later.
    pub(super) fn check(&self) -> Result<(), Error> {
        let missing =
            |name, problem: &str| Err(Error::Value { name, value: "not set".to_owned(), problem: problem.to_owned() });
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => return missing("tls.key_file", "tls.cert_file needs its private key"),
            (None, Some(_)) => return missing("tls.cert_file", "tls.key_file needs its certificate"),
            _ => {}
        }
        if self.client_ca_file.is_some() && self.cert_file.is_none() {
            return missing("tls.cert_file", "tls.client_ca_file needs TLS: set tls.cert_file and tls.key_file, too");
        }
        if self.client_auth == ClientAuth::Optional && self.client_ca_file.is_none() {
            return missing("tls.client_ca_file", "tls.client_auth=optional needs the CA that may be shown");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_belong_together_are_named() {
        let file = || Some(PathBuf::from("x.pem"));
        let none = Tls::default();
        let both = Tls { cert_file: file(), key_file: file(), ..none.clone() };
        let mutual = Tls { client_ca_file: file(), ..both.clone() };
        let optional = Tls { client_auth: ClientAuth::Optional, ..mutual.clone() };
        for good in [&none, &both, &mutual, &optional] {
            assert!(good.check().is_ok(), "{good:?}");
        }
        for (bad, named) in [
            (Tls { cert_file: file(), ..none.clone() }, "tls.key_file"),
            (Tls { key_file: file(), ..none.clone() }, "tls.cert_file"),
            (Tls { client_ca_file: file(), ..none.clone() }, "tls.cert_file"),
            (Tls { client_auth: ClientAuth::Optional, ..both }, "tls.client_ca_file"),
        ] {
            let said = bad.check().expect_err("refused").to_string();
            assert!(said.contains(named), "{said}");
        }
    }
}

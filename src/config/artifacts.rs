//! Where the artifact store is: a bucket or a directory that all replicas share.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use url::Url;

const HOW: &str = "write it as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///DIRECTORY";

/// `s3://bucket/prefix`, `gs://bucket/prefix` or `file:///directory`. Holds no credentials: those come from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub place: Place,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    S3 { bucket: String },
    Google { bucket: String },
    Directory(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}: {HOW}")]
pub struct NoLocation {
    problem: &'static str,
}

impl FromStr for Location {
    type Err = NoLocation;

    fn from_str(text: &str) -> Result<Self, NoLocation> {
        let fail = |problem| Err(NoLocation { problem });
        // The text is not in any message: somebody may have written a password into it.
        let Ok(url) = Url::parse(text) else { return fail("not a URL") };
        if !url.username().is_empty() || url.password().is_some() {
            return fail("credentials do not belong here; they come from the environment (AWS_…, GOOGLE_…)");
        }
        if url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            return fail("it takes no port, ? or #; an endpoint is set in the environment (AWS_ENDPOINT)");
        }
        let host = url.host_str().unwrap_or_default();
        if url.scheme() == "file" {
            return match url.to_file_path() {
                Ok(path) if host.is_empty() => Ok(Self { place: Place::Directory(path), prefix: String::new() }),
                _ => fail("not an absolute directory"),
            };
        }
        let bucket = host.to_owned();
        let prefix = url.path().trim_matches('/').to_owned();
        if bucket.is_empty() || !bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
            return fail("not a bucket's name");
        }
        let plain =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if !prefix.is_empty() && !prefix.split('/').all(plain) {
            return fail("a prefix is made of letters, digits, `-`, `.` and `_` between slashes");
        }
        match url.scheme() {
            "s3" => Ok(Self { place: Place::S3 { bucket }, prefix }),
            "gs" => Ok(Self { place: Place::Google { bucket }, prefix }),
            _ => fail("this kind of place is not known"),
        }
    }
}

impl Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket) = match &self.place {
            Place::S3 { bucket } => ("s3", bucket),
            Place::Google { bucket } => ("gs", bucket),
            Place::Directory(path) => return write!(f, "file://{}", path.display()),
        };
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{bucket}{slash}{}", self.prefix)
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|err| D::Error::custom(format!("artifacts: {err}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_bucket_or_a_directory() {
        for text in ["s3://bucket", "s3://my.bucket/a/b-1", "gs://bucket/chatfn", "file:///srv/chat functions"] {
            let location: Location = text.replace(' ', "%20").parse().expect(text);
            assert_eq!(location.to_string(), text);
        }
        let location: Location = "s3://bucket/a/".parse().expect("a location");
        assert_eq!((location.place, location.prefix.as_str()), (Place::S3 { bucket: "bucket".into() }, "a"));
    }

    #[test]
    fn what_is_none_is_refused_and_told_how_to_write_it() {
        let refused = [
            "bucket",
            "s3://",
            "s3:bucket",
            "s3:///prefix",
            "https://bucket/x",
            "s3://key:secret@bucket",
            "s3://key@bucket/x",
            "s3://bucket:9000/x",
            "s3://bucket/a//b",
            "s3://bucket/a b",
            "s3://bucket/x?region=y",
            "s3://bucket/x#y",
            "file://host/x",
            "memory:///",
            "gs://",
            "",
        ];
        for text in refused {
            let err = text.parse::<Location>().expect_err(text).to_string();
            assert!(err.contains("s3://BUCKET/PREFIX") && !err.contains("secret"), "{text}: {err}");
        }
    }
}

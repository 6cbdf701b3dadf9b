//! A version's environment variables.

use std::collections::BTreeMap;

use super::error::{InvalidSpec, short};
use super::sources::within;

const VARIABLES_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 32 << 10;
const TOTAL_BYTES_MAX: usize = 64 << 10;

/// Values never get into a message: they are secrets.
pub(super) fn check(environment: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
    within("the number of environment variables", environment.len(), VARIABLES_MAX)?;
    for (name, value) in environment {
        let invalid = |problem: &str| Err(InvalidSpec::Environment { name: short(name), problem: problem.to_owned() });
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || name.len() > NAME_BYTES_MAX {
            return invalid("use letters, digits and _ (no digit first), at most 128 of them");
        }
        if is_forbidden(name) {
            return Err(InvalidSpec::ForbiddenVariable { name: short(name) });
        }
        if value.contains('\0') {
            return invalid("the value cannot hold a NUL character");
        }
        within(&format!("environment variable {name:?} (bytes)"), value.len(), VALUE_BYTES_MAX)?;
    }
    let total = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    within("the environment (bytes)", total, TOTAL_BYTES_MAX)
}

/// What the loader, libc, Node, npm or a shell would obey.
fn is_forbidden(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "PATH",
        "HOME",
        "TMPDIR",
        "SHELL",
        "IFS",
        "BASH_ENV",
        "ENV",
        "OPENSSL_CONF",
        "OPENSSL_MODULES",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "GCONV_PATH",
        "GLIBC_TUNABLES",
        "OPENSSL_ENGINES",
    ];
    const PREFIXES: [&str; 5] = ["LD_", "NODE_", "CHATFN_", "UV_", "MALLOC_"];
    let npm = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("npm_"));
    let prefixed = PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && name != "NODE_ENV";
    npm || prefixed || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(variables: &[(&str, &str)]) -> Result<(), &'static str> {
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        check(&environment).map_err(|err| err.reason())
    }

    #[test]
    fn names_are_plain_and_do_not_steer_the_runtime() {
        for good in
            ["A", "_a1", "NODE_ENV", "API_KEY", "MY_PATH", "node_options", "LDAP_URL", "ENVIRONMENT", &"A".repeat(128)]
        {
            assert_eq!(checked(&[(good, "v")]), Ok(()), "{good}");
        }
        for bad in ["", "1A", "A-B", "A=B", "Ä", "A B", "A\0", &"A".repeat(129)] {
            assert_eq!(checked(&[(bad, "v")]), Err("INVALID_ENVIRONMENT"), "{bad}");
        }
        for bad in [
            "LD_PRELOAD",
            "LD_X",
            "NODE_OPTIONS",
            "NODE_PATH",
            "npm_config_registry",
            "NPM_CONFIG_REGISTRY",
            "Npm_Config_x",
            "npm_x",
            "CHATFN_X",
            "PATH",
            "HOME",
            "TMPDIR",
            "SHELL",
            "IFS",
            "BASH_ENV",
            "ENV",
            "OPENSSL_CONF",
            "OPENSSL_MODULES",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "UV_THREADPOOL_SIZE",
            "GCONV_PATH",
            "MALLOC_ARENA_MAX",
            "GLIBC_TUNABLES",
        ] {
            assert_eq!(checked(&[(bad, "v")]), Err("FORBIDDEN_VARIABLE"), "{bad}");
        }
    }

    #[test]
    fn values_are_bounded() {
        let value = "v".repeat(VALUE_BYTES_MAX);
        assert_eq!(checked(&[("A", &value)]), Ok(()));
        assert_eq!(checked(&[("A", &format!("{value}v"))]), Err("TOO_LARGE"));
        assert_eq!(checked(&[("A", &value), ("B", &value[2..])]), Ok(()));
        assert_eq!(checked(&[("A", &value), ("B", &value[1..])]), Err("TOO_LARGE"));
        assert_eq!(checked(&[("A", "a\0b")]), Err("INVALID_ENVIRONMENT"));
        let many = |count| (0..count).map(|n| (format!("A{n}"), String::new())).collect();
        assert!(check(&many(200)).is_ok() && check(&many(201)).is_err());
    }
}

//! What npm is told, so that it knows the proxy and nothing else.

use super::Registries;

/// Arguments and variables that point npm at the proxy. No file of the operator's, and no credential, is among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpmSide {
    /// After the command (`install`, `ci`).
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Registries {
    /// For a proxy that npm reaches at 127.0.0.1 and `port`.
    pub fn npm_side(&self, port: u16) -> NpmSide {
        let registry = format!("http://127.0.0.1:{port}/");
        let mut arguments = vec![
            format!("--registry={registry}"),
            // Also what a lockfile takes from elsewhere has only this way; the proxy decides.
            "--replace-registry-host=always".to_owned(),
            // With the port in it a lockfile would be another one each time; see `restore_lockfile`.
            "--omit-lockfile-registry-resolved=false".to_owned(),
            "--proxy=null".to_owned(),
            "--https-proxy=null".to_owned(),
            "--noproxy=127.0.0.1".to_owned(),
            // A registry that is away is noticed within seconds, one that stutters is given a chance.
            "--fetch-retries=2".to_owned(),
            "--fetch-retry-mintimeout=500".to_owned(),
            "--fetch-retry-maxtimeout=3000".to_owned(),
            // Longer than the proxy's own: its answer names the registry.
            "--fetch-timeout=60000".to_owned(),
        ];
        // A project's .npmrc could name others. The proxy knows which registry a scope has.
        arguments.extend(self.scopes().map(|scope| format!("--{scope}:registry={registry}")));
        // Files of this machine have settings of their own, some of which npm would obey. It refuses two of one name.
        let nothing =
            [("npm_config_userconfig", "/nonexistent/user"), ("npm_config_globalconfig", "/nonexistent/global")];
        let environment = nothing.map(|(name, path)| (name.to_owned(), path.to_owned()));
        NpmSide { arguments, environment: environment.into() }
    }
}

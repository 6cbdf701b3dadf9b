//! The flags of commands that work on what a service is configured with, rather than through it.

use std::path::PathBuf;

use crate::config::{Config, Error, parse_override};

#[derive(Debug, clap::Args)]
pub struct Configured {
    /// PostgreSQL, postgres://… (safer as the variable CHATFN_DATABASE_URL) [default: SQLite in the data directory]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The service's data directory [default: as configured]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The service's configuration file [default: chatfn.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting of the configuration; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl Configured {
    /// # Errors
    /// Names the wrong flag, key, value or file.
    pub fn load(&self) -> Result<Config, Error> {
        let mut overrides = self.overrides.iter().map(|text| parse_override(text)).collect::<Result<Vec<_>, _>>()?;
        overrides.extend(self.database_url.iter().map(|url| ("database_url".to_owned(), url.clone())));
        overrides.extend(self.data_dir.iter().map(|dir| ("data_dir".to_owned(), dir.display().to_string())));
        Config::load(self.config.as_deref(), &overrides)
    }
}

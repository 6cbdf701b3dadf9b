//! What a service finds and prepares on its machine before anything runs: Node and npm, the data directory, the shim's files.
//!
//! All of it happens before the sandbox's broker starts, which is told where these things are and shows nothing else to tenants' code.

mod account;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::umask;
use rust_embed::RustEmbed;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::config::Config;
use crate::model::{Mode, Report};
use crate::sandbox::{self, Network, Profile, Sandbox, Settings, Spec};
use account::Account;

const NODE_MAJOR_MIN: u32 = 20;
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_MEMORY_BYTES: u64 = 256 << 20;

/// What runs inside workers, carried in this program.
#[derive(RustEmbed)]
#[folder = "node-shim"]
#[include = "*.js"]
#[include = "*.mjs"]
#[exclude = "test/*"]
struct Shim;

/// What a service stands on.
pub struct Host {
    pub node: PathBuf,
    /// `npm-cli.js`.
    pub npm: PathBuf,
    /// Absolute.
    pub data: PathBuf,
    /// Held as long as the service runs.
    pub lock: Flock<File>,
    /// Where the service looks for configuration of other programs.
    pub home: Option<PathBuf>,
    /// Whom it becomes.
    account: Option<Account>,
}

impl Host {
    /// As root with `user` set, the data directory is that user's afterwards, with all that was made in it.
    ///
    /// # Errors
    /// Says what is missing, and what to do.
    pub fn prepare(config: &Config) -> anyhow::Result<Self> {
        // What this process makes workers must be able to read, who are other users; the data directory keeps everybody else out.
        umask(nix::sys::stat::Mode::S_IWGRP | nix::sys::stat::Mode::S_IWOTH);
        let account = config.user.as_deref().map(Account::find).transpose()?.flatten();
        let (node, npm) = find_tools(config)?;
        let data = prepare_data_directory(&config.data_dir, account.as_ref())?;
        let fill = || {
            let lock = lock(&data)?;
            write_shim(&data)?;
            let root = root_directory(&data);
            std::fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
            Ok(lock)
        };
        let lock = match &account {
            Some(account) => account.act(fill)?,
            None => fill()?,
        };
        let home = match &account {
            Some(account) => account.home.clone(),
            None => std::env::var_os("HOME").map(PathBuf::from),
        };
        Ok(Self { node, npm, data, lock, home, account })
    }

    pub fn sandbox_settings(&self, config: &Config) -> Settings {
        Settings {
            node: self.node.clone(),
            root: root_directory(&self.data),
            sources: vec![self.data.clone(), self.npm.ancestors().nth(2).unwrap_or(&self.npm).to_owned()],
            mode: config.isolation_mode(),
            name: format!("chatfn-{}", &blake3::hash(self.data.as_os_str().as_encoded_bytes()).to_hex()[..8]),
            service_pid: std::process::id(),
            service: self.account.as_ref().map(|account| account.identity.clone()),
        }
    }
}

/// Where the children's root is mounted, in the broker's namespace.
fn root_directory(data: &Path) -> PathBuf {
    data.join("sandbox")
}

pub fn shim_directory(data: &Path) -> PathBuf {
    data.join("shim")
}

/// Whether what confines children here is what the operator asks for, and keeps apps apart.
///
/// # Errors
/// Names each missing layer with the kernel's reason and what to change.
pub fn check_isolation(config: &Config, report: &Report) -> anyhow::Result<()> {
    let missing = config.isolation.require.iter().filter(|name| !report.is_active(**name));
    let reasons: Vec<String> = missing
        .map(|name| {
            let proof =
                report.layers.iter().find(|layer| layer.name == *name).map_or("not tried", |layer| &layer.proof);
            format!("{name} is not active ({proof}): {}", name.advice())
        })
        .collect();
    if !reasons.is_empty() {
        bail!("isolation.require: {}", reasons.join("; "));
    }
    if !report.separates_tenants() && !config.isolation.single_tenant && report.mode != Mode::None {
        bail!(
            "nothing keeps workers of different apps from each other here: neither users nor namespaces of their own, nor Landlock with \
             scopes (ABI 6, Linux 6.12; this kernel has ABI {}). Change that (`chatfn doctor` says how), or set \
             isolation.single_tenant=true and serve one app",
            report.landlock_abi
        );
    }
    Ok(())
}

/// Node and npm's npm-cli.js.
///
/// # Errors
/// Says which is missing, and how to install or name it.
pub fn find_tools(config: &Config) -> anyhow::Result<(PathBuf, PathBuf)> {
    let find = |configured: &Option<PathBuf>, name: &str, install: &str| match configured {
        Some(path) if path.exists() => Ok(path.clone()),
        Some(path) => bail!("{name}: there is no {}", path.display()),
        None => which::which(name)
            .with_context(|| format!("{name} is not on PATH: {install}, or set `{name}` in the configuration")),
    };
    let node = find(
        &config.node,
        "node",
        "install Node.js 20 or newer (https://nodejs.org; Debian 13: apt-get install nodejs)",
    )?;
    let npm = find(&config.npm, "npm", "install npm (Debian: apt-get install npm)")?;
    // `npm` is a link to npm-cli.js; run with our Node it needs no shell and no other PATH.
    let cli = npm.canonicalize().with_context(|| format!("resolve {}", npm.display()))?;
    if cli.extension().is_none_or(|extension| extension != "js") {
        bail!("npm: {} is not npm-cli.js; set `npm` to the npm-cli.js of your installation", cli.display());
    }
    let node = node.canonicalize().unwrap_or(node);
    if is_script(&node) {
        bail!(
            "node: {} is a script, as version managers have them, and no program that could be a worker; set `node` to what this prints: \
             node -p process.execPath",
            node.display()
        );
    }
    Ok((node, cli))
}

/// One that may be run and not read is none.
fn is_script(program: &Path) -> bool {
    let mut begin = [0; 2];
    let read = File::open(program).and_then(|mut file| file.read(&mut begin));
    read.is_ok() && begin == *b"#!"
}

fn prepare_data_directory(path: &Path, account: Option<&Account>) -> anyhow::Result<PathBuf> {
    let failed = || format!("make the data directory {}", path.display());
    if !path.exists() {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(failed)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(path).with_context(failed)?;
    }
    let path = path.canonicalize().with_context(failed)?;
    if let Some(account) = account {
        hand_over(&path, account)?;
    }
    Ok(path)
}

/// An empty one is given to the account. One with something in it must be the account's already: it may be another service's, or not
/// be what was meant at all.
fn hand_over(data: &Path, account: &Account) -> anyhow::Result<()> {
    let (user, group) = (account.identity.user, account.identity.group);
    let inside = std::fs::read_dir(data).with_context(|| format!("read {}", data.display()))?.flatten();
    let inside: Vec<PathBuf> = inside.map(|entry| entry.path()).filter(|path| !path.ends_with("lost+found")).collect();
    if inside.is_empty() {
        let permissions = std::fs::Permissions::from_mode(0o700);
        return chown(data, Some(user), Some(group))
            .and_then(|()| std::fs::set_permissions(data, permissions))
            .with_context(|| format!("give {} to user {}", data.display(), account.name()));
    }
    for path in std::iter::once(data).chain(inside.iter().map(PathBuf::as_path)) {
        let owner = std::fs::symlink_metadata(path).with_context(|| format!("read {}", path.display()))?.uid();
        if owner != user {
            bail!(
                "{} belongs to uid {owner}, and the service is to run as {} (uid {user}): use another data_dir or, if it is this service's, \
                 give it all of it: chown -R {user}:{group} {}",
                path.display(),
                account.name(),
                data.display()
            );
        }
    }
    Ok(())
}

/// Two services on one directory would take each other's claims and files.
///
/// # Errors
/// Another one has it.
pub fn lock(data: &Path) -> anyhow::Result<Flock<File>> {
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, err)| {
        anyhow::anyhow!("{} is in use by another chatfn ({err}): stop it, or use another data_dir", data.display())
    })
}

/// Written at each start: what runs in the workers is what this program was built with.
fn write_shim(data: &Path) -> anyhow::Result<()> {
    let directory = shim_directory(data);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("replace {}", directory.display()))?;
    }
    std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    for name in Shim::iter() {
        let file = Shim::get(&name).context("an embedded file is there")?;
        let path = directory.join(name.as_ref());
        std::fs::write(&path, &file.data).with_context(|| format!("write {}", path.display()))?;
    }
    // CommonJS, whatever package.json stands above the data directory.
    std::fs::write(directory.join("package.json"), "{\"type\":\"commonjs\"}\n").context("write the shim's package.json")
}

/// `node --version`, through the sandbox: proves at once that workers can be started at all.
///
/// # Errors
/// Node does not run in its sandbox, or is too old.
pub async fn check_node(sandbox: &Sandbox) -> anyhow::Result<String> {
    let spec = Spec {
        profile: Profile::Worker,
        args: vec!["--version".to_owned()],
        environment: Default::default(),
        mounts: Vec::new(),
        directory: PathBuf::from("/"),
        scratch: None,
        limits: sandbox::Limits {
            memory_bytes: CHECK_MEMORY_BYTES,
            data_bytes: CHECK_MEMORY_BYTES,
            cpu_millis: 0,
            pids: 64,
            tmp_bytes: 1 << 20,
            open_files: 256,
            file_bytes: 1 << 20,
            cpu_time: Some(CHECK_TIMEOUT),
        },
        network: Network::Nothing,
        protocol: false,
    };
    let mut child = sandbox.spawn(spec).await?;
    let mut pipes = child.take_pipes().context("the child has no pipes")?;
    let (mut text, mut problem) = (String::new(), String::new());
    let read = async {
        pipes.stdout.read_to_string(&mut text).await?;
        pipes.stderr.read_to_string(&mut problem).await
    };
    timeout(CHECK_TIMEOUT, read).await.context("`node --version` did not end")?.context("read `node --version`")?;
    let version = text.trim().to_owned();
    let major =
        version.strip_prefix('v').and_then(|rest| rest.split('.').next()).and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= NODE_MAJOR_MIN => Ok(version),
        Some(_) => bail!("node is {version}: Node.js {NODE_MAJOR_MIN} or newer is needed"),
        None => bail!("Node does not run in its sandbox: {:?}, {text:?} {problem:?}", child.wait().await.status),
    }
}

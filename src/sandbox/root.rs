//! The root directory that every child gets: Node with its libraries, certificates, a few devices, and empty mount points.
//!
//! It is a read-only tmpfs that the broker makes once, in a mount namespace of its own. A child's namespace starts as a copy of the
//! broker's, so all that is left to do for each child is what differs: its directories, `/tmp` and `/proc` ([`Root::enter`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;

use super::mounts::{self, Forbid};
use super::settings::Identity;
use super::spec::{Mount, Profile};

/// Where Node stands in every root: not below `/usr`, which some see as the host has it.
pub(super) const NODE: &str = "/node/bin/node";
/// What glibc loads by name when it looks up a host, where it has not built it in (before 2.34).
const LOADED_BY_NAME: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];
const CERTIFICATES: [&str; 3] = ["/etc/ssl", "/etc/pki", "/usr/share/ca-certificates"];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// What npm finds: a shell for scripts, and what their first lines name.
const SCRIPT_PROGRAMS: [&str; 2] = ["/bin/sh", "/usr/bin/env"];
/// What a worker finds that may start programs.
const HOST_PROGRAMS: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
const PT_INTERP: u64 = 3;
const TMP_FILES_MAX: u64 = 4096;
/// npm unpacks into its project directory, not here.
const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost\n";

/// A staged root; lives as long as the broker's mount namespace.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
}

impl Root {
    /// Mounts and fills it at `path`, an existing directory. The caller is in a private mount namespace.
    ///
    /// # Errors
    /// A mount was refused, or Node's libraries cannot be found.
    pub(super) fn stage(path: &Path, node: &Path, resolver: &str) -> io::Result<Self> {
        mounts::mount_tmpfs(path, MsFlags::empty(), "mode=755,size=16m")?;
        let root = Self { path: path.to_owned() };
        for directory in ["proc", "tmp", "dev", "etc", "usr/bin", "bin"] {
            fs::create_dir_all(path.join(directory))?;
        }
        for target in Mount::TARGETS {
            fs::create_dir_all(root.inside(Path::new(target)))?;
        }
        root.bind_file(node, Path::new(NODE), Forbid::WRITING)?;
        let mut libraries = libraries(node)?;
        for program in SCRIPT_PROGRAMS.map(Path::new) {
            // Covered for npm alone: an empty file for everybody else.
            fs::write(root.inside(program), "")?;
            libraries.extend(self::libraries(program).unwrap_or_default());
        }
        for library in &libraries {
            root.bind_file(library, library, Forbid::WRITING)?;
        }
        for directory in CERTIFICATES.map(Path::new).into_iter().filter(|directory| directory.is_dir()) {
            fs::create_dir_all(root.inside(directory))?;
            mounts::bind(directory, &root.inside(directory), Forbid::WRITING)?;
        }
        root.make_devices()?;
        root.write_configuration(resolver)?;
        mounts::seal(path)?;
        Ok(root)
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn bind_file(&self, source: &Path, target: &Path, forbid: Forbid) -> io::Result<()> {
        let target = self.inside(target);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, "")?;
        mounts::bind(&source.canonicalize()?, &target, forbid)
    }

    fn make_devices(&self) -> io::Result<()> {
        for device in DEVICES {
            let path = Path::new("/dev").join(device);
            self.bind_file(&path, &path, Forbid::DEVICE)?;
        }
        for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            symlink(format!("/proc/self/fd{target}"), self.path.join("dev").join(name))?;
        }
        Ok(())
    }

    fn write_configuration(&self, resolver: &str) -> io::Result<()> {
        let etc = self.path.join("etc");
        fs::write(etc.join("hosts"), HOSTS)?;
        fs::write(etc.join("resolv.conf"), format!("nameserver {resolver}\noptions timeout:2 attempts:2\n"))?;
        fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n")?;
        fs::write(etc.join("passwd"), "root:x:0:0:root:/:/bin/false\n")?;
        fs::write(etc.join("group"), "root:x:0:\n")
    }

    /// In the child, in a mount namespace of its own: adds what is its own, and makes it `/`.
    ///
    /// The order matters: mounts are found by paths of the old root, which are gone after the change.
    pub(super) fn enter(
        &self,
        profile: Profile,
        own: &[Mount],
        tmp_bytes: u64,
        owner: Option<&Identity>,
    ) -> io::Result<()> {
        match profile {
            Profile::Worker => {}
            Profile::Install => {
                for program in SCRIPT_PROGRAMS.map(Path::new) {
                    mounts::bind(&program.canonicalize()?, &self.inside(program), Forbid::WRITING)?;
                }
            }
            Profile::WorkerWithSubprocesses => self.show_host_programs()?,
        }
        for mount in own {
            let forbid = if mount.writable { Forbid::NOTHING } else { Forbid::WRITING };
            mounts::attach(&mounts::detached_exactly(&mount.source, forbid)?, &self.inside(&mount.target))?;
        }
        let owner = owner.map(|owner| format!(",uid={},gid={}", owner.user, owner.group)).unwrap_or_default();
        // Only npm's scripts may need to run what they wrote; memory for machine code is not the file system's business.
        let flags = if profile == Profile::Worker { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
        let options = format!("size={tmp_bytes},nr_inodes={TMP_FILES_MAX},mode=700{owner}");
        mounts::mount_tmpfs(&self.path.join("tmp"), flags, &options)?;
        mounts::mount_proc(&self.path.join("proc"))?;
        mounts::change_root(&self.path)
    }

    /// The host's programs, over ours: `/usr` has the libraries too.
    fn show_host_programs(&self) -> io::Result<()> {
        for path in HOST_PROGRAMS.map(Path::new) {
            let target = self.inside(path);
            // A link such as `/bin -> usr/bin` cannot be made any more: the root is sealed. What it leads to can be mounted.
            if target.is_dir() && path.is_dir() {
                mounts::bind(&path.canonicalize()?, &target, Forbid::WRITING)?;
            }
        }
        Ok(())
    }
}

/// The program that the kernel starts in a program's stead, and which loads it: PT_INTERP of its ELF header (elf(5)).
pub(super) fn interpreter(program: &Path) -> Option<PathBuf> {
    let file = fs::File::open(program).ok()?;
    let number = |bytes: &[u8], at: usize, length: usize| {
        let bytes = bytes.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let header = read(0, 64)?;
    // 64 bits, little endian: what we are built for.
    if header.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(&header, 32, 8)?, number(&header, 54, 2)?, number(&header, 56, 2)?);
    for index in 0..count {
        let entry = read(table + index * size, 56)?;
        if number(&entry, 0, 4)? == PT_INTERP {
            let text = read(number(&entry, 8, 8)?, usize::try_from(number(&entry, 32, 8)?).ok()?.min(4096))?;
            return Some(PathBuf::from(String::from_utf8(text).ok()?.trim_end_matches('\0')));
        }
    }
    None
}

/// The shared libraries of a program, its loader included, as its loader finds them (ld.so(8), `LD_TRACE_LOADED_OBJECTS`).
fn libraries(program: &Path) -> io::Result<BTreeSet<PathBuf>> {
    #[expect(clippy::disallowed_methods, reason = "the sandbox is where processes start")]
    let output = Command::new(program)
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found: BTreeSet<PathBuf> =
        text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    found.retain(|path| path.is_file());
    let beside: Vec<PathBuf> = found.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect();
    let by_name = |directory: &PathBuf| LOADED_BY_NAME.map(|name| directory.join(name));
    found.extend(beside.iter().flat_map(by_name).filter(|path| path.is_file()));
    Ok(found)
}

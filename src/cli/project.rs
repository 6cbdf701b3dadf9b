//! A project's directory as a publish request takes it, and the sample events beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;

use crate::proto;

/// Far above what a service takes by default: it has the word. This one is against a slip such as `chatfn publish ~`.
const FILES_MAX: usize = 5_000;
const BYTES_MAX: u64 = 64 << 20;
/// Of all sample events together.
const EVENTS_MAX: usize = 1_000;
const EVENT_BYTES_MAX: u64 = 16 << 20;
/// Below the project's directory, links counted: deeper is a loop of mounts, or no project.
const DEPTH_MAX: usize = 32;

/// At the top of a project, beside its sources.
const NOT_SOURCES: [&str; 2] = ["events", "README.md"];

/// Reads the project's files; nothing else of the answer is set.
///
/// Left out: `node_modules`, whatever is hidden (`.git`, `.env`, `.npmrc`, `.chatfn`), `events/` and `README.md`.
///
/// # Errors
/// The directory cannot be read, holds too much, or holds something that cannot be published: a link out of the project, a name that is
/// not UTF-8, what is no file.
pub fn read(directory: &Path) -> anyhow::Result<proto::VersionSpec> {
    let root = directory.canonicalize().with_context(|| format!("read {}", directory.display()))?;
    if !root.is_dir() {
        bail!("{} is no directory: name the one that holds functions/", directory.display());
    }
    let mut reading = Reading { root, files: BTreeMap::new(), bytes_left: BYTES_MAX };
    reading.directory(Path::new(""), DEPTH_MAX).with_context(|| format!("read {}", directory.display()))?;
    Ok(proto::VersionSpec { files: reading.files, ..proto::VersionSpec::default() })
}

/// The events in `events/*.json`, by the names of their files: trigger types, as `chatfn init` writes them. None without the directory.
///
/// # Errors
/// One cannot be read, or there are too many.
pub fn sample_events(project: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let directory = project.join("events");
    let mut events = BTreeMap::new();
    let entries = match fs::read_dir(&directory) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(events),
        entries => entries.with_context(|| format!("read {}", directory.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| path.extension().is_some_and(|extension| extension == "json")) else {
            continue;
        };
        if events.len() == EVENTS_MAX {
            bail!("{} holds more than {EVENTS_MAX} events", directory.display());
        }
        let read = || String::from_utf8(contents(&path, EVENT_BYTES_MAX)?).context("it is not UTF-8");
        events.insert(name.to_owned(), read().with_context(|| format!("read {}", path.display()))?);
    }
    Ok(events)
}

struct Reading {
    /// Without links.
    root: PathBuf,
    files: BTreeMap<String, Bytes>,
    bytes_left: u64,
}

impl Reading {
    fn directory(&mut self, relative: &Path, depth_left: usize) -> anyhow::Result<()> {
        if depth_left == 0 {
            bail!("{} lies more than {DEPTH_MAX} directories deep", relative.display());
        }
        for entry in fs::read_dir(self.root.join(relative)).with_context(|| format!("{}", relative.display()))? {
            let entry = entry?;
            let relative = relative.join(entry.file_name());
            if is_left_out(&relative) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.directory(&relative, depth_left - 1)?;
            } else if kind.is_symlink() {
                self.link(&relative)?;
            } else {
                self.file(&relative, &self.root.join(&relative))?;
            }
        }
        Ok(())
    }

    /// A link is what it points at, as long as that is a file of the project's own. What is left out stays out by any name.
    fn link(&mut self, relative: &Path) -> anyhow::Result<()> {
        let name = relative.display();
        let target = self.root.join(relative).canonicalize().with_context(|| format!("{name} links to nothing"))?;
        let Ok(inside) = target.strip_prefix(&self.root) else {
            bail!("{name} links out of the project: copy into it what is to be published");
        };
        if target.is_dir() {
            bail!("{name} links to a directory, which is not followed: copy into the project what is to be published");
        }
        if is_left_out(inside) {
            bail!("{name} links to {}, which is never published", inside.display());
        }
        self.file(relative, &target)
    }

    fn file(&mut self, relative: &Path, path: &Path) -> anyhow::Result<()> {
        let Some(name) = relative.to_str() else { bail!("the name {relative:?} is not UTF-8: rename the file") };
        if self.files.len() == FILES_MAX {
            bail!("there are more than {FILES_MAX} files: is this the directory of a project?");
        }
        let content = contents(path, self.bytes_left).with_context(|| format!("{}", relative.display()))?;
        self.bytes_left -= content.len() as u64;
        self.files.insert(name.to_owned(), content.into());
        Ok(())
    }
}

fn is_left_out(relative: &Path) -> bool {
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".") || name == "node_modules";
    relative.iter().any(hidden) || relative.iter().next().is_some_and(|first| NOT_SOURCES.iter().any(|no| first == *no))
}

/// Never waits, as a pipe would make it.
fn contents(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        bail!("it is no file");
    }
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        bail!(
            "with it the files are larger than {} MiB together: is this the directory of a project?",
            BYTES_MAX >> 20
        );
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn project(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("temp dir");
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, file).expect("write");
        }
        directory
    }

    fn names(directory: &Path) -> Result<Vec<String>, String> {
        read(directory).map(|spec| spec.files.into_keys().collect()).map_err(|err| format!("{err:#}"))
    }

    #[test]
    fn sources_are_taken_and_what_lies_beside_them_is_not() {
        let sources = ["functions/A.ts", "init.ts", "lib/README.md", "lib/events/x.json", "package.json"];
        let others = [
            "README.md",
            "events/A.json",
            "node_modules/a/i.js",
            "lib/node_modules/a/i.js",
            ".git/config",
            ".env",
            "lib/.env.local",
            ".npmrc",
            ".chatfn/cache",
        ];
        let directory = project(&[&sources[..], &others].concat());
        assert_eq!(names(directory.path()), Ok(sources.map(str::to_owned).to_vec()));
        assert_eq!(read(directory.path()).expect("reads").files["functions/A.ts"], "functions/A.ts");
    }

    #[test]
    fn links_reach_files_of_the_project_alone() {
        let directory = project(&["a.ts", ".env", "lib/x.ts"]);
        let link = |target: &Path| {
            let link = directory.path().join("link.ts");
            let _ = fs::remove_file(&link);
            symlink(target, &link).expect("link");
            names(directory.path())
        };
        assert_eq!(link(Path::new("a.ts")).map(|names| names.len()), Ok(3));
        for (target, problem) in [
            ("/etc/hostname", "link.ts links out of the project"),
            ("/", "link.ts links out of the project"),
            (".env", "link.ts links to .env, which is never published"),
            ("lib", "link.ts links to a directory"),
            (".", "link.ts links to a directory"),
            ("gone", "link.ts links to nothing"),
            ("link.ts", "link.ts links to nothing"),
        ] {
            let refused = link(Path::new(target)).expect_err(target);
            assert!(refused.contains(problem), "{target}: {refused}");
        }
    }

    #[test]
    fn what_cannot_be_published_is_named() {
        let directory = project(&["a.ts"]);
        fs::write(directory.path().join(std::ffi::OsStr::from_bytes(b"b\xff.ts")), "").expect("write");
        let refused = names(directory.path()).expect_err("a name");
        assert!(refused.contains(r#"the name "b\xFF.ts" is not UTF-8"#), "{refused}");
        assert!(names(&directory.path().join("a.ts")).expect_err("a file").contains("is no directory"));
        assert!(names(&directory.path().join("gone")).expect_err("nothing").contains("No such file"));
        let directory = project(&["a.ts"]);
        nix::unistd::mkfifo(&directory.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("fifo");
        assert!(names(directory.path()).expect_err("a pipe").ends_with("pipe: it is no file"));
    }

    #[test]
    fn both_limits_hold() {
        let directory = project(&["a.ts"]);
        let large = File::create(directory.path().join("large.bin")).expect("create");
        large.set_len(BYTES_MAX - 4).expect("grow");
        assert_eq!(names(directory.path()).map(|names| names.len()), Ok(2));
        large.set_len(BYTES_MAX - 3).expect("grow");
        assert!(names(directory.path()).expect_err("too large").contains("larger than 64 MiB"));
        large.set_len(0).expect("shrink");
        for file in 2..FILES_MAX {
            File::create(directory.path().join(file.to_string())).expect("create");
        }
        assert_eq!(names(directory.path()).map(|names| names.len()), Ok(FILES_MAX));
        File::create(directory.path().join("one more")).expect("create");
        assert!(names(directory.path()).expect_err("too many").contains("more than 5000 files"));
        let deep = "d/".repeat(DEPTH_MAX);
        assert!(names(project(&[&format!("{deep}x")]).path()).expect_err("too deep").contains("directories deep"));
    }

    #[test]
    fn samples_are_the_json_files() {
        let directory = project(&["events/A.json", "events/notes.md", "a.ts"]);
        let events = sample_events(directory.path()).expect("reads");
        assert_eq!(events, BTreeMap::from([("A".to_owned(), "events/A.json".to_owned())]));
        assert!(sample_events(&directory.path().join("gone")).expect("none").is_empty());
    }
}

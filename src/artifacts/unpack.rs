//! A packed directory, laid out again. Its hash was right when this is called; all the same nothing in it is believed: it may lead
//! nowhere but below the target, and be no larger than was said of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use crate::model::Blob;

/// What set-uid, set-gid and sticky are.
const SPECIAL_BITS: u32 = 0o7000;
/// Of one path.
const DEPTH_MAX: usize = 256;
/// What each entry may cost in the archive beside its content: its header, its padding, and the headers of a long name and link.
const ENTRY_BYTES_MAX: u64 = 16 << 10;

/// Lays out `packed` in an empty directory. Blocking. On an error something may be there already: remove it.
///
/// # Errors
/// The archive holds what it must not, or more than `blob` says, or cannot be read or written.
pub(super) fn unpack(packed: &Path, target: &Path, blob: &Blob) -> io::Result<()> {
    let archive_bytes_max = blob.unpacked_bytes + (blob.entries + 1) * ENTRY_BYTES_MAX;
    let decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(256 << 10, File::open(packed)?))?;
    let mut unpacker = Unpacker {
        target,
        bytes_left: blob.unpacked_bytes,
        entries_left: blob.entries,
        directories: BTreeSet::new(),
        modes: Vec::new(),
        links: Vec::new(),
    };
    let mut archive = Archive::new(AtMost { inner: decoder, left: archive_bytes_max });
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        unpacker.add(&mut entry).map_err(|err| io::Error::new(err.kind(), format!("{name:?}: {err}")))?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    target: &'a Path,
    bytes_left: u64,
    entries_left: u64,
    directories: BTreeSet<PathBuf>,
    modes: Vec<(PathBuf, u32)>,
    links: Vec<(PathBuf, PathBuf)>,
}

impl Unpacker<'_> {
    fn add(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        self.entries_left =
            self.entries_left.checked_sub(1).ok_or_else(|| refused("more entries than it should have"))?;
        let name = inside(&entry.path_bytes())?;
        // Each directory comes before what is in it, as packed; so nothing is written through a link, or made on the way.
        let parent = name.parent().unwrap_or(Path::new(""));
        if !parent.as_os_str().is_empty() && !self.directories.contains(parent) {
            return Err(refused("it is in no directory that came before it"));
        }
        let mode = entry.header().mode()?;
        if mode & SPECIAL_BITS != 0 {
            return Err(refused("it is set-uid, set-gid or sticky"));
        }
        let path = self.target.join(&name);
        match entry.header().entry_type() {
            EntryType::Directory => {
                DirBuilder::new().mode(0o700).create(&path)?;
                // Whoever evicts it has to be able to.
                self.modes.push((path, mode | 0o700));
                self.directories.insert(name);
            }
            EntryType::Regular => self.write(entry, &path, mode)?,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().filter(|target| !target.is_empty() && !target.contains(&0));
                let target = target.ok_or_else(|| refused("a link to nothing"))?;
                self.links.push((path, PathBuf::from(OsString::from_vec(target.into_owned()))));
            }
            EntryType::Link => return Err(refused("a hard link")),
            _ => return Err(refused("neither a file, a directory nor a link")),
        }
        Ok(())
    }

    fn write(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path, mode: u32) -> io::Result<()> {
        let size = entry.header().entry_size()?;
        self.bytes_left = self.bytes_left.checked_sub(size).ok_or_else(|| refused("more bytes than it should have"))?;
        // `create_new` follows no link and takes no other file's place.
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        if io::copy(&mut entry.take(size), &mut file)? != size {
            return Err(refused("it ends too early"));
        }
        file.set_permissions(Permissions::from_mode(mode))
    }

    /// Links come last: until then none is there that a path could lead through.
    fn finish(self) -> io::Result<()> {
        if self.bytes_left > 0 || self.entries_left > 0 {
            return Err(refused("the archive holds less than it should"));
        }
        for (path, target) in self.links {
            symlink(target, path)?;
        }
        for (path, mode) in self.modes {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// A path below the target.
fn inside(name: &[u8]) -> io::Result<PathBuf> {
    if name.contains(&0) {
        return Err(refused("a NUL in its path"));
    }
    let path = PathBuf::from(OsString::from_vec(name.to_vec()));
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::RootDir | Component::Prefix(_) => return Err(refused("an absolute path")),
            Component::ParentDir => return Err(refused("a path with `..`")),
            Component::CurDir => {}
        }
    }
    match inside.components().count() {
        0 => Err(refused("no path")),
        depth if depth > DEPTH_MAX => Err(refused("a path too deep")),
        _ => Ok(inside),
    }
}

fn refused(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// An error, where more would come.
struct AtMost<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for AtMost<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| refused("the archive is larger than it should be"))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    /// Path, type, mode, content, target of a link.
    type Item<'a> = (&'a str, EntryType, u32, &'a [u8], &'a str);

    const GENEROUS: Blob = Blob { hash: String::new(), size_bytes: 0, unpacked_bytes: 1 << 20, entries: 100 };

    fn archive(items: &[Item<'_>]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let encoder = zstd::Encoder::new(file.reopen().expect("open"), 1).expect("encoder");
        let mut tar = Builder::new(encoder);
        for (path, kind, mode, content, target) in items {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            // Past the library's own checks of what is written.
            let name = &mut header.as_gnu_mut().expect("gnu").name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            let link = &mut header.as_gnu_mut().expect("gnu").linkname;
            link[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            tar.append(&header, *content).expect("append");
        }
        tar.into_inner().expect("tar").finish().expect("zstd");
        file
    }

    fn file<'a>(path: &'a str, content: &'a [u8]) -> Item<'a> {
        (path, EntryType::Regular, 0o644, content, "")
    }

    fn refusal(items: &[Item<'_>]) -> String {
        let target = tempfile::tempdir().expect("temp dir");
        let below = target.path().join("a/b");
        fs::create_dir_all(&below).expect("make");
        let err = unpack(archive(items).path(), &below, &GENEROUS).expect_err("refused").to_string();
        let outside: Vec<_> = fs::read_dir(target.path().join("a")).expect("read").collect();
        assert_eq!(outside.len(), 1, "{items:?} wrote outside");
        err
    }

    fn exactly(items: &[Item<'_>], unpacked_bytes: u64, entries: u64) -> io::Result<()> {
        let target = tempfile::tempdir().expect("temp dir");
        unpack(archive(items).path(), target.path(), &Blob { unpacked_bytes, entries, ..GENEROUS })
    }

    #[test]
    fn every_kind_of_hostile_entry_is_refused() {
        let directory = ("d", EntryType::Directory, 0o755, &b""[..], "");
        assert!(refusal(&[file("/etc/x", b"1")]).contains("absolute"));
        assert!(refusal(&[file("../x", b"1")]).contains("`..`"));
        assert!(refusal(&[directory, file("d/../../x", b"1")]).contains("`..`"));
        assert!(refusal(&[file(".", b"1")]).contains("no path"));
        for (kind, told) in [
            (EntryType::Char, "neither"),
            (EntryType::Block, "neither"),
            (EntryType::Fifo, "neither"),
            (EntryType::Continuous, "neither"),
            (EntryType::Link, "hard link"),
        ] {
            assert!(refusal(&[("x", kind, 0o644, b"", "/etc/passwd")]).contains(told), "{kind:?}");
        }
        for mode in [0o4755, 0o2755, 0o1755] {
            assert!(refusal(&[("x", EntryType::Regular, mode, b"1", "")]).contains("set-uid"), "{mode:o}");
            assert!(refusal(&[("x", EntryType::Directory, mode, b"", "")]).contains("set-uid"), "{mode:o}");
        }
        assert!(refusal(&[("x", EntryType::Symlink, 0o777, b"", "")]).contains("link to nothing"));
    }

    #[test]
    fn nothing_is_written_through_a_link_or_over_another_file() {
        let outside = tempfile::tempdir().expect("temp dir");
        let link = ("l", EntryType::Symlink, 0o777, &b""[..], outside.path().to_str().expect("UTF-8"));
        assert!(refusal(&[link, file("l/x", b"1")]).contains("no directory"));
        assert!(refusal(&[file("l", b"1"), file("l", b"2")]).contains("exists"));
        let directory = ("l", EntryType::Directory, 0o755, &b""[..], "");
        assert!(
            exactly(&[directory, link, file("l/x", b"1")], 1, 3).expect_err("twice").to_string().contains("exists")
        );
        assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 0);
    }

    #[test]
    fn an_archive_holds_what_was_said_and_not_more_or_less() {
        let items = [file("a", b"12"), file("b", b"345")];
        exactly(&items, 5, 2).expect("exact");
        assert!(exactly(&items, 4, 2).expect_err("bytes").to_string().contains("more bytes"));
        assert!(exactly(&items, 5, 1).expect_err("entries").to_string().contains("more entries"));
        assert!(exactly(&items, 6, 2).expect_err("bytes").to_string().contains("less"));
        assert!(exactly(&items, 5, 3).expect_err("entries").to_string().contains("less"));
        // Of what comes as no entry, as the text of a long name.
        let name = vec![b'x'; 64 << 10];
        let long = ("././@LongLink", EntryType::GNULongName, 0o644, name.as_slice(), "");
        let err = exactly(&[long, file("a", b"1")], 1, 1).expect_err("a bomb").to_string();
        assert!(err.contains("larger"), "{err}");
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let target = tempfile::tempdir().expect("temp dir");
        let file = tempfile::NamedTempFile::new().expect("temp file");
        fs::write(file.path(), "not zstd").expect("write");
        assert!(unpack(file.path(), target.path(), &GENEROUS).is_err());
    }
}

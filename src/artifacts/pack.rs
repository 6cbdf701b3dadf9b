//! A directory as one file: tar in a fixed order, without times and owners, compressed with zstd. The same files give the same bytes,
//! so equal layers of many apps are one object.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::Error;
use crate::model::Blob;

/// zstd's own default: a layer of 60 MB takes a third of a second, and what more would save is little.
const LEVEL: i32 = 3;
/// Of the right to read, write and execute, by owner, group and others; nothing else is kept.
const MODE: u32 = 0o777;

/// Packs all that is below `root`, but for what `left_out` names at its top, into an empty file. Blocking.
///
/// # Errors
/// Something cannot be read or written, or is neither a file, a directory nor a link.
pub(super) fn pack(root: &Path, left_out: &[&str], into: &Path) -> Result<Blob, Error> {
    let file = File::create(into).map_err(Error::at("write", into))?;
    let written = Error::at("pack into", into);
    let hashed = Hashed { inner: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new(), bytes: 0 };
    let encoder = match zstd::Encoder::new(hashed, LEVEL) {
        Ok(encoder) => encoder,
        Err(err) => return Err(written(err)),
    };
    let mut packer = Packer { tar: Builder::new(encoder), unpacked_bytes: 0, entries: 0 };
    packer.add_tree(root, left_out)?;
    let finish = |tar: Builder<zstd::Encoder<'_, Hashed>>| {
        let mut hashed = tar.into_inner()?.finish()?;
        hashed.inner.flush()?;
        Ok(hashed)
    };
    let Packer { tar, unpacked_bytes, entries } = packer;
    let Hashed { hasher, bytes, .. } = finish(tar).map_err(written)?;
    Ok(Blob { hash: hasher.finalize().to_hex().to_string(), size_bytes: bytes, unpacked_bytes, entries })
}

struct Packer<W: Write> {
    tar: Builder<W>,
    unpacked_bytes: u64,
    entries: u64,
}

impl<W: Write> Packer<W> {
    fn add_tree(&mut self, root: &Path, left_out: &[&str]) -> Result<(), Error> {
        let mut pending = children(root)?;
        pending.retain(|path| !left_out.iter().any(|name| path.file_name().is_some_and(|of| of == *name)));
        while let Some(path) = pending.pop() {
            let name = path.strip_prefix(root).unwrap_or(&path);
            if self.add(&path, name).map_err(Error::at("pack", &path))? {
                pending.extend(children(&path)?);
            }
        }
        Ok(())
    }

    /// Whether it is a directory.
    fn add(&mut self, path: &Path, name: &Path) -> io::Result<bool> {
        let metadata = fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        self.entries += 1;
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(MODE);
            self.tar.append_link(&mut header, name, fs::read_link(path)?)?;
        } else if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(metadata.permissions().mode() & MODE);
            self.tar.append_data(&mut header, name, io::empty())?;
        } else if kind.is_file() {
            // What was looked at is what is read: no link took its place.
            let file = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
            let size = file.metadata()?.len();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(metadata.permissions().mode() & MODE);
            header.set_size(size);
            self.unpacked_bytes += size;
            self.tar.append_data(&mut header, name, Exactly { inner: file, left: size })?;
        } else {
            return Err(io::Error::other("neither a file, a directory nor a link (did an install script leave it?)"));
        }
        Ok(kind.is_dir())
    }
}

/// Last first, as they are taken from the end.
fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>());
    let mut paths = listed.map_err(Error::at("read", directory))?;
    paths.sort_by(|one, other| other.cmp(one));
    Ok(paths)
}

/// A file that does not change while it is packed: its header has told its size.
struct Exactly {
    inner: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::other("it became shorter meanwhile"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Counts and hashes what passes.
struct Hashed {
    inner: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir_all, set_permissions, write};
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::time::{Duration, SystemTime};

    use super::super::unpack::unpack;
    use super::*;

    /// As npm leaves it. `order`: in which the files are made.
    fn tree(order: &[usize], made_at: SystemTime) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temp dir");
        let long = format!("node_modules/{}/{}", "d".repeat(120), "f".repeat(120));
        let files = [
            ("layer.json", "{}"),
            ("node_modules/ms/index.js", "1"),
            (long.as_str(), "long"),
            ("node_modules/b/cli.js", "#!"),
        ];
        for at in order {
            let (name, content) = files[*at];
            let path = root.path().join(name);
            create_dir_all(path.parent().expect("a parent")).expect("make");
            write(&path, content).expect("write");
            File::open(&path).and_then(|file| file.set_modified(made_at)).expect("time");
        }
        let bin = root.path().join("node_modules/.bin");
        create_dir_all(&bin).expect("make");
        symlink("../b/cli.js", bin.join("b")).expect("link");
        set_permissions(root.path().join("node_modules/b/cli.js"), Permissions::from_mode(0o4755)).expect("mode");
        set_permissions(root.path().join("node_modules/ms/index.js"), Permissions::from_mode(0o640)).expect("mode");
        root
    }

    fn packed(root: &Path) -> (tempfile::NamedTempFile, Blob) {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let blob = pack(root, &[], file.path()).expect("packs");
        (file, blob)
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let now = SystemTime::now();
        let (file, blob) = packed(tree(&[0, 1, 2, 3], now).path());
        assert_eq!(blob, packed(tree(&[3, 2, 1, 0], now - Duration::from_secs(1000)).path()).1);
        let bytes = fs::read(file.path()).expect("read");
        assert_eq!(
            (bytes.len() as u64, blake3::hash(&bytes).to_hex().to_string()),
            (blob.size_bytes, blob.hash.clone())
        );
        assert_eq!((blob.unpacked_bytes, blob.entries), (2 + 1 + 4 + 2, 4 + 5 + 1));
        let other = tree(&[0, 1, 2, 3], now);
        set_permissions(other.path().join("layer.json"), Permissions::from_mode(0o755)).expect("mode");
        assert_ne!(packed(other.path()).1.hash, blob.hash, "a mode is content");
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let root = tree(&[0, 1, 2, 3], SystemTime::now());
        let (file, blob) = packed(root.path());
        let target = tempfile::tempdir().expect("temp dir");
        unpack(file.path(), target.path(), &blob).expect("unpacks");
        assert_eq!(packed(target.path()).1, Blob { ..blob.clone() });
        let bin = target.path().join("node_modules/.bin/b");
        assert_eq!(fs::read_link(&bin).expect("a link"), Path::new("../b/cli.js"));
        let mode = |name: &str| fs::metadata(target.path().join(name)).expect("there").mode() & 0o7777;
        assert_eq!(
            (mode("node_modules/b/cli.js"), mode("node_modules/ms/index.js")),
            (0o755, 0o640),
            "set-uid is not kept"
        );
    }

    #[test]
    fn what_is_left_out_or_no_file_is_not_packed() {
        let root = tree(&[0, 1, 2, 3], SystemTime::now());
        let file = tempfile::NamedTempFile::new().expect("temp file");
        assert_eq!(pack(root.path(), &["node_modules"], file.path()).expect("packs").entries, 1);
        nix::unistd::mkfifo(&root.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a fifo");
        let err = pack(root.path(), &[], file.path()).expect_err("a fifo").to_string();
        assert!(err.contains("fifo") && err.contains("install script"), "{err}");
    }
}

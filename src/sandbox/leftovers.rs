//! What a child leaves behind in directories that it could write.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Of a directory's owner: to list it, and to remove what is in it.
const OWNER: u32 = 0o700;

/// Makes everything below `directory` removable, and visible to whoever measures it, for a service that is not root: a child of the
/// same user can take the rights to a directory away, and so hide what is in it or keep it from being removed for ever.
///
/// Blocking; after the child's end, as it could undo this.
///
/// # Errors
/// A directory cannot be read or changed: it belongs to somebody else.
pub fn open_up(directory: &Path) -> io::Result<()> {
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let mode = fs::symlink_metadata(&next)?.permissions().mode();
        if mode & OWNER != OWNER {
            fs::set_permissions(&next, Permissions::from_mode(mode | OWNER))?;
        }
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            // Of the entry itself: a link to a directory is none.
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Uid, seteuid};

    use super::super::testing::{exited, in_child};
    use super::*;

    #[test]
    fn what_a_child_closed_can_be_removed_and_links_are_left_alone() {
        let directory = tempfile::tempdir().expect("temp dir");
        let (outside, inside) = (directory.path().join("outside"), directory.path().join("inside"));
        let closed = inside.join("a/closed");
        fs::create_dir_all(&closed).expect("make");
        fs::create_dir(&outside).expect("make");
        fs::write(closed.join("file"), "x").expect("write");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("link");
        let user = 65432;
        for path in [directory.path(), &inside, &inside.join("a"), &closed, &outside] {
            let _ = std::os::unix::fs::chown(path, Some(user), None); // Who is not root has them already.
        }
        for path in [&closed, &inside.join("a"), &outside] {
            fs::set_permissions(path, Permissions::from_mode(0o000)).expect("chmod");
        }
        // Root could remove it anyway.
        let status = in_child(|| {
            let _ = seteuid(Uid::from_raw(user));
            let refused = fs::remove_dir_all(&inside).is_err();
            let removed = open_up(&inside).and_then(|()| fs::remove_dir_all(&inside));
            i32::from(!refused) + 2 * i32::from(removed.is_err())
        });
        assert_eq!(exited(status), 0);
        assert_eq!(fs::metadata(&outside).expect("it is there").permissions().mode() & 0o777, 0);
    }
}

//! Checks of a mount point before anything is started.

use crate::cli::exit::{Exit, Failure, Outcome};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How a mount of ours begins to call its source in the mount table; the bucket follows.
pub(super) const SOURCE_PREFIX: &str = "hf-mount:";

fn refuse(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::MountPoint, format!("mount point {}: {why}", path.display()))
}

/// The folder that a start has made, if it has made one. It is removed on drop unless it is kept: a script that
/// goes on after a failed start
/// would write plaintext into it.
#[must_use]
pub(super) struct Made(Option<PathBuf>);

impl Made {
    /// Leaves the folder there: the mount is live.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // It fails where something is mounted there or lies in it: then it must stay.
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Returns the absolute path of an empty folder that nothing is mounted on. A missing last component is made
/// (0700), a missing parent is an error.
pub(super) fn prepare(path: &Path) -> Outcome<(PathBuf, Made)> {
    let (path, made) = prepare_any(path)?;
    let mut entries = std::fs::read_dir(&path).map_err(|e| refuse(&path, e))?;
    if entries.next().is_some() {
        return Err(refuse(&path, "the folder is not empty")
            .hint("with --overlay its files become a local layer over the remote"));
    }
    Ok((path, made))
}

/// Does the same for a folder that becomes the local layer of an overlay: it may have files, and it must be writable.
pub(super) fn prepare_layer(path: &Path) -> Outcome<(PathBuf, Made)> {
    use rustix::fs::{Access, access};
    let (path, made) = prepare_any(path)?;
    if covering(&mount_table(), &path).is_some_and(|source| source.starts_with(SOURCE_PREFIX.as_bytes())) {
        return Err(refuse(&path, "the folder is in another mount of hf-mount")
            .hint("an overlay needs a folder on a disk of this machine"));
    }
    access(&path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| refuse(&path, format_args!("the folder can't be the local layer: {errno}")))?;
    Ok((path, made))
}

fn prepare_any(path: &Path) -> Outcome<(PathBuf, Made)> {
    let mut made = Made(None);
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => made.0 = Some(std::path::absolute(path).map_err(|e| refuse(path, e))?),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(refuse(path, "its parent folder is missing").hint("make the parent first"));
        }
        Err(e) => return Err(refuse(path, e)),
    }
    let path = absolute(path)?;
    if is_mounted(&path) {
        return Err(refuse(&path, "something is mounted there already")
            .hint("`hf-mount status` lists the mounts; `hf-mount stop` ends one"));
    }
    if !path.metadata().map_err(|e| refuse(&path, e))?.is_dir() {
        return Err(refuse(&path, "it is not a directory"));
    }
    Ok((path, made))
}

/// The path as the mount table has it. Resolves the parent only: a dead mount can't be looked into.
pub(super) fn absolute(path: &Path) -> Outcome<PathBuf> {
    let full = std::path::absolute(path).map_err(|e| refuse(path, e))?;
    let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else { return Ok(full) };
    match parent.canonicalize() {
        Ok(parent) => {
            let joined = parent.join(name);
            // A link to a folder: what is mounted on is the folder.
            match std::fs::read_link(&joined) {
                Ok(_) => joined.canonicalize().map_err(|e| refuse(path, e)),
                Err(_) => Ok(joined),
            }
        }
        Err(e) => Err(refuse(path, e)),
    }
}

/// Whether a file system is mounted exactly there.
pub(super) fn is_mounted(path: &Path) -> bool {
    source(&mount_table(), path).is_some()
}

/// Whether what is mounted exactly there is ours, and its daemon is gone.
pub(super) fn is_dead_of_ours(path: &Path) -> bool {
    let ours = source(&mount_table(), path).is_some_and(|source| source.starts_with(SOURCE_PREFIX.as_bytes()));
    ours && std::fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotConnected)
}

// Bytes: a mount point needn't be UTF-8, and one that isn't must not hide the others.
fn mount_table() -> Vec<u8> {
    std::fs::read("/proc/self/mountinfo").unwrap_or_default()
}

/// The source, as it calls itself, of what was mounted last exactly there.
fn source(table: &[u8], path: &Path) -> Option<Vec<u8>> {
    let lines = table.split(|b| *b == b'\n').map(|line| line.split(|b| *b == b' '));
    let mut there = lines.filter(|fields| {
        let point = fields.clone().nth(4).map(unescape);
        point.is_some_and(|point| path.as_os_str().as_encoded_bytes() == point)
    });
    // A dash ends the optional fields; the type and the source follow.
    let source = |mut fields: std::slice::Split<'_, u8, _>| {
        fields.find(|field| *field == b"-")?;
        fields.nth(1).map(unescape)
    };
    there.next_back().map(|fields| source(fields).unwrap_or_default())
}

/// Returns the source of the mount that a path lies on: of those at the longest path, the last one.
fn covering(table: &[u8], path: &Path) -> Option<Vec<u8>> {
    let ancestors = path.ancestors();
    ancestors.into_iter().find_map(|ancestor| source(table, ancestor))
}

/// The mount table writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match digits {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_is_made_private_and_a_missing_parent_is_refused() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, made) = prepare(&dir.path().join("mnt")).unwrap();
        made.keep();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        let failure = prepare(&dir.path().join("no/mnt")).err().unwrap();
        assert_eq!(failure.exit, Exit::MountPoint);
    }

    #[test]
    fn folder_of_failed_start_is_removed_if_the_start_made_it_and_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (path, made) = prepare(&dir.path().join("mnt")).unwrap();
        assert!(path.is_dir());
        drop(made);
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        drop(prepare(&path).unwrap());
        assert!(path.is_dir(), "it was there before");
        std::fs::remove_dir(&path).unwrap();
        let (path, made) = prepare(&path).unwrap();
        std::fs::write(path.join("file"), b"x").unwrap();
        drop(made);
        assert!(path.join("file").exists());
    }

    #[test]
    fn full_folder_may_be_local_layer_and_file_may_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        assert!(prepare_layer(dir.path()).is_ok());
        assert_eq!(prepare_layer(&dir.path().join("file")).err().unwrap().exit, Exit::MountPoint);
        assert_eq!(prepare_layer(&dir.path().join("no/mnt")).err().unwrap().exit, Exit::MountPoint);
        assert_eq!(prepare_layer(Path::new("/proc/self")).err().unwrap().exit, Exit::MountPoint);
    }

    #[test]
    fn a_file_or_a_full_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        assert_eq!(prepare(dir.path()).err().unwrap().exit, Exit::MountPoint);
        assert_eq!(prepare(&dir.path().join("file")).err().unwrap().exit, Exit::MountPoint);
    }

    #[test]
    fn the_mount_table_tells_who_is_mounted_last_at_a_place() {
        let table = b"22 1 0:21 / /a rw shared:1 master:2 - tmpfs tmpfs rw\n\
            23 1 0:22 / /mnt\\040x rw - ext4 /dev/sda rw\n\
            24 1 0:23 / /mnt\\040x rw,nosuid - fuse hf-mount:me/my\\040data rw\n";
        let source = |path| source(table, Path::new(path));
        assert_eq!(source("/mnt x").unwrap(), b"hf-mount:me/my data");
        assert_eq!(source("/a").unwrap(), b"tmpfs");
        assert_eq!(source("/mnt"), None);
        assert_eq!(covering(table, Path::new("/mnt x/a/b")).unwrap(), b"hf-mount:me/my data");
        assert_eq!(covering(table, Path::new("/mnt")), None);
    }

    #[test]
    fn the_root_is_a_mount_and_octal_escapes_are_read() {
        assert!(is_mounted(Path::new("/")));
        assert!(!is_dead_of_ours(Path::new("/")), "neither");
        assert_eq!(unescape(b"/a\\040b\\134c\xff"), b"/a b\\c\xff");
    }
}

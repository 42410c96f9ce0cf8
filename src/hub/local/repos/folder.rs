//! Reads the names in a folder that is to be imported, and refuses it if one of them can't be in a repository.
//!
//! All names are read before any content, so that a folder with a mistake leaves nothing behind. Folders named `.git`
//! are left out, as Git does, and so are empty folders. Symbolic links to files of the folder count as these files.

use crate::hub::{InvalidKey, check_key};
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longest path in bytes: the longest that operating systems take.
const LONGEST: usize = 4096;
/// Name of a folder or file that is left out.
const GIT: &str = ".git";

/// Reason why a folder can't be imported. Paths are below the folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It isn't there, or it is a file.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// It holds the directory of the embedded Hub, with its keys, or is in it.
    #[error("{} and the directory of the embedded Hub are one inside the other", .0.display())]
    HoldsHub(PathBuf),
    /// It can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A name isn't UTF-8.
    #[error("the name {0:?} is not UTF-8")]
    NotUtf8(PathBuf),
    /// A name that the Hub doesn't take.
    #[error("the name {path:?} cannot be in a repository: {reason}")]
    Name {
        /// The path.
        path: String,
        /// The reason.
        reason: InvalidKey,
    },
    /// A path is too long.
    #[error("the path {0:?} is longer than {LONGEST} bytes")]
    TooLong(String),
    /// A symbolic link leads out of the folder, or nowhere.
    #[error("the symbolic link {0:?} leads out of the folder, or to nothing")]
    Leaves(String),
    /// A symbolic link leads to a folder.
    #[error("the symbolic link {0:?} leads to a folder; only links to files can be imported")]
    FolderLink(String),
    /// Neither a file nor a folder.
    #[error("{0:?} is neither a file nor a folder")]
    Special(String),
}

/// A file of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Path below the folder, with slashes.
    pub(super) path: String,
    /// Place of the file.
    pub(super) source: PathBuf,
    /// Bytes. The file may change until it is read.
    pub(super) size: u64,
    pub(super) executable: bool,
}

/// Returns all files of a folder. `hub` is the directory of the embedded Hub. Blocks.
pub(super) fn scan(folder: &Path, hub: &Path) -> Result<Vec<Found>, FolderError> {
    let root = folder.canonicalize().map_err(|_| FolderError::NotAFolder(folder.to_owned()))?;
    if !root.is_dir() {
        return Err(FolderError::NotAFolder(folder.to_owned()));
    }
    if hub.starts_with(&root) || root.starts_with(hub) {
        return Err(FolderError::HoldsHub(folder.to_owned()));
    }
    let (mut found, mut open) = (Vec::new(), vec![String::new()]);
    while let Some(path) = open.pop() {
        let read = |source| FolderError::Read { path: folder.join(&path), source };
        for entry in fs::read_dir(root.join(&path)).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.file_name() == GIT {
                continue;
            }
            let below = join(&path, &entry)?;
            let metadata = entry.metadata().map_err(read)?;
            if metadata.is_dir() {
                open.push(below);
            } else {
                found.push(look_at(&root, below, entry.path(), metadata)?);
            }
        }
    }
    Ok(found)
}

/// Returns the path of an entry of the folder at `path`.
fn join(path: &str, entry: &DirEntry) -> Result<String, FolderError> {
    let name = entry.file_name();
    let name = name.to_str().ok_or_else(|| FolderError::NotUtf8(Path::new(path).join(&name)))?;
    let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    match check_key(name) {
        Err(reason) => Err(FolderError::Name { path: below, reason }),
        Ok(()) if below.len() > LONGEST => Err(FolderError::TooLong(below)),
        Ok(()) => Ok(below),
    }
}

/// Returns the file at `path`, or the one to which a link at `path` leads.
fn look_at(root: &Path, path: String, mut source: PathBuf, mut metadata: Metadata) -> Result<Found, FolderError> {
    if metadata.is_symlink() {
        source = match source.canonicalize() {
            Ok(target) if target.starts_with(root) => target,
            _ => return Err(FolderError::Leaves(path)),
        };
        metadata = source.metadata().map_err(|error| FolderError::Read { path: source.clone(), source: error })?;
        if metadata.is_dir() {
            return Err(FolderError::FolderLink(path));
        }
    }
    if !metadata.is_file() {
        return Err(FolderError::Special(path));
    }
    Ok(Found { path, source, size: metadata.len(), executable: metadata.mode() & 0o100 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn paths(folder: &Path) -> Vec<String> {
        let mut paths: Vec<String> =
            scan(folder, Path::new("/hub")).unwrap().into_iter().map(|found| found.path).collect();
        paths.sort();
        paths
    }

    #[test]
    fn scan_finds_all_files_except_those_of_git() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["a/b", ".git", "a/.git", "empty"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in ["x", ".hidden", "a/b/ü #?%", ".git/HEAD", "a/.git/HEAD", ".gitattributes"] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        symlink("../x", dir.path().join("a/link")).unwrap();
        fs::set_permissions(dir.path().join("x"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(paths(dir.path()), [".gitattributes", ".hidden", "a/b/ü #?%", "a/link", "x"]);
        for found in scan(dir.path(), Path::new("/hub")).unwrap() {
            let is_x = ["x", "a/link"].contains(&found.path.as_str());
            assert_eq!(found.executable, is_x, "{}", found.path);
            assert_eq!(found.size, fs::read(&found.source).unwrap().len() as u64);
        }
    }

    #[test]
    fn scan_refuses_folder_that_holds_the_hub_or_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("hub/xorbs")).unwrap();
        fs::create_dir(root.join("hub2")).unwrap();
        for folder in ["", "hub", "hub/xorbs"] {
            let refused = scan(&root.join(folder), &root.join("hub"));
            assert!(matches!(refused, Err(FolderError::HoldsHub(_))), "{folder}");
        }
        assert!(scan(&root.join("hub2"), &root.join("hub")).is_ok());
    }

    #[test]
    fn scan_refuses_names_and_links_that_no_repository_can_hold() {
        let refused = |make: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            make(&dir.path().join("sub"));
            scan(dir.path(), Path::new("/hub")).unwrap_err().to_string()
        };
        let write = |path: PathBuf| fs::write(path, b"").unwrap();
        assert!(refused(&|sub| write(sub.join(OsStr::from_bytes(b"\xff")))).contains("UTF-8"));
        assert!(refused(&|sub| write(sub.join("a\\b"))).contains("backslash"));
        assert!(refused(&|sub| write(sub.join("dots.."))).contains("two dots"));
        for target in ["/etc/passwd", "../../outside", "nothing"] {
            let message = refused(&|sub| symlink(target, sub.join("link")).unwrap());
            assert!(message.contains("\"sub/link\" leads out"), "{message}");
        }
        assert!(refused(&|sub| symlink("../sub", sub.join("link")).unwrap()).contains("leads to a folder"));
        let socket = |sub: &Path| drop(std::os::unix::net::UnixListener::bind(sub.join("s")).unwrap());
        assert!(refused(&socket).contains("neither a file nor a folder"));
        assert!(matches!(scan(Path::new("/nowhere/at/all"), Path::new("/hub")), Err(FolderError::NotAFolder(_))));
    }
}

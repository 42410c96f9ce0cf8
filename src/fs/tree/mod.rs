//! The inode table, and the remote listings that fill it.

pub(crate) mod evict;
pub(crate) mod freshness;
pub(crate) mod inode;
pub(crate) mod listing;
pub(crate) mod queued;
pub(crate) mod twins;
pub(crate) mod xattr;

use crate::fs::errno::Error;
use crate::fs::ids::Ino;
use crate::fs::journal::ledger::{Entry, Ledger};
use inode::Tree;

/// Returns the entry that keeps a directory when `leaving`, its last child, leaves it. The remote has a directory
/// only while something is in it. On this machine, a directory stays until it is removed.
pub(crate) fn keep_directory(
    ledger: &Ledger,
    tree: &Tree,
    directory: Ino,
    leaving: &str,
) -> Result<Option<Entry>, Error> {
    let path = tree.path(directory)?;
    let empties = tree.directory(directory)?.children.keys().all(|name| name == leaving);
    Ok((empties && !path.is_root() && !ledger.has_directory(&path)).then_some(Entry::Directory { path }))
}

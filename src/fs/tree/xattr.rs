//! Extended attributes: two that tell how a file is stored, and those that users set, which are kept in memory.
//!
//! Only `user.*`: what other namespaces mean (capabilities, access lists, labels) this filesystem doesn't do, so it doesn't pretend to keep it.
//! Ours are not listed: a copying tool would carry them to a place where they are wrong, or fail to set them.

use crate::fs::errno::Error;
use crate::fs::gate::WriteGate;
use crate::fs::ids::Ino;
use crate::fs::lock::lock;
use crate::fs::tree::inode::InodeTable;
use crate::fs::tree::inode::{File, Tree};
use crate::store::Side;
use crate::store::View;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// 0 or 1: whether the entry is stored encrypted.
const ENCRYPTED: &str = "user.hf.encrypted";
/// The Xet hash of the stored object, while the source has the file's content.
const HASH: &str = "user.hf.hash";
/// What ours begin with.
const OURS: &str = "user.hf.";
/// The one namespace that is kept.
const USER: &str = "user.";
/// Bytes of names and values of one inode (64 KiB, the kernel's own limit for a list and for a value).
const INODE_BYTES: usize = 64 << 10;
/// Bytes of all of them together (64 MiB): they are memory, and stay until the mount ends.
const MOUNT_BYTES: usize = 64 << 20;

/// The attributes that users have set on an inode.
#[derive(Debug, Default)]
pub(crate) struct Xattrs(BTreeMap<String, Vec<u8>>);

/// What `setxattr` is to do where the attribute is there, or isn't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetXattr {
    /// Make it or replace it.
    #[default]
    Any,
    /// Fail where it is there.
    Create,
    /// Fail where it isn't.
    Replace,
}

impl Xattrs {
    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Extended attributes of inodes.
pub(crate) struct Attributes {
    pub(crate) view: Arc<dyn View>,
    pub(crate) tree: Arc<InodeTable>,
    pub(crate) gate: Arc<WriteGate>,
}

impl Attributes {
    /// The value of an extended attribute.
    pub(crate) fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Error> {
        let tree = lock(&self.tree);
        let node = tree.node(ino)?;
        if !name.starts_with(OURS) {
            return node.xattrs.0.get(name).cloned().ok_or(Error::NoAttribute);
        }
        let file = node.as_file().map_err(|_| Error::NoAttribute)?;
        match name {
            ENCRYPTED => Ok(u8::from(self.is_encrypted(file)).to_string().into_bytes()),
            HASH => {
                let stored = file.edit.as_ref().is_none_or(|edit| !edit.is_dirty());
                let version = file.version.filter(|_| stored).ok_or(Error::NoAttribute)?;
                Ok(version.hash.to_string().into_bytes())
            }
            _ => Err(Error::NoAttribute),
        }
    }

    fn is_encrypted(&self, file: &File) -> bool {
        match (&file.edit, file.version) {
            (Some(_), _) => self.view.key_id().is_some(),
            (None, Some(version)) => matches!(version.side, Side::Encrypted(_)),
            (None, None) => false,
        }
    }

    /// The names of the extended attributes that were set, each ended by NUL.
    pub(crate) fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let tree = lock(&self.tree);
        Ok(tree.node(ino)?.xattrs.0.keys().flat_map(|name| name.bytes().chain([0])).collect())
    }

    /// Sets an extended attribute.
    pub(crate) fn setxattr(&self, ino: Ino, name: &str, value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.check_settable(name)?;
        let mut tree = lock(&self.tree);
        let (all, xattrs) = (tree.xattr_bytes(), &tree.node(ino)?.xattrs);
        match (how, xattrs.0.get(name)) {
            (SetXattr::Create, Some(_)) => return Err(Error::Exists),
            (SetXattr::Replace, None) => return Err(Error::NoAttribute),
            _ => {}
        }
        let old = xattrs.0.get(name).map_or(0, |value| name.len() + value.len());
        let new = name.len() + value.len();
        if xattrs.bytes() - old + new > INODE_BYTES || all - old + new > MOUNT_BYTES {
            return Err(Error::Staging(std::io::ErrorKind::StorageFull.into()));
        }
        self.change_xattrs(&mut tree, ino, |xattrs| drop(xattrs.insert(name.to_owned(), value.to_owned())))
    }

    /// Removes an extended attribute.
    pub(crate) fn removexattr(&self, ino: Ino, name: &str) -> Result<(), Error> {
        self.check_settable(name)?;
        let mut tree = lock(&self.tree);
        if !tree.node(ino)?.xattrs.0.contains_key(name) {
            return Err(Error::NoAttribute);
        }
        self.change_xattrs(&mut tree, ino, |xattrs| drop(xattrs.remove(name)))
    }

    fn check_settable(&self, name: &str) -> Result<(), Error> {
        self.gate.check_writable()?;
        if name.starts_with(OURS) {
            return Err(Error::NotPermitted("this attribute tells how a file is stored"));
        }
        if name.starts_with(USER) { Ok(()) } else { Err(Error::NotSupported) }
    }

    fn change_xattrs(
        &self,
        tree: &mut Tree,
        ino: Ino,
        change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>),
    ) -> Result<(), Error> {
        let node = tree.node_mut(ino)?;
        if node.as_file().is_ok_and(|file| file.read_only) {
            return Err(Error::Denied("plaintext files of a mount with a key are read-only"));
        }
        let before = node.xattrs.bytes();
        change(&mut node.xattrs.0);
        let after = node.xattrs.bytes();
        node.looks.ctime = Some(SystemTime::now());
        tree.count_xattrs(before, after);
        Ok(())
    }
}

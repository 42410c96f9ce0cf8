//! Extended attributes: two of our own that describe how a file is stored, and those that users set.
//!
//! Only `user.*` is supported, and values are kept in memory. Attributes of other namespaces have a meaning
//! (capabilities, access lists, labels) that this filesystem doesn't implement, so it doesn't store them. Our own
//! attributes are not listed, because a copying tool would copy them to a file for which they are wrong, or fail to
//! set them.

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

/// 1 if the entry is stored encrypted, else 0.
const ENCRYPTED: &str = "user.hf.encrypted";
/// The Xet hash of the stored object, while the remote has the file's content.
const HASH: &str = "user.hf.hash";
/// Prefix of our own attributes.
const OURS: &str = "user.hf.";
/// Prefix of the one namespace that is supported.
const USER: &str = "user.";
/// Limit of names and values of one inode (64 KiB, the kernel's own limit for a list and for a value).
const INODE_BYTES: usize = 64 << 10;
/// Limit of all attributes of the mount (64 MiB). They stay in memory until the mount ends.
const MOUNT_BYTES: usize = 64 << 20;

/// The attributes that users have set on an inode.
#[derive(Debug, Default)]
pub(crate) struct Xattrs(BTreeMap<String, Vec<u8>>);

/// The behaviour of `setxattr`, depending on whether the attribute exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetXattr {
    /// Create or replace it.
    #[default]
    Any,
    /// Fail if it exists.
    Create,
    /// Fail if it doesn't exist.
    Replace,
}

impl Xattrs {
    /// Returns the size of all names and values, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// The extended attributes of inodes.
pub(crate) struct Attributes {
    pub(crate) view: Arc<dyn View>,
    pub(crate) tree: Arc<InodeTable>,
    pub(crate) gate: Arc<WriteGate>,
}

impl Attributes {
    /// Returns the value of an extended attribute.
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
                let hash = version.id.xet().map_err(|_| Error::NoAttribute)?;
                Ok(hash.to_string().into_bytes())
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

    /// Returns the names of the extended attributes that users have set, each terminated by NUL.
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
        node.overrides.ctime = Some(SystemTime::now());
        tree.count_xattrs(before, after);
        Ok(())
    }
}

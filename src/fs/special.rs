//! What a bucket has no place for: symbolic links, pipes, sockets and device nodes.
//!
//! They exist on this machine only, as empty directories do: in the tree, and by path in the journal (sealed there on a mount with a key), so
//! they outlive the mount and cost the source no object. Where the source has a file or directory of the same name, that is shown instead.

use crate::fs::journal::ledger::{Entry, Ledger};
use crate::fs::namespace::keep_directory;
use crate::fs::tree::inode::{Attr, Birth, FileKind, Ino, Node, Tree};
use crate::fs::{Error, Vfs, lock};

/// Longest target of a symbolic link, bytes: what the kernel takes.
const TARGET_MAX: usize = 4095;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Special {
    /// A symbolic link, with its target as it was given.
    Link(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device, with its number as the kernel packs it.
    CharDevice(u32),
    /// A block device, with its number as the kernel packs it.
    BlockDevice(u32),
}

impl Special {
    /// What `stat` calls it.
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Link(_) => FileKind::Link,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }

    /// Size as `stat` tells it: that of a link's target.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Link(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// A device's number.
    pub(crate) fn device(&self) -> u32 {
        match self {
            Self::CharDevice(number) | Self::BlockDevice(number) => *number,
            _ => 0,
        }
    }
}

impl Vfs {
    /// Makes a special file. The attributes are a reference of the kernel.
    pub async fn make_special(&self, parent: Ino, name: &str, special: Special, birth: Birth) -> Result<Attr, Error> {
        if let Special::Link(target) = &special
            && target.len() > TARGET_MAX
        {
            return Err(Error::Store(crate::store::Error::NameTooLong));
        }
        let node = Node::special(special.clone());
        self.make_here(parent, name, birth, node, |path| Entry::Special { path, special }).await
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match lock(&self.tree).node(ino)?.as_special() {
            Some(Special::Link(target)) => Ok(target.clone()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// Entries that take a special file's name away.
    pub(crate) fn forget_special(
        &self,
        ledger: &Ledger,
        tree: &Tree,
        parent: Ino,
        name: &str,
    ) -> Result<Vec<Entry>, Error> {
        let path = tree.path(parent)?.join(name)?;
        let mut entries = vec![Entry::ForgetSpecial { path }];
        entries.extend(keep_directory(ledger, tree, parent, name)?);
        Ok(entries)
    }
}

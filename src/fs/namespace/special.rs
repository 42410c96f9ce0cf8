//! Files that a bucket can't store: symbolic links, pipes, sockets and device nodes.
//!
//! They exist on this machine only, as empty directories do. They are in the tree, and by path in the journal (sealed
//! there on a mount with a key). So they outlive the mount, and no object at the remote is needed. If the remote has
//! a file or directory of the same name, that one is shown instead.

use crate::fs::errno::Error;
use crate::fs::ids::Ino;
use crate::fs::ids::Special;
use crate::fs::journal::ledger::{Entry, Ledger};
use crate::fs::lock::lock;
use crate::fs::namespace::Namespace;
use crate::fs::namespace::keep_directory;
use crate::fs::tree::inode::{Attr, NewAttrs, Node, Tree};

/// Longest target of a symbolic link, bytes. The kernel has this limit.
const TARGET_MAX: usize = 4095;

impl Namespace {
    /// Creates a special file. The attributes count as one kernel reference.
    pub(crate) async fn create_special(
        &self,
        parent: Ino,
        name: &str,
        special: Special,
        new_attrs: NewAttrs,
    ) -> Result<Attr, Error> {
        if let Special::Link(target) = &special
            && target.len() > TARGET_MAX
        {
            return Err(Error::Store(crate::store::Error::NameTooLong));
        }
        let node = Node::special(special.clone());
        self.create_local(parent, name, new_attrs, node, |path| Entry::Special { path, special }).await
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match lock(&self.tree).node(ino)?.as_special() {
            Some(Special::Link(target)) => Ok(target.clone()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// Returns the entries that remove a special file's name.
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

//! Permission checks, for a front end without a kernel that makes them.
//!
//! On a FUSE mount the kernel checks permissions by mode and owner (`default_permissions`) before it sends a request,
//! and never asks with `access`. NFS has no such kernel: its server must check each request itself. These rules give
//! the answers that Linux gives for a local file system without access control lists, so that both front ends agree.
//! A test compares them with the kernel.
//!
//! Root stands for the capabilities `CAP_DAC_OVERRIDE`, `CAP_FOWNER`, `CAP_CHOWN` and `CAP_FSETID`. Only the last 12
//! bits of a mode count.

#![cfg_attr(not(test), expect(dead_code, reason = "the NFS front end calls it"))]

use crate::fs::errno::Error;
use crate::fs::tree::inode::Attr;
use crate::fs::{FileKind, SetAttr};

/// The user on whose behalf a request is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: &'a [u32],
}

/// Kinds of access, combined with `|`.
pub(crate) const READ: u16 = 4;
/// Changing the content of a file or the entries of a directory.
pub(crate) const WRITE: u16 = 2;
/// Executing a file, or looking up a name in a directory.
pub(crate) const EXECUTE: u16 = 1;

const SETGID: u16 = 0o2000;
const STICKY: u16 = 0o1000;

const DENIED: Error = Error::Denied("the mode of the file or directory doesn't allow it");
const NOT_OWNER: Error = Error::NotPermitted("only the owner may do this");

impl Caller<'_> {
    fn is_root(&self) -> bool {
        self.uid == 0
    }

    fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }

    fn owns(&self, attr: &Attr) -> bool {
        self.is_root() || self.uid == attr.uid
    }

    /// Checks access to an inode. The first class that fits counts: the owner's bits for the owner, even if those of
    /// the group allow more. Root may do everything, except execute a file that no one may execute.
    pub(crate) fn check_access(&self, attr: &Attr, access: u16) -> Result<(), Error> {
        let class = match () {
            () if self.uid == attr.uid => attr.mode >> 6,
            () if self.is_in(attr.gid) => attr.mode >> 3,
            () => attr.mode,
        };
        let is_executable = attr.kind == FileKind::Directory || attr.mode & 0o111 != 0;
        let by_root = self.is_root() && (access & EXECUTE == 0 || is_executable);
        if access & !class & 0o7 == 0 || by_root { Ok(()) } else { Err(DENIED) }
    }

    /// Checks that an entry of `directory` may be created.
    pub(crate) fn check_create(&self, directory: &Attr) -> Result<(), Error> {
        self.check_access(directory, WRITE | EXECUTE)
    }

    /// Checks that `entry` of `directory` may be removed, renamed, or replaced by a rename. In a sticky directory, such
    /// as `/tmp`, only the owner of the entry or of the directory may.
    pub(crate) fn check_remove(&self, directory: &Attr, entry: &Attr) -> Result<(), Error> {
        self.check_access(directory, WRITE | EXECUTE)?;
        let is_free = directory.mode & STICKY == 0 || self.owns(entry) || self.owns(directory);
        if is_free { Ok(()) } else { Err(Error::NotPermitted("the directory is sticky")) }
    }

    /// Checks a rename: of `entry`, from `directory` to `target`, where it replaces `replaced`. A directory that moves
    /// to another one must be writable, because its `..` changes.
    pub(crate) fn check_rename(
        &self,
        directory: &Attr,
        entry: &Attr,
        target: &Attr,
        replaced: Option<&Attr>,
    ) -> Result<(), Error> {
        self.check_remove(directory, entry)?;
        match replaced {
            Some(replaced) => self.check_remove(target, replaced)?,
            None => self.check_create(target)?,
        }
        if entry.kind == FileKind::Directory && directory.ino != target.ino {
            self.check_access(entry, WRITE)?;
        }
        Ok(())
    }

    /// Checks a change of attributes, and returns the change to make. `times_are_now` says that the caller sets times
    /// to the present one: then write access suffices.
    ///
    /// A mode loses its set-group-ID bit if the caller isn't in the file's group.
    pub(crate) fn check_setattr(&self, attr: &Attr, set: SetAttr, times_are_now: bool) -> Result<SetAttr, Error> {
        if set.uid.is_some_and(|uid| !self.is_root() && (self.uid != attr.uid || uid != attr.uid)) {
            return Err(NOT_OWNER);
        }
        let may_give = |gid| self.is_root() || (self.uid == attr.uid && (gid == attr.gid || self.is_in(gid)));
        if set.gid.is_some_and(|gid| !may_give(gid)) {
            return Err(NOT_OWNER);
        }
        if set.mode.is_some() && !self.owns(attr) {
            return Err(NOT_OWNER);
        }
        if (set.atime.is_some() || set.mtime.is_some()) && !self.owns(attr) {
            match times_are_now {
                true => self.check_access(attr, WRITE)?,
                false => return Err(NOT_OWNER),
            }
        }
        if set.len.is_some() {
            self.check_access(attr, WRITE)?;
        }
        let group = set.gid.unwrap_or(attr.gid);
        let keeps_setgid = self.is_root() || self.is_in(group);
        let mode = set.mode.map(|mode| if keeps_setgid { mode } else { mode & !SETGID });
        Ok(SetAttr { mode, ..set })
    }
}

#[cfg(test)]
mod tests;

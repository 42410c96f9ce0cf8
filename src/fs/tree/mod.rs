//! The inode table, and the listings of the remote that fill it.

pub(crate) mod inode;
pub(crate) mod listing;
pub(crate) mod queued;
pub(crate) mod xattr;

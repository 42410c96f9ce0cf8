//! Front ends. Each decodes the requests of one protocol, calls a [`crate::fs::Filesystem`], and encodes the replies.

#[cfg(feature = "fuse")]
pub mod fuse;
mod permissions;
#[cfg(feature = "fuse")]
mod request;

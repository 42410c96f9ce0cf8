//! Front ends. Each decodes the requests of one protocol, calls [`crate::fs::Vfs`], and encodes the replies.

#[cfg(feature = "fuse")]
pub mod fuse;
mod permissions;
#[cfg(feature = "fuse")]
mod request;

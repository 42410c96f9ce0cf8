//! Front ends: each decodes the requests of one protocol, calls [`crate::fs::Vfs`], and encodes the answers.

#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(feature = "fuse")]
mod request;

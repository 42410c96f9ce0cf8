//! The Xet protocol: formats first, then a client of the CAS over a trait.
//!
//! Knows nothing of encryption, of paths or of the Hub. The formats ([`hash`], [`chunker`], [`compression`], [`xorb`],
//! [`shard`], [`merkle`], [`reconstruction`], [`byteranges`], [`plan`]) are pure: one synchronous codec each.

pub mod body;
pub mod byteranges;
pub mod cache;
pub mod cas;
pub mod chunker;
pub mod compression;
pub mod deadline;
pub mod download;
mod error;
pub mod foreign;
pub mod hash;
pub mod http;
pub mod known;
pub mod lookups;
pub mod merkle;
mod offload;
pub mod plan;
pub mod reconstruction;
pub mod shard;
pub mod upload;
pub mod xorb;

#[cfg(test)]
pub(crate) mod fault;
#[doc(hidden)]
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzz;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod testdata;
#[cfg(test)]
mod vectors;

pub use body::Body;
pub use cas::{Cas, CasToken, Scope, TokenSource};
pub use compression::Scheme;
pub use download::Downloader;
pub use error::{Error, io_error, is_transient};
pub use hash::Hash;
pub use known::Known;
pub use lookups::Lookups;
pub use upload::UploadSession;

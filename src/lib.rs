//! Hugging Face Storage Buckets as an encrypted filesystem.
//!
//! The layers, from the bottom up. Each imports only from the layers listed before it
//! (`tests/layering.rs` holds them to it), and each has its own error type.
//!
//! | layer | holds |
//! |---|---|
//! | `disk` | the few file operations that durability rests on |
//! | [`crypto`] | keys, names and containers: bytes in, bytes out, no I/O |
//! | [`xet`] | the Xet formats and a client of the Xet CAS; knows nothing of encryption or the Hub |
//! | [`hub`] | the Hub client and the embedded Hub; knows nothing of encryption |
//! | [`store`] | where they meet: a source as plaintext paths, sizes and byte ranges; the staging pool |
//! | [`fs`] | inodes, handles, journal, flush; the FUSE front end |
//! | [`cli`] | arguments, daemon, progress, exit codes |

pub mod cli;
mod disk;
pub mod fs;
#[cfg(feature = "s3")]
pub mod gateway;
pub mod hub;
pub mod store;
pub use hfcrypt_crypto as crypto;
pub use hfcrypt_xet as xet;

#[cfg(test)]
mod seeds;

//! The encrypted object format (docs/format.md): keys, names, containers.
//!
//! Bytes in, bytes out. Nothing here touches a file, a socket, a clock or an async runtime;
//! randomness comes in through [`Random`]. Two formats exist ([`Format`]); both are read, and new
//! files are format 2.

pub mod base91;
mod error;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod geometry;
pub mod header;
pub mod journal;
pub mod keyfile;
pub mod keys;
pub mod metadata;
pub mod names;
pub mod record;
mod secret;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod vectors;
mod wide;

pub use error::Error;
pub use header::{FileId, Header, Probe, probe};
pub use journal::JournalCipher;
pub use keys::{KeyId, Keys, MasterKey};
pub use metadata::MetadataCipher;
pub use names::{NameCipher, SealedPath, Sidecar, StoredName, Verdict};
pub use record::RecordCipher;

/// The format of a name and of the container under it. The two always agree (docs/format.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// Byte-compatible with the public fork; shows exact sizes.
    V1,
    /// Ours: sealed header, long names, authenticated record count.
    V2,
}

/// A source of random bytes for keys, file ids and nonces.
pub trait Random: Send {
    /// Fills `out` wholly, or fails and nothing may be sealed.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), Error>;
}

/// The operating system's generator. Stateless, so a fork or a resumed VM repeats nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), Error> {
        getrandom::fill(out).map_err(|e| Error::Random(e.to_string()))
    }
}

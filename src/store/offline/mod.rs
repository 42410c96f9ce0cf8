//! Reads and writes containers and encrypted trees as local files. `hfcrypt` uses it for a downloaded folder,
//! without a Hub.
//!
//! Synchronous. Memory: one record per container, for any size.

mod container;
pub mod tree;

pub use container::{Sealed, open_container, seal, seal_unknown_len};

#[cfg(test)]
mod tests;

//! Containers and encrypted trees as local files: what `hfcrypt` does with a downloaded folder, without a Hub.
//!
//! Synchronous. Memory: one record a container, whatever its size.

mod container;
pub mod tree;

pub use container::{Sealed, open_container, seal, seal_unknown_len};

#[cfg(test)]
mod tests;

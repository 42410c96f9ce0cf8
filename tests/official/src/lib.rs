//! Tests against the official Xet crates 1.8.0; how to run them stands in `Cargo.toml`.
//!
//! [`codec`] compares the pure codecs, where equal inputs must give equal bytes or bytes that the other side reads.
//! [`exchange`] moves files over HTTP: each client uploads to each server, and both clients read back; [`random`] does
//! so with whatever proptest comes up with.
#![cfg(test)]

mod client;
mod codec;
mod content;
mod exchange;
mod random;
mod server;
mod tap;

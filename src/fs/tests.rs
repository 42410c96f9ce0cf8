//! Tests of the filesystem without a kernel: operations on [`Vfs`] against remotes that tests can inspect and break.

mod bench;
mod blobs;
mod company;
mod confirm;
mod conflicts;
mod crash;
mod freshness;
mod model;
mod pending;
mod policy;
mod posix;
mod power;
mod prefetch;
mod room;
mod semantics;
mod stress;
mod twins;

pub(in crate::fs) use bench::shortest;
pub(in crate::fs) use bench::{Mount, options};

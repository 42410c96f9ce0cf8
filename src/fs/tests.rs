//! The filesystem without a kernel: operations on [`Vfs`] against sources that can be watched and broken.

mod bench;
mod confirm;
mod conflicts;
mod crash;
mod model;
mod pending;
mod policy;
mod posix;
mod power;
mod room;
mod semantics;
mod stress;
mod twins;

use bench::Mount;

//! The filesystem without a kernel: operations on [`Vfs`] against sources that can be watched and broken.

mod bench;
mod conflicts;
mod crash;
mod model;
mod semantics;

use bench::Mount;

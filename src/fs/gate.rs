//! Refuses changes on a mount that accepts none.

use crate::fs::errno::Error;
use std::sync::atomic::{AtomicBool, Ordering};

/// Decides if changes are accepted: not on a read-only mount, and not once the mount stops.
pub(crate) struct WriteGate {
    read_only: bool,
    stopping: AtomicBool,
}

impl WriteGate {
    /// Accepts changes, unless the mount is read-only.
    pub(crate) fn new(read_only: bool) -> Self {
        Self { read_only, stopping: AtomicBool::new(false) }
    }

    /// Refuses changes from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Fails if no change is accepted.
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::ReadOnlyMount);
        }
        if self.stopping.load(Ordering::Acquire) { Err(Error::Stopping) } else { Ok(()) }
    }
}

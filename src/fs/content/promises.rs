//! Slots that are promised to accepted changes, and that hold nothing yet.

use crate::fs::lock::{Mutex, Rank, lock};
use std::sync::Arc;

/// Number of slots that accepted changes will need and that hold nothing yet. Only the journal and the pool are
/// locked under this lock.
#[derive(Default)]
pub(crate) struct Promises(Mutex<u64, { Rank::Promises as u8 }>);

impl Promises {
    /// Promises slots if `fits` accepts the number of all promised slots, these included.
    pub(crate) fn add_if(self: &Arc<Self>, slots: u64, fits: impl FnOnce(u64) -> bool) -> Option<SpacePromise> {
        let mut promised = lock(&self.0);
        let all = promised.saturating_add(slots);
        fits(all).then(|| {
            *promised = all;
            SpacePromise { promises: self.clone(), slots }
        })
    }

    /// Promises slots without a check.
    pub(crate) fn add(self: &Arc<Self>, slots: u64) -> SpacePromise {
        *lock(&self.0) += slots;
        SpacePromise { promises: self.clone(), slots }
    }
}

/// Slots that are promised to one change, and then to the changed file. The promise ends on drop.
pub(crate) struct SpacePromise {
    promises: Arc<Promises>,
    slots: u64,
}

impl SpacePromise {
    /// Changes the promise to `slots` slots.
    pub(crate) fn resize(&mut self, slots: u64) {
        let mut promised = lock(&self.promises.0);
        *promised = *promised - self.slots + slots;
        self.slots = slots;
    }
}

impl Drop for SpacePromise {
    fn drop(&mut self) {
        *lock(&self.promises.0) -= self.slots;
    }
}

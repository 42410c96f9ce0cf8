//! What the requests of a server share and no one may keep from the others: memory for bodies, terms of long answers.
//!
//! A request takes its whole share before it starts, so that no two ever wait for one another half done. The wait ends
//! after [`WAIT`]: then the answer is 503, which a client understands better than silence.

use axum::http::HeaderValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Longest wait for a share. Below the minute after which clients take a server that doesn't read on for dead.
const WAIT: Duration = Duration::from_secs(45);
/// Seconds that a client is asked to stay away when there is no share for it, or when the database is locked.
pub(crate) const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// So many units of something. Clones share them.
#[derive(Clone)]
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    size: u32,
}

/// Part of a budget; freed when dropped.
pub(crate) type Share = OwnedSemaphorePermit;

/// No share became free within [`WAIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("embedded Hub overloaded")]
pub(crate) struct Busy;

impl Budget {
    pub(super) fn new(size: u32) -> Self {
        Self { free: Arc::new(Semaphore::new(size as usize)), size }
    }

    /// A share of `units`, or all there is where that is less. First come, first served.
    pub(super) async fn take(&self, units: usize) -> Result<Share, Busy> {
        let units = u32::try_from(units).unwrap_or(u32::MAX).clamp(1, self.size);
        let share = timeout(WAIT, Arc::clone(&self.free).acquire_many_owned(units)).await;
        share.map_err(|_| Busy)?.map_err(|_| Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn a_share_is_waited_for_but_not_for_ever() {
        let budget = Budget::new(10);
        let first = budget.take(6).await.unwrap();
        let mut second = Box::pin(budget.take(5));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let second = second.await.unwrap();
        let asked = tokio::time::Instant::now();
        assert_eq!(budget.take(1000).await.err(), Some(Busy), "all of it isn't free");
        assert!(asked.elapsed() < Duration::from_secs(60), "clients wait no longer");
        drop(second);
        assert!(budget.take(1000).await.is_ok(), "nothing is asked for that can't be had");
    }
}

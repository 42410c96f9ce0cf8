//! The deadline of the operation that a task works for.
//!
//! An operation that a user sees, such as a read, a `close` or a command, may need many requests, each with
//! retries. If each of
//! them had a time limit of its own, the operation would take the sum. So the operation sets one deadline
//! ([`within`]). Whatever
//! runs in it finds the deadline ([`current`]) without a parameter in every signature, and ends its retries by it.
//!
//! A task that is spawned has no deadline unless the spawned future is wrapped with [`inherited`]. Work that
//! several operations
//! wait for belongs to none of them: it is wrapped with [`apart`], and each waits for it with [`timely`].

use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

tokio::task_local! {
    static END: Option<Instant>;
}

/// Stands for a deadline that no clock can hold (about 30 years).
const FAR: Duration = Duration::from_secs(1 << 30);

/// Returns the deadline of the operation that this task works for.
pub fn current() -> Option<Instant> {
    END.try_with(|end| *end).ok().flatten()
}

/// Returns the instant `time` from now.
pub fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + FAR)
}

/// Runs `work` with a deadline `time` from now. An earlier deadline that is set already stays.
pub async fn within<F: Future>(time: Duration, work: F) -> F::Output {
    let end = after(time);
    let end = current().map_or(end, |set| set.min(end));
    END.scope(Some(end), work).await
}

/// Wraps work for a task of its own, so that it has the deadline of the operation that spawns it.
pub fn inherited<F: Future>(work: F) -> impl Future<Output = F::Output> {
    END.scope(current(), work)
}

/// Runs `work` without the deadline of the operation that polls it: others wait for it too.
pub async fn apart<F: Future>(work: F) -> F::Output {
    END.scope(None, work).await
}

/// Waits for `work` until the operation's deadline. `None`: it was not done by then.
pub async fn timely<F: Future>(work: F) -> Option<F::Output> {
    match current() {
        Some(end) => timeout_at(end, work).await.ok(),
        None => Some(work.await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn inner_deadline_never_exceeds_outer_one() {
        assert_eq!(current(), None);
        let began = Instant::now();
        let seconds = Duration::from_secs;
        within(seconds(5), async {
            within(seconds(9), async { assert_eq!(current(), Some(began + seconds(5))) }).await;
            within(seconds(2), async { assert_eq!(current(), Some(began + seconds(2))) }).await;
            assert!(timely(pending::<()>()).await.is_none());
        })
        .await;
        assert_eq!(began.elapsed(), seconds(5));
    }

    #[tokio::test]
    async fn spawned_work_has_the_deadline_only_if_it_is_inherited() {
        within(Duration::MAX, async {
            assert!(current().is_some());
            assert_eq!(tokio::spawn(async { current() }).await.unwrap(), None);
            assert_eq!(tokio::spawn(inherited(async { current() })).await.unwrap(), current());
            assert_eq!(apart(async { current() }).await, None);
        })
        .await;
    }

    #[tokio::test]
    async fn shared_work_is_polled_without_the_deadline_of_its_poller() {
        let shared = apart(async { current() }).boxed().shared();
        assert_eq!(within(Duration::from_secs(1), shared).await, None);
    }
}

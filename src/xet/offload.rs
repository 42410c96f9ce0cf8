//! Keeps CPU-heavy work off the async workers.

use futures::future::Either;
use std::future::{Future, pending, ready};
use std::panic::resume_unwind;
use tokio::sync::oneshot;

/// Work over at most so many bytes is done at once: hashing one chunk takes less than 0.1 ms, about what handing it
/// over is worth. A sealed file of one record is below it.
const INLINE: usize = crate::chunker::MAX_CHUNK;

/// Starts `work` now, on a blocking thread if it is over more than a few bytes, and gives its
/// result. Dropping the future doesn't stop it.
pub(crate) fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send {
    if bytes <= INLINE {
        return Either::Left(ready(work()));
    }
    let task = tokio::task::spawn_blocking(work);
    Either::Right(async {
        match task.await.map_err(|error| error.try_into_panic()) {
            Ok(value) => value,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is shutting down and won't poll this again.
            Err(Err(_)) => pending().await,
        }
    })
}

/// Runs two steps of work on one thread, which then has the bytes in its cache. Returns the result of
/// the first step as soon as it is done, and that of the second. Panics of either show in the second only, so
/// that one must not be forgotten while the first is waited for.
pub(crate) fn offload_steps<A, B, C>(
    bytes: usize,
    first: impl FnOnce() -> (A, B) + Send + 'static,
    second: impl FnOnce(B) -> C + Send + 'static,
) -> (impl Future<Output = A> + Send, impl Future<Output = C> + Send)
where
    A: Send + 'static,
    C: Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let both = offload(bytes, move || {
        let (result, rest) = first();
        // Whether anybody waits for it or not.
        let _ = tell.send(result);
        second(rest)
    });
    let first = async {
        match told.await {
            Ok(result) => result,
            // It has panicked, or the runtime is shutting down.
            Err(_) => pending().await,
        }
    };
    (first, both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::panic::AssertUnwindSafe;
    use std::sync::mpsc;

    #[tokio::test]
    async fn first_step_is_told_of_before_the_second_is_done() {
        let (go_on, told) = mpsc::channel();
        let (first, second) = offload_steps(usize::MAX, || (1, 2), move |two| two + told.recv().unwrap());
        assert_eq!(first.await, 1);
        go_on.send(40).unwrap();
        assert_eq!(second.await, 42);
    }

    #[tokio::test]
    async fn little_work_is_done_at_once() {
        let (first, second) = offload_steps(INLINE, || (1, 2), |two| two + 1);
        assert_eq!((first.now_or_never(), second.now_or_never()), (Some(1), Some(3)));
    }

    #[tokio::test]
    async fn panic_of_the_first_step_shows_in_the_second() {
        let (first, second) = offload_steps(usize::MAX, || -> ((), ()) { panic!("on purpose") }, |()| ());
        let second = AssertUnwindSafe(second).catch_unwind().await;
        assert!(second.is_err() && first.now_or_never().is_none());
    }
}

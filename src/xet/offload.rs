//! Keeps CPU-heavy work off the async workers.

use futures::future::Either;
use std::future::{Future, pending, ready};
use std::panic::resume_unwind;

/// Work over at most so many bytes is done at once: hashing them takes less than 0.1 ms, about what handing it over is worth.
const INLINE: usize = 64 * 1024;

/// Starts `work` now, on a blocking thread if it is over more than a few bytes, and gives its result. Dropping the future doesn't stop it.
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

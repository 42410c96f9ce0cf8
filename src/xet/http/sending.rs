//! Request bodies on their way: the pieces of a [`Body`] handed to the connection as they are,
//! under an exact `Content-Length`.
//!
//! Nothing is copied on this side of the socket; each piece that the connection asks for is progress.

use crate::body::Body;
use crate::chunker::MAX_CHUNK;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Most bytes handed to the connection at a time: how finely progress is seen. No chunk is split, as the connection
/// gathers a number of pieces, not of bytes, for a system call.
const PIECE: usize = MAX_CHUNK;

/// When the last byte of a request body left.
pub(super) struct Progress(Mutex<Instant>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn mark(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when nothing has been marked for `idle`.
    pub(super) async fn stalled(&self, idle: Duration) {
        loop {
            let deadline = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + idle;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// A body as reqwest sends it.
pub(super) fn sent(body: Body, progress: Arc<Progress>) -> reqwest::Body {
    if body.is_empty() {
        return Bytes::new().into();
    }
    let current = Bytes::new();
    reqwest::Body::wrap(Sending { next: 0, current, handed: 0, body, progress })
}

struct Sending {
    body: Body,
    /// Of the piece behind `current`.
    next: usize,
    current: Bytes,
    /// Bytes given to the connection.
    handed: u64,
    progress: Arc<Progress>,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        // That more is asked for means that what was given has left.
        this.progress.mark();
        this.body.note_sent(this.handed);
        if this.current.is_empty() {
            let Some(piece) = this.body.pieces().get(this.next) else { return Poll::Ready(None) };
            this.current = piece.clone();
            this.next += 1;
        }
        let data = this.current.split_to(this.current.len().min(PIECE));
        this.handed += data.len() as u64;
        if this.is_end_stream() {
            // Nobody asks again.
            this.body.note_sent(this.handed);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.handed == self.body.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.len() - self.handed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;
    use std::task::Waker;

    #[test]
    fn frames_are_the_pieces_uncopied_and_the_rest_is_always_announced() {
        let all = Bytes::from((0..200_000u32).map(|i| i as u8).collect::<Vec<_>>());
        let body: Body = [all.slice(..8), all.slice(8..60_008), all.slice(60_008..)].into_iter().collect();
        let progress = Arc::new(Progress::new());
        let mut sending = Sending { next: 0, current: Bytes::new(), handed: 0, body, progress };
        let mut context = Context::from_waker(Waker::noop());
        let mut at = 0;
        while !sending.is_end_stream() {
            assert_eq!(sending.size_hint().exact(), Some((all.len() - at) as u64));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut sending).poll_frame(&mut context) else { panic!() };
            let data = frame.into_data().unwrap();
            assert!((1..=PIECE).contains(&data.len()));
            assert_eq!(data.as_ptr(), all[at..].as_ptr());
            at += data.len();
        }
        assert_eq!(at, all.len());
        assert!(matches!(Pin::new(&mut sending).poll_frame(&mut context), Poll::Ready(None)));
    }
}

//! A connection whose peer must take what it is sent.
//!
//! A client that asks and then doesn't read would else hold its connection, and whatever its answer holds, for as long
//! as it likes. Reading has deadlines of its own: the server's for heads, and those of `body`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a peer may take nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection.
pub(super) struct Wire<T> {
    io: T,
    /// Runs while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<T> Wire<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, deadline: None }
    }

    /// The outcome of a write, or an error where it has waited for too long.
    fn watch<R>(&mut self, outcome: Poll<io::Result<R>>, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.deadline = None;
            return outcome;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(context, bytes);
        self.watch(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.watch(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(context);
        self.watch(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(context);
        self.watch(outcome, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (io, mut peer) = duplex(10);
        let mut wire = Wire::new(io);
        let sending = tokio::spawn(async move {
            wire.write_all(&[1; 50]).await.unwrap();
            let start = Instant::now();
            (wire.write_all(&[2; 50]).await.unwrap_err().kind(), start.elapsed())
        });
        let mut taken = [0; 10];
        for _ in 0..5 {
            tokio::time::sleep(PATIENCE * 9 / 10).await;
            peer.read_exact(&mut taken).await.unwrap();
            assert_eq!(taken, [1; 10]);
        }
        let (error, waited) = tokio::time::timeout(2 * PATIENCE, sending).await.unwrap().unwrap();
        assert_eq!((error, waited >= PATIENCE), (io::ErrorKind::TimedOut, true));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_between_writes_is_no_stall() {
        let (io, mut peer) = duplex(10);
        let mut wire = Wire::new(io);
        for _ in 0..3 {
            wire.write_all(b"x").await.unwrap();
            tokio::time::sleep(3 * PATIENCE).await;
            assert_eq!(peer.read_u8().await.unwrap(), b'x');
        }
    }
}

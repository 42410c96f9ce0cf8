//! Request bodies: received whole or block by block, within a memory budget and a deadline, or read away.
//!
//! A body that makes no progress is given up, and so is one that comes in drops: from the second minute on it must have
//! come at [`LEAST_RATE`] on the average. So nobody holds a share of the budget for long. Lengths are bytes.

use super::budget::{Budget, Busy, Share};
use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest time without progress of a body, and longest time that a body may take, whatever its length. Not above the
/// timeout of clients, so that they see an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes per second below which a client is as good as gone: a xorb of 64 MiB may take half an
/// hour, one of several sent side by side over a slow line.
const LEAST_RATE: u64 = 32 * 1024;
/// Unit of a budget for bodies.
const KIB: usize = 1024;

/// A budget of so many MiB.
pub(super) fn budget(mib: u32) -> Budget {
    Budget::new(mib * KIB as u32)
}

/// Why a body was not received.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// Longer than it may be, or than it said.
    #[error("too large: more than {0} bytes")]
    TooLarge(usize),
    /// It stalled, or came too slowly.
    #[error("the request body stalled")]
    TooSlow,
    /// Its connection or its framing broke.
    #[error("the request body broke off")]
    Broken,
    /// No memory for it.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// A whole body, and its share of the budget.
pub(super) struct Received {
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    _share: Share,
}

/// A body as it comes in.
pub(super) struct Incoming {
    frames: Frames,
    declared: Option<u64>,
    budget: Budget,
    /// What is left of a frame.
    left: Bytes,
}

/// A body that has its share of the budget.
pub(super) struct Admitted {
    /// Bytes that it may still have.
    left: usize,
    /// What it says, or may be.
    most: usize,
}

impl Incoming {
    /// That of the request with these headers.
    pub(super) fn new(headers: &HeaderMap, body: Body, budget: &Budget) -> Self {
        let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { frames: Frames::new(body), declared, budget: budget.clone(), left: Bytes::new() }
    }

    /// The whole body, of at most `limit` bytes, whose use takes `copies` times its length.
    pub(super) async fn read(&mut self, limit: usize, copies: usize) -> Result<Received, Refused> {
        let (mut admitted, share) = self.admit(limit, |most| most.saturating_mul(copies)).await?;
        // What it may have is within the budget, and pages are only taken as they are written.
        let mut bytes = Vec::with_capacity(if self.declared.is_some() { admitted.most } else { 0 });
        while let Some(frame) = self.next(&mut admitted).await? {
            bytes.extend_from_slice(&frame);
        }
        Ok(Received { bytes, _share: share })
    }

    /// Waits for a share of the budget for a body of at most `limit` bytes; `memory`: the bytes
    /// that its use takes, by its length.
    pub(super) async fn admit(
        &mut self,
        limit: usize,
        memory: impl FnOnce(usize) -> usize,
    ) -> Result<(Admitted, Share), Refused> {
        let most = match self.declared {
            Some(declared) => usize::try_from(declared).ok().filter(|&most| most <= limit),
            None => Some(limit),
        };
        let most = most.ok_or(Refused::TooLarge(limit))?;
        let share = self.budget.take(memory(most).div_ceil(KIB)).await?;
        Ok((Admitted { left: most, most }, share))
    }

    /// Fills `room` with the bytes that come next, and gives their number: less than fit only at the end.
    pub(super) async fn fill(&mut self, admitted: &mut Admitted, room: &mut [u8]) -> Result<usize, Refused> {
        let mut filled = 0;
        while filled < room.len() {
            if self.left.is_empty() {
                let Some(frame) = self.next(admitted).await? else { break };
                self.left = frame;
            }
            let piece = self.left.split_to(self.left.len().min(room.len() - filled));
            room[filled..filled + piece.len()].copy_from_slice(&piece);
            filled += piece.len();
        }
        Ok(filled)
    }

    /// The next frame; an error where the body is longer than it may be.
    async fn next(&mut self, admitted: &mut Admitted) -> Result<Option<Bytes>, Refused> {
        let frame = self.frames.next().await?;
        let len = frame.as_ref().map_or(0, Bytes::len);
        admitted.left = admitted.left.checked_sub(len).ok_or(Refused::TooLarge(admitted.most))?;
        Ok(frame)
    }

    /// [`drain`] for what was not read.
    pub(super) async fn drain(self, limit: usize) {
        if self.declared.is_none_or(|declared| declared <= 2 * limit as u64) {
            self.frames.drain(limit).await;
        }
    }
}

/// Reads and drops a body that won't be used: a client that is still sending when the connection
/// closes sees a broken connection instead of the answer. Gives up behind `limit` bytes, and on a
/// body that [`Incoming::read`] would give up.
pub(super) async fn drain(body: Body, limit: usize) {
    Frames::new(body).drain(limit).await;
}

/// The frames of a body, with their deadlines.
struct Frames {
    stream: BodyDataStream,
    /// When the first one was asked for.
    started: Option<Instant>,
    received: u64,
    /// Nothing good will come any more.
    given_up: bool,
}

impl Frames {
    fn new(body: Body) -> Self {
        Self { stream: body.into_data_stream(), started: None, received: 0, given_up: false }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let now = Instant::now();
        let earned = Duration::from_secs(self.received / LEAST_RATE);
        let end = (now + PATIENCE).min(*self.started.get_or_insert(now) + PATIENCE + earned);
        let frame = match timeout_at(end, self.stream.next()).await {
            Ok(frame) => frame.transpose().map_err(|_| Refused::Broken),
            Err(_) => Err(Refused::TooSlow),
        };
        self.given_up |= frame.is_err();
        let len = frame.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len);
        self.received = self.received.saturating_add(len as u64);
        frame
    }

    async fn drain(mut self, limit: usize) {
        let end = self.received.saturating_add(limit as u64);
        while !self.given_up && self.received <= end {
            if matches!(self.next().await, Ok(None)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, Stream, stream};
    use std::io;

    type Frame = Result<Bytes, io::Error>;

    fn frames(count: usize, len: usize) -> impl Stream<Item = Frame> + Send + 'static {
        stream::iter((0..count).map(move |_| Ok(Bytes::from(vec![7; len]))))
    }

    /// A frame every `pause`.
    fn dripping(count: usize, len: usize, pause: Duration) -> impl Stream<Item = Frame> + Send + 'static {
        frames(count, len).then(move |frame| async move {
            tokio::time::sleep(pause).await;
            frame
        })
    }

    fn incoming(
        declared: Option<usize>,
        frames: impl Stream<Item = Frame> + Send + 'static,
        budget: &Budget,
    ) -> Incoming {
        let headers = declared.map(|len| (header::CONTENT_LENGTH, len.into())).into_iter().collect();
        Incoming::new(&headers, Body::from_stream(frames), budget)
    }

    async fn read(
        declared: Option<usize>,
        frames: impl Stream<Item = Frame> + Send + 'static,
        limit: usize,
    ) -> Result<usize, Refused> {
        incoming(declared, frames, &budget(1)).read(limit, 1).await.map(|received| received.bytes.len())
    }

    #[tokio::test]
    async fn a_body_is_never_longer_than_its_limit_or_than_it_said() {
        assert_eq!(read(None, frames(10, 10), 100).await, Ok(100));
        assert_eq!(read(None, frames(11, 10), 100).await, Err(Refused::TooLarge(100)));
        assert_eq!(read(Some(101), frames(1, 101), 100).await, Err(Refused::TooLarge(100)));
        assert_eq!(read(Some(5), frames(1, 6), 100).await, Err(Refused::TooLarge(5)));
        let broken = frames(1, 1).chain(stream::iter([Err(io::Error::other("x"))]));
        assert_eq!(read(None, broken, 100).await, Err(Refused::Broken));
    }

    #[tokio::test]
    async fn a_body_fills_blocks_whatever_its_frames_are() {
        for (declared, len) in [(Some(70), 70), (None, 70), (Some(64), 70), (Some(100), 70)] {
            let budget = budget(1);
            let counted = (0..7u8).map(|i| Ok(Bytes::from(vec![i; 10]))).collect::<Vec<Frame>>();
            let mut body = incoming(declared, stream::iter(counted), &budget);
            let (mut admitted, _share) = body.admit(100, |most| most).await.unwrap();
            let (mut bytes, mut block) = (Vec::new(), [0; 16]);
            let outcome = loop {
                match body.fill(&mut admitted, &mut block).await {
                    Ok(filled) => bytes.extend_from_slice(&block[..filled]),
                    Err(error) => break Err(error),
                }
                if bytes.len() % block.len() > 0 {
                    break Ok(());
                }
            };
            if declared == Some(64) {
                assert_eq!(outcome, Err(Refused::TooLarge(64)));
            } else {
                assert_eq!((outcome, bytes.len()), (Ok(()), len));
                assert!(bytes.iter().enumerate().all(|(at, &byte)| usize::from(byte) == at / 10));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up_and_not_drained_again() {
        let budget = budget(1);
        let mut body = incoming(Some(100), frames(1, 5).chain(stream::pending()), &budget);
        assert_eq!(body.read(100, 1).await.err(), Some(Refused::TooSlow));
        let given_up = Instant::now();
        body.drain(100).await;
        assert_eq!(Instant::now(), given_up);
        drain(Body::from_stream(frames(1, 5).chain(stream::pending())), 100).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_drops_is_given_up() {
        let start = Instant::now();
        let drops = dripping(10_000, 1, PATIENCE / 2);
        assert_eq!(read(Some(10_000), drops, 10_000).await, Err(Refused::TooSlow));
        assert!(start.elapsed() <= 2 * PATIENCE);
        let start = Instant::now();
        drain(Body::from_stream(dripping(10_000, 1, PATIENCE / 2)), 10_000).await;
        assert!(start.elapsed() <= 2 * PATIENCE);
        // Slow, but not that slow: minutes in all.
        let slow = dripping(300, LEAST_RATE as usize, Duration::from_secs(1));
        assert_eq!(read(None, slow, 1 << 30).await, Ok(300 * LEAST_RATE as usize));
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_wait_for_their_share_of_the_budget_but_not_for_ever() {
        let (budget, mib) = (budget(2), KIB * KIB);
        let mut bodies: Vec<_> = (0..4).map(|_| incoming(None, frames(1, 1), &budget)).collect();
        let [first, second, third, fourth] = bodies.as_mut_slice() else { unreachable!() };
        let first = first.read(mib, 1).await.ok().unwrap();
        let second = second.read(mib, 1).await.ok().unwrap();
        let mut waiting = Box::pin(third.read(mib, 2));
        assert!((&mut waiting).now_or_never().is_none(), "2 MiB are taken");
        drop(first);
        assert!((&mut waiting).now_or_never().is_none(), "twice its length is needed");
        assert_eq!(fourth.read(1, 1).await.err(), Some(Refused::Busy(Busy)), "nobody overtakes");
        assert_eq!(waiting.await.err(), Some(Refused::Busy(Busy)));
        assert_eq!(third.read(mib, 1).await.map(|received| received.bytes.len()), Ok(1));
        drop(second);
    }
}

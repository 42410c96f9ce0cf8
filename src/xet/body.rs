//! What is uploaded: pieces of memory, shared with wherever they were read to and never joined.
//!
//! Lengths are bytes. A body is cheap to clone: for each try that it is sent in.

use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of one upload, as pieces that are sent one after the other.
#[derive(Clone, Default)]
pub struct Body {
    pieces: Arc<[Bytes]>,
    len: u64,
    meter: Option<Arc<Meter>>,
}

impl Body {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order; none is empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// All of it in one piece: copied, unless it is one already.
    pub fn to_bytes(&self) -> Bytes {
        match &*self.pieces {
            [] => Bytes::new(),
            [all] => all.clone(),
            pieces => pieces.concat().into(),
        }
    }

    /// The same body, whose progress is added to `total` as its bytes are sent: each once, however often it is sent.
    pub(crate) fn counted_in(mut self, total: Arc<AtomicU64>) -> Self {
        self.meter = Some(Arc::new(Meter { total, counted: AtomicU64::new(0) }));
        self
    }

    /// The first `sent` bytes of it have been handed to the connection.
    pub(crate) fn note_sent(&self, sent: u64) {
        if let Some(meter) = &self.meter {
            let before = meter.counted.fetch_max(sent, Ordering::Relaxed);
            meter.total.fetch_add(sent.saturating_sub(before), Ordering::Relaxed);
        }
    }
}

impl FromIterator<Bytes> for Body {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        let pieces: Arc<[Bytes]> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces, len, meter: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::from_iter([bytes])
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("len", &self.len).field("pieces", &self.pieces.len()).finish()
    }
}

/// Counts what of a body has been sent at least once.
struct Meter {
    total: Arc<AtomicU64>,
    counted: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_kept_apart_and_share_their_memory() {
        let all = Bytes::from(vec![7; 100]);
        let body: Body = [all.slice(..8), Bytes::new(), all.slice(8..)].into_iter().collect();
        assert_eq!((body.len(), body.pieces().len(), body.is_empty()), (100, 2, false));
        assert_eq!(body.pieces()[1].as_ptr(), all[8..].as_ptr());
        assert_eq!(body.to_bytes(), all);
        assert!(Body::default().is_empty() && Body::from(Bytes::new()).pieces().is_empty());
    }

    #[test]
    fn bytes_that_are_sent_again_are_counted_once() {
        let total = Arc::new(AtomicU64::new(1));
        let body = Body::from(vec![0; 100]).counted_in(total.clone());
        for sent in [10, 60, 10, 50, 100, 100] {
            body.clone().note_sent(sent);
        }
        assert_eq!(total.load(Ordering::Relaxed), 101);
    }
}

//! Buffers that are used again. Fresh memory costs as much as a copy: the system has to find and
//! clear every page of it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

/// Buffers that are kept, of each pool: enough for what two or three clients do at once.
const KEPT: usize = 8;

/// Buffers of one length. Clones share them.
#[derive(Clone)]
pub(super) struct Pool {
    /// Bytes of a buffer.
    len: usize,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Pool {
    /// Of buffers of `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        Self { len, kept: Arc::default() }
    }

    /// A buffer, with whatever is in it.
    pub(super) fn take(&self) -> Buffer {
        let kept = self.kept.lock().ok().and_then(|mut kept| kept.pop());
        Buffer { bytes: kept.unwrap_or_else(|| vec![0; self.len]), pool: self.clone() }
    }
}

/// Bytes that go back to their pool when they are dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut kept) = self.pool.kept.lock()
            && kept.len() < KEPT
        {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_few_are_kept() {
        let pool = Pool::new(10);
        let mut first = pool.take();
        first[3] = 7;
        drop(first);
        assert_eq!(pool.take()[..], [0, 0, 0, 7, 0, 0, 0, 0, 0, 0]);
        let many: Vec<_> = (0..3 * KEPT).map(|_| pool.take()).collect();
        assert!(many.iter().all(|buffer| buffer.len() == 10));
        drop(many);
        assert_eq!(pool.kept.lock().unwrap().len(), KEPT);
    }
}

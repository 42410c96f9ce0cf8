//! A xorb on its way in: verified and staged block by block, as it comes.
//!
//! Two blocks take turns: while one is filled from the connection, the chunks of the other are
//! hashed and written by a blocking thread. So what was received is verified when its last byte has
//! come, nothing of it is read again, and an upload holds two blocks however long it is. A body
//! that turns out not to be the xorb is read away, and what was staged of it vanishes.
//!
//! Uploads under way take up to a whole xorb of disk each; their share of the budget for bodies
//! ([`SHARE`]) bounds their number.

use super::pool::{Buffer, Pool};
use super::xorbs::Xorbs;
use super::{CasStore, Error, blocking};
use crate::hub::local::body::{Admitted, Incoming, Refused};
use crate::hub::local::budget::Share;
use crate::hub::local::disk::Staged;
use crate::xet::xorb::UploadScan;
use crate::xet::{self, Hash};
use axum::body::Body;
use axum::http::HeaderMap;
use crc_fast::{CrcAlgorithm, Digest};
use std::sync::Arc;

/// Bytes of a body that are verified at a time: some 16 chunks, about 0.3 ms of work, much more
/// than handing it over costs.
pub(super) const BLOCK: usize = 1024 * 1024;
/// Room before them for the start of a chunk that the block before didn't end, in bytes. In whole pages: a large copy
/// between addresses that differ by a few bytes modulo a page is many times slower on some processors.
const CARRY: usize = UploadScan::MAX_REST.next_multiple_of(4096);
/// Share of an upload in the budget for bodies, in bytes: more than its two blocks, so that 32
/// at once, and 2 GiB of disk, are the most.
const SHARE: usize = 8 * 1024 * 1024;
/// The buffers of blocks.
pub(super) fn blocks() -> Pool {
    Pool::new(CARRY + BLOCK)
}

/// Bytes of a body: those carried over, `bytes[start..CARRY]`, and new ones, `bytes[CARRY..end]`.
struct Block {
    bytes: Buffer,
    start: usize,
    end: usize,
}

impl Block {
    fn new(blocks: &Pool) -> Self {
        Self { bytes: blocks.take(), start: CARRY, end: CARRY }
    }

    /// What was not taken.
    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Puts what another left before its own.
    fn follow(&mut self, before: &Self) {
        let rest = before.rest();
        self.start = CARRY - rest.len();
        self.bytes[self.start..CARRY].copy_from_slice(rest);
    }
}

/// A xorb being verified and staged.
pub(super) struct Intake {
    xorbs: Arc<Xorbs>,
    hash: Hash,
    scan: UploadScan,
    granted: Option<Granted>,
    /// From the first block on.
    staged: Option<Staged>,
    /// Goes along, as blocks are in use for as long as this is.
    share: Option<Share>,
}

/// What the body must be, whatever is in it.
struct Granted {
    length: u64,
    crc: u64,
    digest: Digest,
}

impl Intake {
    /// Of the xorb `hash`; `allow_footer`: the body may end with one.
    pub(super) fn new(store: &CasStore, hash: Hash, allow_footer: bool) -> Self {
        let scan = UploadScan::new(allow_footer);
        Self { xorbs: Arc::clone(&store.xorbs), hash, scan, granted: None, staged: None, share: None }
    }

    /// The same of a body that must have this length and CRC-64/NVME.
    pub(super) fn granted(self, length: u64, crc: u64) -> Self {
        let digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        Self { granted: Some(Granted { length, crc, digest }), ..self }
    }

    /// Verifies and stages the whole chunks of a block, and leaves the rest in it. Blocks.
    fn take(&mut self, block: &mut Block) -> Result<(), Error> {
        if let Some(granted) = &mut self.granted {
            granted.digest.update(&block.bytes[CARRY..block.end]);
        }
        let len = self.scan.take(block.rest()).map_err(Error::refused)?;
        if len > 0 {
            let staged = match &mut self.staged {
                Some(staged) => staged,
                none => none.insert(self.xorbs.stage()?),
            };
            staged.write_all(&block.rest()[..len]).map_err(Error::io("write a xorb"))?;
        }
        block.start = if self.scan.has_ended() { block.end } else { block.start + len };
        Ok(())
    }

    /// Stores what was taken, durably; `rest` is what the last block left. `false` where it is there already. Blocks.
    fn finish(self, rest: &[u8]) -> Result<bool, Error> {
        if self.granted.is_some_and(|granted| !granted.is_met()) {
            return Err(Error::Invalid("the body is not the one granted".into()));
        }
        let index = self.scan.finish(rest).map_err(Error::refused)?;
        if index.hash != self.hash {
            return Err(Error::refused(xet::Error::HashMismatch { what: "xorb", expected: self.hash }));
        }
        self.xorbs.publish(self.staged.ok_or(Error::Task)?, index)
    }

    /// A whole body at once. Blocks.
    #[cfg(test)]
    pub(super) fn store(mut self, body: &[u8]) -> Result<bool, Error> {
        let blocks = blocks();
        let mut block = Block::new(&blocks);
        for piece in body.chunks(BLOCK) {
            let mut next = Block::new(&blocks);
            next.follow(&block);
            next.bytes[CARRY..][..piece.len()].copy_from_slice(piece);
            next.end = CARRY + piece.len();
            self.take(&mut next)?;
            block = next;
        }
        self.finish(block.rest())
    }
}

impl Granted {
    fn is_met(&self) -> bool {
        self.digest.get_amount() == self.length && self.digest.finalize() == self.crc
    }
}

/// Receives a body of at most `limit` bytes into `intake`, and stores the xorb. `false` where it is there already.
pub(super) async fn receive(
    store: &CasStore,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    intake: Intake,
) -> Result<bool, Error> {
    let mut incoming = Incoming::new(headers, body, &store.bodies);
    match take_all(store, &mut incoming, limit, intake).await {
        Ok((intake, last)) => blocking(move || intake.finish(last.rest())).await,
        Err(error) => {
            incoming.drain(limit).await;
            Err(error)
        }
    }
}

/// Gives the intake of the whole body, and the last block.
async fn take_all(
    store: &CasStore,
    incoming: &mut Incoming,
    limit: usize,
    mut intake: Intake,
) -> Result<(Intake, Block), Error> {
    let (mut admitted, share) = incoming.admit(limit, |_| SHARE).await?;
    intake.share = Some(share);
    let mut block = Block::new(&store.blocks);
    fill(incoming, &mut admitted, &mut block).await?;
    loop {
        let is_last = block.end < block.bytes.len();
        let taking = blocking(move || {
            intake.take(&mut block)?;
            Ok((intake, block))
        });
        if is_last {
            return taking.await;
        }
        let mut next = Block::new(&store.blocks);
        let (taken, filled) = tokio::join!(taking, fill(incoming, &mut admitted, &mut next));
        let (same, before) = taken?;
        filled?;
        next.follow(&before);
        (intake, block) = (same, next);
    }
}

async fn fill(incoming: &mut Incoming, admitted: &mut Admitted, block: &mut Block) -> Result<(), Refused> {
    block.end += incoming.fill(admitted, &mut block.bytes[CARRY..]).await?;
    Ok(())
}

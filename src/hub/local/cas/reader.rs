//! The bytes of a registered file, for the Hub itself (`GET …/resolve/…`).
//!
//! Works through the file in windows: the terms of one, then its stretches of chunks in pieces. Holds one piece at a
//! time, and the terms of one window. Every chunk is decoded and checked against its hash.

use super::files::{self, File};
use super::reconstruct::plan_range;
use super::xorbs::read_chunks;
use super::{CasStore, Error, blocking};
use crate::xet::Hash;
use crate::xet::reconstruction::Term;
use axum::body::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::collections::VecDeque;
use std::ops::Range;

/// File bytes whose terms are read at a time.
const WINDOW: u64 = 16 * 1024 * 1024;
/// File bytes of a piece, unless a single chunk is longer.
const PIECE: u64 = 1024 * 1024;

/// Opens `range` (clipped to the file) of a registered file.
pub(super) async fn read(
    store: CasStore,
    hash: Hash,
    range: Range<u64>,
) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
    let file = store.db().read(move |connection| files::find(connection, &hash).map_err(Error::from)).await?;
    let file = file.ok_or(Error::NotFound("file"))?;
    let reader = Reader { store, file, rest: range.start..range.end.min(file.len), pieces: VecDeque::new() };
    Ok(stream::try_unfold(reader, Reader::next).boxed())
}

struct Reader {
    store: CasStore,
    file: File,
    /// File bytes that no piece holds yet.
    rest: Range<u64>,
    pieces: VecDeque<Piece>,
}

/// Some chunks of a xorb, and which of their bytes are asked for.
struct Piece {
    xorb: Hash,
    chunks: Range<u32>,
    /// Relative to the first chunk.
    wanted: Range<u64>,
}

impl Reader {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        if self.pieces.is_empty() && !self.rest.is_empty() {
            self.pieces = self.next_window().await?;
        }
        let Some(piece) = self.pieces.pop_front() else { return Ok(None) };
        let store = self.store.clone();
        let bytes = blocking(move || piece.read(&store)).await?;
        Ok(Some((bytes, self)))
    }

    async fn next_window(&mut self) -> Result<VecDeque<Piece>, Error> {
        let window = self.rest.start..self.rest.end.min(self.rest.start + WINDOW);
        let (file, store, range) = (self.file, self.store.clone(), window.clone());
        let terms = store.db().read(move |connection| files::terms(connection, &file, &range)).await?;
        self.rest.start = window.end;
        blocking(move || {
            let plan = plan_range(&store, &file.hash, &terms, &window)?;
            let mut wanted = plan.skip..plan.skip + (window.end - window.start);
            let mut pieces = VecDeque::new();
            for term in &plan.terms {
                cut(&store, term, &mut wanted, &mut pieces)?;
            }
            Ok(pieces)
        })
        .await
    }
}

/// Appends a term's pieces. `wanted` counts from the term's first byte when this begins and from
/// the next term's when it returns.
fn cut(store: &CasStore, term: &Term, wanted: &mut Range<u64>, pieces: &mut VecDeque<Piece>) -> Result<(), Error> {
    let index = store.xorbs().index(&term.xorb)?;
    let (mut start, mut len) = (term.chunks.start, 0);
    for i in term.chunks.clone() {
        len += index.chunks.get(i as usize).map_or(0, |chunk| u64::from(chunk.raw_len));
        if len >= PIECE || i + 1 == term.chunks.end {
            let of_piece = wanted.start.min(len)..wanted.end.min(len);
            pieces.push_back(Piece { xorb: term.xorb, chunks: start..i + 1, wanted: of_piece });
            *wanted = wanted.start.saturating_sub(len)..wanted.end.saturating_sub(len);
            (start, len) = (i + 1, 0);
        }
    }
    Ok(())
}

impl Piece {
    /// Blocks.
    fn read(&self, store: &CasStore) -> Result<Bytes, Error> {
        let (file, index) = store.xorbs().open(&self.xorb)?;
        let raw = read_chunks(file.as_ref(), &index, self.chunks.clone())?;
        let wanted = self.wanted.start as usize..self.wanted.end as usize;
        if raw.len() < wanted.end {
            return Err(Error::damaged("xorb", &self.xorb, "its chunks are shorter than its index says"));
        }
        Ok(Bytes::from(raw).slice(wanted))
    }
}

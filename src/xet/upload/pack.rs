//! Chunks into xorbs, files into terms (Xet spec, 8.2 to 8.5). No I/O.
//!
//! A term names its xorb by slot, the number of the xorb in this session, because a xorb has no hash before it is cut.

use super::Uploaded;
use super::content::Chunks;
use crate::xet::Hash;
use crate::xet::hash::term_hash;
use crate::xet::merkle::Tree;
use crate::xet::xorb::Builder;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Chunks remembered for dedup, about 64 bytes each: the chunks of some 64 GiB. Later ones are stored again when they repeat.
const MAX_KNOWN: usize = 1 << 20;
/// Terms looked back at to judge how fragmented a file is (Xet spec, 8.5).
const RECENT: usize = 128;
/// Chunks per recent term below which a repeated run of fewer chunks is stored again: reading back single chunks from all over is slower than
/// the space is worth, and a shard holds a limited number of terms.
const LEAST_RUN: usize = 4;

/// What a session has packed so far.
#[derive(Default)]
pub(super) struct Packer {
    builder: Builder,
    /// Xorbs that are cut.
    cut: Vec<Xorb>,
    /// Chunks of the xorb under construction, whose slot is `cut.len()`.
    current: Vec<(Hash, u32)>,
    known: HashMap<Hash, Place>,
    files: Vec<File>,
    registered: HashSet<Hash>,
}

/// A xorb that is on its way.
pub(super) struct Xorb {
    pub(super) hash: Hash,
    pub(super) stored_len: u32,
    /// Hash and uncompressed length.
    pub(super) chunks: Vec<(Hash, u32)>,
}

/// A file as terms.
pub(super) struct File {
    pub(super) hash: Hash,
    pub(super) terms: Vec<Term>,
}

/// A run of chunks of one xorb.
pub(super) struct Term {
    pub(super) slot: usize,
    pub(super) chunks: Range<u32>,
    pub(super) raw_len: u32,
    pub(super) verification: Hash,
}

/// All that a session has made.
pub(super) struct Packed {
    pub(super) xorbs: Vec<Xorb>,
    pub(super) files: Vec<File>,
}

/// Where a chunk is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: usize,
    index: u32,
}

impl Packer {
    /// Whether the current xorb has no chunk.
    pub(super) fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    /// Places chunks until the current xorb is full; gives those that are left, the first of which needs a new xorb.
    pub(super) fn place<'a>(&mut self, draft: &mut Draft, mut chunks: Chunks<'a>) -> Chunks<'a> {
        while let Some(chunk) = chunks.first() {
            let (place, count) = match self.find(draft, &chunks) {
                Some(found) => found,
                None if !self.builder.fits(chunk.raw_len as usize) => return chunks,
                None => {
                    let index =
                        self.builder.push_stored(chunk.hash, chunk.raw_len as usize, chunk.scheme, chunk.stored);
                    let place = Place { slot: self.cut.len(), index };
                    self.current.push((chunk.hash, chunk.raw_len));
                    if self.known.len() < MAX_KNOWN {
                        self.known.entry(chunk.hash).or_insert(place);
                    }
                    (place, 1)
                }
            };
            let first = place.index as usize;
            draft.append(place, &self.chunks_of(place.slot)[first..first + count]);
            chunks = chunks.skip(count);
        }
        chunks
    }

    /// The longest run of stored chunks that `chunks` begins with, if it should be used. The seam for dedup: shards of earlier sessions and
    /// answers of the CAS would be looked up here too.
    fn find(&self, draft: &Draft, chunks: &Chunks<'_>) -> Option<(Place, usize)> {
        let run = |place: Place| {
            let stored = self.chunks_of(place.slot).get(place.index as usize..).unwrap_or(&[]);
            stored.iter().zip(chunks.hashes()).take_while(|((stored, _), wanted)| stored == wanted).count()
        };
        if let Some(next) = draft.next_place() {
            let continued = run(next);
            if continued > 0 {
                return Some((next, continued));
            }
        }
        let place = *self.known.get(&chunks.first()?.hash)?;
        let count = run(place);
        (count >= LEAST_RUN || !draft.is_fragmented()).then_some((place, count))
    }

    fn chunks_of(&self, slot: usize) -> &[(Hash, u32)] {
        self.cut.get(slot).map_or(&self.current, |xorb| &xorb.chunks)
    }

    /// Ends the current xorb, which is not empty, and gives what to send.
    pub(super) fn cut(&mut self) -> (Hash, Bytes) {
        let (body, index) = std::mem::take(&mut self.builder).finish();
        let stored_len = u32::try_from(body.len()).expect("a xorb has at most 64 MiB");
        self.cut.push(Xorb { hash: index.hash, stored_len, chunks: std::mem::take(&mut self.current) });
        (index.hash, body)
    }

    /// A file that is packed wholly. The same content twice is one file.
    pub(super) fn register(&mut self, file: File) {
        if self.registered.insert(file.hash) {
            self.files.push(file);
        }
    }

    /// Everything; the last xorb must have been cut.
    pub(super) fn into_packed(self) -> Packed {
        debug_assert!(self.builder.is_empty());
        Packed { xorbs: self.cut, files: self.files }
    }
}

/// A file that is being packed.
#[derive(Default)]
pub(super) struct Draft {
    tree: Tree,
    /// Chunks that can't enter the tree because those before them are not known.
    waiting: Option<Vec<(Hash, u64)>>,
    len: u64,
    terms: Vec<Term>,
    /// Chunk hashes of the last term, whose verification hash is still missing.
    open: Vec<Hash>,
}

impl Draft {
    /// For what follows chunks that will be packed later.
    pub(super) fn behind_another() -> Self {
        Self { waiting: Some(Vec::new()), ..Self::default() }
    }

    /// One file of this and the draft that is behind it.
    pub(super) fn followed_by(mut self, mut rest: Self) -> Self {
        self.close();
        rest.waiting.into_iter().flatten().for_each(|(hash, len)| self.tree.push(hash, len));
        self.len += rest.len;
        self.terms.append(&mut rest.terms);
        self.open = rest.open;
        self
    }

    /// Where the next chunk must be stored to continue the last term.
    fn next_place(&self) -> Option<Place> {
        self.terms.last().map(|term| Place { slot: term.slot, index: term.chunks.end })
    }

    /// Whether the last terms are so short that more short ones should be avoided.
    fn is_fragmented(&self) -> bool {
        let Some(first) = self.terms.len().checked_sub(RECENT) else { return false };
        self.terms[first..].iter().map(|term| term.chunks.len()).sum::<usize>() < LEAST_RUN * RECENT
    }

    /// The next chunks of the file are stored from `place` on.
    fn append(&mut self, place: Place, chunks: &[(Hash, u32)]) {
        if self.next_place() != Some(place) {
            self.close();
            let Place { slot, index } = place;
            self.terms.push(Term { slot, chunks: index..index, raw_len: 0, verification: Hash::ZERO });
        }
        let term = self.terms.last_mut().expect("one was pushed if there was none");
        for &(hash, raw_len) in chunks {
            term.chunks.end += 1;
            term.raw_len += raw_len;
            self.len += u64::from(raw_len);
            match &mut self.waiting {
                Some(waiting) => waiting.push((hash, u64::from(raw_len))),
                None => self.tree.push(hash, u64::from(raw_len)),
            }
            self.open.push(hash);
        }
    }

    fn close(&mut self) {
        if let Some(term) = self.terms.last_mut().filter(|_| !self.open.is_empty()) {
            term.verification = term_hash(self.open.drain(..));
        }
    }

    pub(super) fn finish(mut self) -> (Uploaded, File) {
        self.close();
        let hash = self.tree.into_file_hash();
        (Uploaded { hash, len: self.len }, File { hash, terms: self.terms })
    }
}

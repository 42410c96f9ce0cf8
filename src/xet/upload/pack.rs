//! Chunks into xorbs, files into terms (Xet spec, 8.2 to 8.5). No I/O.
//!
//! A term names a xorb of this session by slot, the number of the xorb, because a xorb has no hash before it is cut.
//! The memory of a session is bounded, however much it packs. A chunk list is dropped once it is registered and no
//! longer among the [`MAX_KNOWN`] latest chunks. One hash for each xorb stays.

use super::content::Chunk;
use super::dedup::{Known, KnownXorb};
use super::late::LateTree;
use super::records::{ChunkList, Packed, Xorb};
use super::shards::{FILE_MAX_TERMS, file_records, xorb_records};
use super::{Report, Uploaded};
use crate::hash::term_hash;
use crate::known::MAX_LIST;
use crate::merkle::Tree;
use crate::shard::{FileInfo, Segment};
use crate::xorb::{Assembly, CHUNK_HEADER_LEN};
use crate::{Body, Error, Hash};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Chunks remembered for dedup, about 70 bytes each: the latest ones, of some 32 GiB. Earlier ones
/// are stored again when they repeat.
const MAX_KNOWN: usize = 1 << 19;
/// Terms looked back at to judge how fragmented a file is (Xet spec, 8.5).
const RECENT: usize = 128;
/// Chunks per recent term below which a repeated run of fewer chunks is stored again: reading back single chunks from
/// all over is slower than the space is worth.
const LEAST_RUN: usize = 4;
/// The same, once a run was refused, until so many are reached: else every other run would be refused.
const RECOVERED_RUN: usize = 2 * LEAST_RUN;
/// Terms of a file from which only runs of [`LONG_RUN`] chunks are worth another: a shard must hold them all.
const MANY_TERMS: usize = FILE_MAX_TERMS / 2;
const LONG_RUN: usize = 64;
/// Records that are registered together, 8 MiB of them or some 11 GiB of content: shards are sent on the way, so that
/// what waits for them doesn't grow with the content. A xorb may be registered before the files that refer to it.
const DUE: usize = 8 * 1024 * 1024 / 48;

/// What a session has packed so far.
pub(super) struct Packer {
    assembly: Assembly,
    /// Bytes at which the xorb under construction is cut.
    most_stored: usize,
    /// Chunks of it; its slot is `cut.len()`.
    current: Vec<(Hash, u32)>,
    /// Hashes of the xorbs that are cut, by slot.
    cut: Vec<Hash>,
    /// Chunk lists of the latest of them.
    kept: VecDeque<ChunkList>,
    /// Chunks in `kept`.
    kept_chunks: usize,
    /// Where the chunks of `kept` and `current` are, by truncated hash.
    known: HashMap<u64, Own>,
    /// Xorbs that no shard lists yet, by slot.
    unregistered: BTreeMap<u32, Unregistered>,
    /// Files that no shard lists yet.
    files: Vec<File>,
    /// Their hashes.
    listed: HashSet<Hash>,
    /// Records of both.
    waiting: usize,
    /// How many there are when it is looked again whether they are due.
    look_at: usize,
    report: Report,
}

/// A chunk of a xorb of this session.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Own {
    slot: u32,
    index: u32,
}

struct Unregistered {
    stored_len: u32,
    chunks: ChunkList,
    /// The CAS has it.
    is_stored: bool,
}

/// A file as terms.
pub(super) struct File {
    hash: Hash,
    terms: Vec<Term>,
    /// The last of our xorbs that it refers to.
    newest: Option<u32>,
}

/// A run of chunks of one xorb.
struct Term {
    xorb: Named,
    chunks: Range<u32>,
    raw_len: u32,
    verification: Hash,
}

/// What a term calls its xorb.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    /// One of this session, by slot.
    Own(u32),
    /// One that was there before.
    Known(Hash),
}

/// Where a chunk is stored.
enum Place {
    Own(Own),
    Known(Arc<KnownXorb>, u32),
}

impl Place {
    fn name(&self) -> (Named, u32) {
        match self {
            Self::Own(own) => (Named::Own(own.slot), own.index),
            Self::Known(xorb, index) => (Named::Known(xorb.hash), *index),
        }
    }
}

impl Packer {
    /// Cuts a xorb before its body is longer than `most_stored`.
    pub(super) fn new(most_stored: usize) -> Self {
        Self {
            assembly: Assembly::default(),
            most_stored,
            current: Vec::new(),
            cut: Vec::new(),
            kept: VecDeque::new(),
            kept_chunks: 0,
            known: HashMap::new(),
            unregistered: BTreeMap::new(),
            files: Vec::new(),
            listed: HashSet::new(),
            waiting: 0,
            look_at: DUE,
            report: Report::default(),
        }
    }

    /// Whether the current xorb has no chunk.
    pub(super) fn is_empty(&self) -> bool {
        self.assembly.is_empty()
    }

    /// Places chunks until the current xorb is full, and says how many. Those that are stored
    /// nowhere yet enter the current xorb: where their payloads lie is added to `fresh`, and they
    /// must be attached before anything else is done.
    pub(super) fn place(
        &mut self,
        draft: &mut Draft,
        chunks: &[Chunk],
        known: Option<&Known>,
        fresh: &mut Vec<Range<usize>>,
    ) -> Result<usize, Error> {
        let mut at = 0;
        while let Some(chunk) = chunks.get(at) {
            let (place, count) = match self.find(draft, &chunks[at..], known) {
                Some(found) => found,
                None if !self.fits(chunk) => break,
                None => (self.push(chunk), 0),
            };
            if count == 0 {
                fresh.push(chunk.stored.clone());
            }
            let placed = &chunks[at..at + count.max(1)];
            draft.append(&place, placed)?;
            let bytes = placed.iter().map(|chunk| u64::from(chunk.raw_len)).sum::<u64>();
            *(if count == 0 { &mut self.report.fresh } else { &mut self.report.deduplicated }) += bytes;
            at += placed.len();
        }
        Ok(at)
    }

    /// The payloads of the chunks placed last.
    pub(super) fn attach(&mut self, payloads: impl IntoIterator<Item = Bytes>) {
        payloads.into_iter().for_each(|payload| self.assembly.attach(payload));
    }

    fn fits(&self, chunk: &Chunk) -> bool {
        let stored = self.assembly.stored_len() + CHUNK_HEADER_LEN + chunk.stored.len();
        self.is_empty() || self.assembly.fits(chunk.raw_len as usize) && stored <= self.most_stored
    }

    fn push(&mut self, chunk: &Chunk) -> Place {
        let index = self.assembly.push(chunk.hash, chunk.raw_len as usize, chunk.scheme, chunk.stored.len());
        self.current.push((chunk.hash, chunk.raw_len));
        let own = Own { slot: self.slot(), index };
        self.known.entry(chunk.hash.truncated()).or_insert(own);
        Place::Own(own)
    }

    /// Of the xorb under construction.
    pub(super) fn slot(&self) -> u32 {
        u32::try_from(self.cut.len()).expect("2^32 xorbs are more than any session has")
    }

    /// The longest run of stored chunks that `chunks` begins with, if it should be used: what
    /// continues the last term always should.
    fn find(&self, draft: &mut Draft, chunks: &[Chunk], known: Option<&Known>) -> Option<(Place, usize)> {
        if let Some((place, count)) = draft.next_place().and_then(|place| self.run(place, chunks)) {
            return Some((place, count));
        }
        let first = chunks.first()?.hash;
        let own = self.known.get(&first.truncated()).and_then(|own| self.run(Place::Own(*own), chunks));
        let other = known.and_then(|known| known.find(&first));
        let other = other.and_then(|(xorb, index)| self.run(Place::Known(xorb, index), chunks));
        let longest = match (own, other) {
            (Some(own), Some(other)) if other.1 > own.1 => Some(other),
            (own, other) => own.or(other),
        };
        longest.filter(|(_, count)| draft.allows(*count))
    }

    /// How many of `chunks` are stored from `place` on; `None` for none.
    fn run(&self, place: Place, chunks: &[Chunk]) -> Option<(Place, usize)> {
        let count = match &place {
            Place::Own(own) => {
                let stored = self.chunks_of(own.slot).get(own.index as usize..).unwrap_or(&[]);
                stored.iter().zip(chunks).take_while(|((hash, _), chunk)| *hash == chunk.hash).count()
            }
            Place::Known(xorb, index) => xorb.run(*index, chunks.iter().map(|chunk| (&chunk.hash, chunk.raw_len))),
        };
        (count > 0).then_some((place, count))
    }

    /// Whether a chunk is in a xorb of this session, as far as is remembered.
    pub(super) fn has(&self, chunk: &Hash) -> bool {
        let own = self.known.get(&chunk.truncated());
        own.is_some_and(|own| self.chunks_of(own.slot).get(own.index as usize).is_some_and(|(hash, _)| hash == chunk))
    }

    /// Nothing, if they were forgotten.
    fn chunks_of(&self, slot: u32) -> &[(Hash, u32)] {
        if slot == self.slot() {
            return &self.current;
        }
        let nth = (slot as usize + self.kept.len()).checked_sub(self.cut.len());
        nth.and_then(|nth| self.kept.get(nth)).map_or(&[], |chunks| chunks)
    }

    /// Ends the current xorb, which is not empty: its slot, and what to send.
    pub(super) fn cut(&mut self) -> (u32, Hash, Body) {
        let slot = self.slot();
        let (body, index) = std::mem::take(&mut self.assembly).finish();
        let stored_len = u32::try_from(body.len()).expect("a xorb has at most 64 MiB");
        let chunks: ChunkList = std::mem::take(&mut self.current).into();
        self.waiting += xorb_records(chunks.len());
        self.report.xorbs += 1;
        self.report.stored += body.len();
        self.kept_chunks += chunks.len();
        self.kept.push_back(Arc::clone(&chunks));
        self.cut.push(index.hash);
        self.unregistered.insert(slot, Unregistered { stored_len, chunks, is_stored: false });
        self.forget(MAX_KNOWN);
        (slot, index.hash, body)
    }

    /// Forgets the oldest chunks until at most `most` are left.
    fn forget(&mut self, most: usize) {
        while self.kept_chunks > most
            && let Some(oldest) = self.kept.pop_front()
        {
            let slot = (self.cut.len() - self.kept.len() - 1) as u32;
            self.kept_chunks -= oldest.len();
            for (hash, _) in oldest.iter() {
                if self.known.get(&hash.truncated()).is_some_and(|own| own.slot == slot) {
                    self.known.remove(&hash.truncated());
                }
            }
        }
    }

    /// The CAS has taken the xorb of this slot.
    pub(super) fn note_stored(&mut self, slot: u32) {
        if let Some(xorb) = self.unregistered.get_mut(&slot) {
            xorb.is_stored = true;
        }
    }

    /// A file that is packed wholly. The same content twice is one file.
    pub(super) fn register(&mut self, file: File) {
        self.report.files += 1;
        if self.listed.insert(file.hash) {
            self.waiting += file_records(file.terms.len());
            self.files.push(file);
        }
    }

    /// Whether enough can be registered for a shard on the way.
    pub(super) fn is_due(&mut self) -> bool {
        if self.waiting < self.look_at {
            return false;
        }
        self.look_at = self.waiting + DUE / 16;
        let stored = self.unregistered.values().filter(|xorb| xorb.is_stored);
        let stored: usize = stored.map(|xorb| xorb_records(xorb.chunks.len())).sum();
        let open = self.first_open();
        let files = self.files.iter().filter(|file| file.newest < Some(open));
        let files: usize = files.map(|file| file_records(file.terms.len())).sum();
        // While most of it is still on its way, there would be many small ones.
        stored + files >= DUE / 2
    }

    /// The first slot that isn't stored.
    pub(super) fn first_open(&self) -> u32 {
        let mut waiting = self.unregistered.iter().filter(|(_, xorb)| !xorb.is_stored);
        waiting.next().map_or(self.slot(), |(slot, _)| *slot)
    }

    /// All that refers to stored xorbs only. Once everything is stored, this is everything.
    pub(super) fn take_registrable(&mut self) -> Packed {
        let open = self.first_open();
        let mut packed = Packed::default();
        self.look_at = DUE;
        self.unregistered.retain(|slot, xorb| {
            if xorb.is_stored {
                let (hash, stored_len, chunks) = (self.cut[*slot as usize], xorb.stored_len, Arc::clone(&xorb.chunks));
                packed.xorbs.push(Xorb { hash, stored_len, chunks });
            }
            !xorb.is_stored
        });
        let (files, later) = std::mem::take(&mut self.files).into_iter().partition(|file| file.newest < Some(open));
        self.files = later;
        packed.files = Vec::<File>::into_iter(files).map(|file| self.describe(file)).collect();
        packed.files.iter().for_each(|file| {
            self.listed.remove(&file.hash);
        });
        self.waiting = self.unregistered.values().map(|xorb| xorb_records(xorb.chunks.len())).sum::<usize>()
            + self.files.iter().map(|file| file_records(file.terms.len())).sum::<usize>();
        packed
    }

    fn describe(&self, file: File) -> FileInfo {
        let verification = file.terms.iter().map(|term| term.verification).collect();
        let segment = |term: Term| Segment {
            xorb: match term.xorb {
                Named::Own(slot) => self.cut[slot as usize],
                Named::Known(hash) => hash,
            },
            raw_len: term.raw_len,
            start: term.chunks.start,
            end: term.chunks.end,
        };
        let segments = file.terms.into_iter().map(segment).collect();
        FileInfo { hash: file.hash, segments, verification, sha256: None }
    }

    pub(super) fn report(&self) -> Report {
        self.report
    }
}

/// A file that is being packed.
#[derive(Default)]
pub(super) struct Draft {
    tree: FileTree,
    len: u64,
    terms: Vec<Term>,
    /// Chunk hashes of the last term, whose verification hash is still missing.
    open: Vec<Hash>,
    /// The xorb of the last term, where it isn't ours.
    last_known: Option<Arc<KnownXorb>>,
    newest: Option<u32>,
    /// A run was refused, and the terms haven't recovered.
    is_wary: bool,
    /// All chunks, where they are asked for and not too many.
    list: Option<Vec<(Hash, u32)>>,
}

enum FileTree {
    Whole(Tree),
    /// Of all chunks but the first.
    Late(LateTree),
}

impl Default for FileTree {
    fn default() -> Self {
        Self::Whole(Tree::new())
    }
}

impl Draft {
    /// Whose chunks will be asked for.
    pub(super) fn listed() -> Self {
        Self { list: Some(Vec::new()), ..Self::default() }
    }

    /// Its chunks so far, hashes and lengths.
    pub(super) fn take_list(&mut self) -> Option<Vec<(Hash, u32)>> {
        self.list.take()
    }

    /// For what follows a first chunk that will be packed last.
    pub(super) fn behind_first() -> Self {
        Self { tree: FileTree::Late(LateTree::default()), ..Self::default() }
    }

    /// The file of `first`, which it begins with and is packed alone, and the draft behind it.
    pub(super) fn with_rest(mut self, first: &Chunk, mut rest: Self) -> (Uploaded, File) {
        self.close();
        rest.close();
        let hash = match rest.tree {
            FileTree::Late(tree) => tree.into_file_hash(first.hash, u64::from(first.raw_len)),
            FileTree::Whole(_) => unreachable!("made by behind_first"),
        };
        self.terms.append(&mut rest.terms);
        let uploaded = Uploaded { hash, len: self.len + rest.len };
        (uploaded, File { hash, terms: self.terms, newest: self.newest.max(rest.newest) })
    }

    /// Where the next chunk must be stored to continue the last term.
    fn next_place(&self) -> Option<Place> {
        let term = self.terms.last()?;
        let index = term.chunks.end;
        Some(match (term.xorb, &self.last_known) {
            (Named::Known(_), Some(xorb)) => Place::Known(Arc::clone(xorb), index),
            (Named::Own(slot), _) => Place::Own(Own { slot, index }),
            (Named::Known(_), None) => return None,
        })
    }

    /// Whether a run of `count` repeated chunks is worth a term of its own.
    fn allows(&mut self, count: usize) -> bool {
        if self.terms.len() >= MANY_TERMS && count < LONG_RUN {
            return false;
        }
        let Some(first) = self.terms.len().checked_sub(RECENT) else { return true };
        let recent: usize = self.terms[first..].iter().map(|term| term.chunks.len()).sum();
        let wanted = if self.is_wary { RECOVERED_RUN } else { LEAST_RUN };
        let allowed = recent >= wanted * RECENT || count >= wanted;
        self.is_wary = recent < wanted * RECENT && (self.is_wary || !allowed);
        allowed
    }

    /// The next chunks of the file are stored from `place` on.
    fn append(&mut self, place: &Place, chunks: &[Chunk]) -> Result<(), Error> {
        let (xorb, index) = place.name();
        if self.terms.last().is_none_or(|last| (last.xorb, last.chunks.end) != (xorb, index)) {
            if self.terms.len() == FILE_MAX_TERMS {
                let why = "its terms don't fit into one shard".to_owned();
                return Err(Error::Malformed { what: "file", why });
            }
            self.close();
            self.terms.push(Term { xorb, chunks: index..index, raw_len: 0, verification: Hash::ZERO });
            match place {
                Place::Own(own) => {
                    self.last_known = None;
                    self.newest = self.newest.max(Some(own.slot));
                }
                Place::Known(xorb, _) => self.last_known = Some(Arc::clone(xorb)),
            }
        }
        let list = self.list.take().filter(|list| list.len() + chunks.len() <= MAX_LIST);
        self.list = list.map(|mut list| {
            list.extend(chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len)));
            list
        });
        let term = self.terms.last_mut().expect("one was pushed if there was none");
        for chunk in chunks {
            term.chunks.end += 1;
            term.raw_len += chunk.raw_len;
            self.len += u64::from(chunk.raw_len);
            match &mut self.tree {
                FileTree::Whole(tree) => tree.push(chunk.hash, u64::from(chunk.raw_len)),
                FileTree::Late(tree) => tree.push(chunk.hash, u64::from(chunk.raw_len)),
            }
            self.open.push(chunk.hash);
        }
        Ok(())
    }

    fn close(&mut self) {
        if let Some(term) = self.terms.last_mut().filter(|_| !self.open.is_empty()) {
            term.verification = term_hash(self.open.drain(..));
        }
    }

    pub(super) fn finish(mut self) -> (Uploaded, File) {
        self.close();
        let hash = match self.tree {
            FileTree::Whole(tree) => tree.into_file_hash(),
            FileTree::Late(_) => unreachable!("finished by with_rest"),
        };
        (Uploaded { hash, len: self.len }, File { hash, terms: self.terms, newest: self.newest })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shards::{GOOD_SHARD, split};
    use super::*;
    use crate::Scheme;
    use crate::chunker::MAX_CHUNK;
    use crate::shard::MAX_SHARD;
    use crate::xorb::{MAX_CHUNKS, MAX_RAW};

    /// A chunk that was never made: stored in one byte, as if it had compressed well.
    fn chunk(n: u64, raw_len: usize) -> Chunk {
        let mut hash = [0; 32];
        // Spread as hashes are, but cheap: some end groups of the tree, all differ.
        for (i, word) in hash.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = n.wrapping_mul(0x9E37_79B9_7F4A_7C15 + 2 * i as u64).to_le_bytes();
        }
        Chunk { hash: Hash(hash), raw_len: raw_len as u32, scheme: Scheme::Lz4, stored: 0..1 }
    }

    /// Packs some chunks as a session does; gives what it would have registered on the way.
    fn pack(packer: &mut Packer, draft: &mut Draft, mut chunks: &[Chunk]) -> Vec<Packed> {
        let mut registered = Vec::new();
        while !chunks.is_empty() {
            let mut fresh = Vec::new();
            let placed = packer.place(draft, chunks, None, &mut fresh).unwrap();
            packer.attach(fresh.iter().map(|_| Bytes::from_static(b"x")));
            chunks = &chunks[placed..];
            if !chunks.is_empty() {
                if packer.is_due() {
                    registered.push(packer.take_registrable());
                }
                let (slot, ..) = packer.cut();
                // It arrives at once.
                packer.note_stored(slot);
            }
        }
        registered
    }

    #[test]
    fn file_of_a_tebibyte_takes_bounded_memory_and_fits_its_shards() {
        const LEN: u64 = 1 << 40;
        let mut packer = Packer::new(MAX_RAW);
        let mut draft = Draft::default();
        let (mut chunks_registered, mut xorbs) = (0, 0);
        let mut check = |packed: Packed| {
            chunks_registered += packed.xorbs.iter().map(|xorb| xorb.chunks.len() as u64).sum::<u64>();
            xorbs += packed.xorbs.len();
            for shard in split(packed, GOOD_SHARD, MAX_SHARD).unwrap() {
                assert!(shard.upload_len() <= if shard.files.is_empty() { GOOD_SHARD } else { MAX_SHARD });
            }
        };
        let all = LEN / MAX_CHUNK as u64;
        for first in (0..all).step_by(1 << 14) {
            let chunks: Vec<_> = (first..first + (1 << 14)).map(|n| chunk(n, MAX_CHUNK)).collect();
            pack(&mut packer, &mut draft, &chunks).into_iter().for_each(&mut check);
            assert!(packer.kept_chunks <= MAX_KNOWN && packer.known.len() <= MAX_KNOWN + MAX_CHUNKS);
            assert!(packer.waiting <= DUE + MAX_CHUNKS + 1);
        }
        let (uploaded, file) = draft.finish();
        assert_eq!(uploaded.len, LEN);
        let (slot, ..) = packer.cut();
        packer.note_stored(slot);
        // Every xorb is one term.
        assert_eq!(file.terms.len(), packer.cut.len());
        packer.register(file);
        check(packer.take_registrable());
        assert_eq!((chunks_registered, xorbs), (all, packer.cut.len()));
        assert_eq!(packer.report().fresh, LEN);
    }

    #[test]
    fn xorbs_are_cut_at_every_limit() {
        // So many chunks; so many raw bytes; so many stored ones.
        for (raw_len, most_stored, expected) in
            [(8192 / 2, usize::MAX, MAX_CHUNKS), (MAX_CHUNK, usize::MAX, MAX_RAW / MAX_CHUNK), (9000, 900, 100)]
        {
            let mut packer = Packer::new(most_stored);
            let chunks: Vec<_> = (0..20_000).map(|n| chunk(n, raw_len)).collect();
            pack(&mut packer, &mut Draft::default(), &chunks);
            assert!(packer.cut.len() > 1 && packer.kept.iter().all(|list| list.len() == expected));
        }
    }

    #[test]
    fn forgotten_chunks_are_stored_again_and_the_latest_are_not() {
        let mut packer = Packer::new(9 * 100);
        let chunks: Vec<_> = (0..1000).map(|n| chunk(n, 9000)).collect();
        pack(&mut packer, &mut Draft::default(), &chunks);
        packer.forget(300);
        assert_eq!(packer.kept_chunks, 300);
        assert!(!packer.has(&chunks[599].hash) && packer.has(&chunks[600].hash) && packer.has(&chunks[999].hash));
        let before = packer.report().fresh;
        pack(&mut packer, &mut Draft::default(), &chunks[500..700]);
        assert_eq!(packer.report().fresh - before, 100 * 9000);
    }

    #[test]
    fn files_wait_for_the_last_xorb_they_refer_to() {
        let mut packer = Packer::new(9 * 100);
        let chunks: Vec<_> = (0..250).map(|n| chunk(n, 9000)).collect();
        let add = |packer: &mut Packer, chunks: &[Chunk]| {
            let mut draft = Draft::default();
            let mut fresh = Vec::new();
            let mut rest = chunks;
            while !rest.is_empty() {
                let placed = packer.place(&mut draft, rest, None, &mut fresh).unwrap();
                packer.attach(fresh.drain(..).map(|_| Bytes::from_static(b"x")));
                rest = &rest[placed..];
                if !rest.is_empty() {
                    packer.cut();
                }
            }
            let (uploaded, file) = draft.finish();
            packer.register(file);
            uploaded.hash
        };
        let first = add(&mut packer, &chunks[..50]);
        let empty = add(&mut packer, &[]);
        let both = add(&mut packer, &chunks[50..150]);
        let third = add(&mut packer, &chunks[150..250]);
        packer.cut();
        let hashes = |packed: &Packed| packed.files.iter().map(|file| file.hash).collect::<Vec<_>>();
        // The second arrives before the first.
        packer.note_stored(1);
        let packed = packer.take_registrable();
        assert_eq!((packed.xorbs.len(), hashes(&packed)), (1, vec![empty]));
        packer.note_stored(0);
        let packed = packer.take_registrable();
        assert_eq!((packed.xorbs.len(), hashes(&packed)), (1, vec![first, both]));
        packer.note_stored(2);
        let packed = packer.take_registrable();
        assert_eq!((packed.xorbs.len(), hashes(&packed), packer.waiting), (1, vec![third], 0));
    }

    #[test]
    fn files_without_a_new_chunk_become_due_too_and_are_not_counted_over_and_over() {
        let mut packer = Packer::new(MAX_RAW);
        let register = |packer: &mut Packer, n: usize, newest: Option<u32>| {
            let xorb = newest.map_or(Named::Known(Hash::ZERO), Named::Own);
            let term = Term { xorb, chunks: 0..1, raw_len: 1, verification: Hash::ZERO };
            packer.register(File { hash: chunk(n as u64, 1).hash, terms: vec![term], newest });
        };
        // These wait for a xorb that isn't stored: it is looked at them once, and not again before there are many more.
        let chunks = [chunk(1 << 40, 9000)];
        pack(&mut packer, &mut Draft::default(), &chunks);
        packer.cut();
        // Three records each.
        let files = DUE.div_ceil(3);
        (0..files).for_each(|n| register(&mut packer, n, Some(0)));
        assert!(!packer.is_due() && packer.look_at > packer.waiting);
        assert_eq!(packer.take_registrable().files.len(), 0);
        packer.note_stored(0);
        assert!(packer.is_due());
        assert_eq!(packer.take_registrable().files.len(), files);
        for n in files..2 * files {
            assert!(!packer.is_due());
            register(&mut packer, n, None);
        }
        assert!(packer.is_due());
        assert_eq!((packer.take_registrable().files.len(), packer.waiting), (files, 0));
    }

    #[test]
    fn guard_refuses_short_runs_below_four_chunks_a_term_until_eight_are_reached() {
        let mut draft = Draft::default();
        let terms = |draft: &mut Draft, count: usize, chunks: u32| {
            for _ in 0..count {
                let xorb = Named::Known(Hash::ZERO);
                draft.terms.push(Term { xorb, chunks: 0..chunks, raw_len: 1, verification: Hash::ZERO });
            }
        };
        terms(&mut draft, RECENT - 1, 1);
        assert!(draft.allows(1), "too few terms to judge");
        terms(&mut draft, RECENT, 3);
        assert!(draft.allows(4));
        assert!(!draft.allows(3));
        // Once refused, eight are wanted, of the run or of the average.
        assert!(!draft.allows(7) && draft.allows(8));
        terms(&mut draft, RECENT, 7);
        assert!(!draft.allows(7));
        terms(&mut draft, RECENT, 8);
        assert!(draft.allows(1));
        // Recovered: four are enough again.
        terms(&mut draft, RECENT, 4);
        assert!(draft.allows(1));
        terms(&mut draft, RECENT, 3);
        assert!(!draft.allows(1));
    }

    #[test]
    fn file_near_the_terms_that_a_shard_holds_takes_long_runs_only_and_ends_in_an_error() {
        let mut packer = Packer::new(usize::MAX);
        let mut draft = Draft::default();
        let term = || Term { xorb: Named::Known(Hash::ZERO), chunks: 0..9, raw_len: 1, verification: Hash::ZERO };
        draft.terms.extend(std::iter::repeat_with(term).take(MANY_TERMS - 1));
        assert!(draft.allows(8));
        draft.terms.push(term());
        assert!(!draft.allows(LONG_RUN - 1) && draft.allows(LONG_RUN));
        draft.terms.extend(std::iter::repeat_with(term).take(FILE_MAX_TERMS - MANY_TERMS));
        let placed = packer.place(&mut draft, &[chunk(1, 9000)], None, &mut Vec::new());
        assert!(matches!(placed, Err(Error::Malformed { what: "file", .. })));
    }
}

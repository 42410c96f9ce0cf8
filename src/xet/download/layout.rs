//! An answer of the CAS held against the question: where each term of a range lies, in the file and
//! in what is to be fetched.
//!
//! Nothing is fetched before this was done, so a hostile CAS can make us hold at most one xorb more than was asked for.
//! Offsets are file bytes. The answer gives lengths of terms, not of chunks: what lies inside a term is known only once
//! its headers came, or from elsewhere. Terms never change (content is addressed by hash); URLs expire.

use super::expiry;
use crate::chunker::MAX_CHUNK;
use crate::reconstruction::{Fetch, Reconstruction, Term};
use crate::xorb::{CHUNK_HEADER_LEN, MAX_SERIALISED};
use crate::{Error, Hash};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::Instant;

/// Most ranges of one request; also what servers sign under one URL.
const MANY_RANGES: usize = 500;

/// What has just been answered is used once at least, whatever our clock makes of it.
const LEAST_LIFE: Duration = Duration::from_secs(5);

/// An answer that fits the question.
pub(super) struct Layout {
    pub(super) file: Hash,
    /// The question.
    pub(super) asked: Range<u64>,
    /// File offset of each term, and of the end of the last.
    offsets: Vec<u64>,
    pub(super) terms: Vec<Term>,
    /// For each term, the fetch that holds it.
    pub(super) fetch_of: Vec<usize>,
    /// Those that terms use, by first use.
    pub(super) fetches: Vec<Fetch>,
    /// For each fetch, once it was fetched: where each of its chunks ends, in uncompressed bytes.
    learnt: Vec<OnceLock<Box<[u32]>>>,
    /// When its URLs may no longer be good.
    expires: Instant,
}

impl Layout {
    /// `life`: how long URLs are good that don't say.
    pub(super) fn of(file: Hash, asked: Range<u64>, answer: Reconstruction, life: Duration) -> Result<Self, Error> {
        let offset = asked.start.checked_sub(answer.skip).ok_or_else(|| malformed("it begins before the file"))?;
        let mut offsets = Vec::with_capacity(answer.terms.len() + 1);
        offsets.push(offset);
        let mut end = offset;
        for term in &answer.terms {
            end = end.checked_add(u64::from(term.raw_len)).ok_or_else(|| malformed("it ends behind any file"))?;
            offsets.push(end);
        }
        if end <= asked.start {
            return Err(malformed("it skips more than there is"));
        }
        if answer.skip >= MAX_CHUNK as u64 || end.saturating_sub(asked.end) >= MAX_CHUNK as u64 {
            return Err(malformed("it has chunks outside the range"));
        }

        let mut fetches = Vec::new();
        let mut renumbered = vec![None; answer.fetches.len()];
        let mut fetch_of = Vec::with_capacity(answer.terms.len());
        for term in &answer.terms {
            let i = answer.fetch_of(term).ok_or_else(|| malformed("a term is not to be fetched"))?;
            fetch_of.push(*renumbered[i].get_or_insert_with(|| {
                fetches.push(answer.fetches[i].clone());
                fetches.len() - 1
            }));
        }
        let expires = Instant::now() + expiry::life_of(&fetches, life).max(LEAST_LIFE);
        let learnt = fetches.iter().map(|_| OnceLock::new()).collect();
        let layout = Self { file, asked, offsets, terms: answer.terms, fetch_of, fetches, learnt, expires };
        layout.check_size(end - offset)?;
        Ok(layout)
    }

    /// Stretches may hold more than the terms use and chunks may be stored in more than their length, within reason.
    fn check_size(&self, raw_len: u64) -> Result<(), Error> {
        let stored = self.fetches.iter().map(stored_len).fold(0, u64::saturating_add);
        let overhead = CHUNK_HEADER_LEN as u64 * self.terms.iter().map(|term| term.chunks.len() as u64).sum::<u64>();
        if stored > 2 * raw_len + overhead + MAX_SERIALISED as u64 {
            return Err(malformed(format!("{stored} bytes to fetch for {raw_len}")));
        }
        Ok(())
    }

    /// File bytes that its terms are.
    pub(super) fn covered(&self) -> Range<u64> {
        let end = self.offsets.last().expect("one more than there are terms");
        self.offsets[0]..*end
    }

    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        let covered = self.covered();
        covered.start <= range.start && range.end <= covered.end
    }

    /// File offset of a term.
    pub(super) fn offset_of(&self, term: usize) -> u64 {
        self.offsets[term]
    }

    /// The terms that `range` touches.
    pub(super) fn terms_in(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.offsets[1..].partition_point(|&end| end <= range.start);
        let behind = self.offsets[..self.terms.len()].partition_point(|&start| start < range.end);
        first..behind.max(first)
    }

    /// Bytes to fetch for `range`: a signed URL gives a whole stretch or nothing.
    pub(super) fn cost(&self, range: &Range<u64>) -> u64 {
        let mut fetches: Vec<_> = self.fetch_of[self.terms_in(range)].to_vec();
        fetches.sort_unstable();
        fetches.dedup();
        fetches.into_iter().map(|fetch| stored_len(&self.fetches[fetch])).fold(0, u64::saturating_add)
    }

    /// Fetches to be made together: all of a URL, where there are several, all are wanted, and they are at most `most`
    /// bytes. Each is signed by itself, and all of them together. In file order.
    pub(super) fn groups(&self, most: u64, is_wanted: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let mut of_url = BTreeMap::<&str, Vec<usize>>::new();
        for (i, fetch) in self.fetches.iter().enumerate() {
            of_url.entry(&fetch.url).or_default().push(i);
        }
        let mut groups = Vec::new();
        for mut group in of_url.into_values() {
            let len = group.iter().map(|&i| stored_len(&self.fetches[i])).fold(0, u64::saturating_add);
            if group.len() <= MANY_RANGES && len <= most && group.iter().all(|&i| is_wanted(i)) {
                group.sort_by_key(|&i| self.fetches[i].bytes.start);
                groups.push(group);
            } else {
                groups.extend(group.into_iter().filter(|&i| is_wanted(i)).map(|i| vec![i]));
            }
        }
        groups.sort_by_key(|group| group.iter().min().copied());
        groups
    }

    /// Remembers where the chunks of a fetch end.
    pub(super) fn learn(&self, fetch: usize, ends: &[u32]) {
        if ends.len() == self.fetches[fetch].chunks.len() {
            self.learnt[fetch].get_or_init(|| ends.into());
        }
    }

    /// Where each chunk of a term starts, in file bytes, and where the last ends; if that was learnt.
    pub(super) fn edges(&self, term: usize) -> Option<Vec<u64>> {
        let fetch = self.fetch_of[term];
        let ends = self.learnt[fetch].get()?;
        let (chunks, first) = (&self.terms[term].chunks, self.fetches[fetch].chunks.start);
        let edge = |chunk: u32| (chunk - first).checked_sub(1).map_or(0, |before| u64::from(ends[before as usize]));
        let start = edge(chunks.start);
        Some((chunks.start..=chunks.end).map(|chunk| self.offsets[term] + (edge(chunk) - start)).collect())
    }

    /// Whether its URLs are to be replaced before they are used.
    pub(super) fn is_stale(&self) -> bool {
        Instant::now() >= self.expires
    }

    /// Whether the two differ in nothing but URLs.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let place = |fetch: &Fetch| (fetch.xorb, fetch.chunks.clone(), fetch.bytes.clone());
        (&self.offsets, &self.terms, &self.fetch_of) == (&other.offsets, &other.terms, &other.fetch_of)
            && self.fetches.iter().map(place).eq(other.fetches.iter().map(place))
    }

    /// About the memory that it takes.
    pub(super) fn footprint(&self) -> usize {
        let urls: usize = self.fetches.chunk_by(|a, b| a.url == b.url).map(|run| run[0].url.len()).sum();
        // What may yet be learnt counts.
        let chunks: usize = self.fetches.iter().map(|fetch| fetch.chunks.len()).sum();
        let learnt = size_of::<OnceLock<Box<[u32]>>>() * self.fetches.len() + size_of::<u32>() * chunks;
        let per_term = size_of::<Term>() + size_of::<u64>() + size_of::<usize>();
        size_of::<Self>() + per_term * self.terms.len() + size_of::<Fetch>() * self.fetches.len() + urls + learnt
    }
}

pub(super) fn stored_len(fetch: &Fetch) -> u64 {
    fetch.bytes.end.saturating_sub(fetch.bytes.start)
}

pub(super) fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed { what: "reconstruction", why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two terms of one xorb: chunks 0..2 of 300 bytes and 1..2 of 200.
    fn answer() -> Reconstruction {
        let xorb = Hash([1; 32]);
        let term = |chunks: Range<u32>, raw_len| Term { xorb, raw_len, chunks };
        let fetch = |chunks: Range<u32>, bytes: Range<u64>| Fetch { xorb, chunks, url: "u".into(), bytes };
        Reconstruction {
            skip: 40,
            terms: vec![term(0..2, 300), term(1..2, 200)],
            fetches: vec![fetch(0..2, 0..316), fetch(2..3, 316..400)],
        }
    }

    fn layout(answer: Reconstruction, asked: Range<u64>) -> Result<Layout, Error> {
        Layout::of(Hash([9; 32]), asked, answer, Duration::from_secs(60))
    }

    fn is_refused(answer: Reconstruction, asked: Range<u64>) -> bool {
        matches!(layout(answer, asked), Err(Error::Malformed { what: "reconstruction", .. }))
    }

    #[test]
    fn terms_have_file_offsets_and_unused_stretches_are_left_out() {
        let layout = layout(answer(), 1040..1500).unwrap();
        assert_eq!((layout.fetches.len(), layout.covered()), (1, 1000..1500));
        assert_eq!((layout.offset_of(0), layout.offset_of(1)), (1000, 1300));
        let touched = [1000..1300, 1000..1301, 1299..1300, 1300..1500, 1499..1500].map(|range| layout.terms_in(&range));
        assert_eq!(touched, [0..1, 0..2, 0..1, 1..2, 1..2]);
        assert_eq!(layout.cost(&(1000..1001)), 316);
        assert!(layout.covers(&(1000..1500)) && !layout.covers(&(1000..1501)) && !layout.covers(&(999..1001)));
    }

    #[test]
    fn answer_that_does_not_fit_the_question_is_refused() {
        assert!(layout(answer(), 40..500).is_ok());
        // A file may end before the question does.
        assert!(layout(answer(), 40..1_000_000).is_ok_and(|layout| !layout.covers(&(40..501))));
        assert!(is_refused(answer(), 39..499), "begins before the file");
        assert!(is_refused(Reconstruction { skip: 501, ..answer() }, 501..502), "skips more than there is");
        assert!(is_refused(Reconstruction { terms: vec![], skip: 0, ..answer() }, 0..1), "no terms");
        assert!(is_refused(Reconstruction { fetches: vec![], ..answer() }, 40..500), "nothing to fetch");
        assert!(is_refused(answer(), u64::MAX - 100..u64::MAX), "behind any file");
    }

    #[test]
    fn answer_with_chunks_outside_the_range_is_refused() {
        let long = |skip| {
            let mut answer = answer();
            answer.terms = vec![Term { raw_len: 262_144, ..answer.terms[0].clone() }];
            Reconstruction { skip, ..answer }
        };
        assert!(layout(long(131_071), 131_071..131_074).is_ok());
        assert!(is_refused(long(131_072), 131_072..262_144));
        assert!(is_refused(long(0), 0..131_072));
    }

    #[test]
    fn answer_with_far_more_to_fetch_than_to_read_is_refused() {
        let bloated = |count: usize| {
            let mut answer = answer();
            let xorbs = (0..count).map(|i| Hash([i as u8; 32]));
            answer.terms = xorbs.clone().map(|xorb| Term { xorb, ..answer.terms[0].clone() }).collect();
            let bytes = 0..MAX_SERIALISED as u64;
            answer.fetches =
                xorbs.map(|xorb| Fetch { xorb, bytes: bytes.clone(), ..answer.fetches[0].clone() }).collect();
            Reconstruction { skip: 0, ..answer }
        };
        assert!(layout(bloated(1), 0..300).is_ok());
        assert!(is_refused(bloated(2), 0..600));
    }

    #[test]
    fn edges_of_chunks_are_learnt_from_what_was_fetched() {
        let layout = layout(answer(), 1040..1500).unwrap();
        assert_eq!(layout.edges(0), None);
        layout.learn(0, &[100]);
        assert_eq!(layout.edges(0), None, "too few");
        layout.learn(0, &[100, 300]);
        assert_eq!((layout.edges(0), layout.edges(1)), (Some(vec![1000, 1100, 1300]), Some(vec![1300, 1500])));
    }

    #[test]
    fn renewed_answer_is_the_same_if_only_urls_differ() {
        let layout = |answer| layout(answer, 1040..1500).unwrap();
        let mut renewed = answer();
        renewed.fetches[0].url = "v".into();
        assert!(layout(renewed).is_same(&layout(answer())));
        let mut moved = answer();
        moved.fetches[0].bytes = 0..317;
        assert!(!layout(moved).is_same(&layout(answer())));
    }
}

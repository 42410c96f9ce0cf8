//! Terms and a byte range to what must be fetched (Xet spec, 10.1). Pure; used by the embedded CAS.
//!
//! Byte ranges are end exclusive. Failure: [`Error::RangeNotSatisfiable`], and [`Error::Malformed`]
//! where a segment contradicts its xorb.

use super::reconstruction::{Fetch, Reconstruction, Term};
use super::shard::Segment;
use super::xorb::XorbIndex;
use super::{Error, Hash};
use std::borrow::Borrow;
use std::ops::Range;
use std::sync::Arc;

/// Most byte ranges under one URL: their list, about 8 KiB then, must fit into a URL and a `Range` header.
pub const MAX_RANGES_PER_URL: usize = 500;

/// One stretch of a xorb that an answer tells its reader to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The xorb.
    pub xorb: Hash,
    /// Chunk indexes.
    pub chunks: Range<u32>,
    /// Serialised bytes of exactly these chunks, headers included.
    pub bytes: Range<u64>,
}

/// A reconstruction answer before it has URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of the first term before the first byte asked for.
    pub skip: u64,
    /// Terms in file order, whole chunks outside the range trimmed off.
    pub terms: Vec<Term>,
    /// What to fetch: ascending by xorb and chunks, overlapping and adjacent stretches merged.
    pub stretches: Vec<Stretch>,
}

/// Length of the file that consists of `segments`.
pub fn file_len(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.raw_len)).sum()
}

/// Plans how to read `range` (clipped to the file; `None`: all of it) of the file that consists of `segments`.
///
/// `index` is asked for the xorbs of terms in the range, once per run of terms in the same xorb.
pub fn plan<I: Borrow<XorbIndex>>(
    segments: &[Segment],
    range: Option<Range<u64>>,
    mut index: impl FnMut(&Hash) -> Result<I, Error>,
) -> Result<Plan, Error> {
    let file_len = file_len(segments);
    let range = range.unwrap_or(0..file_len);
    let range = range.start..range.end.min(file_len);
    if range.is_empty() {
        // Only an empty file has an answer without terms.
        let whole = range.start == 0 && file_len == 0;
        let nothing = Plan { skip: 0, terms: Vec::new(), stretches: Vec::new() };
        return if whole { Ok(nothing) } else { Err(Error::RangeNotSatisfiable) };
    }

    let (mut terms, mut stretches) = (Vec::new(), Vec::new());
    let mut skip = 0;
    let mut opened: Option<(Hash, I)> = None;
    let mut offset = 0;
    for segment in segments {
        let end = offset + u64::from(segment.raw_len);
        // The part of the segment that is asked for, relative to it.
        let wanted = range.start.max(offset) - offset..range.end.min(end).saturating_sub(offset);
        if !wanted.is_empty() {
            let xorb = match opened.take() {
                Some((hash, xorb)) if hash == segment.xorb => xorb,
                _ => index(&segment.xorb)?,
            };
            let (before, term) = trim(segment, &wanted, xorb.borrow())?;
            if terms.is_empty() {
                skip = wanted.start - before;
            }
            stretches.push(stretch(&term, xorb.borrow()));
            terms.push(term);
            opened = Some((segment.xorb, xorb));
        }
        offset = end;
    }
    Ok(Plan { skip, terms, stretches: merge(stretches) })
}

/// Drops the whole chunks of `segment` outside `wanted`, which is relative to it and not empty.
/// Gives the bytes dropped at the front, and the term.
fn trim(segment: &Segment, wanted: &Range<u64>, xorb: &XorbIndex) -> Result<(u64, Term), Error> {
    let malformed = |why: &str| Error::Malformed { what: "file", why: format!("segment in {}: {why}", segment.xorb) };
    let chunks = xorb.chunks.get(segment.start as usize..segment.end as usize);
    let chunks = chunks.ok_or_else(|| malformed("chunks that the xorb does not have"))?;
    let mut term = Term { xorb: segment.xorb, raw_len: 0, chunks: segment.start..segment.start };
    let mut before = 0;
    let mut end = 0;
    for (i, chunk) in (segment.start..).zip(chunks) {
        let start = end;
        end += u64::from(chunk.raw_len);
        if end <= wanted.start {
            before = end;
            term.chunks = i + 1..i + 1;
        } else if start < wanted.end {
            term.chunks.end = i + 1;
            term.raw_len += chunk.raw_len;
        }
    }
    if end != u64::from(segment.raw_len) {
        return Err(malformed("its length is not that of its chunks"));
    }
    Ok((before, term))
}

/// The stored bytes of a term whose chunks `xorb` has.
fn stretch(term: &Term, xorb: &XorbIndex) -> Stretch {
    let end_before = |chunk: u32| match chunk {
        0 => 0,
        _ => u64::from(xorb.chunks[chunk as usize - 1].stored_end),
    };
    let bytes = end_before(term.chunks.start)..end_before(term.chunks.end);
    Stretch { xorb: term.xorb, chunks: term.chunks.clone(), bytes }
}

/// Sorts, and merges what overlaps or touches: adjacent chunks are adjacent bytes.
fn merge(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_by_key(|s| (s.xorb, s.chunks.start));
    stretches.dedup_by(|next, kept| {
        let joined = next.xorb == kept.xorb && next.chunks.start <= kept.chunks.end;
        if joined {
            kept.chunks.end = kept.chunks.end.max(next.chunks.end);
            kept.bytes.end = kept.bytes.end.max(next.bytes.end);
        }
        joined
    });
    stretches
}

impl Plan {
    /// The v1 answer; `url` makes the URL for one byte range of a xorb.
    pub fn to_v1(&self, mut url: impl FnMut(&Hash, &[Range<u64>]) -> String) -> Vec<u8> {
        self.with_urls(1, &mut url).to_v1()
    }

    /// The v2 answer; `url` makes the URL for up to [`MAX_RANGES_PER_URL`] ascending byte ranges of a xorb.
    pub fn to_v2(&self, mut url: impl FnMut(&Hash, &[Range<u64>]) -> String) -> Vec<u8> {
        self.with_urls(MAX_RANGES_PER_URL, &mut url).to_v2()
    }

    fn with_urls(&self, ranges_per_url: usize, url: &mut dyn FnMut(&Hash, &[Range<u64>]) -> String) -> Reconstruction {
        let mut fetches = Vec::with_capacity(self.stretches.len());
        for of_xorb in self.stretches.chunk_by(|a, b| a.xorb == b.xorb) {
            for group in of_xorb.chunks(ranges_per_url) {
                let ranges: Vec<_> = group.iter().map(|stretch| stretch.bytes.clone()).collect();
                let url: Arc<str> = url(&group[0].xorb, &ranges).into();
                fetches.extend(group.iter().map(|stretch| Fetch {
                    xorb: stretch.xorb,
                    chunks: stretch.chunks.clone(),
                    url: Arc::clone(&url),
                    bytes: stretch.bytes.clone(),
                }));
            }
        }
        Reconstruction { skip: self.skip, terms: self.terms.clone(), fetches }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconstruction::{parse_v1, parse_v2};
    use crate::xorb::ChunkEntry;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    type Xorbs = BTreeMap<Hash, XorbIndex>;

    fn xorb(name: u8, chunks: &[(u32, u32)]) -> XorbIndex {
        let mut stored_end = 0;
        let chunks = chunks.iter().map(|&(raw_len, stored_len)| {
            stored_end += 8 + stored_len;
            ChunkEntry { hash: Hash([name; 32]), raw_len, stored_end }
        });
        XorbIndex { hash: Hash([name; 32]), chunks: chunks.collect() }
    }

    fn segment(xorb: &XorbIndex, chunks: Range<u32>) -> Segment {
        let raw_len = xorb.chunks[chunks.start as usize..chunks.end as usize].iter().map(|chunk| chunk.raw_len).sum();
        Segment { xorb: xorb.hash, raw_len, start: chunks.start, end: chunks.end }
    }

    /// A few xorbs, a file over them, and a range that mostly touches it.
    fn file() -> impl Strategy<Value = (Xorbs, Vec<Segment>, Option<Range<u64>>)> {
        let chunk = (1..20u32, 1..20u32);
        let xorbs = prop::collection::vec(prop::collection::vec(chunk, 1..12), 1..4);
        let xorbs = xorbs.prop_map(|xorbs| (0..).zip(xorbs).map(|(name, chunks)| xorb(name, &chunks)).collect());
        xorbs.prop_flat_map(|xorbs: Vec<XorbIndex>| {
            let one = any::<(prop::sample::Index, prop::sample::Index, prop::sample::Index)>();
            prop::collection::vec(one, 0..10).prop_flat_map(move |picks| {
                let segments: Vec<_> = picks
                    .iter()
                    .map(|(which, from, to)| {
                        let xorb = which.get(&xorbs);
                        let start = from.index(xorb.chunks.len());
                        let end = start + 1 + to.index(xorb.chunks.len() - start);
                        segment(xorb, start as u32..end as u32)
                    })
                    .collect();
                let len = file_len(&segments);
                let range = prop::option::of((0..=len, 0..=len + 5).prop_map(|(a, b)| a.min(b)..a.max(b)));
                let xorbs: Xorbs = xorbs.iter().map(|xorb| (xorb.hash, xorb.clone())).collect();
                (Just(xorbs), Just(segments), range)
            })
        })
    }

    /// The bytes of some chunks, each named by where it is.
    fn contents(xorbs: &Xorbs, hash: &Hash, chunks: Range<u32>) -> Vec<(Hash, u32, u32)> {
        let chunk = |index: u32| (0..xorbs[hash].chunks[index as usize].raw_len).map(move |at| (*hash, index, at));
        chunks.flat_map(chunk).collect()
    }

    fn make_plan(xorbs: &Xorbs, segments: &[Segment], range: Option<Range<u64>>) -> Result<Plan, Error> {
        plan(segments, range, |hash| xorbs.get(hash).ok_or(Error::NotFound(*hash)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn terms_give_exactly_the_bytes_asked_for((xorbs, segments, range) in file()) {
            let file: Vec<_> = segments.iter().flat_map(|s| contents(&xorbs, &s.xorb, s.start..s.end)).collect();
            let wanted = range.clone().unwrap_or(0..file.len() as u64);
            let wanted = wanted.start as usize..wanted.end.min(file.len() as u64) as usize;
            let plan = match make_plan(&xorbs, &segments, range) {
                Ok(plan) => plan,
                Err(error) => {
                    prop_assert!(matches!(error, Error::RangeNotSatisfiable));
                    prop_assert!(wanted.is_empty() && !file.is_empty());
                    return Ok(());
                }
            };
            let read: Vec<_> = plan.terms.iter().flat_map(|t| contents(&xorbs, &t.xorb, t.chunks.clone())).collect();
            let lens: u64 = plan.terms.iter().map(|term| u64::from(term.raw_len)).sum();
            prop_assert_eq!(lens, read.len() as u64);
            let from = plan.skip as usize;
            prop_assert_eq!(&read[from..from + wanted.len()], &file[wanted.clone()]);
            // No whole chunk too many at either end.
            if let (Some(first), Some(last)) = (read.first(), read.last()) {
                prop_assert!(from < contents(&xorbs, &first.0, first.1..first.1 + 1).len());
                prop_assert!(read.len() - from - wanted.len() < contents(&xorbs, &last.0, last.1..last.1 + 1).len());
            }
        }

        #[test]
        fn stretches_are_the_chunks_of_the_terms_once((xorbs, segments, range) in file()) {
            let Ok(plan) = make_plan(&xorbs, &segments, range) else { return Ok(()) };
            let used: BTreeSet<(Hash, u32)> =
                plan.terms.iter().flat_map(|t| t.chunks.clone().map(|chunk| (t.xorb, chunk))).collect();
            let fetched: Vec<(Hash, u32)> =
                plan.stretches.iter().flat_map(|s| s.chunks.clone().map(|chunk| (s.xorb, chunk))).collect();
            prop_assert_eq!(used.into_iter().collect::<Vec<_>>(), fetched);
            for pair in plan.stretches.windows(2) {
                prop_assert!(pair[0].xorb < pair[1].xorb || pair[0].chunks.end < pair[1].chunks.start);
            }
            for stretch in &plan.stretches {
                let chunks = &xorbs[&stretch.xorb].chunks;
                let end = |chunk: u32| chunk.checked_sub(1).map_or(0, |i| u64::from(chunks[i as usize].stored_end));
                prop_assert_eq!(&stretch.bytes, &(end(stretch.chunks.start)..end(stretch.chunks.end)));
            }
        }

        #[test]
        fn answers_parse_to_the_plan((xorbs, segments, range) in file()) {
            let Ok(plan) = make_plan(&xorbs, &segments, range) else { return Ok(()) };
            let url = |hash: &Hash, ranges: &[Range<u64>]| format!("http://cas/{hash}?{ranges:?}");
            for parsed in [parse_v1(&plan.to_v1(url)).unwrap(), parse_v2(&plan.to_v2(url)).unwrap()] {
                prop_assert_eq!(parsed.skip, plan.skip);
                prop_assert_eq!(&parsed.terms, &plan.terms);
                let stretches: Vec<_> = parsed
                    .fetches
                    .iter()
                    .map(|f| Stretch { xorb: f.xorb, chunks: f.chunks.clone(), bytes: f.bytes.clone() })
                    .collect();
                prop_assert_eq!(&stretches, &plan.stretches);
            }
        }
    }

    #[test]
    fn ranges_behind_the_end_are_not_satisfiable() {
        let xorb = xorb(1, &[(10, 10)]);
        let segments = [segment(&xorb, 0..1)];
        let plan_of = |range: Range<u64>| plan(&segments, Some(range), |_| Ok(&xorb));
        assert_eq!(plan_of(9..10).unwrap().skip, 9);
        assert_eq!(plan_of(9..u64::MAX).unwrap(), plan_of(9..10).unwrap());
        #[expect(clippy::reversed_empty_ranges, reason = "a range a caller may pass")]
        for bad in [10..11, 10..u64::MAX, u64::MAX..u64::MAX, 5..5, 6..5] {
            assert!(matches!(plan_of(bad), Err(Error::RangeNotSatisfiable)));
        }
    }

    #[test]
    fn an_empty_file_has_an_answer_without_terms() {
        let plan_of = |range| make_plan(&Xorbs::new(), &[], range);
        let nothing = plan_of(None).unwrap();
        assert!(nothing.terms.is_empty() && nothing.stretches.is_empty());
        assert_eq!(plan_of(Some(0..1)).unwrap(), nothing);
        assert!(plan_of(Some(1..2)).is_err());
        let url = |_: &Hash, _: &[Range<u64>]| panic!("there is nothing to fetch");
        assert_eq!(nothing.to_v1(url), br#"{"offset_into_first_range":0,"terms":[],"fetch_info":{}}"#);
        assert_eq!(nothing.to_v2(url), br#"{"offset_into_first_range":0,"terms":[],"xorbs":{}}"#);
    }

    #[test]
    fn only_xorbs_in_the_range_are_asked_for() {
        let xorbs = [xorb(1, &[(10, 10)]), xorb(2, &[(10, 10), (10, 10)])];
        let segments =
            [segment(&xorbs[0], 0..1), segment(&xorbs[1], 1..2), segment(&xorbs[1], 0..1), segment(&xorbs[0], 0..1)];
        let mut asked = Vec::new();
        let plan = plan(&segments, Some(10..30), |hash| {
            asked.push(*hash);
            Ok(&xorbs[1])
        });
        assert_eq!(asked, [xorbs[1].hash]);
        assert_eq!(plan.unwrap().stretches.len(), 1);
    }

    #[test]
    fn segments_that_contradict_their_xorb_are_rejected() {
        let xorb = xorb(1, &[(10, 10), (20, 10)]);
        let good = segment(&xorb, 0..2);
        assert!(plan(&[good], None, |_| Ok(&xorb)).is_ok());
        let long = Segment { raw_len: 31, ..good };
        let outside = Segment { end: 3, ..good };
        let reversed = Segment { start: 2, end: 1, ..good };
        for bad in [long, outside, reversed] {
            assert!(matches!(plan(&[bad], None, |_| Ok(&xorb)), Err(Error::Malformed { what: "file", .. })));
        }
        assert!(matches!(make_plan(&Xorbs::new(), &[good], None), Err(Error::NotFound(_))));
    }

    #[test]
    fn many_ranges_are_spread_over_urls() {
        let xorb = xorb(1, &[(10, 10); 2_400]);
        let segments: Vec<_> = (0..1_200).map(|i| segment(&xorb, 2 * i..2 * i + 1)).collect();
        let plan = plan(&segments, None, |_| Ok(&xorb)).unwrap();
        let mut counts = Vec::new();
        let answer = plan.to_v2(|_, ranges| {
            counts.push(ranges.len());
            format!("url {}", counts.len())
        });
        assert_eq!(counts, [500, 500, 200]);
        assert_eq!(parse_v2(&answer).unwrap().fetches.len(), 1_200);
    }
}

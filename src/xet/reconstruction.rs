//! Reconstruction answers (Xet spec, 10.1 and 10.2): JSON to checked types and back.
//!
//! Byte ranges are end exclusive here and inclusive on the wire. What parses holds every invariant stated at
//! [`Reconstruction`], so that a client may size its buffers by it. Failure: [`Error::Malformed`].

use super::chunker::MAX_CHUNK;
use super::foreign::json_fault;
use super::xorb::{CHUNK_HEADER_LEN, MAX_CHUNKS, MAX_SERIALISED, MAX_STORED_CHUNK};
use super::{Error, Hash};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Most terms, and most fetches, of an answer that is accepted: 64 GiB of file at one average chunk
/// per term. Clients ask for far less at a time.
pub const MAX_TERMS: usize = 1 << 20;

/// One term of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The xorb.
    pub xorb: Hash,
    /// Uncompressed bytes of the term.
    pub raw_len: u32,
    /// Chunk indexes in the xorb.
    pub chunks: Range<u32>,
}

/// One stretch of a xorb to fetch.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The xorb.
    pub xorb: Hash,
    /// Chunk indexes that it holds.
    pub chunks: Range<u32>,
    /// Pre-signed URL. Never logged. Shared: a v2 answer gives one URL for many stretches.
    pub url: Arc<str>,
    /// Serialised bytes, END EXCLUSIVE here (inclusive on the wire).
    pub bytes: Range<u64>,
}

impl fmt::Debug for Fetch {
    /// Leaves the URL out: whoever has it can read the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Fetch");
        fields
            .field("xorb", &self.xorb)
            .field("chunks", &self.chunks)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A parsed answer of either version. Invariants:
///
/// * every term lies in one fetch of its xorb ([`Reconstruction::fetch_of`]);
/// * fetches ascend by xorb, then chunks; none lies inside another;
/// * chunk and byte ranges aren't empty, a xorb has at most [`MAX_CHUNKS`] chunks and [`MAX_SERIALISED`] bytes, and
///   lengths are such that chunks can have;
/// * `skip` is less than the first term's length, and 0 if there is none;
/// * at most [`MAX_TERMS`] terms and fetches each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconstruction {
    /// Bytes of the first term before the first byte asked for.
    pub skip: u64,
    /// Terms in file order.
    pub terms: Vec<Term>,
    /// What to fetch.
    pub fetches: Vec<Fetch>,
}

/// Parses the v1 form.
pub fn parse_v1(json: &[u8]) -> Result<Reconstruction, Error> {
    let answer: AnswerV1 = serde_json::from_slice(json).map_err(|e| malformed(json_fault(&e)))?;
    let fetches = answer.fetch_info.into_iter().flat_map(|(xorb, fetches)| {
        fetches.into_iter().map(move |fetch| fetch_from(xorb, fetch.range, fetch.url.into(), fetch.url_range))
    });
    Reconstruction::checked(answer.offset_into_first_range, answer.terms, fetches)
}

/// Parses the v2 form.
pub fn parse_v2(json: &[u8]) -> Result<Reconstruction, Error> {
    let answer: AnswerV2 = serde_json::from_slice(json).map_err(|e| malformed(json_fault(&e)))?;
    let fetches = answer.xorbs.into_iter().flat_map(|(xorb, fetches)| {
        fetches.into_iter().flat_map(move |MultiFetchWire { url, ranges }| {
            let url: Arc<str> = url.into();
            ranges.into_iter().map(move |range| fetch_from(xorb, range.chunks, Arc::clone(&url), range.bytes))
        })
    });
    Reconstruction::checked(answer.offset_into_first_range, answer.terms, fetches)
}

impl Reconstruction {
    /// The fetch that `term`, one of `terms`, lies in: an index into `fetches`. Relies on their order.
    pub fn fetch_of(&self, term: &Term) -> Option<usize> {
        let behind = self.fetches.partition_point(|f| (f.xorb, f.chunks.start) <= (term.xorb, term.chunks.start));
        let index = behind.checked_sub(1)?;
        let fetch = &self.fetches[index];
        (fetch.xorb == term.xorb && fetch.chunks.end >= term.chunks.end).then_some(index)
    }

    /// The v1 form.
    pub fn to_v1(&self) -> Vec<u8> {
        let mut fetch_info = BTreeMap::<Hash, Vec<FetchWire>>::new();
        for fetch in &self.fetches {
            let wire = FetchWire {
                range: (&fetch.chunks).into(),
                url: fetch.url.as_ref().into(),
                url_range: InclusiveWire::from(&fetch.bytes),
            };
            fetch_info.entry(fetch.xorb).or_default().push(wire);
        }
        to_json(&AnswerV1 { offset_into_first_range: self.skip, terms: self.terms_wire(), fetch_info })
    }

    /// The v2 form. Neighbours in `fetches` that share xorb and URL share an entry.
    pub fn to_v2(&self) -> Vec<u8> {
        let mut xorbs = BTreeMap::<Hash, Vec<MultiFetchWire>>::new();
        for run in self.fetches.chunk_by(|a, b| a.xorb == b.xorb && a.url == b.url) {
            let ranges = run.iter().map(|f| RangesWire { chunks: (&f.chunks).into(), bytes: (&f.bytes).into() });
            let wire = MultiFetchWire { url: run[0].url.as_ref().into(), ranges: ranges.collect() };
            xorbs.entry(run[0].xorb).or_default().push(wire);
        }
        to_json(&AnswerV2 { offset_into_first_range: self.skip, terms: self.terms_wire(), xorbs })
    }

    fn terms_wire(&self) -> Vec<TermWire> {
        let wire =
            |term: &Term| TermWire { hash: term.xorb, unpacked_length: term.raw_len, range: (&term.chunks).into() };
        self.terms.iter().map(wire).collect()
    }

    /// Checks each invariant.
    fn checked(
        skip: u64,
        terms: Vec<TermWire>,
        fetches: impl Iterator<Item = Result<Fetch, Error>>,
    ) -> Result<Self, Error> {
        if terms.len() > MAX_TERMS {
            return Err(malformed("too many terms"));
        }
        let terms = terms.into_iter().map(term_from).collect::<Result<Vec<_>, _>>()?;
        if skip != 0 && terms.first().is_none_or(|first| skip >= u64::from(first.raw_len)) {
            return Err(malformed("offset into first range lies behind it"));
        }
        // One too many tells "too many" from "just enough".
        let mut fetches = fetches.take(MAX_TERMS + 1).collect::<Result<Vec<_>, _>>()?;
        if fetches.len() > MAX_TERMS {
            return Err(malformed("too many ranges to fetch"));
        }
        // Widest first among those with the same start: then whatever lies inside another comes after it.
        fetches.sort_by_key(|f| (f.xorb, f.chunks.start, u32::MAX - f.chunks.end));
        fetches.dedup_by(|next, kept| next.xorb == kept.xorb && next.chunks.end <= kept.chunks.end);
        let answer = Self { skip, terms, fetches };
        match answer.terms.iter().find(|term| answer.fetch_of(term).is_none()) {
            None => Ok(answer),
            Some(term) => Err(malformed(format!("chunks {:?} of {} are not to be fetched", term.chunks, term.xorb))),
        }
    }
}

fn term_from(wire: TermWire) -> Result<Term, Error> {
    let chunks = chunk_range(wire.range)?;
    let count = u64::from(chunks.end - chunks.start);
    if !(count..=count * MAX_CHUNK as u64).contains(&u64::from(wire.unpacked_length)) {
        return Err(malformed(format!("a term of {count} chunks and {} bytes", wire.unpacked_length)));
    }
    Ok(Term { xorb: wire.hash, raw_len: wire.unpacked_length, chunks })
}

fn fetch_from(xorb: Hash, chunks: SpanWire, url: Arc<str>, bytes: InclusiveWire) -> Result<Fetch, Error> {
    let chunks = chunk_range(chunks)?;
    let count = u64::from(chunks.end - chunks.start);
    let len = bytes.end.checked_sub(bytes.start).and_then(|len| len.checked_add(1));
    // A stored chunk is a header and at least one byte.
    let possible = count * (CHUNK_HEADER_LEN as u64 + 1)..=count * (CHUNK_HEADER_LEN + MAX_STORED_CHUNK) as u64;
    if len.is_none_or(|len| !possible.contains(&len)) || bytes.end >= MAX_SERIALISED as u64 {
        return Err(malformed(format!("bytes {} to {} for {count} chunks", bytes.start, bytes.end)));
    }
    Ok(Fetch { xorb, chunks, url, bytes: bytes.start..bytes.end + 1 })
}

fn chunk_range(range: SpanWire) -> Result<Range<u32>, Error> {
    if range.start >= range.end || range.end as usize > MAX_CHUNKS {
        return Err(malformed(format!("chunks {} to {}", range.start, range.end)));
    }
    Ok(range.start..range.end)
}

fn to_json(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("numbers, strings and maps with string keys")
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed { what: "reconstruction", why: why.into() }
}

// The wire.

#[derive(Serialize, Deserialize)]
struct AnswerV1 {
    offset_into_first_range: u64,
    terms: Vec<TermWire>,
    fetch_info: BTreeMap<Hash, Vec<FetchWire>>,
}

#[derive(Serialize, Deserialize)]
struct AnswerV2 {
    offset_into_first_range: u64,
    terms: Vec<TermWire>,
    xorbs: BTreeMap<Hash, Vec<MultiFetchWire>>,
}

#[derive(Serialize, Deserialize)]
struct TermWire {
    hash: Hash,
    unpacked_length: u32,
    range: SpanWire,
}

#[derive(Serialize, Deserialize)]
struct FetchWire {
    range: SpanWire,
    url: String,
    url_range: InclusiveWire,
}

#[derive(Serialize, Deserialize)]
struct MultiFetchWire {
    url: String,
    ranges: Vec<RangesWire>,
}

#[derive(Serialize, Deserialize)]
struct RangesWire {
    chunks: SpanWire,
    bytes: InclusiveWire,
}

/// Chunk indexes, end exclusive.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct SpanWire {
    start: u32,
    end: u32,
}

impl From<&Range<u32>> for SpanWire {
    fn from(range: &Range<u32>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// Bytes, end INCLUSIVE.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct InclusiveWire {
    start: u64,
    end: u64,
}

impl From<&Range<u64>> for InclusiveWire {
    /// Of a range that isn't empty.
    fn from(range: &Range<u64>) -> Self {
        Self { start: range.start, end: range.end - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn name(n: u8) -> String {
        Hash([n; 32]).to_string()
    }

    fn span(start: u64, end: u64) -> Value {
        json!({ "start": start, "end": end })
    }

    fn term(xorb: u8, start: u64, end: u64, len: u64) -> Value {
        json!({ "hash": name(xorb), "unpacked_length": len, "range": span(start, end) })
    }

    fn fetch(chunks: Value, bytes: Value) -> Value {
        json!({ "range": chunks, "url": "http://cas/secret", "url_range": bytes })
    }

    fn v1(skip: u64, terms: Value, of_xorb_1: Value) -> Result<Reconstruction, Error> {
        let answer = json!({ "offset_into_first_range": skip, "terms": terms, "fetch_info": { name(1): of_xorb_1 }, "new": [1] });
        parse_v1(answer.to_string().as_bytes())
    }

    /// One term in one fetch.
    fn single(skip: u64, term: Value, fetch: Value) -> Result<Reconstruction, Error> {
        v1(skip, json!([term]), json!([fetch]))
    }

    #[test]
    fn an_answer_at_every_limit_is_accepted() {
        let max = MAX_CHUNKS as u64;
        let last = MAX_SERIALISED as u64 - 1;
        let answer = single(9, term(1, 0, max, max * 131_072), fetch(span(0, max), span(0, last))).unwrap();
        assert_eq!(answer.fetches[0].bytes, 0..MAX_SERIALISED as u64);
        assert_eq!(answer.fetch_of(&answer.terms[0]), Some(0));
        assert!(single(0, term(1, 0, 1, 1), fetch(span(0, 1), span(5, 13))).is_ok());
        assert!(single(0, term(1, 0, 1, 1), fetch(span(0, 1), span(0, 262_151))).is_ok());
    }

    #[test]
    fn answers_that_break_an_invariant_are_rejected() {
        let good_term = || term(1, 2, 4, 100);
        let good_fetch = || fetch(span(2, 4), span(50, 149));
        assert!(single(99, good_term(), good_fetch()).is_ok());
        let bad_terms = [
            (0, term(1, 2, 2, 100)),
            (0, term(1, 4, 2, 100)),
            (0, term(1, 0, 8_193, 10_000)),
            (0, term(1, 2, 4, 1)),
            (0, term(1, 2, 4, 0)),
            (0, term(1, 2, 4, 2 * 131_072 + 1)),
            (0, term(1, 2, 4, 1 << 32)),
            (0, term(1, 1, 4, 100)),
            (0, term(1, 2, 5, 100)),
            (0, term(2, 2, 4, 100)),
            (100, good_term()),
            (u64::MAX, good_term()),
        ];
        for (skip, term) in bad_terms {
            assert!(single(skip, term.clone(), good_fetch()).is_err(), "{skip} {term}");
        }
        let bad_fetches = [
            fetch(span(2, 4), span(50, 49)),
            fetch(span(2, 4), span(50, 66)),
            fetch(span(2, 4), span(50, 51 + 2 * 262_152)),
            fetch(span(2, 4), span(0, u64::MAX)),
            fetch(span(2, 4), span(u64::MAX, u64::MAX)),
            fetch(span(2, 4), span(MAX_SERIALISED as u64 - 50, MAX_SERIALISED as u64)),
            fetch(span(2, 2), span(50, 149)),
            fetch(span(2, 8_193), span(0, 999_999)),
            json!({ "range": span(2, 4), "url_range": span(50, 149) }),
        ];
        for fetch in bad_fetches {
            assert!(single(0, good_term(), fetch.clone()).is_err(), "{fetch}");
        }
        assert!(v1(1, json!([]), json!([])).is_err());
        assert!(parse_v1(b"").is_err());
        assert!(parse_v1(b"[").is_err());
        assert!(parse_v2(b"{\"offset_into_first_range\":0,\"terms\":[]}").is_err());
    }

    #[test]
    fn the_number_of_terms_and_fetches_is_limited() {
        let one = SpanWire { start: 0, end: 1 };
        let term = || TermWire { hash: Hash::ZERO, unpacked_length: 1, range: one };
        let fetch = || fetch_from(Hash::ZERO, one, "".into(), InclusiveWire { start: 0, end: 9 });
        let answer = |terms, fetches| {
            let terms = std::iter::repeat_with(term).take(terms).collect();
            Reconstruction::checked(0, terms, std::iter::repeat_with(fetch).take(fetches))
        };
        assert_eq!(answer(MAX_TERMS, MAX_TERMS).unwrap().terms.len(), MAX_TERMS);
        assert!(answer(MAX_TERMS + 1, 1).is_err());
        assert!(answer(1, MAX_TERMS + 1).is_err());
    }

    #[test]
    fn fetches_are_sorted_and_those_inside_others_dropped() {
        let fetches = json!([
            fetch(span(7, 8), span(90, 99)),
            fetch(span(3, 6), span(40, 79)),
            fetch(span(0, 2), span(0, 29)),
            fetch(span(3, 4), span(40, 49)),
            fetch(span(0, 4), span(0, 49)),
            fetch(span(4, 6), span(50, 79)),
        ]);
        let terms = json!([term(1, 3, 6, 30), term(1, 0, 4, 40), term(1, 7, 8, 10), term(1, 3, 4, 10)]);
        let answer = v1(0, terms, fetches).unwrap();
        let kept: Vec<_> = answer.fetches.iter().map(|f| f.chunks.clone()).collect();
        assert_eq!(kept, [0..4, 3..6, 7..8]);
        let found: Vec<_> = answer.terms.iter().map(|term| answer.fetch_of(term)).collect();
        assert_eq!(found, [Some(1), Some(0), Some(2), Some(1)]);
        let elsewhere = Term { xorb: Hash([2; 32]), raw_len: 10, chunks: 7..8 };
        assert_eq!(answer.fetch_of(&elsewhere), None);
    }

    #[test]
    fn ranges_of_one_v2_url_share_it_and_both_forms_round_trip() {
        let answer = json!({
            "offset_into_first_range": 3,
            "terms": [term(1, 0, 1, 10), term(1, 5, 7, 20), term(2, 0, 1, 10)],
            "xorbs": {
                name(1): [{ "url": "http://cas/1", "ranges": [
                    { "chunks": span(0, 1), "bytes": span(0, 19) },
                    { "chunks": span(5, 7), "bytes": span(100, 139) },
                ] }],
                name(2): [{ "url": "http://cas/2", "ranges": [{ "chunks": span(0, 1), "bytes": span(0, 19) }] }],
            },
        });
        let parsed = parse_v2(answer.to_string().as_bytes()).unwrap();
        assert!(Arc::ptr_eq(&parsed.fetches[0].url, &parsed.fetches[1].url));
        assert_eq!(serde_json::from_slice::<Value>(&parsed.to_v2()).unwrap(), answer);
        assert_eq!(parse_v1(&parsed.to_v1()).unwrap(), parsed);
    }

    #[test]
    fn debug_output_hides_urls() {
        let answer = single(0, term(1, 0, 1, 10), fetch(span(0, 1), span(0, 19))).unwrap();
        assert!(!format!("{answer:?}").contains("secret"));
    }
}

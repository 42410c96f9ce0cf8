//! One window of a file: ask where it is, fetch each stretch once, decode the chunks that it needs.
//!
//! Nothing is fetched before the answer has been held against the question, and nothing is decompressed before the chunk headers have been
//! held against the answer: a hostile CAS can make us hold at most one xorb more than the window.

use crate::xet::chunker::MAX_CHUNK;
use crate::xet::compression::decompress;
use crate::xet::hash::chunk_hash;
use crate::xet::offload::offload;
use crate::xet::reconstruction::{Fetch, Reconstruction, Term};
use crate::xet::xorb::{CHUNK_HEADER_LEN, ChunkHeader, MAX_SERIALISED};
use crate::xet::{Cas, Error, Hash, Scheme};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use std::ops::Range;

/// A chunk of a file.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// File offset of its first byte.
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    pub(super) hash: Option<Hash>,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// The chunks that cover `range`, which is not empty; `hashed`: with their hashes.
///
/// URLs that have expired are replaced once, by asking again.
pub(super) async fn fetch(cas: &dyn Cas, file: &Hash, range: &Range<u64>, hashed: bool) -> Result<Vec<Chunk>, Error> {
    let mut layout = ask(cas, file, range).await?;
    let mut bodies = vec![None; layout.fetches.len()];
    if fetch_missing(cas, &layout, &mut bodies).await?.is_some() {
        let renewed = ask(cas, file, range).await?;
        if !renewed.is_same(&layout) {
            bodies = vec![None; renewed.fetches.len()];
        }
        layout = renewed;
        if let Some(denied) = fetch_missing(cas, &layout, &mut bodies).await? {
            return Err(denied);
        }
    }
    let bodies: Vec<Bytes> = bodies.into_iter().map(|body| body.expect("all were fetched")).collect();
    offload(bodies.iter().map(Bytes::len).sum(), move || layout.decode(bodies, hashed)).await
}

async fn ask(cas: &dyn Cas, file: &Hash, range: &Range<u64>) -> Result<Layout, Error> {
    Layout::of(cas.reconstruction(file, Some(range.clone())).await?, range)
}

/// Fetches what `bodies` lacks. Gives the error of those that were denied, which is how an expired URL shows.
async fn fetch_missing(cas: &dyn Cas, layout: &Layout, bodies: &mut [Option<Bytes>]) -> Result<Option<Error>, Error> {
    let missing = layout.fetches.iter().enumerate().filter(|(i, _)| bodies[*i].is_none());
    let mut running: FuturesUnordered<_> =
        missing.map(|(i, fetch)| async move { (i, cas.fetch(&fetch.url, fetch.bytes.clone()).await) }).collect();
    let mut denied = None;
    while let Some((i, fetched)) = running.next().await {
        match fetched {
            Ok(body) => bodies[i] = Some(body),
            Err(error @ Error::Forbidden(_)) => denied = Some(error),
            Err(error) => return Err(error),
        }
    }
    Ok(denied)
}

/// An answer that fits the question.
struct Layout {
    /// File offset of the first term.
    offset: u64,
    terms: Vec<Term>,
    /// For each term, the fetch that holds it.
    fetch_of: Vec<usize>,
    /// Those that terms use.
    fetches: Vec<Fetch>,
}

impl Layout {
    fn of(answer: Reconstruction, range: &Range<u64>) -> Result<Self, Error> {
        let len = range.end - range.start;
        let raw_len: u64 = answer.terms.iter().map(|term| u64::from(term.raw_len)).sum();
        let covered = raw_len.checked_sub(answer.skip).ok_or_else(|| malformed("it skips more than there is"))?;
        if covered < len {
            return Err(malformed(format!("it covers {covered} of {len} bytes")));
        }
        if answer.skip >= MAX_CHUNK as u64 || covered - len >= MAX_CHUNK as u64 {
            return Err(malformed("it has chunks outside the range"));
        }
        let offset = range.start.checked_sub(answer.skip).ok_or_else(|| malformed("it begins before the file"))?;

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
        let layout = Self { offset, terms: answer.terms, fetch_of, fetches };
        layout.check_size(raw_len)?;
        Ok(layout)
    }

    /// Stretches may hold more than the terms use and chunks may be stored in more than their length, within reason.
    fn check_size(&self, raw_len: u64) -> Result<(), Error> {
        let lens = self.fetches.iter().map(|fetch| fetch.bytes.end.saturating_sub(fetch.bytes.start));
        let stored = lens.fold(0, u64::saturating_add);
        let overhead = CHUNK_HEADER_LEN as u64 * self.terms.iter().map(|term| term.chunks.len() as u64).sum::<u64>();
        if stored > 2 * raw_len + overhead + MAX_SERIALISED as u64 {
            return Err(malformed(format!("{stored} bytes to fetch for {raw_len}")));
        }
        Ok(())
    }

    /// Whether the two differ in nothing but URLs.
    fn is_same(&self, other: &Self) -> bool {
        let place = |fetch: &Fetch| (fetch.xorb, fetch.chunks.clone(), fetch.bytes.clone());
        (self.offset, &self.terms, &self.fetch_of) == (other.offset, &other.terms, &other.fetch_of)
            && self.fetches.iter().map(place).eq(other.fetches.iter().map(place))
    }

    /// Terms to chunks; one that several terms use is decoded once.
    fn decode(&self, bodies: Vec<Bytes>, hashed: bool) -> Result<Vec<Chunk>, Error> {
        let parse = |(fetch, body): (&Fetch, Bytes)| Stretch::parse(fetch.chunks.clone(), body);
        let mut stretches = self.fetches.iter().zip(bodies).map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut chunks = Vec::new();
        let mut offset = self.offset;
        for (term, &i) in self.terms.iter().zip(&self.fetch_of) {
            for stored in stretches[i].of(term)? {
                let (bytes, hash) = stored.open(hashed)?;
                chunks.push(Chunk { offset, bytes: bytes.clone(), hash });
                offset += bytes.len() as u64;
            }
        }
        Ok(chunks)
    }
}

/// A fetched stretch of a xorb.
struct Stretch {
    /// Index of its first chunk in the xorb.
    first: u32,
    chunks: Vec<Stored>,
}

impl Stretch {
    /// Finds the chunks in `body`, which must be exactly `chunks`.
    fn parse(chunks: Range<u32>, mut body: Bytes) -> Result<Self, Error> {
        let mut found = Vec::new();
        while let Some(header) = body.first_chunk::<CHUNK_HEADER_LEN>() {
            if found.len() == chunks.len() {
                return Err(bad_data("there are more chunks than announced"));
            }
            let header = ChunkHeader::parse(header)?;
            let end = CHUNK_HEADER_LEN + header.stored_len as usize;
            if end > body.len() {
                return Err(bad_data("the last chunk is cut short"));
            }
            let payload = body.split_to(end).slice(CHUNK_HEADER_LEN..);
            found.push(Stored { header, payload, opened: None });
        }
        if !body.is_empty() || found.len() != chunks.len() {
            return Err(bad_data("there are fewer chunks than announced"));
        }
        Ok(Self { first: chunks.start, chunks: found })
    }

    /// The chunks of `term`, which lies in this stretch. Their lengths are what the term says before any is decompressed.
    fn of(&mut self, term: &Term) -> Result<&mut [Stored], Error> {
        let range = (term.chunks.start - self.first) as usize..(term.chunks.end - self.first) as usize;
        let chunks = &mut self.chunks[range];
        let raw_len: u64 = chunks.iter().map(|chunk| u64::from(chunk.header.raw_len)).sum();
        if raw_len != u64::from(term.raw_len) {
            return Err(bad_data("a term is not as long as announced"));
        }
        Ok(chunks)
    }
}

/// A chunk as it is stored.
struct Stored {
    header: ChunkHeader,
    payload: Bytes,
    opened: Option<(Bytes, Option<Hash>)>,
}

impl Stored {
    /// Its raw bytes, which share the memory of the payload where that isn't compressed.
    fn open(&mut self, hashed: bool) -> Result<(Bytes, Option<Hash>), Error> {
        if let Some(opened) = &self.opened {
            return Ok(opened.clone());
        }
        let raw_len = self.header.raw_len as usize;
        let raw = match self.header.scheme {
            Scheme::None if self.payload.len() == raw_len => self.payload.clone(),
            scheme => {
                let mut raw = Vec::with_capacity(raw_len);
                decompress(scheme, &self.payload, raw_len, &mut raw)?;
                Bytes::from(raw)
            }
        };
        let hash = hashed.then(|| chunk_hash(&raw));
        Ok(self.opened.insert((raw, hash)).clone())
    }
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed { what: "reconstruction", why: why.into() }
}

fn bad_data(why: &str) -> Error {
    Error::Malformed { what: "xorb data", why: why.to_owned() }
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

    fn body() -> Bytes {
        let chunk = |byte: u8, len: u32| {
            let header = ChunkHeader { stored_len: len, scheme: Scheme::None, raw_len: len };
            [&header.to_bytes()[..], &vec![byte; len as usize]].concat()
        };
        [chunk(b'a', 100), chunk(b'b', 200)].concat().into()
    }

    fn is_refused(answer: Reconstruction, range: Range<u64>) -> bool {
        matches!(Layout::of(answer, &range), Err(Error::Malformed { what: "reconstruction", .. }))
    }

    #[test]
    fn chunks_carry_their_file_offsets_and_unused_stretches_are_left_out() {
        let layout = Layout::of(answer(), &(1040..1500)).unwrap();
        assert_eq!(layout.fetches.len(), 1);
        let chunks = layout.decode(vec![body()], true).unwrap();
        let found: Vec<_> = chunks.iter().map(|chunk| (chunk.offset, chunk.bytes[0], chunk.end())).collect();
        assert_eq!(found, [(1000, b'a', 1100), (1100, b'b', 1300), (1300, b'b', 1500)]);
        assert_eq!(chunks[2].hash, Some(chunk_hash(&[b'b'; 200])));
    }

    #[test]
    fn answer_that_does_not_fit_the_question_is_refused() {
        assert!(Layout::of(answer(), &(40..500)).is_ok());
        assert!(is_refused(answer(), 40..501), "too short");
        assert!(is_refused(answer(), 39..499), "begins before the file");
        assert!(is_refused(Reconstruction { skip: 501, ..answer() }, 501..502), "skips more than there is");
        assert!(is_refused(Reconstruction { terms: vec![], skip: 0, ..answer() }, 0..1), "no terms");
        assert!(is_refused(Reconstruction { fetches: vec![], ..answer() }, 40..500), "nothing to fetch");
    }

    #[test]
    fn answer_with_chunks_outside_the_range_is_refused() {
        let long = |skip| {
            let mut answer = answer();
            answer.terms = vec![Term { raw_len: 262_144, ..answer.terms[0].clone() }];
            Reconstruction { skip, ..answer }
        };
        assert!(Layout::of(long(131_071), &(131_071..131_074)).is_ok());
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
        assert!(Layout::of(bloated(1), &(0..300)).is_ok());
        assert!(is_refused(bloated(2), 0..600));
    }

    #[test]
    fn body_must_be_exactly_the_chunks_announced() {
        let layout = Layout::of(answer(), &(1040..1500)).unwrap();
        let is_refused = |body: Bytes| matches!(layout.decode(vec![body], false), Err(Error::Malformed { .. }));
        let whole = body();
        for cut in 0..whole.len() {
            assert!(is_refused(whole.slice(..cut)), "cut at {cut}");
        }
        assert!(is_refused([&whole[..], &whole[..]].concat().into()), "more chunks");
        assert!(is_refused([&whole[..], b"x"].concat().into()), "a byte more");
        let mut other_len = whole.to_vec();
        (other_len[1], other_len[5]) = (99, 99);
        other_len.remove(50);
        assert!(is_refused(other_len.into()), "a term shorter than announced");
    }

    #[test]
    fn renewed_answer_is_the_same_if_only_urls_differ() {
        let layout = |answer| Layout::of(answer, &(1040..1500)).unwrap();
        let mut renewed = answer();
        renewed.fetches[0].url = "v".into();
        assert!(layout(renewed).is_same(&layout(answer())));
        let mut moved = answer();
        moved.fetches[0].bytes = 0..317;
        assert!(!layout(moved).is_same(&layout(answer())));
    }
}

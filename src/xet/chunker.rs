//! Content-defined chunking (Xet spec, section 3).
//!
//! Lengths are bytes. State survives buffer edges: where the boundaries fall never depends on how a
//! stream is cut into buffers. Nothing here fails.

use gearhash::DEFAULT_TABLE;

/// Smallest chunk that a boundary may end, in bytes.
pub const MIN_CHUNK: usize = 8_192;
/// Largest chunk, in bytes.
pub const MAX_CHUNK: usize = 131_072;

/// Bytes that the rolling hash depends on: each is shifted left once per later byte, out of 64 bits.
const WINDOW: usize = 64;
/// Leading bytes of a chunk that can't matter to any boundary: they have left the window at the first one allowed.
const SKIPPED: usize = MIN_CHUNK - WINDOW;
/// A chunk ends where these 16 bits of the rolling hash are clear: once in 64 KiB.
const MASK: u64 = 0xffff_0000_0000_0000;

/// Stretches that are scanned side by side. Each step of a hash waits for the one before; steps of
/// several stretches don't wait for each other.
const LANES: usize = 4;
/// Longest stretch in bytes. Long enough that the window hashed before each costs little; four are shorter than what is
/// skipped behind a boundary, so that hardly anything is scanned in vain.
const STRETCH: usize = 1024;
/// Shortest stretch that is worth it, in bytes.
const SHORTEST: usize = 2 * WINDOW;
/// Bytes of each stretch that are taken in one go: as many as the compiler unrolls. With 4 or 16 it
/// is a third slower (`benches/xet.rs`).
const UNROLLED: usize = 8;

/// Finds chunk boundaries in a stream.
#[derive(Clone, Debug, Default)]
pub struct Chunker {
    /// Rolling hash of the last bytes of this chunk.
    hash: u64,
    /// Bytes of this chunk so far, below `MAX_CHUNK`.
    size: usize,
}

impl Chunker {
    /// At the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scans `data`, the next bytes of the stream. `Some(n)`: a chunk ends after `n` bytes of `data` (1..=len), call
    /// again with the rest. `None`: all of it belongs to a chunk that isn't finished.
    pub fn next_boundary(&mut self, data: &[u8]) -> Option<usize> {
        let data = &data[..data.len().min(MAX_CHUNK - self.size)];
        // Three stretches: bytes not worth hashing, bytes that may not end a chunk, bytes that may.
        let skipped = data.len().min(SKIPPED.saturating_sub(self.size));
        let tested = data.len().min((MIN_CHUNK - 1).saturating_sub(self.size));
        self.hash = data[skipped..tested].iter().fold(self.hash, |hash, &byte| step(hash, byte));
        let found = self.scan(data, tested);
        let end = found.or_else(|| (self.size + data.len() == MAX_CHUNK).then_some(data.len()));
        match end {
            Some(_) => *self = Self::new(),
            None => self.size += data.len(),
        }
        end
    }

    /// The end of the first match in `data[at..]`; without one the hash is that of the end.
    fn scan(&mut self, data: &[u8], mut at: usize) -> Option<usize> {
        loop {
            let stretch = STRETCH.min((data.len() - at) / LANES) / UNROLLED * UNROLLED;
            if stretch < SHORTEST {
                break;
            }
            if let Some(found) = self.scan_lanes(data, at, stretch) {
                return Some(at + found);
            }
            at += LANES * stretch;
        }
        for (i, &byte) in data[at..].iter().enumerate() {
            self.hash = step(self.hash, byte);
            if self.hash & MASK == 0 {
                return Some(at + i + 1);
            }
        }
        None
    }

    /// The same for the next `LANES * stretch` bytes; a stretch is not shorter than the window.
    fn scan_lanes(&mut self, data: &[u8], at: usize, stretch: usize) -> Option<usize> {
        let mut hashes = [self.hash; LANES];
        let window = |lane: usize| &data[at + lane * stretch - WINDOW..][..WINDOW];
        let windows = [window(1), window(2), window(3)];
        for i in 0..WINDOW {
            for (hash, window) in hashes[1..].iter_mut().zip(windows) {
                *hash = step(*hash, window[i]);
            }
        }
        let lane = |lane: usize| &data[at + lane * stretch..][..stretch];
        let lanes = [lane(0), lane(1), lane(2), lane(3)];
        let [a, b, c, d] = lanes.map(|lane| lane.as_chunks::<UNROLLED>().0);
        for (group, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
            for i in 0..UNROLLED {
                for (lane, bytes) in [a, b, c, d].into_iter().enumerate() {
                    hashes[lane] = step(hashes[lane], bytes[i]);
                    if hashes[lane] & MASK == 0 {
                        return Some(first(&lanes, &hashes, lane, group * UNROLLED + i));
                    }
                }
            }
        }
        self.hash = hashes[LANES - 1];
        None
    }
}

/// The end of the first match, where `lane` has one at `at` and none had one before. Out of the way, so that the loop
/// has nothing per byte but a step, a test and a branch that is hardly ever taken.
#[cold]
#[inline(never)]
fn first(lanes: &[&[u8]; LANES], hashes: &[u64; LANES], lane: usize, at: usize) -> usize {
    let stretch = lanes[0].len();
    for earlier in 0..lane {
        // This byte was taken already.
        let mut hash = hashes[earlier];
        for (i, &byte) in lanes[earlier][at + 1..].iter().enumerate() {
            hash = step(hash, byte);
            if hash & MASK == 0 {
                return earlier * stretch + at + 1 + i + 1;
            }
        }
    }
    lane * stretch + at + 1
}

/// The rolling hash, a byte further.
fn step(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(DEFAULT_TABLE[usize::from(byte)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;
    use proptest::prelude::*;

    /// The rule as the spec words it, byte by byte, nothing skipped.
    fn slow_boundaries(data: &[u8]) -> Vec<usize> {
        let (mut hash, mut size) = (0u64, 0);
        let mut boundaries = Vec::new();
        for (i, &byte) in data.iter().enumerate() {
            hash = (hash << 1).wrapping_add(gearhash::DEFAULT_TABLE[usize::from(byte)]);
            size += 1;
            if size >= 8192 && (hash >> 48 == 0 || size == 131_072) {
                boundaries.push(i + 1);
                (hash, size) = (0, 0);
            }
        }
        boundaries
    }

    /// Boundaries found when the stream comes in buffers of these lengths, over and over.
    fn boundaries(data: &[u8], buffers: &[usize]) -> Vec<usize> {
        let mut chunker = Chunker::new();
        let mut found = Vec::new();
        let mut at = 0;
        for len in buffers.iter().cycle() {
            if at == data.len() {
                break;
            }
            let end = data.len().min(at + len);
            while at < end {
                let Some(n) = chunker.next_boundary(&data[at..end]) else { break };
                assert!((1..=end - at).contains(&n));
                at += n;
                found.push(at);
            }
            at = end;
        }
        found
    }

    /// Bytes behind which the hash matches, wherever they stand.
    fn trigger() -> Vec<u8> {
        let noise = testdata::random(9, 8 * MAX_CHUNK);
        let mut hash = 0;
        let matches = |byte: &u8| {
            hash = step(hash, *byte);
            hash & MASK == 0
        };
        let last = WINDOW + noise.iter().skip(WINDOW).position(matches).expect("noise has matches");
        noise[last + 1 - WINDOW..=last].to_vec()
    }

    /// Stretches of bytes that differ in how often they match: random, constant, periodic, and matches at every
    /// distance: within the bytes that are skipped, several in one scan, at its seams and at the edges of the rule.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let trigger = trigger();
        let gap = prop_oneof![0..300usize, 0..2 * STRETCH, 8_000..8_200usize, 0..20_000usize, 130_900..131_100usize];
        let triggers = prop::collection::vec((any::<u8>(), gap), 1..20).prop_map(move |gaps| {
            gaps.into_iter().flat_map(|(fill, gap)| [vec![fill; gap], trigger.clone()].concat()).collect()
        });
        let stretch = prop_oneof![
            triggers,
            (any::<u64>(), 0..200_000usize).prop_map(|(seed, len)| testdata::random(seed, len)),
            (any::<u8>(), 0..140_000usize).prop_map(|(byte, len)| vec![byte; len]),
            (any::<u64>(), 1..100usize, 0..2_000usize).prop_map(|(seed, len, n)| testdata::random(seed, len).repeat(n)),
        ];
        prop::collection::vec(stretch, 0..5).prop_map(|stretches| stretches.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn boundaries_are_those_of_the_rule_however_the_stream_is_cut(
            data in content(),
            buffers in prop::collection::vec(prop_oneof![1..100usize, 1..40_000usize, Just(8_128), Just(8_191), Just(8_192)], 1..20),
        ) {
            let expected = slow_boundaries(&data);
            prop_assert_eq!(&boundaries(&data, &[data.len().max(1)]), &expected);
            prop_assert_eq!(&boundaries(&data, &buffers), &expected);
        }
    }

    #[test]
    fn one_byte_at_a_time_finds_the_same_boundaries() {
        let data = testdata::random(6, 400_000);
        assert!(slow_boundaries(&data).len() > 2);
        assert_eq!(boundaries(&data, &[1]), slow_boundaries(&data));
    }

    #[test]
    fn an_empty_buffer_changes_nothing() {
        let data = vec![0; MAX_CHUNK];
        let mut chunker = Chunker::new();
        assert_eq!(chunker.next_boundary(&data[1..]), None);
        assert_eq!(chunker.next_boundary(&[]), None);
        assert_eq!(chunker.next_boundary(&data[..1]), Some(1));
        assert_eq!(chunker.next_boundary(&[]), None);
    }
}

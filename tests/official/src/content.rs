//! Contents to upload, of every kind that chunking, compression and dedup treat differently,
//! at lengths that hug their limits.

use std::iter::repeat_with;
use std::ops::Range;

/// Smallest and largest chunk in bytes.
pub(crate) const MIN_CHUNK: usize = 8_192;
pub(crate) const MAX_CHUNK: usize = 131_072;

/// A file to be.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// One session's worth: some 8 MB.
pub(crate) fn samples() -> Vec<Sample> {
    let sample = |name, bytes| Sample { name, bytes };
    vec![
        sample("empty", Vec::new()),
        sample("one byte", vec![7]),
        sample("random, a byte short of the smallest chunk", random(1, MIN_CHUNK - 1)),
        sample("random, as long as the smallest chunk", random(2, MIN_CHUNK)),
        sample("random, a byte past the smallest chunk", random(3, MIN_CHUNK + 1)),
        sample("random, as long as the largest chunk", random(4, MAX_CHUNK)),
        sample("zeros, a byte short of the largest chunk", vec![0; MAX_CHUNK - 1]),
        sample("zeros, as long as the largest chunk", vec![0; MAX_CHUNK]),
        sample("zeros, a byte past the largest chunk", vec![0; MAX_CHUNK + 1]),
        sample("one chunk eight times", vec![b'x'; 8 * MAX_CHUNK]),
        sample("random", random(5, 2_000_000)),
        sample("text", text(700_000)),
        sample("floats", floats(6, 200_000)),
        sample("random three times", random(7, 150_000).repeat(3)),
        sample("mixed", [text(300_000), random(8, 300_000), floats(9, 75_000), vec![0; 300_000]].concat()),
        sample("random, then chunks of it that are apart", apart(&random(11, 1_000_000))),
        sample("random again, after other bytes", [random(10, 100_000), random(5, 1_000_000)].concat()),
    ]
}

/// `content` and every third of its chunks again: ranges of one xorb with gaps between them.
fn apart(content: &[u8]) -> Vec<u8> {
    let again: Vec<_> = chunks(content).step_by(3).collect();
    [content, &again.concat()].concat()
}

/// Many small files, some of them equal, one empty.
pub(crate) fn small_samples() -> Vec<Sample> {
    let small = |seed: u64| random(seed % 50, 37 * (seed % 50) as usize);
    (0..60).map(|seed| Sample { name: "small", bytes: small(seed) }).collect()
}

/// Ranges that hug the ends of the content, of its chunks, and of nothing.
pub(crate) fn ranges(content: &[u8]) -> Vec<Range<u64>> {
    let len = content.len() as u64;
    let mut cuts = vec![0, 1, len / 3, len / 2, len.saturating_sub(1), len];
    let mut chunk_end = 0;
    for chunk in chunks(content).take(4) {
        chunk_end += chunk.len() as u64;
        cuts.extend([chunk_end - 1, chunk_end, chunk_end + 1]);
    }
    cuts.retain(|&cut| cut <= len);
    cuts.sort_unstable();
    cuts.dedup();
    // Neighbours, and some that span several.
    let near = cuts.windows(2).map(|pair| pair[0]..pair[1]);
    let far = cuts.windows(5).map(|five| five[0]..five[4]);
    near.chain(far).collect()
}

/// The chunks as the official chunker cuts them.
pub(crate) fn chunks(content: &[u8]) -> impl Iterator<Item = bytes::Bytes> {
    let mut chunker = xet_data::deduplication::Chunker::default();
    chunker.next_block(content, true).into_iter().map(|chunk| chunk.data)
}

/// `len` bytes that don't compress. Another length of the same seed is a prefix.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = words(seed).take(len.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

/// `count` little-endian floats in [1, 2): they compress only when regrouped.
pub(crate) fn floats(seed: u64, count: usize) -> Vec<u8> {
    words(seed).take(count).flat_map(|word| (1.0 + (word >> 40) as f32 / (1 << 24) as f32).to_le_bytes()).collect()
}

/// `len` bytes of numbered lines.
pub(crate) fn text(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=len / 10).flat_map(|line| format!("{line:06} ferry\n").into_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Xorshift64* over a scrambled seed.
fn words(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

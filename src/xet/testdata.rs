//! Test inputs, as the vectors describe them (see their README).

use super::chunker::Chunker;
use serde::Deserialize;

/// A recipe for bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Input {
    Splitmix64 { seed: u64, len: usize },
    Floats { seed: u64, count: usize },
    Text { len: usize },
    Fill { byte: u8, len: usize },
    Repeat { times: usize, of: Box<Input> },
    Concat { parts: Vec<Input> },
}

impl Input {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Splitmix64 { seed, len } => random(*seed, *len),
            Self::Floats { seed, count } => floats(*seed, *count),
            Self::Text { len } => text(*len),
            Self::Fill { byte, len } => vec![*byte; *len],
            Self::Repeat { times, of } => of.bytes().repeat(*times),
            Self::Concat { parts } => parts.iter().flat_map(Input::bytes).collect(),
        }
    }
}

fn splitmix64(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    })
}

/// `len` bytes that don't compress.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = splitmix64(seed).take(len.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

/// `count` little-endian floats in [1, 2): they compress when regrouped.
pub(crate) fn floats(seed: u64, count: usize) -> Vec<u8> {
    splitmix64(seed).take(count).flat_map(|z| ((z >> 41) as u32 | 0x3F80_0000).to_le_bytes()).collect()
}

/// `len` bytes of lines that compress well.
pub(crate) fn text(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    for i in 0.. {
        if bytes.len() >= len {
            break;
        }
        bytes.extend_from_slice(format!("line {i}: the quick brown fox\n").as_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The chunks of a whole file.
pub(crate) fn chunks(mut data: &[u8]) -> Vec<&[u8]> {
    let mut chunker = Chunker::new();
    let mut chunks = Vec::new();
    while !data.is_empty() {
        let (chunk, rest) = data.split_at(chunker.next_boundary(data).unwrap_or(data.len()));
        chunks.push(chunk);
        data = rest;
    }
    chunks
}

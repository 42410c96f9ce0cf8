//! Codec against codec, without a server: chunks, hashes, compression, xorbs, shards. Inputs are drawn from what is hard to cut.

mod chunks;
mod shards;
mod xorbs;

use crate::content::{MAX_CHUNK, MIN_CHUNK, floats, random, text};
use hfcrypt::xet::Hash;
use hfcrypt::xet::chunker::Chunker;
use proptest::prelude::*;
use proptest::sample::select;
use std::sync::LazyLock;
use xet_core_structures::merklehash::MerkleHash;

/// Cases of a property: a second or two, at some 200 KB of content each.
const CASES: u32 = 256;

fn theirs(hash: &Hash) -> MerkleHash {
    MerkleHash::from_slice(&hash.0).unwrap()
}

fn ours(hash: &MerkleHash) -> Hash {
    Hash(hash.as_bytes().try_into().unwrap())
}

/// 64 bytes behind which the rolling hash asks for a boundary, wherever they stand.
static TRIGGER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let noise = random(100, 4 * MAX_CHUNK);
    let mut chunker = Chunker::new();
    let mut at = 0;
    loop {
        let len = chunker.next_boundary(&noise[at..]).expect("noise has boundaries");
        at += len;
        // Not one that was forced.
        if len < MAX_CHUNK {
            return noise[at - 64..at].to_vec();
        }
    }
});

/// Contents in pieces: plain ones, and triggers after gaps that put them at every edge of the rules, overlapping ones included.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    let gaps = [0, 1, 63, 64, 65, 8_063, MIN_CHUNK - 65, MIN_CHUNK - 64, MIN_CHUNK - 63, MIN_CHUNK, MAX_CHUNK - 65]
        .into_iter()
        .chain([MAX_CHUNK - 64, MAX_CHUNK - 63, MAX_CHUNK])
        .collect::<Vec<_>>();
    let piece = prop_oneof![
        4 => (select(gaps), 0..3u8).prop_map(|(gap, fill)| [&vec![fill; gap], &TRIGGER[..]].concat()),
        1 => (1..64usize).prop_map(|len| TRIGGER[..len].to_vec()),
        2 => (any::<u32>(), 0..200_000usize).prop_map(|(seed, len)| random(seed.into(), len)),
        1 => (any::<u8>(), 0..300_000usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (0..100_000usize).prop_map(text),
        1 => (any::<u32>(), 0..40_000usize).prop_map(|(seed, count)| floats(seed.into(), count)),
        1 => (any::<u32>(), 1..40_000usize, 2..5usize).prop_map(|(seed, len, times)| random(seed.into(), len).repeat(times)),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

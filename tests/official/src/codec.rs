//! Codec against codec, without a server: chunks, hashes, compression, xorbs, shards. Inputs are
//! drawn from what is hard to cut.

mod chunks;
mod hostile;
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
const CASES: u32 = 1000;

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

/// A content by its recipe, so that a failure names it in a line.
#[derive(Clone, Debug)]
enum Piece {
    /// A trigger after bytes that have none.
    Trigger {
        gap: usize,
        fill: u8,
    },
    CutTrigger {
        len: usize,
    },
    Fill {
        byte: u8,
        len: usize,
    },
    Text {
        len: usize,
    },
    Floats {
        seed: u8,
        count: usize,
    },
    Random {
        seed: u8,
        len: usize,
        times: usize,
    },
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Trigger { gap, fill } => [&vec![fill; gap], &TRIGGER[..]].concat(),
            Self::CutTrigger { len } => TRIGGER[..len].to_vec(),
            Self::Fill { byte, len } => vec![byte; len],
            Self::Text { len } => text(len),
            Self::Floats { seed, count } => floats(seed.into(), count),
            Self::Random { seed, len, times } => random(seed.into(), len).repeat(times),
        }
    }
}

/// Plain pieces, and triggers after gaps that put them at every edge of the rules, overlapping ones included.
fn any_recipe() -> impl Strategy<Value = Vec<Piece>> {
    let gaps = vec![
        0,
        1,
        63,
        64,
        65,
        // Ends where hashing has to begin.
        8_063,
        MIN_CHUNK - 65,
        MIN_CHUNK - 64,
        MIN_CHUNK - 63,
        MIN_CHUNK,
        MAX_CHUNK - 65,
        MAX_CHUNK - 64,
        MAX_CHUNK - 63,
        MAX_CHUNK,
    ];
    let piece = prop_oneof![
        4 => (select(gaps), 0..3u8).prop_map(|(gap, fill)| Piece::Trigger { gap, fill }),
        1 => (1..64usize).prop_map(|len| Piece::CutTrigger { len }),
        1 => (any::<u8>(), 0..300_000usize).prop_map(|(byte, len)| Piece::Fill { byte, len }),
        1 => (0..100_000usize).prop_map(|len| Piece::Text { len }),
        1 => (any::<u8>(), 0..40_000usize).prop_map(|(seed, count)| Piece::Floats { seed, count }),
        3 => (any::<u8>(), 1..100_000usize, 1..4usize)
            .prop_map(|(seed, len, times)| Piece::Random { seed, len, times }),
    ];
    prop::collection::vec(piece, 0..6)
}

fn content(recipe: &[Piece]) -> Vec<u8> {
    recipe.iter().flat_map(Piece::bytes).collect()
}

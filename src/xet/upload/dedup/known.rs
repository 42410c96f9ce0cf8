//! Xorbs that the CAS has told this session of, and where their chunks are.

use crate::Hash;
use crate::chunker::MAX_CHUNK;
use crate::hash::keyed_chunk_hash;
use crate::merkle::xorb_hash;
use crate::shard::XorbInfo;
use crate::xorb::MAX_CHUNKS;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Chunks remembered, about 80 bytes each; those of the oldest answers go first.
const MAX_CHUNKS_KNOWN: usize = 1 << 18;
/// Different keys at a time: a chunk is hashed once for each.
const MAX_KEYS: usize = 8;
/// The key of answers with plain hashes.
const PLAIN: [u8; 32] = [0; 32];

/// A xorb that the CAS has.
pub(in crate::upload) struct KnownXorb {
    pub(in crate::upload) hash: Hash,
    /// Of its chunk hashes; zero: they are plain.
    key: [u8; 32],
    /// Chunk hashes and uncompressed lengths.
    chunks: Box<[(Hash, u32)]>,
}

impl KnownXorb {
    /// Chunk hashes, under the key of the answer, and uncompressed lengths.
    pub(super) fn chunks(&self) -> &[(Hash, u32)] {
        &self.chunks
    }

    /// How many of `chunks`, given by their own hashes and lengths, it has from `index` on.
    pub(in crate::upload) fn run<'a>(&self, index: u32, chunks: impl Iterator<Item = (&'a Hash, u32)>) -> usize {
        let stored = self.chunks.get(index as usize..).unwrap_or(&[]);
        let same = |((hash, len), (wanted, wanted_len)): &(&(Hash, u32), (&Hash, u32))| {
            len == wanted_len && *hash == keyed(&self.key, wanted)
        };
        stored.iter().zip(chunks).take_while(same).count()
    }
}

fn keyed(key: &[u8; 32], chunk: &Hash) -> Hash {
    if *key == PLAIN { *chunk } else { keyed_chunk_hash(key, chunk) }
}

/// The xorbs of an answer that can be what they say: of plausible size, and with the right hash
/// where chunk hashes are plain.
pub(super) fn checked(key: [u8; 32], xorbs: Vec<XorbInfo>) -> Vec<KnownXorb> {
    let plausible = |info: &XorbInfo| {
        let lens = || info.chunks.iter().map(|chunk| (chunk.hash, u64::from(chunk.raw_len)));
        (1..=MAX_CHUNKS).contains(&info.chunks.len())
            && info.chunks.iter().all(|chunk| (1..=MAX_CHUNK).contains(&(chunk.raw_len as usize)))
            && (key != PLAIN || xorb_hash(&lens().collect::<Vec<_>>()) == info.hash)
    };
    let known = |info: XorbInfo| KnownXorb {
        hash: info.hash,
        key,
        chunks: info.chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len)).collect(),
    };
    xorbs.into_iter().filter(plausible).map(known).collect()
}

/// All of them.
#[derive(Default)]
pub(in crate::upload) struct Known {
    /// Per key: truncated hashes, keyed.
    tables: Vec<([u8; 32], Table)>,
    /// In the order they came.
    xorbs: VecDeque<Arc<KnownXorb>>,
    hashes: HashSet<Hash>,
    chunks: usize,
}

type Table = HashMap<u64, (Arc<KnownXorb>, u32)>;

impl Known {
    /// Where a chunk is.
    pub(in crate::upload) fn find(&self, chunk: &Hash) -> Option<(Arc<KnownXorb>, u32)> {
        self.tables.iter().find_map(|(key, table)| {
            let hash = keyed(key, chunk);
            let (xorb, index) = table.get(&hash.truncated())?;
            (xorb.chunks[*index as usize].0 == hash).then(|| (Arc::clone(xorb), *index))
        })
    }

    pub(super) fn insert(&mut self, xorb: KnownXorb) {
        if self.hashes.contains(&xorb.hash) {
            return;
        }
        let nth = match self.tables.iter().position(|(key, _)| *key == xorb.key) {
            Some(nth) => nth,
            None if self.tables.len() == MAX_KEYS => return,
            None => {
                self.tables.push((xorb.key, Table::new()));
                self.tables.len() - 1
            }
        };
        let xorb = Arc::new(xorb);
        for (index, (hash, _)) in (0..).zip(&xorb.chunks) {
            self.tables[nth].1.entry(hash.truncated()).or_insert_with(|| (Arc::clone(&xorb), index));
        }
        self.hashes.insert(xorb.hash);
        self.chunks += xorb.chunks.len();
        self.xorbs.push_back(xorb);
        self.forget(MAX_CHUNKS_KNOWN);
    }

    fn forget(&mut self, most: usize) {
        while self.chunks > most
            && let Some(oldest) = self.xorbs.pop_front()
        {
            self.chunks -= oldest.chunks.len();
            self.hashes.remove(&oldest.hash);
            let Some((_, table)) = self.tables.iter_mut().find(|(key, _)| *key == oldest.key) else { continue };
            for (hash, _) in &oldest.chunks {
                if table.get(&hash.truncated()).is_some_and(|(xorb, _)| Arc::ptr_eq(xorb, &oldest)) {
                    table.remove(&hash.truncated());
                }
            }
        }
        self.tables.retain(|(_, table)| !table.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::chunk_hash;
    use crate::shard::ShardChunk;

    fn chunk(n: u32) -> (Hash, u32) {
        (chunk_hash(&n.to_le_bytes()), 8192 + n % 1000)
    }

    fn info(key: [u8; 32], chunks: std::ops::Range<u32>) -> XorbInfo {
        let plain: Vec<_> = chunks.clone().map(chunk).map(|(hash, len)| (hash, u64::from(len))).collect();
        let chunks = chunks.map(chunk).map(|(hash, raw_len)| ShardChunk {
            hash: keyed(&key, &hash),
            raw_start: 0,
            raw_len,
            flags: 0,
        });
        XorbInfo { hash: xorb_hash(&plain), raw_len: 0, stored_len: 0, chunks: chunks.collect() }
    }

    #[test]
    fn chunks_are_found_under_every_key_and_run_on() {
        let mut known = Known::default();
        for (key, from) in [(PLAIN, 0), ([1; 32], 100), ([2; 32], 200)] {
            checked(key, vec![info(key, from..from + 10)]).into_iter().for_each(|xorb| known.insert(xorb));
            let chunks: Vec<_> = (from + 3..from + 20).map(chunk).collect();
            let (xorb, index) = known.find(&chunks[0].0).unwrap();
            assert_eq!(index, 3);
            assert_eq!(xorb.run(index, chunks.iter().map(|(hash, len)| (hash, *len))), 7);
            assert_eq!(xorb.run(index, chunks.iter().map(|(hash, len)| (hash, *len + 1))), 0);
            assert_eq!(xorb.run(u32::MAX, chunks.iter().map(|(hash, len)| (hash, *len))), 0);
        }
        assert!(known.find(&chunk(50).0).is_none());
    }

    #[test]
    fn xorbs_that_cannot_be_are_not_learnt() {
        let mut lies = info(PLAIN, 0..10);
        lies.chunks[3].raw_len += 1;
        let mut long = info([1; 32], 0..10);
        long.chunks[0].raw_len = MAX_CHUNK as u32 + 1;
        let mut none = info([1; 32], 0..10);
        none.chunks.clear();
        assert!(checked(PLAIN, vec![lies]).is_empty());
        assert!(checked([1; 32], vec![long, none, info([1; 32], 0..MAX_CHUNKS as u32 + 1)]).is_empty());
    }

    #[test]
    fn oldest_are_forgotten_wholly() {
        let mut known = Known::default();
        for n in 0..20 {
            let key = [(n % 2) as u8; 32];
            checked(key, vec![info(key, 10 * n..10 * n + 10)]).into_iter().for_each(|xorb| known.insert(xorb));
            known.forget(50);
        }
        assert_eq!((known.chunks, known.xorbs.len(), known.hashes.len()), (50, 5, 5));
        assert_eq!(known.tables.iter().map(|(_, table)| table.len()).sum::<usize>(), 50);
        assert!(known.find(&chunk(149).0).is_none() && known.find(&chunk(150).0).is_some());
    }

    #[test]
    fn keys_are_bounded() {
        let mut known = Known::default();
        for n in 0..20u32 {
            let key = [n as u8 + 1; 32];
            checked(key, vec![info(key, 10 * n..10 * n + 10)]).into_iter().for_each(|xorb| known.insert(xorb));
        }
        assert_eq!(known.tables.len(), MAX_KEYS);
    }
}

//! Hints: which chunk to ask the CAS for, to be told of another one.

use super::super::is_eligible;
use crate::Hash;
use crate::hash::keyed_chunk_hash;
use crate::shard::{Footer, Shard, XorbInfo};
use std::collections::HashMap;

/// Most different keys: a chunk is hashed once for each.
const MAX_KEYS: usize = 8;

/// Maps chunks to the chunk that has to be asked for, so that the CAS names the xorb of both.
#[derive(Default)]
pub(super) struct Hints {
    questions: Vec<Hash>,
    /// Truncated chunk hashes, keyed, and the index of the question; one table per key.
    tables: Vec<([u8; 32], HashMap<u64, u32>)>,
    /// Chunks added. Those of shards deleted since are among them.
    pub(super) count: usize,
}

impl Hints {
    /// Returns the chunk to ask for if `chunk` is in one of the shards.
    pub(super) fn find(&self, chunk: &Hash) -> Option<Hash> {
        self.tables.iter().find_map(|(key, table)| {
            let hash = if *key == [0; 32] { *chunk } else { keyed_chunk_hash(key, chunk) };
            table.get(&hash.truncated()).map(|question| self.questions[*question as usize])
        })
    }

    /// Adds the chunks of a shard under the chunk that has to be asked for: `question` for a response of the CAS. For
    /// one of our own shards it is a chunk that the CAS answers for, see [`Questions`].
    pub(super) fn add(&mut self, shard: &Shard, footer: &Footer, question: Option<Hash>) {
        if question.is_none() && footer.hmac_key != [0; 32] {
            return;
        }
        let nth = match self.tables.iter().position(|(key, _)| *key == footer.hmac_key) {
            Some(nth) => nth,
            None if self.tables.len() == MAX_KEYS => return,
            None => {
                self.tables.push((footer.hmac_key, HashMap::new()));
                self.tables.len() - 1
            }
        };
        let own = if question.is_none() { Questions::of(shard) } else { Questions::default() };
        for xorb in &shard.xorbs {
            let Some(question) = question.or_else(|| own.find(xorb)) else { continue };
            if self.questions.last() != Some(&question) {
                self.questions.push(question);
            }
            let question = (self.questions.len() - 1) as u32;
            let table = &mut self.tables[nth].1;
            xorb.chunks.iter().for_each(|chunk| {
                table.entry(chunk.hash.truncated()).or_insert(question);
            });
            self.count += xorb.chunks.len();
        }
    }
}

/// The chunks of one of our own shards that the CAS answers for.
///
/// A response holds the xorb of the chunk asked for. It need not hold the others of the shard, but it likely holds
/// those of the same file.
#[derive(Default)]
struct Questions {
    /// By xorb: the first chunk of a file that begins in it.
    starts: HashMap<Hash, Hash>,
    /// By xorb: the first chunk of a file that has a part in it.
    parts: HashMap<Hash, Hash>,
    /// One of them, for a xorb without any.
    any: Option<Hash>,
}

impl Questions {
    fn of(shard: &Shard) -> Self {
        let xorbs: HashMap<Hash, &XorbInfo> = shard.xorbs.iter().map(|xorb| (xorb.hash, xorb)).collect();
        let mut questions = Self::default();
        for file in &shard.files {
            let first = file.segments.first().and_then(|segment| {
                Some((segment.xorb, xorbs.get(&segment.xorb)?.chunks.get(segment.start as usize)?.hash))
            });
            let Some((xorb, first)) = first else { continue };
            questions.starts.entry(xorb).or_insert(first);
            questions.any.get_or_insert(first);
            file.segments.iter().for_each(|segment| {
                questions.parts.entry(segment.xorb).or_insert(first);
            });
        }
        questions.any = questions.any.or_else(|| shard.xorbs.iter().find_map(eligible));
        questions
    }

    fn find(&self, xorb: &XorbInfo) -> Option<Hash> {
        let start = self.starts.get(&xorb.hash).copied();
        start.or_else(|| eligible(xorb)).or_else(|| self.parts.get(&xorb.hash).copied()).or(self.any)
    }
}

/// Returns the first chunk of a xorb that may be asked for wherever it is in its file.
fn eligible(xorb: &XorbInfo) -> Option<Hash> {
    xorb.chunks.iter().map(|chunk| chunk.hash).find(is_eligible)
}

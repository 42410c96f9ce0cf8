//! The data that the packer hands to the shards. It has no behaviour.

use crate::Hash;
use crate::shard::FileInfo;
use std::sync::Arc;

/// Chunk hashes and uncompressed lengths of a xorb.
pub(super) type ChunkList = Arc<[(Hash, u32)]>;

/// A xorb as a shard lists it.
pub(super) struct Xorb {
    pub(super) hash: Hash,
    /// Bytes of the serialised xorb.
    pub(super) stored_len: u32,
    pub(super) chunks: ChunkList,
}

/// Files and xorbs that are to be registered. The CAS has all xorbs of these files.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) xorbs: Vec<Xorb>,
    pub(super) files: Vec<FileInfo>,
}

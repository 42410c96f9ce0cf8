//! Tables of the CAS. Hashes are 32-byte BLOBs, lengths are bytes.
//!
//! Xorbs have no table: one exists where its file does, and the file ends with its index ([`super::xorbs`]).

/// The statements that make the tables; `buckets` is the Hub's.
///
/// * `cas_files`, `cas_terms`: registered files; their terms in pages ([`super::files`]), each
///   under the file offset of its first byte.
/// * `cas_links`: which bucket's tokens may read which file. A link stays when the object goes: a
///   reader may have just listed it.
/// * `cas_shards`, `cas_listed`, `cas_chunks`: the dedup index, per bucket ([`super::dedup`]): the xorbs that an
///   uploaded shard lists (their hashes, concatenated), the shard that lists a xorb, and the shard and position in it
///   that a chunk's query is answered with.
pub(crate) const SCHEMA: &str = "
CREATE TABLE cas_files (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    len INTEGER NOT NULL
);
CREATE TABLE cas_terms (
    file INTEGER NOT NULL REFERENCES cas_files(id),
    at INTEGER NOT NULL,
    terms BLOB NOT NULL,
    PRIMARY KEY (file, at)
) WITHOUT ROWID;
CREATE TABLE cas_links (
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    file INTEGER NOT NULL REFERENCES cas_files(id),
    PRIMARY KEY (bucket, file)
) WITHOUT ROWID;
CREATE TABLE cas_shards (
    id INTEGER PRIMARY KEY,
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    xorbs BLOB NOT NULL
);
CREATE INDEX cas_shards_by_bucket ON cas_shards(bucket);
CREATE TABLE cas_listed (
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    xorb BLOB NOT NULL,
    shard INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (bucket, xorb)
) WITHOUT ROWID;
CREATE TABLE cas_chunks (
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    chunk BLOB NOT NULL,
    shard INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (bucket, chunk)
) WITHOUT ROWID;
";

//! All tables of the embedded Hub's database, and their migrations.
//!
//! Times are milliseconds since the epoch, sizes and lengths are bytes, hashes are 32-byte BLOBs.
//!
//! Xorbs have no table: a xorb exists if its file does, and the file ends with its index (`cas::xorbs`).

use rusqlite::Transaction;

/// Schema versions, ascending. The statements of entry `n - 1` lead to version `n`. A released entry is never edited.
pub(super) const MIGRATIONS: &[&[&str]] = &[&[HUB, CAS], &[CONTENTS, EVENTS], &[REPOSITORIES]];

/// Result of [`migrate`].
pub(super) enum Migration {
    /// The database has the newest version.
    Done,
    /// A later program wrote the database. Nothing was changed.
    TooNew {
        /// Version of the database.
        found: u32,
        /// Newest version that this program knows.
        known: u32,
    },
}

/// Brings the database to the newest version.
pub(super) fn migrate(transaction: &Transaction<'_>) -> rusqlite::Result<Migration> {
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = u32::try_from(MIGRATIONS.len()).expect("a handful of versions");
    if found > known {
        return Ok(Migration::TooNew { found, known });
    }
    for (version, statements) in (1..).zip(MIGRATIONS) {
        if version > found {
            statements.iter().try_for_each(|sql| transaction.execute_batch(sql))?;
        }
    }
    transaction.pragma_update(None, "user_version", known)?;
    Ok(Migration::Done)
}

/// Version 1: users, tokens, buckets and their objects. Keys are BLOBs, so that they sort by bytes.
const HUB: &str = "
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL
);
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    digest BLOB NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('read', 'write')),
    hint TEXT NOT NULL,
    created INTEGER NOT NULL
);
CREATE INDEX tokens_by_user ON tokens(user);
CREATE TABLE buckets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    private INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    files INTEGER NOT NULL DEFAULT 0,
    region TEXT,
    resource_group TEXT,
    UNIQUE (namespace, name)
);
CREATE TABLE moved (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE INDEX moved_by_bucket ON moved(bucket);
CREATE TABLE objects (
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    key BLOB NOT NULL,
    hash BLOB NOT NULL,
    size INTEGER NOT NULL,
    mtime INTEGER,
    uploaded INTEGER NOT NULL,
    content_type TEXT,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
CREATE TABLE folders (
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    path BLOB NOT NULL,
    files INTEGER NOT NULL,
    newest INTEGER,
    PRIMARY KEY (bucket, path)
) WITHOUT ROWID;
";

/// Version 1: the CAS.
///
/// * `cas_files`, `cas_terms`: registered files, and their terms in pages (`cas::files`). A page has the file offset of
///   its first byte.
/// * `cas_links`: which bucket's tokens may read which file. A link stays when the object is removed: a reader may have
///   just listed it.
/// * `cas_shards`, `cas_listed`, `cas_chunks`: the dedup index, per bucket (`cas::dedup`). They hold the xorbs that an
///   uploaded shard lists (hashes, concatenated), the shard that lists a xorb, and the shard and position in it that
///   answer a chunk query.
const CAS: &str = "
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

/// Version 2: finds the files of a bucket by content.
const CONTENTS: &str = "
CREATE INDEX objects_by_hash ON objects(bucket, hash);
";

/// Version 2: the newest changes of each bucket's files (`api::events`).
///
/// `seq` counts the changes of a bucket from 1 without gaps. `event_seq` is the last number. Changes before the time
/// `event_since` were not recorded. A column is NULL if the change left it as it was.
const EVENTS: &str = "
CREATE TABLE events (
    bucket INTEGER NOT NULL REFERENCES buckets(id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    op INTEGER NOT NULL,
    key BLOB NOT NULL,
    hash BLOB,
    size INTEGER,
    mtime INTEGER,
    PRIMARY KEY (bucket, seq)
) WITHOUT ROWID;
ALTER TABLE buckets ADD COLUMN event_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE buckets ADD COLUMN event_since INTEGER NOT NULL DEFAULT 0;
UPDATE buckets SET event_since = updated;
";

/// Version 3: repositories, as Git keeps them.
///
/// * `buckets.kind`: 0 for a bucket. 1 for the row that holds the CAS content of a repository (`repositories`): no
///   route of buckets sees it. Its namespace is empty, which that of a bucket never is.
/// * `repositories`: `namespace` is empty for a name of one segment. `id` is the row in `buckets`.
/// * `git_blobs`, `git_trees`, `git_entries`: Git objects by their SHA-1 of 20 bytes, shared by all repositories.
///   Entries are in the order of Git: `name` ends with `/` if the entry is a folder, and `child` is then its tree.
///   Files in Xet have `sha256` and `xet`, and `blob` is NULL; `oid` is then the id of their LFS pointer file.
/// * `git_commits`, `git_refs`: the history of each repository. `kind` of a ref is `heads` or `tags`.
const REPOSITORIES: &str = "
ALTER TABLE buckets ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY REFERENCES buckets(id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('model', 'dataset', 'space')),
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    private INTEGER NOT NULL,
    gated INTEGER NOT NULL,
    created INTEGER NOT NULL,
    UNIQUE (kind, namespace, name)
);
CREATE TABLE git_blobs (
    id INTEGER PRIMARY KEY,
    oid BLOB NOT NULL UNIQUE,
    content BLOB NOT NULL
);
CREATE TABLE git_trees (
    id INTEGER PRIMARY KEY,
    oid BLOB NOT NULL UNIQUE
);
CREATE TABLE git_entries (
    tree INTEGER NOT NULL REFERENCES git_trees(id),
    name BLOB NOT NULL,
    oid BLOB NOT NULL,
    child INTEGER REFERENCES git_trees(id),
    executable INTEGER NOT NULL,
    size INTEGER NOT NULL,
    blob INTEGER REFERENCES git_blobs(id),
    sha256 BLOB,
    xet BLOB,
    PRIMARY KEY (tree, name)
) WITHOUT ROWID;
CREATE TABLE git_commits (
    id INTEGER PRIMARY KEY,
    repository INTEGER NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,
    oid BLOB NOT NULL,
    parent INTEGER REFERENCES git_commits(id),
    tree INTEGER NOT NULL REFERENCES git_trees(id),
    created INTEGER NOT NULL,
    author TEXT NOT NULL,
    message TEXT NOT NULL,
    size INTEGER NOT NULL,
    UNIQUE (repository, oid)
);
CREATE TABLE git_refs (
    repository INTEGER NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('heads', 'tags')),
    name TEXT NOT NULL,
    target INTEGER NOT NULL REFERENCES git_commits(id),
    PRIMARY KEY (repository, kind, name)
) WITHOUT ROWID;
";

//! Keeps shards of own uploads, and responses to chunk queries, in a folder.
//!
//! For dedup they are hints only ([`super`]): a chunk found in one tells which chunk to ask the CAS
//! for. Shards of own uploads serve a later session too that composes a file of parts of uploaded
//! ones. They hold the file section (terms) and the xorb sections (hashes and lengths of chunks) of
//! everything that was registered, in the server-stored form of the Xet spec, 7.6.
//!
//! Each session stores one small shard. Every [`MERGE`] of them are merged into one file, until that has [`GROWN`]
//! bytes: thousands of sessions leave tens of files. A merged shard is a shard like any other.
//!
//! A folder belongs to one bucket or repository of one CAS. Any number of processes may use it ([`folder`]). It is
//! bounded in bytes and in files; the oldest files are deleted first. All of it is a cache: a failure is logged and
//! costs dedup only. Everything here blocks.

mod folder;
mod hints;
#[cfg(test)]
mod tests;

use crate::Hash;
use crate::shard::{Footer, Shard};
use folder::{Folder, Name, seconds};
use hints::Hints;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Life of an own shard, in seconds: three weeks, as in the reference implementation.
const OWN_LIFE: u64 = 21 * 86_400;
/// Bytes of a shard per chunk: bounds the hints by the bytes of the folder.
const RECORD: u64 = 48;
/// Number of small shards that are merged into one. Each merge writes the whole shard again.
const MERGE: usize = 16;
/// Bytes at which a shard stops growing. A session then pays for at most 1/`MERGE` of it, which is less than its own
/// upload costs, and the default bounds still hold more than a hundred such shards.
const GROWN: usize = 256 * 1024;
/// Most seconds between the shards that are merged: the oldest one determines when the merged shard expires.
const MERGED_SPAN: u64 = 86_400;

/// Bounds of a folder of shards.
#[derive(Clone, Copy, Debug)]
pub struct LocalLimits {
    /// Bytes of all shards. Each 48 of them take about 16 bytes of memory.
    pub max_bytes: u64,
    /// Number of shards.
    pub max_files: usize,
}

impl Default for LocalLimits {
    /// 32 MiB: the chunks of about 44 GiB.
    fn default() -> Self {
        Self { max_bytes: 32 * 1024 * 1024, max_files: 2048 }
    }
}

/// A folder of shards of earlier sessions. Cheap to clone. A process opens a folder once.
#[derive(Clone)]
pub struct LocalShards(Arc<Inner>);

struct Inner {
    /// Held over file operations. Locked before `hints`.
    files: Mutex<Files>,
    hints: Mutex<Hints>,
}

struct Files {
    folder: Folder,
    growing: Growing,
}

impl std::fmt::Debug for LocalShards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalShards").finish_non_exhaustive()
    }
}

impl LocalShards {
    /// Opens the folder and reads all shards in it. Creates it if it does not exist. Blocks.
    pub fn open(dir: PathBuf, limits: LocalLimits) -> io::Result<Self> {
        let now = SystemTime::now();
        let mut files = Files { folder: Folder::open(dir, limits, now)?, growing: Growing::default() };
        let hints = files.read(now);
        Ok(Self(Arc::new(Inner { files: Mutex::new(files), hints: Mutex::new(hints) })))
    }

    /// Returns the chunk to ask for, if `chunk` is in one of the shards.
    pub(super) fn hint(&self, chunk: &Hash) -> Option<Hash> {
        self.0.hints().find(chunk)
    }

    /// Keeps a shard that was registered.
    pub(in crate::upload) fn keep_own(&self, shard: &Shard) {
        self.keep_own_at(shard, SystemTime::now());
    }

    fn keep_own_at(&self, shard: &Shard, now: SystemTime) {
        let mut files = self.0.files();
        logged(files.keep_own(shard, now));
        self.0.hints().add(shard, &own_footer(seconds(now)), None);
        logged(self.0.bound_hints(&mut files, now));
    }

    /// Keeps the response to a query for the chunk `question` until it expires.
    pub(super) fn keep_answer(&self, question: &Hash, bytes: &[u8], expires: u64) {
        let now = SystemTime::now();
        if expires <= seconds(now) {
            return;
        }
        let name = Name { question: Some(*question), ..Name::of_own(bytes) };
        let mut files = self.0.files();
        logged(files.folder.store(name, bytes, now));
        logged(self.0.bound_hints(&mut files, now));
    }
}

impl Inner {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rebuilds the hints from the files once there are too many: hints of deleted shards stay until then.
    fn bound_hints(&self, files: &mut Files, now: SystemTime) -> io::Result<()> {
        if self.hints().count as u64 > 2 * files.folder.limits().max_bytes / RECORD {
            files.folder.list(now)?;
            *self.hints() = files.read(now);
        }
        Ok(())
    }
}

impl Files {
    /// Reads all shards of the folder as hints. Merges small ones that earlier processes left.
    fn read(&mut self, now: SystemTime) -> Hints {
        let mut hints = Hints::default();
        let mut small = Vec::new();
        for (name, len) in self.folder.names() {
            match self.folder.read(&name, now) {
                Ok(Some((shard, footer))) => {
                    hints.add(&shard, &footer, name.question);
                    if name.question.is_none() && footer.hmac_key == [0; 32] && len < GROWN as u64 {
                        small.push((footer.created, name, shard));
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "cannot read a shard"),
            }
        }
        if small.len() >= MERGE {
            small.sort_by_key(|(created, name, _)| (*created, *name));
            let mut group = Growing::default();
            for (created, name, shard) in small {
                if !group.takes(&shard, created) {
                    logged(std::mem::take(&mut group).merge(2, &mut self.folder, now));
                }
                group.add(&shard, name, created);
            }
            logged(group.merge(MERGE, &mut self.folder, now));
        }
        hints
    }

    fn keep_own(&mut self, shard: &Shard, now: SystemTime) -> io::Result<()> {
        let created = seconds(now);
        let bytes = shard.to_stored(&own_footer(created), false);
        let name = Name::of_own(&bytes);
        self.folder.store(name, &bytes, now)?;
        if bytes.len() >= GROWN {
            return Ok(());
        }
        if !self.growing.takes(shard, created) {
            std::mem::take(&mut self.growing).merge(2, &mut self.folder, now)?;
        }
        self.growing.add(shard, name, created);
        self.growing.merge(MERGE, &mut self.folder, now)
    }
}

/// Own shards that are merged into one file.
#[derive(Default)]
struct Growing {
    /// Content of all of them, each file and xorb once.
    merged: Shard,
    seen: HashSet<Hash>,
    /// The files that hold it.
    parts: Vec<Name>,
    /// Unix seconds of the oldest; 0 if there is none.
    created: u64,
}

impl Growing {
    /// Returns true if `shard` may be merged with these.
    fn takes(&self, shard: &Shard, created: u64) -> bool {
        self.parts.is_empty()
            || (self.merged.upload_len() + shard.upload_len() <= GROWN && created.abs_diff(self.created) <= MERGED_SPAN)
    }

    fn add(&mut self, shard: &Shard, name: Name, created: u64) {
        self.created = if self.parts.is_empty() { created } else { self.created.min(created) };
        for file in shard.files.iter().filter(|file| !self.seen.contains(&file.hash)) {
            self.merged.files.push(file.clone());
        }
        for xorb in shard.xorbs.iter().filter(|xorb| !self.seen.contains(&xorb.hash)) {
            self.merged.xorbs.push(xorb.clone());
        }
        self.seen.extend(shard.files.iter().map(|file| file.hash));
        self.seen.extend(shard.xorbs.iter().map(|xorb| xorb.hash));
        if !self.parts.contains(&name) {
            self.parts.push(name);
        }
    }

    /// Replaces the parts by one file, if they are at least `least`. The parts are deleted after it is stored.
    fn merge(&mut self, least: usize, folder: &mut Folder, now: SystemTime) -> io::Result<()> {
        if self.parts.len() < least {
            return Ok(());
        }
        let bytes = self.merged.to_stored(&own_footer(self.created), false);
        let name = Name::of_own(&bytes);
        folder.store(name, &bytes, now)?;
        self.parts.iter().filter(|part| **part != name).for_each(|part| folder.remove(part));
        self.parts = vec![name];
        Ok(())
    }
}

/// Footer of an own shard. `created` is in Unix seconds.
fn own_footer(created: u64) -> Footer {
    Footer { hmac_key: [0; 32], created, expires: created + OWN_LIFE }
}

fn logged(kept: io::Result<()>) {
    if let Err(error) = kept {
        tracing::debug!(%error, "cannot keep a shard");
    }
}
